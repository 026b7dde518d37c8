"""Pictures for people: an image with a caption and bars of scores, thumbnails, a confusion matrix."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from patchform.errors import ResourceError

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
        pen.text((size // 4, top + line // 2), _fitted(bar.text, font, room), fill=INK, font=font, anchor="lm")
    return page


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
