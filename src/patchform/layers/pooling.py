"""Means of rectangles of a map, whose number or size follows from that of the map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from patchform.geometry import grids


def adaptive_means(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side): means of as many rectangles, which overlap where they are not equal.

    Rows i * H / side, rounded down, to (i + 1) * H / side, rounded up: torch's `adaptive_avg_pool2d`.
    """
    if grids.known(x.shape[2], x.shape[3]):
        return F.adaptive_avg_pool2d(x, side)
    number = torch.arange(side, device=x.device)
    rows, columns = (
        _shares(number * length // side, ((number + 1) * length + side - 1) // side, length, x)
        for length in x.shape[2:]
    )
    return _product(rows, x, columns)


def square_means(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, H // side, W // side), one row and column at least: means of squares of so many cells.

    Rows and columns that make no whole square are left out; a map that is smaller than a square has the mean of what
    is there.
    """
    if grids.known(x.shape[2], x.shape[3]):
        return F.avg_pool2d(x, [min(side, length) for length in x.shape[2:]])
    starts = [side * torch.arange(torch.sym_max(1, length // side), device=x.device) for length in x.shape[2:]]
    rows, columns = (_shares(start, start + side, length, x) for start, length in zip(starts, x.shape[2:]))
    return _product(rows, x, columns)


def _product(rows: Tensor, x: Tensor, columns: Tensor) -> Tensor:
    """Weights (R, H) and (S, W) of the rows and columns of (B, C, H, W) -> (B, C, R, S)."""
    maps, (height, width) = x.shape[0] * x.shape[1], x.shape[2:]  # not `@`, which asks for lengths of 1
    narrow = torch.bmm(x.reshape(maps, height, width), columns.t().expand(maps, -1, -1))
    return torch.bmm(rows.expand(maps, -1, -1), narrow).view(*x.shape[:2], rows.shape[0], columns.shape[0])


def _shares(starts: Tensor, ends: Tensor, length: int, like: Tensor) -> Tensor:
    """(N,) and (N,), the first cell of each part of a side and the one behind the last -> (N, length), what each cell
    weighs in the mean of a part.
    """
    cell = torch.arange(length, device=like.device)
    inside = ((cell >= starts[:, None]) & (cell < ends[:, None])).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)
