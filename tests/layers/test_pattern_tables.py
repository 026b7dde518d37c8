"""Tables of patterns: what is kept, how much of it, and that threads may ask at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from patchform.layers import pattern_tables
from patchform.layers.attention import Attention, GroupMasks, attend
from patchform.layers.filled_windows import FilledWindows, RolledWindows
from patchform.layers.pattern_tables import TableCache, build_tables
from patchform.layers.patterns import Blocks, Neighborhood, Windows, tables_of

CPU = torch.device("cpu")
PATTERNS = [
    Windows((4, 4), (2, 2)),
    Windows((3, 5), (1, 2)),
    Windows((7, 7), (3, 3), "nothing"),
    Windows((7, 7), (3, 3), "map"),
    FilledWindows((4, 4), (2, 2)),
    RolledWindows((4, 4), (2, 2)),
    Neighborhood(2, tile=4),
    Neighborhood(9, tile=4),
    Blocks(5, near=1, landmarks=1),
    Blocks(3, near=2, landmarks=2),
]


@pytest.fixture
def cache(monkeypatch):
    """A fresh one of half a megabyte in place of the process's."""
    cache = TableCache(2**19)
    monkeypatch.setattr("patchform.layers.patterns.CACHE", cache)
    return cache


@pytest.mark.parametrize("grid", [(28, 36), (29, 31), (8, 8), (3, 40), (1, 1)], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_masks_that_are_kept_once_are_those_of_every_group(pattern, grid):
    kept = tables_of(pattern, grid, CPU)
    cells = pattern_tables.Cells(pattern.query_index(grid), pattern.key_index(grid), pattern.sees, None)
    every = build_tables(cells, grid, CPU)
    assert (kept.masks is None) == pattern.all_see_all(grid)
    if kept.masks is not None:
        assert torch.equal(GroupMasks(kept.masks, kept.mask_of_group).of_all(), every.masks)
    assert torch.equal(kept.query_index, every.query_index)
    assert torch.equal(kept.token_index, every.token_index)


def test_masks_do_not_grow_with_the_grid():
    for pattern in PATTERNS:
        small, large = (tables_of(pattern, (side, side), CPU) for side in (61, 122))
        assert large.masks.numel() == small.masks.numel(), pattern


@pytest.mark.parametrize("grad", [False, True])
def test_a_mask_of_groups_is_that_of_each_group(grad):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 5, 3, 4, 6, dtype=torch.float64) for _ in range(3))
    masks = torch.rand(2, 1, 4, 4) > 0.4
    masks[..., 0] = True
    shared = GroupMasks(masks, torch.tensor([0, 1, 1, 0, 1], dtype=torch.int32))
    for bias in (None, torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=grad)):
        found = attend(q, k, v, bias=bias, allowed=shared)
        torch.testing.assert_close(found, attend(q, k, v, bias=bias, allowed=shared.of_all()))
        turned = GroupMasks(masks, 1 - shared.of_group)
        assert (found - attend(q, k, v, bias=bias, allowed=turned)).abs().max() > 1e-3  # control


def test_bytes_are_bounded_and_what_was_asked_for_last_stays(cache):
    pattern = Windows((4, 4), (2, 2))
    first = tables_of(pattern, (40, 40), CPU)
    for side in range(41, 120):
        tables_of(pattern, (side, side), CPU)
        assert tables_of(pattern, (40, 40), CPU) is first  # asked for again and again
        assert cache.bytes <= cache.most_bytes
    assert cache.bytes == sum(tables.bytes() for tables in cache._kept.values())
    assert 1 < len(cache) < 79
    tables_of(pattern, (119, 119), CPU)
    assert next(reversed(cache._kept))[1] == (119, 119)
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)
    assert tables_of(pattern, (40, 40), CPU) is not first


def test_tables_that_are_larger_than_all_of_it_are_made_and_not_kept(cache):
    kept = tables_of(Windows((4, 4)), (40, 40), CPU)
    large = tables_of(Windows((4, 4)), (400, 400), CPU)
    assert large.bytes() > cache.most_bytes
    assert len(cache) == 1
    assert tables_of(Windows((4, 4)), (40, 40), CPU) is kept


def test_several_threads_ask_at_once(cache):
    torch.manual_seed(0)
    attention, pattern = Attention(8, 2), Windows((4, 4), (2, 2))
    pictures = [torch.randn(1, 30 + n, 37, 8) for n in range(12)]

    @torch.no_grad()
    def mixed(x):
        groups = pattern.gather(x)
        return pattern.scatter(attention(groups.tokens, allowed=groups.allowed), tuple(x.shape[1:3]))

    alone = [mixed(x) for x in pictures]
    cache.clear()
    cache.most_bytes = 40_000  # a few of them: threads drive out what others use
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, wanted in zip(pool.map(mixed, pictures), alone):
                assert torch.equal(found, wanted)
    assert cache.bytes == sum(tables.bytes() for tables in cache._kept.values()) <= cache.most_bytes


def test_tables_serve_training_wherever_they_were_made(cache):
    pattern, x = Windows((4, 4), (2, 2)), torch.randn(1, 9, 10, 8)
    with torch.inference_mode(), torch.device("meta"):
        tables = tables_of(pattern, (9, 10), CPU)
    assert tables.query_index.device == CPU
    assert not tables.query_index.is_inference()
    attention = Attention(8, 2)
    groups = pattern.gather(x.requires_grad_())
    pattern.scatter(attention(groups.tokens, allowed=groups.allowed), (9, 10)).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_filled_windows_are_windows_of_a_grid_that_zeros_fill():
    torch.manual_seed(0)
    attention, x = Attention(8, 2).double(), torch.randn(2, 9, 10, 8, dtype=torch.float64)
    pattern = FilledWindows((4, 4), (2, 2), "nothing")

    def mixed(pattern, x):
        groups = pattern.gather(x)
        return pattern.scatter(attention(groups.tokens, allowed=groups.allowed), tuple(x.shape[1:3]))

    zeros = torch.zeros(2, 12, 12, 8, dtype=torch.float64)
    zeros[:, :9, :10] = x
    wanted = mixed(Windows((4, 4), (2, 2), "nothing"), zeros)[:, :9, :10]
    torch.testing.assert_close(mixed(pattern, x), wanted)
    assert (mixed(Windows((4, 4), (2, 2), "nothing"), x) - wanted).abs().max() > 1e-3  # control


def test_freed_memory_is_returned_after_so_many_new_tables_and_never_for_kept_ones(cache, monkeypatch):
    returned = []
    monkeypatch.setattr(pattern_tables, "return_freed_memory", lambda: returned.append(cache._built))
    sides = range(1, 2 * pattern_tables.RETURNED_AFTER)
    for grad in (False, False, True):
        with torch.set_grad_enabled(grad):
            for side in sides:
                tables_of(Windows((2, 2)), (side, 1), CPU)
    assert returned == [pattern_tables.RETURNED_AFTER]
    for side in sides:  # with a gradient none is
        tables_of(Windows((2, 2), (1, 1)), (side, 1), CPU)
    assert returned == [pattern_tables.RETURNED_AFTER]
    monkeypatch.undo()
    pattern_tables.return_freed_memory()  # whatever the C library is
