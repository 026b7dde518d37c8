"""The resizing of `data.transforms.Fit` as part of a graph: two products with matrices that follow from the sizes.

Antialiased bilinear and bicubic resizing is separable, and each row of the result is a weighted mean of rows: so it is
exact, and the same in every runtime, where operators for resizing differ. As there, it is resized along its width, then
along its height, and uint8 is rounded after each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from patchform.data.transforms import LONGEST
from patchform.descriptions import Preprocessing
from patchform.geometry.grids import ceil_div

CUBIC = -0.5
"""Of the antialiased cubic kernel, in PIL and torch (Keys 1981, equation 15)."""


class Part(NamedTuple):
    """Where pixels of the result lie along one side of a picture."""

    start: int
    """First pixel of the picture that is looked at."""
    pixels: int
    """So many are."""
    whole: int
    """To how many these would be resized."""
    first: int
    """First of these that is kept."""
    kept: int
    """So many are."""


class ResizeInside(nn.Module):
    """Pictures of any size, those of a batch of one size, as `Fit` makes them.

    Args:
        preprocessing: `resize`, `size`, `crop_share`, `interpolation` and `bits` count.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    def forward(self, images: Tensor) -> Tensor:
        """(..., C, H, W) uint8 0..255 or float32 0..1 -> the same kind, of the size that the model sees."""
        if self.preprocessing.resize == "native":
            return images
        rows, columns = parts(self.preprocessing, images.shape[-2], images.shape[-1])
        pixels = images[..., rows.start : rows.start + rows.pixels, columns.start : columns.start + columns.pixels]
        across = pixels.float() @ self._weights(columns, images.device).t()
        down = self._weights(rows, images.device)
        if self.preprocessing.bits == 16:
            return (down @ across).clamp(0, 1)
        return _levels(down @ _levels(across)).to(torch.uint8)

    def _weights(self, part: Part, device: torch.device) -> Tensor:
        """(kept, pixels) float32, rows of which sum to 1."""
        scale = part.pixels / part.whole
        index = torch.arange(part.kept, device=device) + part.first
        cells = torch.arange(part.pixels, device=device)
        if self.preprocessing.interpolation == "nearest":
            return ((index.float() * scale).floor()[:, None] == cells).float()
        centres = (index + 0.5) * scale
        stretch = torch.sym_max(scale, 1.0)
        distance = ((cells + 0.5 - centres[:, None]) / stretch).abs()
        weights = _linear(distance) if self.preprocessing.interpolation == "bilinear" else _cubic(distance)
        weights = weights / weights.sum(1, keepdim=True)
        return weights if self.preprocessing.bits == 16 else _in_whole_numbers(weights)


def _levels(pixels: Tensor) -> Tensor:
    return (pixels + 0.5).floor().clamp(0, 255)


def _in_whole_numbers(weights: Tensor) -> Tensor:
    """As torch has them for uint8: whole numbers of 16 bits over the largest power of two for which they fit."""
    levels = torch.exp2(((32767.5 / weights.max()).log2().ceil() - 1).clamp(max=22))
    return (weights * levels).round() / levels


def _linear(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _cubic(distance: Tensor) -> Tensor:
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * CUBIC - 4 * CUBIC
    return torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))


def parts(preprocessing: Preprocessing, height: int, width: int) -> tuple[Part, Part]:
    """Of rows and of columns, in whole numbers alone, which may be symbols: as `Fit` computes them."""
    p = preprocessing
    if p.resize == "crop":
        return _covering(p, height, width)
    tall, wide = _whole(p, height, width)
    return Part(0, height, tall, 0, tall), Part(0, width, wide, 0, wide)


def _whole(p: Preprocessing, height: int, width: int) -> tuple[int, int]:
    """`whole_size`."""
    if p.resize == "squash":
        return p.size
    short, long = min(p.size), max(p.size)
    if p.resize == "keep":
        long = LONGEST * short
    least, most = torch.sym_min(height, width), torch.sym_max(height, width)
    tall, wide = (
        torch.sym_max(1, torch.sym_min(_rounded_ratio(side * short, least), _rounded_ratio(side * long, most)))
        for side in (height, width)
    )
    return tall, wide


def _rounded_ratio(number: int, by: int) -> int:
    """`round(number / by)` of positive numbers: halves to even."""
    whole = number // by
    return whole + (2 * (number - whole * by) + whole % 2 + by - 1) // (2 * by)


def _covering(p: Preprocessing, height: int, width: int) -> tuple[Part, Part]:
    """`Fit.covering` and the centre of it: far ends are cut off, the rest is resized, its middle kept."""
    longest = ceil_div(10 * torch.sym_min(height, width) * max(p.size), min(p.size))
    rows, columns = torch.sym_min(height, longest), torch.sym_min(width, longest)
    least_tall, least_wide = (int(side / p.crop_share) for side in p.size)
    wide = torch.sym_max(least_wide, columns * least_tall // rows)
    tall = torch.sym_max(least_tall, rows * least_wide // columns)
    return (
        Part(_rounded_ratio(height - rows, 2), rows, tall, _rounded_ratio(tall - p.size[0], 2), p.size[0]),
        Part(_rounded_ratio(width - columns, 2), columns, wide, _rounded_ratio(wide - p.size[1], 2), p.size[1]),
    )
