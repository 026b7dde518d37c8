"""Which groups of layers stay in float32: as few weights as hold a bound on the error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from patchform.export.weighted import Group

Noise = Callable[[Sequence[Group]], list[float]]
"""The error of a graph in which these groups are of int8, as a share of what each of its last layers varies by."""


class Kept(NamedTuple):
    """What is of int8 in the end."""

    groups: tuple[Group, ...]
    left_out: tuple[Group, ...]
    noise: float
    """Of the last layer that is furthest off."""


def hold(groups: Sequence[Group], everything: list[float], bound: float, noise: Noise) -> Kept:
    """Leave groups out until the error is within a bound.

    Errors of groups that are small add up, so each group is measured alone, and a choice is made by their sum, scaled
    to the error of all together; then it is measured, and goes on with one group less where it does not hold.

    Args:
        groups: in their order.
        everything: the error where all are of int8.
        bound: highest share of any layer.
        noise: measures; it is called at most 2 * len(groups) times.

    Returns:
        None of int8, with an error of 0, where nothing holds the bound.
    """
    if max(everything) <= bound:
        return Kept(tuple(groups), (), max(everything))
    alone = [noise([group]) for group in groups]
    scales = [whole / max(sum(row), 1e-30) for whole, row in zip(everything, zip(*alone))]
    kept = list(range(len(groups)))
    while kept:
        least = max(1, len(groups) - len(kept) + 1)
        kept = _chosen(groups, alone, scales, bound, least)
        if not kept:
            break
        measured = noise([groups[index] for index in kept])
        if max(measured) <= bound:
            left = tuple(group for index, group in enumerate(groups) if index not in kept)
            return Kept(tuple(groups[index] for index in kept), left, max(measured))
    return Kept((), tuple(groups), 0.0)


def _chosen(
    groups: Sequence[Group], alone: Sequence[list[float]], scales: Sequence[float], bound: float, least: int
) -> list[int]:
    """Indices of groups that may be of int8 by the sum of their errors, at least `least` of them left out."""

    def total(indices: Sequence[int]) -> float:
        sums = [sum(alone[index][row] for index in indices) for row in range(len(scales))]
        return max(scale * value for scale, value in zip(scales, sums))

    def error_per_weight(index: int) -> float:
        return max(scale * value for scale, value in zip(scales, alone[index])) / max(groups[index].parameters, 1)

    order = sorted(range(len(groups)), key=error_per_weight, reverse=True)
    count = least
    while count < len(groups) and total(order[count:]) > bound:
        count += 1
    left, kept = order[:count], order[count:]
    for index in sorted(left, key=lambda index: -groups[index].parameters):  # what need not have gone comes back
        if len(left) > least and total([*kept, index]) <= bound:
            left.remove(index)
            kept.append(index)
    return sorted(kept)


def decibels(noise: float) -> float:
    """How much more a signal is than its error; 120 where there is next to none."""
    return min(120.0, -10 * math.log10(max(noise, 1e-12)))
