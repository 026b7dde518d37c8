"""How a layer takes up weights of another size: it has `fit(name, tensor, context) -> (tensor, what was done)`.

`fit` is called with the name of a parameter below the layer and a tensor whose shape is not the parameter's, or with
any tensor where the layer is `OnGrid`. It raises ValueError, with the reason, for what cannot be or was not allowed.
Here is the arithmetic that layers share.
"""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from patchform.geometry import grids
from patchform.geometry.grids import Interpolation
from patchform.settings import Transfer

Fitted: TypeAlias = tuple[Tensor, str]
MOST_TOKENS, LEAST_CELLS = 17, 3
"""Class, distillation and register tokens that a message looks for in front of cells, and so many cells for each."""
ZERO_ROW = "zeros for the class token"
"""What a table gets in front that has no row for it (timm's no_embed_class): the same numbers come out."""


class TransferContext(NamedTuple):
    """What is allowed, and the conventions of the source of the weights."""

    transfer: Transfer
    corners: bool = False
    """Position tables are resized with the corners aligned (`weights.rules.Rules`)."""
    from_images: bool = False
    """They are of single pictures, for a model of clips."""
    native: tuple[int, ...] | None = None
    """`OnGrid.native` of the source's own layer, where its model.json says it."""

    def table(self, rows: int, own: tuple[int, int], prefix: int) -> Table:
        """How a table of so many rows lies: as model.json says, else `transfer.grid`, else the own grid or a square.

        A table without rows for the tokens in front is one whose rows are a square, or the own grid, and not behind
        those: class tokens then get zeros, by which nothing changes (`ZERO_ROW`).

        Args:
            rows: of the table, those in front of the cells too.
            own: rows and columns of the layer's own grid.
            prefix: rows in front of the cells of the layer's own table.

        Raises:
            ValueError: nothing of these has so many cells.
        """
        grid = self._stated(rows, prefix)
        if grid is not None:
            front = rows - math.prod(grid)
            if front not in (0, prefix):
                raise ValueError(f"its {rows} rows are {_fronted(front, grid)}, and this table has {prefix} in front")
            return Table(grid, front, "")
        cells, side = rows - prefix, math.isqrt(max(rows - prefix, 0))
        if cells == math.prod(own):
            return Table(own, prefix, f"grid assumed {'square' if own[0] == own[1] else f'{own[0]} x {own[1]}'}")
        if side and side * side == cells:
            return Table((side, side), prefix, "grid assumed square")
        if rows == math.prod(own):
            return Table(own, 0, f"grid assumed {own[0]} x {own[1]}")
        if prefix and math.isqrt(rows) ** 2 == rows:  # a square less one or two is none: it has no row in front
            return Table((math.isqrt(rows), math.isqrt(rows)), 0, "grid assumed square")
        raise ValueError(_why_no_grid(rows, own, prefix))

    def _stated(self, rows: int, prefix: int) -> tuple[int, int] | None:
        """The grid that model.json or `transfer.grid` says; None: neither."""
        said = self.transfer.grid
        if self.native is not None:
            return self.native[-2], self.native[-1]
        if said is None:
            return None
        for front, grid in product((prefix, 0), _coarser(said)):
            if math.prod(grid) == rows - front:
                return grid
        behind = f" behind {prefix}" if prefix else ""
        raise ValueError(f"its {rows - prefix} cells{behind} are not {said[0]} x {said[1]}, the grid that was named")

    def resize(self, table: Tensor, size: tuple[int, int], mode: Interpolation) -> Tensor:
        """`grids.resize` in the mode of the layer or in that of the source of the weights."""
        return grids.resize(table, size, mode="corners" if self.corners else mode)


class Table(NamedTuple):
    """How the rows of a position table lie."""

    grid: tuple[int, int]
    front: int
    """Rows in front of the cells."""
    assumed: str
    """What nobody said, in words; "" where the grid is known."""


def _coarser(grid: tuple[int, int]) -> list[tuple[int, int]]:
    """The grid and its halvings, rounded up, which are those of coarser stages."""
    halvings = [grid]
    while max(halvings[-1]) > 1:
        halvings.append(grids.cells(halvings[-1], 2))
    return halvings


def _fronted(front: int, grid: tuple[int, int]) -> str:
    return f"{front} in front of {grid[0]} x {grid[1]} cells"


