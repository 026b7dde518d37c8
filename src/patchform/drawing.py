"""Pictures for people: an image with a caption and bars of scores, classes of pixels, a confusion matrix."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from patchform.errors import ResourceError
from patchform.records import IGNORED

SMALLEST = 224
"""Pixels of the shorter side below which a picture is enlarged, by a whole factor so that its pixels stay squares."""
LARGEST = 2048
"""Pixels of the longer side that enlarging does not exceed."""
PAPER, INK, GREY, BLUE = (255, 255, 255), (20, 20, 20), (225, 225, 225), (120, 170, 225)


class Bar(NamedTuple):
    """One line below a picture."""

    text: str
    share: float | None = None
    """Length of the bar, in 0..1; None for text alone."""
    color: tuple[int, int, int] | None = None
    """Of a square in front of the text, which makes a legend."""


def to_picture(image: Tensor) -> Image.Image:
    """An RGB picture of (C, H, W) pixels, uint8 in 0..255 or floating point in 0..1.

    One or two channels are shown as grey (the first), others by their first three.
    """
    pixels = image[:3] if image.shape[0] > 2 else image[:1].expand(3, -1, -1)
    if pixels.is_floating_point():
        pixels = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.cpu().permute(1, 2, 0).contiguous().numpy())


def enlarged(picture: Image.Image) -> Image.Image:
    """The picture, or a multiple of it that is large enough to look at."""
    factor = min(-(-SMALLEST // min(picture.size)), LARGEST // max(picture.size))
    if factor <= 1:
        return picture
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def caption(image: Tensor, bars: Sequence[Bar]) -> Image.Image:
    """A picture with lines below it, the picture itself untouched but for a whole factor of tiny ones.

    Args:
        image: (C, H, W) uint8 in 0..255 or floating point in 0..1.
        bars: lines from top to bottom; text that is too long for the width is cut.
    """
    picture = enlarged(to_picture(image))
    width = max(picture.width, SMALLEST)
    size = max(12, min(width // 24, 48))
    font, line = _font(size), size * 3 // 2
    page = Image.new("RGB", (width, picture.height + line * len(bars)), PAPER)
    page.paste(picture, ((width - picture.width) // 2, 0))
    pen = ImageDraw.Draw(page)
    for row, bar in enumerate(bars):
        top = picture.height + row * line
        room = width - size
        if bar.share is not None:
            number = f"{bar.share:.1%}"
            pen.rectangle((0, top, width, top + line - 2), fill=GREY)
            pen.rectangle((0, top, round(width * min(max(bar.share, 0), 1)), top + line - 2), fill=BLUE)
            pen.text((width - size // 4, top + line // 2), number, fill=INK, font=font, anchor="rm")
            room -= round(font.getlength(number))
        left = size // 4
        if bar.color is not None:
            pen.rectangle((left, top + left, left + size, top + left + size), fill=bar.color, outline=INK)
            left, room = left + size * 3 // 2, room - size * 3 // 2
        pen.text((left, top + line // 2), _fitted(bar.text, font, room), fill=INK, font=font, anchor="lm")
    return page


@cache
def palette() -> tuple[tuple[int, int, int], ...]:
    """256 colours, the first ones the most different; the last, for what is ignored, is black.

    Each is the one of a grid of 9 x 9 x 9 that is farthest from black, white and all before it, where the distance of
    two is the least of three in CIELAB (of 1976): as most people see them, and as the colour-blind do (Machado et al.
    2009, protan and deutan of severity 1). No palette keeps hundreds apart.
    """
    levels = torch.linspace(0, 1, 9, dtype=torch.float64)
    grid = torch.cartesian_prod(levels, levels, levels)  # (729, 3)
    seen = torch.stack([_lab(_linear(grid) @ torch.tensor(eye, dtype=torch.float64).T) for eye in _EYES], 1)
    chosen = [0, len(grid) - 1]  # black and white
    nearest = (seen - seen[0]).square().sum(2).amin(1)
    while len(chosen) < 2 + IGNORED:
        nearest = nearest.minimum((seen - seen[chosen[-1]]).square().sum(2).amin(1))
        chosen.append(int(nearest.argmax()))
    colors = (grid[chosen[2:] + [0]] * 255).round().int().tolist()
    return tuple((red, green, blue) for red, green, blue in colors)


_EYES = (
    ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
)
_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))


def _linear(srgb: Tensor) -> Tensor:
    """Light of sRGB values in 0..1 (IEC 61966-2-1)."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _lab(light: Tensor) -> Tensor:
    """CIELAB of linear sRGB, (N, 3) -> (N, 3); white is that of sRGB."""
    matrix = torch.tensor(_TO_XYZ, dtype=torch.float64)
    xyz = light.clamp(0, 1) @ matrix.T / matrix.sum(1)
    root = torch.where(xyz > 216 / 24389, xyz ** (1 / 3), (24389 / 27 * xyz + 16) / 116)
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def overlay(image: Tensor, classes: Tensor, *, opacity: float = 0.5) -> Tensor:
    """The picture with the colours of its pixels' classes over it; where they are 255 it stays as it is.

    Args:
        image: (C, H, W) uint8 in 0..255 or floating point in 0..1.
        classes: (H, W) integers in 0..255.
        opacity: of the colours.

    Returns:
        (3, H, W) uint8.
    """
    pixels = torch.tensor(np.array(to_picture(image))).permute(2, 0, 1)
    classes = classes.cpu().long()
    colors = torch.tensor(palette(), dtype=torch.uint8)[classes].permute(2, 0, 1)
    mixed = torch.lerp(pixels.float(), colors.float(), opacity).round().to(torch.uint8)
    return torch.where(classes == IGNORED, pixels, mixed)


