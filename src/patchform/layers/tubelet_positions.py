"""Positions of the tokens of clips: a learned table on a grid of moments, rows and columns."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from patchform.geometry import grids
from patchform.layers.fitting import ZERO_ROW, Fitted, TransferContext, resized
from patchform.layers.positions import Grid, Position


class TubeletPosition(Position):
    """One learned vector a tubelet, in raster order, moment by moment (Arnab et al. 2021, section 3.2).

    At other grids or numbers of moments the table is resized, bicubically in space and linearly in time.

    Args:
        width: D.
        grid: native rows and columns.
        moments: native length, tubelets.
        prefix: rows for tokens in front.
    """

    def __init__(self, width: int, grid: Grid, moments: int, *, prefix: int = 0) -> None:
        super().__init__()
        self.grid, self.moments, self.prefix = grid, moments, prefix
        self.table = nn.Parameter(torch.empty(1, prefix + moments * grid[0] * grid[1], width))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """(B, P + M * H*W, D) -> the same, for any number M of moments."""
        moments = (tokens.shape[1] - self.prefix) // (grid[0] * grid[1])
        table: Tensor = self.table
        if not grids.known(moments, *grid) or (moments, *grid) != self.native:
            table = _resize_table(table, self.prefix, (self.moments, *self.grid), (moments, *grid), grids.resize)
        return tokens + table.to(tokens.dtype)

    def fit(self, name: str, tensor: Tensor, context: TransferContext) -> Fitted:
        """A table (1, P + M * N, D) of another grid or length; one of pictures serves every moment (section 3.4)."""
        if tensor.dim() != 3 or (tensor.shape[0], tensor.shape[2]) != (1, self.table.shape[2]):
            raise ValueError("it is no table of this width")
        if context.from_images:
            return self._fit_pictures(tensor, context)
        shape = self._shape_of(tensor.shape[1] - self.prefix, context)
        known = context.native or context.transfer.grid or self.grid == (1, 1)
        square = "square" if shape[1] == shape[2] else f"{shape[1]} x {shape[2]}"
        assumed = "" if known else f"grid assumed {square}"
        if shape == self.native:
            return tensor, assumed
        table = _resize_table(tensor, self.prefix, shape, self.native, context.resize)
        return table, f"{resized(shape[1:], self.grid, assumed=assumed)}, {shape[0]} in time to {self.moments}"

    def _fit_pictures(self, tensor: Tensor, context: TransferContext) -> Fitted:
        """A table (1, P' + N, D) of pictures; the row of a class token that this model lacks is left out."""
        try:
            lies = context.table(tensor.shape[1], self.grid, 1)
        except ValueError:
            if self.prefix:
                raise
            lies = context.table(tensor.shape[1], self.grid, 0)
        note = f"{resized(lies.grid, self.grid, assumed=lies.assumed)}, 1 in time to {self.moments}"
        if lies.front < self.prefix:
            tensor, note = torch.cat([tensor.new_zeros(1, 1, tensor.shape[2]), tensor], 1), f"{ZERO_ROW}, {note}"
        front = max(lies.front, self.prefix)
        table = _resize_table(tensor, front, (1, *lies.grid), self.native, context.resize)
        return table[:, front - self.prefix :], note

    @property
    def native(self) -> tuple[int, int, int]:
        """Moments, rows and columns of the table."""
        return (self.moments, *self.grid)

    def _shape_of(self, cells: int, context: TransferContext) -> tuple[int, int, int]:
        """Moments, rows, columns of a table: model.json's, the own grid, a square for the own moments, or the grid that
        was named.
        """
        own = self.grid[0] * self.grid[1]
        if context.native is not None and len(context.native) == len(self.native):
            return (context.native[0], context.native[1], context.native[2])
        if own == 1:
            return cells, 1, 1
        if context.transfer.grid is not None:
            rows, columns = context.transfer.grid
            if cells % (rows * columns):
                raise ValueError(f"its {cells} cells are no multiple of {rows} x {columns}")
            return cells // (rows * columns), rows, columns
        if cells == self.moments * own:
            return self.native
        shapes = {(cells // own, *self.grid)} if cells % own == 0 else set()
        side = math.isqrt(cells // self.moments)
        if side * side * self.moments == cells:
            shapes.add((self.moments, side, side))
        if len(shapes) != 1:
            raise ValueError(
                f"its {cells} cells could be of {len(shapes)} grids and lengths: name the grid of the source"
            )
        return shapes.pop()


def _resize_table(
    table: Tensor,
    prefix: int,
    native: tuple[int, int, int],
    to: tuple[int, int, int],
    resize: Callable[..., Tensor],
) -> Tensor:
    """(1, P + M*H*W, D) -> (1, P + M'*H'*W', D), P as they are."""
    cells = table[0, prefix:].unflatten(0, native)  # (M, H, W, D)
    cells = resize(cells.permute(1, 2, 0, 3).flatten(2), to[1:], mode="bicubic")  # (H', W', M * D)
    line = cells.unflatten(2, (native[0], -1)).permute(2, 0, 1, 3).flatten(1)  # (M, H' * W' * D)
    line = resize(line[:, None], (to[0], 1), mode="bilinear")
    return torch.cat([table[:, :prefix], line.reshape(1, -1, table.shape[2])], 1)
