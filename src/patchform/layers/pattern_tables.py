"""The fast route of a sparse pattern on one grid, as tables of cell numbers, and a bounded memory of them.

Letters: H x W grid of cells, G groups of N queries that attend to K keys, M masks that differ.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from patchform import system

Grid: TypeAlias = tuple[int, int]
Cell: TypeAlias = tuple[Tensor, Tensor]
"""(row, column), int64, broadcasting."""
Sees: TypeAlias = Callable[[Cell, Cell, Grid], Tensor]

MOST_BYTES = 40 * 2**20
"""That tables may take in all: those of a Swin for some twenty pictures of a megapixel."""

RETURNED_AFTER = 24
"""Tables that are made until freed memory is returned: some six new sizes of a picture. It costs 30 ms."""


class Cells(NamedTuple):
    """Which cells are in which group."""

    queries: Tensor
    """(G, N) int64, cell of each query, -1 where there is none; every cell is exactly one."""
    keys: Tensor | None
    """(G, K) int64, cell of each key, -1 where there is none; None: keys are the queries."""
    sees: Sees | None
    """Whether a query attends to a key; None: all do."""
    alike: Tensor | None
    """(G,) int64: groups of one number have one mask; None: each has its own."""


class Tables(NamedTuple):
    """The fast route of a pattern on one grid."""

    query_index: Tensor
    """(G * N,) int32, cell of each query; 0 where there is none."""
    token_index: Tensor
    """(H * W,) int32, query of each cell."""
    gather_index: Tensor | None
    """(G * K,) int32, query that is the same cell as each key; None: keys are the queries of the group."""
    key_exists: Tensor
    """(G, 1, 1, K) bool: the key is a cell."""
    masks: Tensor | None
    """(M, 1, N, K) bool; None: every query sees every key."""
    mask_of_group: Tensor | None
    """(G,) int32, which of the masks a group has; None: M is G, each has its own."""
    groups: int

    def bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self if isinstance(tensor, Tensor))


def build_tables(cells: Cells, grid: Grid, device: torch.device) -> Tables:
    """The tables of a grid; they are made on the CPU and then moved."""
    queries, count = cells.queries, grid[0] * grid[1]
    empty = queries < 0
    token_index = torch.empty(count + 1, dtype=torch.long)
    token_index = token_index.scatter(0, queries.masked_fill(empty, count).flatten(), torch.arange(queries.numel()))
    keys = queries if cells.keys is None else cells.keys
    masks = mask_of_group = None
    if cells.sees is not None and cells.alike is None:
        masks = _masks(queries, keys, cells.sees, grid)
    elif cells.sees is not None:
        numbers, mask_of_group = torch.unique(cells.alike, return_inverse=True)
        members = torch.arange(queries.shape[0])
        one_of_each = torch.zeros_like(numbers).scatter_reduce(0, mask_of_group, members, "amax", include_self=False)
        masks = _masks(queries[one_of_each], keys[one_of_each], cells.sees, grid)

    def index(numbers: Tensor) -> Tensor:
        return numbers.to(device, torch.int32)

    return Tables(
        query_index=index(queries.clamp(min=0).flatten()),
        token_index=index(token_index[:count]),
        gather_index=None if cells.keys is None else index(token_index[keys.clamp(min=0).flatten()]),
        key_exists=(keys >= 0)[:, None, None].to(device),
        masks=None if masks is None else masks.to(device),
        mask_of_group=None if mask_of_group is None else index(mask_of_group),
        groups=queries.shape[0],
    )


def _masks(queries: Tensor, keys: Tensor, sees: Sees, grid: Grid) -> Tensor:
    """(G, N) and (G, K) -> (G, 1, N, K) bool; a query that is no cell sees all keys, so that it has one."""
    query, key = queries.clamp(min=0)[:, :, None], keys.clamp(min=0)[:, None]
    query_row, key_row = query // grid[1], key // grid[1]  # ONNX has no remainder by a symbol
    seen = sees((query_row, query - query_row * grid[1]), (key_row, key - key_row * grid[1]), grid)
    return ((seen | (queries < 0)[:, :, None]) & (keys >= 0)[:, None])[:, None]


def by_distance_to_the_ends(count: int, start: int, end: int) -> Tensor:
    """(count,) int64: one number for all places of a row of `count` but for the `start` first and the `end` last."""
    place = torch.arange(count)
    return place.clamp(max=start) * (end + 1) + (count - 1 - place).clamp(max=end)


_of_graph: dict[str, Tables] | None = None


@contextmanager
def one_graph() -> Iterator[None]:
    """Within it one graph is traced, in which blocks of a stage share tables: they are computed once, not in each."""
    global _of_graph
    outer, _of_graph = _of_graph, {}
    try:
        yield
    finally:
        _of_graph = outer


def once(build: Callable[[], Tables], *key: object) -> Tables:
    """What `build` gives, in `one_graph` for the first that asks with a key, whose sizes may be symbols."""
    if _of_graph is None:
        return build()
    name = repr(key)  # symbols are compared by what they stand for, which would be a decision
    if name not in _of_graph:
        _of_graph[name] = build()
    return _of_graph[name]


class TableCache:
    """What was asked for last, up to a number of bytes; safe to use from several threads.

    Args:
        most_bytes: that it keeps. Of tables that are larger nothing is kept: making them costs little beside what is
            computed on such a grid.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes, self._built = most_bytes, 0, 0
        self._kept: OrderedDict[Hashable, Tables] = OrderedDict()  # the one that was asked for last is the last
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, build: Callable[[], Tables]) -> Tables:
        """The tables of a key, kept or built. Two threads that ask at once may both build them."""
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return kept
        tables = build()
        size = tables.bytes()
        with self._lock:
            if key not in self._kept and size <= self.most_bytes:
                self._kept[key] = tables
                self.bytes += size
            while self.bytes > self.most_bytes:
                self.bytes -= self._kept.popitem(last=False)[1].bytes()
            self._built += 1
            often = self._built % RETURNED_AFTER == 0
        if often and not torch.is_grad_enabled():  # a training keeps what it freed: its next step needs it
            return_freed_memory()
        return tables

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self.bytes = 0


def return_freed_memory() -> None:
    """Give the system back what is freed, where the C library is glibc.

    Activations of one size leave holes in which those of the next do not fit: with a new size each time, memory grew by
    2 MB a size though nothing was kept.
    """
    try:
        trim = system.c_library().malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library
        return
    trim(0)


CACHE = TableCache(MOST_BYTES)
