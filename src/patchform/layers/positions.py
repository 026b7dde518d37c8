"""Positions of tokens: absolute ones are added to the tokens, relative ones act inside attention.

Absolute ones are called as `position(tokens, grid)`; relative ones as `position(q, k, grid) -> (q, k, bias)`. In both,
tokens in front of the H*W cells of `grid` (class token, registers) are not cells: a learned 1D table may hold rows for
them, everything else leaves them alone. Tables grow and shrink by target size (`geometry.grids.resize`), so any grid
serves, and at the native grid nothing changes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.geometry.grids import Interpolation
from patchform.layers.fitting import ZERO_ROW, Fitted, TransferContext, fit_line, resized
from patchform.lookup import no_such

Grid: TypeAlias = tuple[int, int]
PositionName: TypeAlias = Literal[
    "none",
    "learned_1d",
    "learned_1d_antialiased",
    "sinusoid_1d",
    "learned_2d",
    "sincos_2d",
    "relative_bias",
    "relative_2d",
    "rope_2d",
]


class Position(nn.Module):
    """Absolute position: an embedding of its cell is added to each token. This one adds nothing."""

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """(B, P + H*W, D) -> the same shape, P tokens in front of the cells."""
        return tokens


class Learned1D(Position):
    """One learned vector a token, in raster order (Dosovitskiy et al. 2021, section 3.1).

    Args:
        width: D.
        grid: native rows and columns.
        prefix: rows for tokens in front of the cells.
        mode: interpolation at other grids; the ViT paper's section 3.2 asks for 2D interpolation. Antialiased as
            DINOv2 with registers has it (Darcet et al. 2024).
    """

    def __init__(self, width: int, grid: Grid, *, prefix: int = 0, mode: Interpolation = "bicubic") -> None:
        super().__init__()
        self.grid, self.prefix, self.mode = grid, prefix, mode
        self.table = nn.Parameter(torch.empty(1, prefix + grid[0] * grid[1], width))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Add the table, resized to `grid`."""
        table: Tensor = self.table
        if not grids.known(*grid) or grid != self.grid:
            native = table[0, self.prefix :].unflatten(0, self.grid)
            cells = grids.resize(native, grid, mode=self.mode).flatten(0, 1)
            table = torch.cat([table[:, : self.prefix], cells[None]], 1)
        return _add_last(tokens, table[0])

    def fit(self, name: str, tensor: Tensor, context: TransferContext) -> Fitted:
        """A table (1, P + N, D) of another grid."""
        if tensor.dim() != 3 or (tensor.shape[0], tensor.shape[2]) != (1, self.table.shape[2]):
            raise ValueError("it is no table of this width")
        table = context.table(tensor.shape[1], self.grid, self.prefix)
        if table.front == self.prefix and table.grid == self.grid:
            return tensor, table.assumed
        cells = context.resize(tensor[0, table.front :].unflatten(0, table.grid), self.grid, self.mode).flatten(0, 1)
        front, notes = tensor[:, : table.front], []
        if table.front < self.prefix:
            front = tensor.new_zeros(1, self.prefix, tensor.shape[2])
            notes.append(ZERO_ROW)
        if table.grid != self.grid:
            notes.append(resized(table.grid, self.grid, assumed=table.assumed))
        elif table.assumed:
            notes.append(table.assumed)
        return torch.cat([front, cells[None]], 1), ", ".join(notes)

    @property
    def native(self) -> Grid:
        """Rows and columns of the table."""
        return self.grid


