"""Maps of cells (B, C, h, w): resized, laid over the pixels that the cells are of, averaged to fewer cells.

Every size may be a symbol (`grids.known`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from patchform.geometry import grids

Mode = Literal["nearest", "bilinear"]


def to_size(x: Tensor, size: Sequence[int], mode: Mode = "bilinear") -> Tensor:
    """(B, C, h, w) -> (B, C, *size), corners not aligned; at its own size it is returned as it is."""
    here = x.shape[-2:]
    if grids.known(*here, *size) and tuple(here) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode=mode, **({} if mode == "nearest" else {"align_corners": False}))


def reach(covered: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels that cells are resized to, so that each lies over its own pixels.

    Cells of a stride that is itself rounded (CrossViT) may cover less than the input; they are stretched over it.

    Args:
        covered: height and width of what they cover, pixels; the last cells may reach beyond the input.
        size: of the input.
    """
    return larger(covered[0], size[0]), larger(covered[1], size[1])


def larger(one: int, other: int) -> int:
    """The larger of two lengths, which may be symbols."""
    return cast("int", torch.sym_max(one, other))


def over_pixels(cells: Tensor, covered: tuple[int, int], size: tuple[int, int], mode: Mode = "bilinear") -> Tensor:
    """(B, C, h, w) -> (B, C, *size) float32: resized to what they cover, see `reach`; what lies beyond is cut off."""
    return to_size(cells.float(), reach(covered, size), mode)[..., : size[0], : size[1]]


def in_order(x: Tensor) -> Tensor:
    """(B, ...) -> the same; in a graph for any size its last axis lies innermost in memory.

    Of another order convolutions, products and interpolation ask whether lengths are 1, which ties the graph to more.
    """
    return x if grids.known(*x.shape) else x.clone(memory_format=torch.contiguous_format)


def pooled(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side): means, as `torch.nn.functional.adaptive_avg_pool2d` has them."""
    height, width = x.shape[-2:]
    if grids.known(height, width):
        return F.adaptive_avg_pool2d(x, side)
    down, across = (_means(length, side, device=x.device).to(x.dtype) for length in (height, width))
    maps = x.shape[0] * x.shape[1]  # not `@`, which asks for lengths of 1, and so ties a graph to more
    narrow = torch.bmm(x.reshape(maps, height, width), across.t().expand(maps, width, side))
    return torch.bmm(down.expand(maps, side, height), narrow).view(x.shape[0], x.shape[1], side, side)


def _means(length: int, parts: int, *, device: torch.device) -> Tensor:
    """(parts, length) float32: what each cell of a side weighs in each part of it, which may share cells."""
    part, cell = torch.arange(parts, device=device)[:, None], torch.arange(length, device=device)
    first, beyond = part * length // parts, ((part + 1) * length + parts - 1) // parts
    return ((cell >= first) & (cell < beyond)) / (beyond - first).float()
