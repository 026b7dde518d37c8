"""The search for what stays float32, on errors that are made up."""

import itertools
import random

import pytest

from patchform.export.leaving_out import decibels, hold
from patchform.export.weighted import Group, Layer


def groups(sizes):
    return [
        Group(str(index), (Layer(str(index), "Conv", str(index), str(index), size, str(index)),))
        for index, size in enumerate(sizes)
    ]


class Made:
    """Errors of groups that add up, times a factor for two or more."""

    def __init__(self, rows, together=1.0):
        self.rows, self.together, self.calls = rows, together, 0

    def __call__(self, some):
        self.calls += 1
        factor = self.together if len(some) > 1 else 1.0
        return [factor * sum(self.rows[int(group.name)][column] for group in some) for column in range(2)]


def test_nothing_is_left_out_within_the_bound():
    noise = Made([(0.1, 0.2)] * 3)
    kept = hold(groups([1, 1, 1]), [0.3, 0.6], 0.6, noise)
    assert (len(kept.groups), kept.left_out, kept.noise, noise.calls) == (3, (), 0.6, 0)


def test_the_one_that_hurts_is_left_out():
    noise = Made([(0.001, 0.0), (0.5, 0.1), (0.001, 0.002)])
    kept = hold(groups([5, 5, 5]), [0.502, 0.102], 0.01, noise)
    assert [group.name for group in kept.left_out] == ["1"]
    assert kept.noise == pytest.approx(0.002)
    assert noise.calls == 4


def test_every_last_layer_counts():
    noise = Made([(0.0, 0.5), (0.5, 0.0), (0.001, 0.001)])
    kept = hold(groups([5, 5, 5]), [0.501, 0.501], 0.01, noise)
    assert [group.name for group in kept.groups] == ["2"]


def test_few_weights_go_before_many():
    noise = Made([(0.02, 0.0), (0.02, 0.0)])
    kept = hold(groups([1000, 10]), [0.04, 0.0], 0.03, noise)
    assert [group.name for group in kept.left_out] == ["1"]


@pytest.mark.parametrize("together", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept_holds_the_bound_in_few_measurements(seed, together):
    draw = random.Random(seed)
    rows = [(draw.random() ** 4, draw.random() ** 4) for _ in range(6)]
    sizes = [draw.randint(1, 100) for _ in rows]
    noise = Made(rows, together)
    parts = groups(sizes)
    everything = noise(parts)
    bound = draw.random() * max(everything)
    noise.calls = 0
    kept = hold(parts, everything, bound, noise)
    assert noise.calls <= 2 * len(parts)
    assert sorted((*kept.groups, *kept.left_out)) == sorted(parts)
    if kept.groups:
        assert max(Made(rows, together)(kept.groups)) <= bound
    choices = itertools.chain.from_iterable(itertools.combinations(parts, count) for count in range(1, 7))
    best = max((sum(g.parameters for g in some) for some in choices if max(noise(some)) <= bound), default=0)
    assert sum(group.parameters for group in kept.groups) >= 0.5 * best if together == 1.0 else True


def test_nothing_holds():
    noise = Made([(0.5, 0.0)] * 3)
    kept = hold(groups([1, 1, 1]), [1.5, 0.0], 0.01, noise)
    assert kept.groups == ()
    assert noise.calls <= 6


def test_decibels():
    assert decibels(0.01) == pytest.approx(20)
    assert decibels(0.0) == 120
