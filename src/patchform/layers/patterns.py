"""Sparse attention: which keys each query attends to. A pattern has no parameters: it is a definition and a fast route.

The definition `sees(query_cell, key_cell)` is what the paper says. It is the oracle of the tests, the mask of the fast
route, and the picture in the docs. The fast route is two tables of cell numbers: `query_index`, the queries of each
group, among which every cell is once, and `key_index`, the keys of a group (its queries, unless the pattern says
otherwise). Gathering, scattering and masking are the same for all of them and live in `Pattern`.

Letters: B batch, H x W grid of cells, G groups of N queries that attend to K keys, h heads, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from patchform.geometry import grids
from patchform.layers.attention import GroupMasks, never_empty, real_keys
from patchform.layers.pattern_tables import (
    CACHE,
    Cell,
    Cells,
    Grid,
    Tables,
    build_tables,
    by_distance_to_the_ends,
    once,
)


class Groups(NamedTuple):
    """Tokens in the order in which they attend."""

    tokens: Tensor
    """(B, G, N, D)."""
    grid: Grid | None
    """Rows and columns of the queries of a group, for positions inside attention; None: in the order of the caller."""
    allowed: Tensor | GroupMasks | None = None
    """bool, broadcasts to (B, G, h, N, K); None: every query sees every key."""
    gather_keys: Callable[[Tensor], Tensor] | None = None
    """(B, G, h, N, d) -> (B, G, h, K, d), where keys are not the queries of the group."""


@dataclass(frozen=True)
class Pattern:
    """A sparse pattern on a grid; subclasses define `sees`, `query_index`, and some `key_index` and `group_grid`."""

    @abstractmethod
    def sees(self, query: Cell, key: Cell, grid: Grid) -> Tensor:
        """Whether the query attends to the key: bool, broadcasting. The definition."""

    @abstractmethod
    def query_index(self, grid: Grid) -> Tensor:
        """(G, N) int64: the cell of each query, -1 where there is none; every cell is exactly one."""

    def key_index(self, grid: Grid) -> Tensor | None:
        """(G, K) int64: the cell of each key, each once, -1 where there is none; None: keys are the queries."""
        return None

    def all_see_all(self, grid: Grid) -> bool:
        """Whether every query is a cell and sees all keys of its group, so that no mask is needed."""
        return False

    def alike(self, grid: Grid) -> Tensor | None:
        """(G,) int64: groups of one number have one mask, which is then made and kept once; None: each has its own."""
        return None

    def group_grid(self, grid: Grid) -> Grid | None:
        """Rows and columns of the queries of one group."""
        return None

    def gather(self, x: Tensor, padding: Tensor | None = None) -> Groups:
        """(B, H, W, D) and padding (B, H, W) -> groups. One copy; padding is no query's key."""
        batch, height, width, _ = x.shape
        grid = (height, width)
        table = tables_of(self, grid, x.device)
        tokens = x.flatten(1, 2).index_select(1, table.query_index).unflatten(1, (table.groups, -1))
        allowed: Tensor | GroupMasks | None = table.masks
        if table.masks is not None and table.mask_of_group is not None:
            allowed = GroupMasks(table.masks, table.mask_of_group)
        if padding is not None:
            allowed = allowed.of_all() if isinstance(allowed, GroupMasks) else allowed
            key_padding = padding.flatten(1).index_select(1, table.query_index)  # (B, G*N)
            if table.gather_index is not None:
                key_padding = key_padding.index_select(1, table.gather_index)  # (B, G*K)
            real = ~key_padding.view(batch, table.groups, 1, 1, -1) & table.key_exists
            allowed = never_empty(real if allowed is None else allowed & real)
        gather_keys = None if table.gather_index is None else partial(_gather_keys, table=table)
        return Groups(tokens, self.group_grid(grid), allowed, gather_keys)

    def scatter(self, groups: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(B, G, N, D) -> (B, H, W, D), the inverse of `gather`."""
        table = tables_of(self, (grid[0], grid[1]), groups.device)
        return groups.flatten(1, 2).index_select(1, table.token_index).unflatten(1, grid)

    def picture(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """(H*W, H*W) bool: the definition, pair by pair."""
        row, column = grids.coordinates(grid, device=device)
        return self.sees((row[:, None], column[:, None]), (row, column), grid).expand(row.shape[0], row.shape[0])


def _gather_keys(x: Tensor, *, table: Tables) -> Tensor:
    assert table.gather_index is not None
    tokens = x.transpose(2, 3).flatten(1, 2)  # (B, G*N, h, d)
    return tokens.index_select(1, table.gather_index).unflatten(1, (table.groups, -1)).transpose(2, 3)


def tables_of(pattern: Pattern, grid: Grid, device: torch.device) -> Tables:
    """The fast route of a pattern on a grid, kept as long as `pattern_tables.CACHE` has room for it."""

    def cells(alike: Tensor | None) -> Cells:
        sees = None if pattern.all_see_all(grid) else pattern.sees
        return Cells(pattern.query_index(grid), pattern.key_index(grid), sees, alike)

    def build() -> Tables:
        # they must serve training too, and be numbers wherever the caller wants new tensors to be
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            return build_tables(cells(pattern.alike(grid)), grid, device)

    if torch.compiler.is_compiling():  # sizes may be symbols, of which no number of masks follows
        return once(lambda: build_tables(cells(None), grid, device), pattern, grid, device)
    return CACHE.get((pattern, grid, device), build)


@dataclass(frozen=True)
class Global(Pattern):
    """Every query sees every key. Takes sequences (B, N, D) as well as grids; nothing is copied."""

    def sees(self, query: Cell, key: Cell, grid: Grid) -> Tensor:
        """Always."""
        return (query[0] == query[0]) & (key[0] == key[0])

    def query_index(self, grid: Grid) -> Tensor:
        """One group of all cells."""
        return torch.arange(grid[0] * grid[1])[None]

    def gather(self, x: Tensor, padding: Tensor | None = None) -> Groups:
        """A view."""
        grid = (x.shape[1], x.shape[2]) if x.dim() == 4 else None
        return Groups(x.flatten(1, -2)[:, None], grid, real_keys(padding))

    def scatter(self, groups: Tensor, grid: tuple[int, ...]) -> Tensor:
        """A view."""
        return groups[:, 0].unflatten(1, grid) if len(grid) > 1 else groups[:, 0]


@dataclass(frozen=True)
class Rows(Pattern):
    """A query sees its own row: axial attention along the width (Ho et al. 2019; Wang et al. 2020)."""

    def sees(self, query: Cell, key: Cell, grid: Grid) -> Tensor:
        """Same row."""
        return query[0] == key[0]

    def query_index(self, grid: Grid) -> Tensor:
        """A group a row."""
        return torch.arange(grid[0] * grid[1]).view(grid)

    def all_see_all(self, grid: Grid) -> bool:
        """Always."""
        return True

    def group_grid(self, grid: Grid) -> Grid:
        """One row."""
        return 1, grid[1]


@dataclass(frozen=True)
class Columns(Pattern):
    """A query sees its own column: axial attention along the height."""

    def sees(self, query: Cell, key: Cell, grid: Grid) -> Tensor:
        """Same column."""
        return query[1] == key[1]

    def query_index(self, grid: Grid) -> Tensor:
        """A group a column."""
        return torch.arange(grid[0] * grid[1]).view(grid).t()

    def all_see_all(self, grid: Grid) -> bool:
        """Always."""
        return True

    def group_grid(self, grid: Grid) -> Grid:
        """One column."""
        return grid[0], 1


Still: TypeAlias = Literal["axis", "map", "nothing"]


@dataclass(frozen=True)
class Windows(Pattern):
    """A query sees its own tile of a tiling that is displaced by `shift` cells (Liu et al. 2021, Swin, section 3.2).

    The fast route rolls the grid so that displaced tiles line up; the tiles that are cut by the border share a window
    and the mask, which is the definition, keeps them apart. On a grid that is no multiple of the window some are not
    full: their empty places are nobody's keys.

    Args:
        size: rows and columns of a tile.
        shift: displacement of the tiling, 0 <= shift < size.
        still: what is not displaced: an axis that one window covers, a map one of whose axes is covered so, or nothing.
    """

    size: Grid
    shift: Grid = (0, 0)
    still: Still = "axis"

    def sees(self, query: Cell, key: Cell, grid: Grid) -> Tensor:
        """Same tile."""
        same = [(q - s) // n == (k - s) // n for q, k, s, n in zip(query, key, self.shift_on(grid), self.size)]
        return same[0] & same[1]

    def shift_on(self, grid: Grid) -> Grid:
        """The displacement that a grid gets."""
        if self.still == "nothing":
            return self.shift
        # 1 or 0, in arithmetic that symbols have too
        down, across = (grids.smaller(grids.larger(side - n, 0), 1) for side, n in zip(grid, self.size))
        if self.still == "map":
            down = across = down * across
        return down * self.shift[0], across * self.shift[1]

    def query_index(self, grid: Grid) -> Tensor:
        """A group a window of the rolled grid."""
        (height, width), (tall, wide) = grid, self.size
        down, across = grids.ceil_div(height, tall), grids.ceil_div(width, wide)
        shift = self.shift_on(grid)
        row, column = _rolled(down * tall, shift[0]), _rolled(across * wide, shift[1])
        inside = (row < height)[:, None] & (column < width)
        cell = torch.where(inside, row[:, None] * width + column, -1)
        return cell.view(down, tall, across, wide).transpose(1, 2).reshape(down * across, tall * wide)

    def all_see_all(self, grid: Grid) -> bool:
        """Where windows tile the grid and none is cut."""
        if not grids.known(*grid):
            return False
        whole = grid[0] % self.size[0] == 0 and grid[1] % self.size[1] == 0
        return whole and self.shift_on(grid) == (0, 0)

    def alike(self, grid: Grid) -> Tensor:
        """All windows but those of the last two rows and columns: what is cut or not full lies there."""
        down, across = (by_distance_to_the_ends(grids.ceil_div(side, n), 0, 2) for side, n in zip(grid, self.size))
        return (3 * down[:, None] + across).flatten()

    def group_grid(self, grid: Grid) -> Grid:
        """The window."""
        return self.size


def _rolled(length: int, shift: int) -> Tensor:
    """(length,) int64: numbers from `shift` to the end and then from 0; shift <= length."""
    place = torch.arange(length) + shift
    return torch.where(place < length, place, place - length)


@dataclass(frozen=True)
class Neighborhood(Pattern):
    """A query sees the square of cells within `radius` (Ramachandran et al. 2019; Hassani et al. 2023).

    The fast route cuts the queries into tiles and gives each its tile and a halo of `radius` cells as keys, so memory
    grows with the number of cells.

    Args:
        radius: how far it sees, cells; the square has 2 * radius + 1 a side and is cut at the border.
        tile: side of a tile of queries, cells; any gives the same answer.
    """

    radius: int
    tile: int = 8

    def sees(self, query: Cell, key: Cell, grid: Grid) -> Tensor:
        """No more than `radius` rows and columns away."""
        return ((query[0] - key[0]).abs() <= self.radius) & ((query[1] - key[1]).abs() <= self.radius)

    def query_index(self, grid: Grid) -> Tensor:
        """A group a tile."""
        return Windows((self.tile, self.tile)).query_index(grid)

    def key_index(self, grid: Grid) -> Tensor:
        """The tile and its halo."""
        (height, width), tile = grid, self.tile
        span = torch.arange(tile + 2 * self.radius) - self.radius
        row = (torch.arange(grids.ceil_div(height, tile)) * tile)[:, None] + span  # (tiles down, K side)
        column = (torch.arange(grids.ceil_div(width, tile)) * tile)[:, None] + span
        inside = ((row >= 0) & (row < height))[:, None, :, None] & ((column >= 0) & (column < width))[None, :, None, :]
        cell = row[:, None, :, None] * width + column[None, :, None, :]
        return torch.where(inside, cell, -1).flatten(2).flatten(0, 1)

    def alike(self, grid: Grid) -> Tensor:
        """All tiles whose halo does not reach the border."""
        tiles = grids.ceil_div(self.radius, self.tile)
        down, across = (by_distance_to_the_ends(grids.ceil_div(side, self.tile), tiles, tiles + 1) for side in grid)
        return (down[:, None] * (tiles + 1) * (tiles + 2) + across).flatten()


@dataclass(frozen=True)
class Blocks(Pattern):
    """Sparse block attention over the raster sequence (Child et al. 2019; Zaheer et al. 2020, BigBird's band).

    The sequence of cells is cut into blocks; a query sees its own block, `near` blocks on either side, and the first
    `landmarks` blocks of the picture.

    Args:
        size: cells of a block.
        near: neighbouring blocks seen on either side.
        landmarks: blocks at the start that every query sees.
    """

    size: int
    near: int = 1
    landmarks: int = 0

    def sees(self, query: Cell, key: Cell, grid: Grid) -> Tensor:
        """Near block or landmark."""
        query_block, key_block = ((cell[0] * grid[1] + cell[1]) // self.size for cell in (query, key))
        return ((query_block - key_block).abs() <= self.near) | (key_block < self.landmarks)

    def query_index(self, grid: Grid) -> Tensor:
        """A group a block."""
        count = grid[0] * grid[1]
        cell = torch.arange(grids.ceil_div(count, self.size) * self.size)
        return torch.where(cell < count, cell, -1).view(-1, self.size)

    def key_index(self, grid: Grid) -> Tensor:
        """Blocks of the band, then landmarks outside it."""
        count = grid[0] * grid[1]
        block = torch.arange(grids.ceil_div(count, self.size))[:, None]
        band = block + torch.arange(-self.near, self.near + 1)
        marks = torch.arange(self.landmarks).expand(block.shape[0], -1)
        marks = torch.where((marks - block).abs() > self.near, marks, -1)
        blocks = torch.cat([band, marks], 1)
        cell = blocks[..., None] * self.size + torch.arange(self.size)
        return torch.where((blocks >= 0)[..., None] & (cell < count), cell, -1).flatten(1)

    def alike(self, grid: Grid) -> Tensor:
        """All blocks whose band is whole and holds no landmark."""
        return by_distance_to_the_ends(
            grids.ceil_div(grid[0] * grid[1], self.size), self.near + self.landmarks, self.near + 1
        )
