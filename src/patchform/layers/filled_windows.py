"""Windows of grids that they do not divide, as published programs have them: zeros fill the last ones, and are keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from patchform.geometry import grids
from patchform.layers.pattern_tables import Cell, Grid
from patchform.layers.patterns import Groups, Windows


@dataclass(frozen=True)
class FilledWindows(Windows):
    """Windows of a grid that zeros fill up to whole windows, at the bottom and the right; the zeros are keys as well.

    Published dense code does this, after the norm: a real query also sees keys and values that are the bias of their
    projection. The definition is that of `Windows` on the filled grid. Padding is zeros there, so that a picture sees
    in a batch what it sees alone: what fills its own windows, and nothing beyond.
    """

    def filled(self, grid: Grid) -> Grid:
        """Rows and columns of whole windows."""
        down, across = (grids.ceil_div(side, n) * n for side, n in zip(grid, self.size))
        return down, across

    def gather(self, x: Tensor, padding: Tensor | None = None) -> Groups:
        """(B, H, W, D) and padding (B, H, W) -> groups of the filled grid."""
        if padding is not None:
            x, padding = x.masked_fill(padding[..., None], 0), self._beyond(padding)
        return super().gather(self.fill(x), padding)

    def scatter(self, groups: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(B, G, N, D) -> (B, H, W, D), without the zeros."""
        filled = super().scatter(groups, self.filled((grid[0], grid[1])))
        return filled.narrow(1, 0, grid[0]).narrow(2, 0, grid[1])

    def all_see_all(self, grid: Grid) -> bool:
        """Where none is cut."""
        return self.shift == (0, 0) or super().all_see_all(grid)

    def fill(self, x: Tensor) -> Tensor:
        """(B, H, W, D) with zeros up to whole windows."""
        height, width = x.shape[1:3]
        down, across = self.filled((height, width))
        if grids.known(height, width) and (down, across) == (height, width):
            return x
        return F.pad(x, (0, 0, 0, across - width, 0, down - height))

    def _beyond(self, padding: Tensor) -> Tensor:
        """(B, H, W) -> of the filled grid: padding but for what fills windows of the picture that are not displaced."""
        real = self.fill(~padding[..., None])[..., 0]
        for dim, n in zip((1, 2), self.size):
            real = real.unflatten(dim, (-1, n)).any(dim + 1).repeat_interleave(n, dim)
        return ~real


@dataclass(frozen=True)
class HalfFilledWindows(Windows):
    """Windows that are filled where they divide one axis of the grid, and masked where they divide neither.

    So computes code that marks the filled cells by `mask[-missing:] = 1`, which with nothing missing marks them all.
    """

    def gather(self, x: Tensor, padding: Tensor | None = None) -> Groups:
        """(B, H, W, D) and padding (B, H, W) -> groups."""
        grid = (x.shape[1], x.shape[2])
        if grids.known(*grid):
            return self._as(grid).gather(x, padding)
        masked = self._masked(grid, x.device).expand(x.shape[0], -1, -1)
        return Windows(self.size, self.shift, self.still).gather(self._filling.fill(x), masked)

    def scatter(self, groups: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(B, G, N, D) -> (B, H, W, D)."""
        return self._as((grid[0], grid[1])).scatter(groups, grid)

    @property
    def _filling(self) -> FilledWindows:
        return FilledWindows(self.size, self.shift, self.still)

    def _as(self, grid: Grid) -> Windows:
        neither = grids.known(*grid) and all(side % n for side, n in zip(grid, self.size))
        return Windows(self.size, self.shift, self.still) if neither else self._filling

    def _masked(self, grid: Grid, device: torch.device) -> Tensor:
        """(1, H', W') bool of the filled grid, sizes as symbols: what fills it, where windows divide neither axis."""
        rests = [side % n for side, n in zip(grid, self.size)]
        neither = torch.sym_min(rests[0] * rests[1], 1)  # 1 or 0
        whole = self._filling.filled(grid)
        ends = [full - neither * (full - side) for full, side in zip(whole, grid)]
        row, column = (torch.arange(full, device=device) for full in whole)
        return ((row >= ends[0])[:, None] | (column >= ends[1]))[None]


@dataclass(frozen=True)
class RolledWindows(FilledWindows):
    """Filled windows whose grid is rolled before it is filled, as timm does it: the zeros lie behind the cells that
    came around, and the last `shift` rows and columns of the filled grid, zeros or not, see themselves alone.
    """

    def sees(self, query: Cell, key: Cell, grid: Grid) -> Tensor:
        """Same tile of the grid that was rolled and filled, on the same side of the cut."""
        same = [
            (q // n == k // n) & ((q < side - s) == (k < side - s))
            for q, k, s, n, side in zip(query, key, self.shift, self.size, grid)
        ]
        return same[0] & same[1]

    def query_index(self, grid: Grid) -> Tensor:
        """The grid is rolled already."""
        return Windows(self.size).query_index(grid)

    def all_see_all(self, grid: Grid) -> bool:
        """Where nothing is cut."""
        return self.shift == (0, 0)

    def gather(self, x: Tensor, padding: Tensor | None = None) -> Groups:
        """(B, H, W, D) and padding (B, H, W) -> groups of the rolled, filled grid."""
        down, across = self.shift
        padding = padding if padding is None else padding.roll((-down, -across), (1, 2))
        return super().gather(_roll(x, (-down, -across)), padding)

    def scatter(self, groups: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(B, G, N, D) -> (B, H, W, D), rolled back."""
        return _roll(super().scatter(groups, grid), self.shift)


def _roll(x: Tensor, shift: Grid) -> Tensor:
    """(B, H, W, D), its rows and columns moved on, around the end."""
    if shift == (0, 0):
        return x
    if grids.known(*x.shape[1:3]):
        return x.roll(shift, (1, 2))
    for axis, step in enumerate(shift, start=1):  # of an axis shorter than the step ONNX makes something else
        length = x.shape[axis]
        place = torch.arange(length, device=x.device) + (-step if step < 0 else step * (length - 1))
        x = x.index_select(axis, place - place // length * length)
    return x
