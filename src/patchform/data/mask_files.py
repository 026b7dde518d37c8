"""From a label picture to the class of every pixel.

Rules, the same for all files:

* PNG, TIFF, BMP and GIF by PIL, and arrays (H, W) in `.npy` files, as in `data.images`. JPEG and WebP are refused:
  around every edge they invent classes.
* Without a colour map a pixel's number counts: a grey level of 1 to 16 bits as it is in the file, or the index of a
  palette, whose colours do not matter. With a colour map its colour counts, in palettes and grey pictures too.
* A number or colour that stands for nothing is a fault; it is never taken for "ignore".

Masks that are annotated as regions (`PolygonMask`) are drawn.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchform.data.images import (
    MAX_PIXELS,
    array_of,
    explained,
    faults_of,
    is_array,
    opened,
    orientation,
    raw_mode,
    read,
    upright,
)
from patchform.data.listing import RLE, MaskCodes, PolygonMask
from patchform.errors import DataError
from patchform.geometry.masks import from_polygons, from_runs
from patchform.records import IGNORED

_LOSSY = ("JPEG", "WebP")
_STRETCHED = {"L;2": 85, "L;4": 17}
"""PIL spreads grey levels of 2 and 4 bits over 0..255: by what to divide."""
_INVERTED = ("1;I", "1;IR", "L;I", "L;IR")
"""TIFF files whose zero is white, which PIL turns round."""
_UNKNOWN = -1
_NEAR = 16
"""Levels of red, green and blue by which a colour that was meant may differ."""


def decode_mask(source: Path | bytes | PolygonMask, coding: MaskCodes, size: tuple[int, int] | None = None) -> Tensor:
    """Decode a label picture.

    Args:
        source: a regular file, or its content; or regions.
        coding: what its numbers or colours mean; not used for regions.
        size: (height, width) of its picture, upright.

    Returns:
        (H, W) uint8: classes, and 255 where pixels are ignored.

    Raises:
        DataError: not a picture, damaged, too large, lossy, of another size, or with a number or colour that stands for
            no class; run lengths that do not fit.
    """
    if isinstance(source, PolygonMask):
        if size is not None and tuple(source.size) != tuple(size):
            _refuse_size(source.size, size)
        return _draw(source)
    with faults_of(source if isinstance(source, Path) else "the bytes given"):
        values = _values(read(source), by_color=bool(coding.colors))
        if size is not None and tuple(values.shape[:2]) != tuple(size):
            _refuse_size(values.shape[:2], size)
        classes = _by_color(values, coding) if coding.colors else _by_id(values, coding)
        return torch.from_numpy(classes)


def _draw(regions: PolygonMask) -> Tensor:
    classes = torch.full(regions.size, IGNORED, dtype=torch.uint8)
    for outline, class_ in zip(regions.segmentations, regions.classes, strict=True):
        if not isinstance(outline, RLE):
            shape = from_polygons(outline, regions.size)
        elif tuple(outline.size) == tuple(regions.size):
            shape = from_runs(*outline)
        else:
            raise DataError(f"run lengths for {outline.size}, of a picture of {regions.size} rows and columns")
        left, top, right, bottom = shape.boxes[0].tolist()
        part = classes[top:bottom, left:right]
        part[shape.bits.view(part.shape)] = class_
    return classes


def _refuse_size(size: tuple[int, ...], expected: tuple[int, int]) -> None:
    what = f"a mask of {size[1]} x {size[0]} pixels for a picture of {expected[1]} x {expected[0]}"
    if tuple(size) == tuple(expected)[::-1]:
        remedy = "if the picture has an orientation tag, which is followed, turn the mask likewise or remove the tag"
        raise DataError(what, remedy=remedy)
    raise DataError(what, remedy="they must be of one size")


def _values(data: bytes, *, by_color: bool) -> np.ndarray:
    """(H, W) integers, or (H, W, 3) uint8 colours, upright."""
    if is_array(data):
        array = array_of(data, MAX_PIXELS)
        if array.ndim != (3 if by_color else 2) or (by_color and array.shape[2] != 3):
            raise DataError(f"a mask of shape {array.shape}", remedy="save (height, width) numbers")
        return np.ascontiguousarray(array)
    format_, image = opened(data)
    layout = raw_mode(image)
    if format_ in _LOSSY or image.info.get("compression") == "jpeg":
        raise DataError(f"a mask in {format_}, which changes classes", remedy="save masks as PNG")
    if layout in _INVERTED:
        raise DataError("a mask whose zero is white", remedy="save masks as PNG")
    if format_ == "PNM" and (levels := _levels(image)) not in (255, 65535):
        raise DataError(f"a PGM mask of {levels + 1} levels, which are stretched", remedy="save masks as PNG")
    with explained(data):
        image.load()
    if by_color:
        values = np.array(image.convert("RGB"))
    elif image.mode in ("1", "L", "P"):
        values = np.array(image, np.uint8) // _STRETCHED.get(layout, 1)
    elif image.mode.startswith("I"):
        values = np.array(image, np.int32)
    else:
        what = f"a mask of colours (mode {image.mode}), not of numbers"
        bands = np.array(image.convert("RGB"))
        alike = bool((bands == bands[..., :1]).all())
        remedy = "all channels are alike: save one, or " * alike + "set data.colors to a file of names and colours"
        raise DataError(what, remedy=remedy)
    turned = orientation(image)
    if turned == 1:
        return values
    flat = torch.from_numpy(values if values.ndim == 3 else values[:, :, None]).permute(2, 0, 1)
    values = upright(flat, turned).permute(1, 2, 0).contiguous().numpy()
    return values if by_color else values[:, :, 0]


def _levels(image: Any) -> int:
    """The highest grey level by the header of a PNM file."""
    args = image.tile[0].args
    return int(args[1]) if isinstance(args, tuple) and len(args) == 2 else 255


# ------------------------------------------------------------------------------------------------- numbers to classes


def _by_id(values: np.ndarray, coding: MaskCodes) -> np.ndarray:
    table = _table(coding.ids)
    beyond = (values < 0) | (values >= len(table))  # 32-bit files may hold anything
    if not beyond.any():
        classes = table[values]
        beyond = classes == _UNKNOWN
    if beyond.any():
        number, count = _most_frequent(values[beyond])
        raise _no_class(number, count, coding, _are_levels(values))
    return classes.astype(np.uint8)


def _are_levels(values: np.ndarray) -> bool:
    """Whether the numbers are a few grey levels as far from each other as 255 allows: 0, 127, 255."""
    levels = np.unique(values)
    if not 2 <= len(levels) <= 16 or levels[0] != 0 or levels[-1] > 255:
        return False
    steps = np.diff(levels)
    return bool(steps.min() >= 8 and steps.max() - steps.min() <= 1)


def _no_class(number: int, count: int, coding: MaskCodes, levels: bool) -> DataError:
    valid = [id_ for id_, class_ in coding.ids if class_ != IGNORED]
    ignored = [id_ for id_, class_ in coding.ids if class_ == IGNORED]
    if name := dict(coding.unknown).get(number):
        return DataError(f'number {number} in {count} pixels is "{name}", a class that is not known here')
    what = f"number {number} in {count} pixels is no class ({min(valid)}..{max(valid)} are, {_few(ignored)} ignored)"
    if levels:
        return DataError(what, remedy="if grey levels stand for classes, give each as a colour in data.colors")
    if min(valid) == 0 and number == max(valid) + 1:
        return DataError(what, remedy="if numbers begin at 1, set data.zero to ignore; else check the list of classes")
    return DataError(what, remedy="check the list of classes, data.zero and data.ignore")


def _few(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:4])) + (" ... are" if len(ids) > 4 else " is" if len(ids) == 1 else " are")


def _by_color(values: np.ndarray, coding: MaskCodes) -> np.ndarray:
    keys, classes = _color_table(coding.colors)
    packed = _packed(values.astype(np.int32))
    index = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
    if (unknown := keys[index] != packed).any():
        code, count = _most_frequent(packed[unknown])
        color = (code >> 16, code >> 8 & 255, code & 255)
        what = f"colour {color} in {count} pixels is none of the {len(keys)} that are known"
        near, distance = _nearest(color, coding)
        if distance <= _NEAR:
            what += f", the nearest is {near}"
            raise DataError(
                what, remedy="masks that were resized or saved with loss have such: export them anew as PNG"
            )
        raise DataError(what, remedy="add it to the file of data.colors")
    return classes[index]


def _nearest(color: tuple[int, int, int], coding: MaskCodes) -> tuple[tuple[int, int, int], int]:
    """The known colour that is most like another, and by how much it differs at most in red, green or blue."""
    distances = [max(abs(a - b) for a, b in zip(color, known)) for known, _ in coding.colors]
    least = min(distances)
    return coding.colors[distances.index(least)][0], least


def _packed(colors: np.ndarray) -> np.ndarray:
    """(..., 3) -> (...): one number a colour."""
    return (colors[..., 0] << 16) | (colors[..., 1] << 8) | colors[..., 2]


def _most_frequent(values: np.ndarray) -> tuple[int, int]:
    """The value that occurs most often, and how often."""
    unique, counts = np.unique(values, return_counts=True)
    most = int(counts.argmax())
    return int(unique[most]), int(counts[most])


@cache
def _table(ids: tuple[tuple[int, int], ...]) -> Any:
    """(65536,) int16: class of each number."""
    table = np.full(1 << 16, _UNKNOWN, np.int16)
    for id_, class_ in ids:
        table[id_] = class_
    return table


@cache
def _color_table(colors: tuple[tuple[tuple[int, int, int], int], ...]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) packed colours in ascending order, (N,) uint8 their classes."""
    keys = _packed(np.array([color for color, _ in colors], np.int32))
    order = keys.argsort()
    return keys[order], np.array([class_ for _, class_ in colors], np.uint8)[order]
