"""Pairs of guesses and objects."""

from itertools import permutations

import pytest
import torch

from patchform.geometry import matching
from patchform.geometry.matching import hungarian_match


def cheapest(cost):
    """By trying all of them: what the best pairs cost."""
    guesses, objects = cost.shape
    if guesses < objects:
        return cheapest(cost.T)
    return min(sum(cost[g, n] for n, g in enumerate(some)) for some in permutations(range(guesses), objects))


@pytest.mark.parametrize(("guesses", "objects"), [(5, 3), (3, 5), (4, 4), (4, 0), (1, 1)])
def test_no_pairs_cost_less(guesses, objects):
    costs = [torch.randn(6, guesses, objects, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    for cost, pairs in zip(costs, hungarian_match(costs), strict=True):
        assert pairs.shape == (6, objects)
        for problem, row in zip(cost, pairs):
            chosen = row[row >= 0]
            assert len(chosen) == len(set(chosen.tolist())) == min(guesses, objects)
            paid = problem[chosen, (row >= 0).nonzero()[:, 0]].sum()
            torch.testing.assert_close(paid, torch.as_tensor(cheapest(problem), dtype=paid.dtype))
    if guesses > objects > 1:  # control: the nearest guess of each object is not always free
        assert any(not torch.equal(pairs, cost.argmin(1)) for cost, pairs in zip(costs, hungarian_match(costs)))


def test_images_of_different_numbers_go_together(monkeypatch):
    moved = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: moved.append(tensor) or real(tensor))
    draw = torch.Generator().manual_seed(0)
    costs = [torch.randn(2, 4, objects, generator=draw) for objects in (0, 3, 6, 1)]
    together = hungarian_match(costs)
    assert len(moved) == 1
    for cost, pairs in zip(costs, together, strict=True):
        assert torch.equal(hungarian_match([cost])[0], pairs)
    assert matching.hungarian_match([]) == []


def test_what_is_no_number_is_dearest():
    cost = torch.tensor([[[float("nan"), 5.0], [7.0, float("nan")], [float("nan"), float("nan")]]])
    assert hungarian_match([cost])[0].tolist() == [[1, 0]]
