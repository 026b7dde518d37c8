"""Pictures for people: an image with a caption and bars of scores, classes of pixels, objects, tables of numbers."""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from patchform.geometry import masks
from patchform.records import IGNORED, Bitmaps, Instances
from patchform.resources import writing

SMALLEST = 224
"""Pixels of the shorter side below which a picture is enlarged, by a whole factor so that its pixels stay squares."""
SHARP = 480
"""The same for pictures on a page."""
_least = ContextVar("least", default=SMALLEST)
LARGEST = 2048
"""Pixels of the longer side that enlarging does not exceed."""
LEGEND = 12
"""Names below a picture of objects, the most frequent first."""
PAPER, INK, GREY, BLUE = (255, 255, 255), (20, 20, 20), (225, 225, 225), (120, 170, 225)


class Line(NamedTuple):
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


def contact_sheet(clip: Tensor, *, columns: int = 4, most: int = 8) -> Tensor:
    """Some frames of a clip (T, C, H, W), evenly spread, row by row in one image (C, h, w) of the same type."""
    picked = torch.linspace(0, len(clip) - 1, min(len(clip), most)).round().long()
    columns = min(columns, len(picked))
    missing = -len(picked) % columns
    frames = torch.cat([clip[picked], clip.new_zeros(missing, *clip.shape[1:])])
    return frames.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


@contextmanager
def sharp() -> Iterator[None]:
    """Inside, pictures are enlarged so far that letters below and on them are sharp on a page of twice the density."""
    token = _least.set(SHARP)
    try:
        yield
    finally:
        _least.reset(token)