def index_picture(classes: Tensor) -> Image.Image:
    """A picture whose pixels are the numbers of classes, (H, W) in 0..255, with `palette` for those who look at it."""
    picture = Image.fromarray(classes.cpu().to(torch.uint8).contiguous().numpy()).convert("P")
    picture.putpalette([level for color in palette() for level in color])
    return picture


def thumbnail(image: Tensor, side: int = 128) -> Image.Image:
    """The picture inside a square of `side` pixels, its aspect kept; smaller ones are not enlarged."""
    picture = to_picture(image)
    picture.thumbnail((side, side))
    return picture


def to_png_bytes(picture: Image.Image) -> bytes:
    """The picture as the content of a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)  # three times as quick as the default, a fifth larger
    return stream.getvalue()


def save(content: bytes, path: Path) -> None:
    """Write a picture's file so that it appears whole or not at all.

    Raises:
        ResourceError: the disk is full or the place is not writable.
    """
    unfinished = path.with_name(f".tmp-{os.getpid()}.png")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError as error:
        raise ResourceError(f"cannot be written ({error.strerror})", where=path) from error
    finally:
        unfinished.unlink(missing_ok=True)


def confusion(matrix: Sequence[Sequence[float | None]], classes: Sequence[str]) -> bytes:
    """A PNG of a confusion matrix: a row a true class, shaded by its shares, with counts while they are legible.

    Args:
        matrix: (C, C) counts, rows are the truth and columns the prediction.
        classes: C names.
    """
    from matplotlib.figure import Figure  # half a second; its pyplot would keep global state

    number = len(classes)
    counts = torch.tensor(matrix, dtype=torch.float64).view(number, number)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = min(3 + 0.35 * number, 14)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if number <= 40:
        names = [_plain(name)[:24] for name in classes]
        axes.set_xticks(range(number), names, rotation=90, parse_math=False)
        axes.set_yticks(range(number), names, parse_math=False)
    if number <= 20:
        for row, column in counts.nonzero().tolist():
            shade = "white" if shares[row, column] > 0.5 else "black"
            text = f"{int(counts[row, column])}"
            axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=8)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font without the letters of a class name
        figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _plain(text: str) -> str:
    """One line of text."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _fitted(text: str, font: Any, room: float) -> str:
    """As much of one line of text as has room, in pixels."""
    text = _plain(text)[:200]
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "...") > room:
        text = text[:-1]
    return text + "..."