def _why_no_grid(rows: int, own: tuple[int, int], prefix: int) -> str:
    """Why the grid of a table is not known. Rows of class tokens and registers are not to be taken for cells."""
    what = f"its {rows - prefix} cells{f' behind {prefix}' if prefix else ''} are no square"
    for front in range(prefix + 1, prefix + MOST_TOKENS + 1):
        side = math.isqrt(max(rows - front, 0))
        like_own = math.prod(own) == rows - front
        if (like_own or side * side == rows - front) and rows - front >= LEAST_CELLS * front:
            grid = own if like_own else (side, side)
            tokens = "rows of registers or of a distillation token are no cells"
            return f"{what}, {_fronted(front, grid)} would fit: {tokens}; a wide grid is said by transfer.grid"
    return f"{what}: name the grid of the source (transfer.grid)"


@runtime_checkable
class Resizable(Protocol):
    """A layer that takes up weights of another size."""

    def fit(self, name: str, tensor: Tensor, context: TransferContext) -> Fitted:
        """The tensor for the parameter `name`, and what was done."""


@runtime_checkable
class OnGrid(Resizable, Protocol):
    """A layer whose table lies on a grid that the table's shape does not tell: `fit` looks at every tensor."""

    @property
    def native(self) -> tuple[int, ...]:
        """Rows and columns; of clips, moments in front."""


def resized(native: tuple[int, int], to: tuple[int, int], what: str = "grid", assumed: str = "") -> str:
    """What was done, in words; what was assumed for it in brackets."""
    return f"{what} {native[0]} x {native[1]} to {to[0]} x {to[1]}{f' ({assumed})' if assumed else ''}"


def keeps_numbers(note: str) -> bool:
    """Whether what was done, in words, left all numbers of the source as they were."""
    return note.startswith(ZERO_ROW) and " to " not in note


def fit_line(tensor: Tensor, own: Tensor, context: TransferContext, mode: Interpolation) -> Fitted:
    """A table (N, D) along one axis, of another length."""
    if tensor.dim() != 2 or tensor.shape[1] != own.shape[1]:
        raise ValueError("it is no table of this width")
    return context.resize(tensor[:, None], (len(own), 1), mode)[:, 0], f"{len(tensor)} rows to {len(own)}"


def channels(kernel: Tensor, own: Tensor, context: TransferContext) -> Fitted:
    """A kernel (D, C, ...) of the first layer for another number of channels, by `Transfer.channels`.

    Args:
        kernel: of the source.
        own: (D, C', ...) the parameter as it is now; of its shape beyond C' only for "new".
        context: holds the method.
    """
    before, after, method = kernel.shape[1], own.shape[1], context.transfer.channels
    note = f"{before} channels to {after}"
    if method == "refuse":
        raise ValueError(f"{note}: say how (channels: repeat, average, slice or new)")
    if method == "new":
        return own.detach().clone(), f"{note}, fresh"
    if method == "slice":
        if after > before:
            raise ValueError(f"{note}: there are not so many to slice")
        return kernel[:, :after], f"{note}, sliced"
    if method == "average":
        return (kernel.sum(1, keepdim=True) / after).expand(-1, after, *kernel.shape[2:]), f"{note}, averaged"
    times = -(-after // before)
    return kernel.repeat(1, times, *(1,) * (kernel.dim() - 2))[:, :after] * (before / after), f"{note}, repeated"


def resample(kernel: Tensor, side: int) -> Tensor:
    """Patch kernels (..., p, p) for patches of `side` pixels (Beyer et al. 2023, FlexiViT, section 3.4).

    With B the bicubic, antialiased resizing of a patch as a matrix, the new kernel is the w' of least norm with
    <w', B x> = <w, x> for every patch x, or the nearest to that if the patch shrinks. Computed in float64.
    """
    before = kernel.shape[-1]
    basis = torch.eye(before * before, dtype=torch.float64, device=kernel.device).unflatten(1, (1, before, before))
    resized_basis = F.interpolate(basis, size=(side, side), mode="bicubic", antialias=True)
    inverse = torch.linalg.pinv(resized_basis.flatten(1))  # (side * side, p * p): its rows are columns of B
    return (kernel.double().flatten(-2) @ inverse.t()).unflatten(-1, (side, side)).to(kernel.dtype)