def enlarged(picture: Image.Image, smallest: int = 0) -> Image.Image:
    """The picture, or a multiple of it that is large enough to look at, on its shorter side.

    Args:
        picture: any.
        smallest: pixels; at least `SMALLEST`, or inside of `sharp` `SHARP`.
    """
    smallest = max(smallest, _least.get())
    factor = min(-(-smallest // min(picture.size)), LARGEST // max(picture.size))
    if factor <= 1:
        return picture
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def caption(image: Tensor, bars: Sequence[Line]) -> Image.Image:
    """A picture with lines below it, the picture itself untouched but for a whole factor of tiny ones.

    Args:
        image: (C, H, W) uint8 in 0..255 or floating point in 0..1.
        bars: lines from top to bottom; text that is too long for the width is cut.
    """
    picture = enlarged(to_picture(image))
    width = max(picture.width, SMALLEST)
    size = max(12, width // 32)
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


def color_of(class_: int) -> tuple[int, int, int]:
    """In which a class is drawn: of more than 255, some have the same."""
    return palette()[class_ % IGNORED]


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


def objects(image: Tensor, target: Instances, classes: Sequence[str]) -> Image.Image:
    """Objects on their picture: masks, boxes, names and scores in the colour of the class, above a legend with counts.

    The surest objects are on top. A name that is wider than its box and a sixth of the picture is left out, its score
    too if need be, and so is one that would hide another: the legend has all.

    Args:
        image: (C, H, W) uint8 in 0..255 or floating point in 0..1.
        target: in pixels of the image.
        classes: names.
    """
    numbers = target.classes.tolist()
    scores = [1.0] * len(numbers) if target.scores is None else target.scores.tolist()
    surest = sorted(range(len(numbers)), key=lambda index: -scores[index])
    colors = [color_of(class_) for class_ in numbers]
    pixels = np.array(to_picture(image))
    if target.masks is not None:
        _tint(pixels, target.masks, colors, surest[::-1])
    picture = enlarged(Image.fromarray(pixels), 2 * SMALLEST)
    factor, pen = picture.width // pixels.shape[1], ImageDraw.Draw(picture)
    line, size = max(2, min(picture.size) // 250), max(12, max(picture.size) // 42)
    corners = [[factor * corner for corner in box] for box in target.boxes.float().tolist()]
    for index in surest[::-1]:
        left, top, right, bottom = corners[index]
        right, bottom = max(left, right), max(top, bottom)
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=PAPER, width=line + 2)
        pen.rectangle((left, top, right, bottom), outline=colors[index], width=line)
    taken: list[tuple[float, float, float, float]] = []
    for index in surest:
        name = _plain(classes[numbers[index]])[:40]
        texts = [name]
        if target.scores is not None:
            texts = [f"{name} {scores[index]:.2f}", f"{scores[index]:.2f}"]
        elif target.crowd is not None and target.crowd[index]:
            texts = [f"{name} (crowd)"]
        room = max(1.5 * (corners[index][2] - corners[index][0]), picture.width / 6)
        for text in texts:
            if _font(size).getlength(text) <= room:
                _tag(pen, text, corners[index], colors[index], taken, picture.size, size)
                break
    counts = sorted(Counter(numbers).items(), key=lambda count: (-count[1], count[0]))
    legend = [Line(f"{number} {classes[class_]}", None, color_of(class_)) for class_, number in counts]
    if len(legend) > LEGEND:
        legend[LEGEND:] = [Line(f"and {len(legend) - LEGEND} more")]
    return caption(torch.from_numpy(np.array(picture)).permute(2, 0, 1), legend or [Line("no object")])


def _tint(pixels: np.ndarray, bitmaps: Bitmaps, colors: Sequence[tuple[int, int, int]], order: Sequence[int]) -> None:
    """Lay colours over the pixels of masks, (H, W, 3) uint8, in place; their edges are opaque."""
    for index in order:
        only = masks.take(bitmaps, torch.tensor([index]))
        left, top, right, bottom = only.boxes[0].tolist()
        inside = only.bits.view(bottom - top, right - left).cpu().numpy()
        framed = np.pad(inside, 1)
        edge = inside & ~(framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:])
        under = pixels[top:bottom, left:right]
        mixed = (under[inside].astype(np.float32) + np.array(colors[index], np.float32)) / 2
        under[inside] = mixed.astype(np.uint8)
        under[edge] = colors[index]


def _tag(
    pen: ImageDraw.ImageDraw,
    text: str,
    corners: Sequence[float],
    color: tuple[int, int, int],
    taken: list[tuple[float, float, float, float]],
    size: tuple[int, int],
    letters: int,
) -> None:
    """A name at the upper left corner of a box, unless it would cover a third of one of those that are `taken`."""
    font = _font(letters)
    width, height = font.getlength(text) + letters / 2, letters * 4 / 3
    left = max(0.0, min(corners[0], size[0] - width))
    top = corners[1] - height if corners[1] >= height else min(corners[1], size[1] - height)
    for other in taken:
        across = min(left + width, other[2]) - max(left, other[0])
        down = min(top + height, other[3]) - max(top, other[1])
        if across > 0 and down > 0 and 3 * across * down > min(width, other[2] - other[0]) * height:
            return
    taken.append((left, top, left + width, top + height))
    pen.rectangle(taken[-1], fill=color)
    red, green, blue = color
    ink = INK if 299 * red + 587 * green + 114 * blue > 128_000 else PAPER
    pen.text((left + letters / 4, top + height / 2), text, fill=ink, font=font, anchor="lm")


def thumbnail(image: Tensor, side: int = 128) -> Image.Image:
    """The picture inside a square of `side` pixels, its aspect kept; smaller ones are not enlarged."""
    picture = to_picture(image)
    picture.thumbnail((side, side))
    return picture


def side_by_side(pictures: Sequence[Image.Image], side: int) -> Image.Image:
    """RGB pictures beside each other on white, none larger than `side` pixels."""
    small = [picture.copy() for picture in pictures]
    for picture in small:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    sheet = Image.new(
        "RGB", (sum(picture.width for picture in small), max(picture.height for picture in small)), "white"
    )
    left = 0
    for picture in small:
        sheet.paste(picture, (left, 0))
        left += picture.width
    return sheet


def to_png_bytes(picture: Image.Image) -> bytes:
    """The picture as the content of a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)  # three times as quick as the default, a fifth larger
    return stream.getvalue()


def save(content: bytes, path: Path) -> None:
    """Write a picture's file so that it appears whole or not at all.

    Raises:
        ResourceError: the disk is full or the folder is not writable.
    """
    unfinished = path.with_name(f".tmp-{os.getpid()}.png")
    with writing(path, len(content)):
        try:
            unfinished.write_bytes(content)
            os.replace(unfinished, path)
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
    return _figure(figure)


def precision_recall(values: Sequence[Sequence[float | None]], classes: Sequence[str]) -> bytes:
    """A PNG of precision over recall: the mean of the classes, and in their colours up to ten of them.

    Args:
        values: (C, L) precision at L levels of recall from 0 to 1; rows of None are classes without an object.
        classes: C names.
    """
    from matplotlib.figure import Figure

    rows = np.array(values, np.float64).reshape(len(classes), -1)  # None becomes NaN
    numbers = np.flatnonzero(~np.isnan(rows).any(1)).tolist()
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    levels = np.linspace(0, 1, rows.shape[1])
    for number in numbers[:10]:
        color = [level / 255 for level in color_of(number)]
        axes.plot(levels, rows[number], label=_plain(classes[number])[:24], color=color, linewidth=1)
    if numbers:
        axes.plot(levels, rows[numbers].mean(0), label="mean", color="black", linewidth=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for text in axes.legend(frameon=False, fontsize=8).get_texts():
                text.set_parse_math(False)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    return _figure(figure)


def _figure(figure: Any) -> bytes:
    """The PNG of a chart."""
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