class Learned2D(Position):
    """A learned vector a row beside a learned vector a column, D/2 each (Dosovitskiy et al. 2021, appendix D.4)."""

    def __init__(self, width: int, grid: Grid, *, mode: Interpolation = "bilinear") -> None:
        super().__init__()
        if width % 2:
            raise UsageError(f"learned_2d needs an even width, not {width}")
        self.mode = mode
        self.rows = nn.Parameter(torch.empty(grid[0], width // 2))
        self.columns = nn.Parameter(torch.empty(grid[1], width // 2))
        nn.init.trunc_normal_(self.rows, std=0.02)
        nn.init.trunc_normal_(self.columns, std=0.02)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Add [row, column] to every cell."""
        rows = grids.resize(self.rows[:, None], (grid[0], 1), mode=self.mode)  # (H, 1, D/2)
        columns = grids.resize(self.columns[None], (1, grid[1]), mode=self.mode)  # (1, W, D/2)
        table = torch.cat([rows.expand(-1, grid[1], -1), columns.expand(grid[0], -1, -1)], -1).flatten(0, 1)
        return _add_last(tokens, table)

    def fit(self, name: str, tensor: Tensor, context: TransferContext) -> Fitted:
        """Rows or columns (N, D/2) of another grid."""
        return fit_line(tensor, getattr(self, name), context, self.mode)


class Sinusoid1D(Position):
    """Fixed sines and cosines of the raster index, interleaved (Vaswani et al. 2017, section 3.5)."""

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Add sin and cos of the cell's number."""
        sinusoids = _sinusoids(torch.arange(grid[0] * grid[1], device=tokens.device), tokens.shape[-1])
        return _add_last(tokens, torch.stack(sinusoids, -1).flatten(-2))


class SinCos2D(Position):
    """Fixed sines and cosines: a quarter of the width each for sin x, cos x, sin y, cos y (He et al. 2022, MAE)."""

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Add sin and cos of column and row."""
        row, column = grids.coordinates(grid, device=tokens.device)
        half = tokens.shape[-1] // 2
        return _add_last(tokens, torch.cat([*_sinusoids(column, half), *_sinusoids(row, half)], -1))


def _sinusoids(coordinate: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Sin and cos, each (..., width / 2), of `coordinate` (...) at wavelengths of 2 pi to 10000 * 2 pi; in float64."""
    if width % 2:
        raise UsageError(f"sine and cosine positions need an even width for each axis, not {width}")
    rate = 10000 ** -(torch.arange(width // 2, dtype=torch.float64, device=coordinate.device) / (width // 2))
    angle = coordinate[..., None] * rate
    return angle.sin(), angle.cos()


def _add_last(tokens: Tensor, table: Tensor) -> Tensor:
    """Add (N, D) to the last N tokens."""
    before, cells = tokens.split([tokens.shape[1] - table.shape[0], table.shape[0]], 1)
    cells = cells + table.to(tokens.dtype)
    return torch.cat([before, cells], 1) if before.shape[1] else cells


class SinePosition2D(nn.Module):
    """Sines and cosines of row and column as fractions of the picture, padding left out (Carion et al. 2020, DETR).

    Not added to the tokens: every attention adds them to queries and keys. Half of the width is the row's, half the
    column's, sin and cos in turn. The last real row, and column, is at 2 pi.

    Args:
        width: D, which 4 divides.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % 4:
            raise UsageError(f"sines of row and column need a width that 4 divides, not {width}")
        self.width = width

    def forward(self, grid: Grid, padding: Tensor) -> Tensor:
        """(H, W) and (B, H, W) bool, True on padding right of and below the picture -> (B, H*W, D) float32."""
        real = ~padding
        axes = []
        for length, ends in zip(grid, (real.any(2).sum(1), real.any(1).sum(1))):
            fraction = torch.arange(1, length + 1, device=padding.device) / (ends[:, None] + 1e-6)  # (B, length)
            axes.append(torch.stack(_sinusoids(2 * math.pi * fraction, self.width // 2), -1).flatten(-2).float())
        return _outer_concat(*axes, rows_first=True)


class LearnedPosition2D(nn.Module):
    """A learned vector a column beside a learned vector a row, by number (DETR's code: 50 of each, D/2 wide).

    Not added to the tokens, as `SinePosition2D`. Beyond their number the vectors are spread over all rows or columns.

    Args:
        width: D, even.
        number: of vectors for rows, and for columns.
    """

    def __init__(self, width: int, number: int = 50) -> None:
        super().__init__()
        self.rows, self.columns = (nn.Parameter(torch.rand(number, width // 2)) for _ in range(2))

    def forward(self, grid: Grid, padding: Tensor) -> Tensor:
        """(H, W) and (B, H, W) -> (1, H*W, D)."""
        axes = []
        for length, table in zip(grid, (self.rows, self.columns)):
            axis = grids.resize(table[:, None], (grids.larger(length, table.shape[0]), 1), mode="bilinear")
            axes.append(axis[None, :length, 0])
        return _outer_concat(*axes, rows_first=False)


def _outer_concat(rows: Tensor, columns: Tensor, *, rows_first: bool) -> Tensor:
    """(B, H, d) and (B, W, d) -> (B, H*W, 2d)."""
    grid = rows.shape[1], columns.shape[1]
    pair = rows[:, :, None].expand(-1, -1, grid[1], -1), columns[:, None].expand(-1, grid[0], -1, -1)
    return torch.cat(pair if rows_first else pair[::-1], -1).flatten(1, 2)


class RelativePosition(nn.Module):
    """Position inside attention."""

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, grid: Grid | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, G, h, N, d) queries and keys, not scaled -> queries, keys, and a bias (..., h, N, N) or None."""


class RelativeBias(RelativePosition):
    """A learned number for each head and offset (dy, dx) between query and key (Liu et al. 2021, Swin, equation 4).

    The table is (2H - 1) * (2W - 1) rows by heads, row (dy + H - 1) * (2W - 1) + dx + W - 1. Pairs with a token in
    front of the cells have no bias. At other grids the table is resized as a picture of offsets.
    """

    index: Tensor
    mode: Interpolation = "bicubic"
    """Of tables of other grids."""

    def __init__(self, heads: int, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.empty((2 * grid[0] - 1) * (2 * grid[1] - 1), heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.register_buffer("index", self.offsets(grid), persistent=False)

    @staticmethod
    def offsets(grid: Grid, device: torch.device | None = None) -> Tensor:
        """Row of the table for every query and key, flat: (N * N,) int64."""
        (height, width), (row, column) = grid, grids.coordinates(grid, device=device)
        dy, dx = row[:, None] - row + height - 1, column[:, None] - column + width - 1
        return (dy * (2 * width - 1) + dx).flatten()

    def between_cells(self, grid: Grid) -> Tensor:
        """(h, H*W, H*W): the bias of each query cell for each key cell."""
        table: Tensor = self.table
        index = self.index
        if not grids.known(*grid) or grid != self.grid:
            native = table.unflatten(0, (2 * self.grid[0] - 1, 2 * self.grid[1] - 1))
            table = grids.resize(native, (2 * grid[0] - 1, 2 * grid[1] - 1), mode=self.mode).flatten(0, 1)
            index = self.offsets(grid, table.device)
        cells = grid[0] * grid[1]
        return table.t().index_select(1, index).unflatten(1, (cells, cells))

    def forward(self, q: Tensor, k: Tensor, grid: Grid | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Leave q and k, give the bias (h, N, N)."""
        grid = grid or self.grid
        bias, prefix = self.between_cells(grid), q.shape[-2] - grid[0] * grid[1]
        return q, k, nn.functional.pad(bias, (prefix, 0, prefix, 0)) if prefix else bias

    def fit(self, name: str, tensor: Tensor, context: TransferContext) -> Fitted:
        """A table of another grid or window, as a picture of offsets."""
        if tensor.dim() != 2 or tensor.shape[1] != self.table.shape[1]:
            raise ValueError("it is no table of so many heads")
        grid, assumed = self._grid_of(tensor.shape[0], context)
        if grid == self.grid:
            return tensor, assumed
        native, to = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (grid, self.grid))
        table = grids.resize(tensor.unflatten(0, native), to, mode=self.mode).flatten(0, 1)
        return table, resized(grid, self.grid, "window", assumed)

    def _grid_of(self, offsets: int, context: TransferContext) -> tuple[Grid, str]:
        """The grid of a table of so many offsets, and what was assumed: windows are square, other grids may not be."""
        said = (context.native or ())[-2:] or context.transfer.grid
        if said is not None and (2 * said[0] - 1) * (2 * said[1] - 1) == offsets:
            return (said[0], said[1]), ""
        square = self.grid[0] == self.grid[1]
        if offsets == self.table.shape[0]:
            return self.grid, "" if square else f"grid assumed {self.grid[0]} x {self.grid[1]}"
        side = math.isqrt(offsets)
        if side * side != offsets or side % 2 == 0:
            raise ValueError(f"its {offsets} offsets are not those of a square window: name its grid (transfer.grid)")
        return ((side + 1) // 2, (side + 1) // 2), "" if square else "grid assumed square"

    @property
    def native(self) -> Grid:
        """Rows and columns between which the offsets are."""
        return self.grid


class Relative2D(RelativePosition):
    """Learned embeddings of row and column offsets that multiply the scaled query (Ramachandran 2019; BoTNet, 2021).

    Adds scale * q . (rows[dy] + columns[dx]) to the score of a pair, dy and dx from query to key. The embeddings are
    shared by the heads. At other grids they are resized along their own axis.
    """

    def __init__(self, head_width: int, grid: Grid) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(2 * grid[0] - 1, head_width))
        self.columns = nn.Parameter(torch.empty(2 * grid[1] - 1, head_width))
        nn.init.normal_(self.rows, std=head_width**-0.5)
        nn.init.normal_(self.columns, std=head_width**-0.5)

    def forward(self, q: Tensor, k: Tensor, grid: Grid | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Leave q and k, give the bias (B, G, h, N, N)."""
        height, width = grid or ((self.rows.shape[0] + 1) // 2, (self.columns.shape[0] + 1) // 2)
        prefix = q.shape[-2] - height * width
        cells = q[..., prefix:, :].unflatten(-2, (height, width)) * q.shape[-1] ** -0.5  # (B, G, h, H, W, d)
        rows = grids.resize(self.rows[:, None], (2 * height - 1, 1), mode="bilinear")[:, 0]
        columns = grids.resize(self.columns[:, None], (2 * width - 1, 1), mode="bilinear")[:, 0]
        by_row = torch.einsum("...yxd,ykd->...yxk", cells, rows[_offset_index(height, q.device)])  # k: row of the key
        by_column = torch.einsum("...yxd,xkd->...yxk", cells, columns[_offset_index(width, q.device)])
        bias = (by_row[..., :, None] + by_column[..., None, :]).flatten(-2).flatten(-3, -2)
        return q, k, nn.functional.pad(bias, (prefix, 0, prefix, 0)) if prefix else bias

    def fit(self, name: str, tensor: Tensor, context: TransferContext) -> Fitted:
        """Rows or columns (2N - 1, d) of another grid."""
        return fit_line(tensor, getattr(self, name), context, "bilinear")


def _offset_index(length: int, device: torch.device) -> Tensor:
    """(length, length): index of the offset key - query, from 0."""
    cell = torch.arange(length, device=device)
    return cell - cell[:, None] + length - 1


class Rope2D(RelativePosition):
    """Rotary embeddings along both axes (Su et al. 2021, for two axes).

    The first half of a head's angles are the row's, the second the column's, of rates `base` ** -(4 i / d) for i below
    d / 4: wavelengths run from 2 pi to 2 pi * `base` cells. Papers differ in what is a coordinate and in which two
    channels turn together; here channel i is paired with i + d/4 of its half.

    Args:
        head_width: d, which 4 divides.
        base: of the wavelengths.
    """

    pair_axis = -2
    """Where the two of a pair lie when a head is (axis, rate) with an axis of two put in."""

    def __init__(self, head_width: int, *, base: float = 100.0) -> None:
        super().__init__()
        if head_width % 4:
            raise UsageError(f"rotary positions need a head width that 4 divides, not {head_width}")
        self.head_width, self.base = head_width, base

    def coordinates(self, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row and column of each cell in raster order, (H*W,) each, as they are multiplied by the rates."""
        return grids.coordinates(grid, device=device)

    def forward(self, q: Tensor, k: Tensor, grid: Grid | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rotate the cells of q and k; no bias."""
        if grid is None:
            raise UsageError("rotary positions need the grid of the tokens")
        row, column = self.coordinates(grid, q.device)
        quarter = self.head_width // 4
        rate = self.base ** -(torch.arange(quarter, dtype=torch.float64, device=q.device) / quarter)
        angle = torch.stack([row[:, None] * rate, column[:, None] * rate], 1)  # (N, 2, d/4)
        cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
        return self._rotate(q, cos, sin), self._rotate(k, cos, sin), None

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        prefix, pairs = x.shape[-2] - cos.shape[0], (2, -1, 2) if self.pair_axis == -1 else (2, 2, -1)
        a, b = x[..., prefix:, :].unflatten(-1, pairs).unbind(self.pair_axis)  # each (..., N, 2 axes, d/4)
        rotated = torch.stack([a * cos - b * sin, a * sin + b * cos], self.pair_axis).flatten(-3)
        return rotated if prefix == 0 else torch.cat([x[..., :prefix, :], rotated], -2)


def absolute(name: PositionName, width: int, grid: Grid, *, prefix: int = 0) -> Position:
    """The absolute position of that name; names of relative ones give the one that adds nothing.

    Raises:
        UsageError: no such name.
    """
    if name not in get_args(PositionName):
        raise no_such("position", name, get_args(PositionName))
    if name in ("learned_1d", "learned_1d_antialiased"):
        mode: Interpolation = "bicubic" if name == "learned_1d" else "antialiased"
        return Learned1D(width, grid, prefix=prefix, mode=mode)
    if name == "learned_2d":
        return Learned2D(width, grid)
    if name == "sinusoid_1d":
        return Sinusoid1D()
    if name == "sincos_2d":
        return SinCos2D()
    return Position()


def relative(name: PositionName, width: int, heads: int, grid: Grid) -> RelativePosition | None:
    """The position inside attention of that name; names of absolute ones give None."""
    if name == "relative_bias":
        return RelativeBias(heads, grid)
    if name == "relative_2d":
        return Relative2D(width // heads, grid)
    if name == "rope_2d":
        return Rope2D(width // heads)
    return None
