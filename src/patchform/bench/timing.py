"""How long calls take, side by side: pure arithmetic over a clock, so that it can be tested with one that is not real.

Contestants take turns in short rounds, forwards and backwards in turn, so that a machine that warms up or is shared
slows all of them alike; and they are compared round by round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Clock = Callable[[], float]
"""Seconds from any start."""
ROUNDS = 9
WARM_UP = 3
"""Calls before the first that counts: memory is taken, kernels are chosen."""


class Ratio(NamedTuple):
    """How many times as fast as another; medians and quartiles over rounds."""

    median: float
    low: float
    high: float


class Timing(NamedTuple):
    """Seconds of single calls, round by round."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def calls(self) -> list[float]:
        """Of all rounds."""
        return [seconds for calls in self.rounds for seconds in calls]

    @property
    def median(self) -> float:
        """Seconds."""
        return quantile(self.calls, 0.5)

    @property
    def p90(self) -> float:
        """Seconds that nine of ten calls stay within."""
        return quantile(self.calls, 0.9)

    def ratio(self, first: Timing) -> Ratio:
        """How many times as fast as the first, which ran in the same rounds."""
        pairs = zip(first.rounds, self.rounds, strict=True)
        ratios = [quantile(theirs, 0.5) / quantile(own, 0.5) for theirs, own in pairs]
        return Ratio(quantile(ratios, 0.5), quantile(ratios, 0.25), quantile(ratios, 0.75))


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of them lies, between two neighbours in proportion."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def race(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    rounds: int = ROUNDS,
    clock: Clock = time.perf_counter,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Call each again and again, in turns.

    Args:
        calls: by name of the contestant; each is warmed up here.
        seconds: for each of them, at least; a call that takes longer than its part of a round is made once in each.
        rounds: turns of each.
        clock: tells seconds.
        progress: called with rounds that are done, and all.

    Returns:
        Timings by name, in the same order.
    """
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in calls}
    for number in range(rounds):
        order = list(calls)[:: 1 if number % 2 == 0 else -1]
        for name in order:
            turns[name].append(_turn(calls[name], seconds / rounds, clock))
        if progress is not None:
            progress(number + 1, rounds)
    return {name: Timing(tuple(made)) for name, made in turns.items()}


def _turn(call: Callable[[], object], seconds: float, clock: Clock) -> tuple[float, ...]:
    """Seconds of calls, for so long, one at least."""
    made: list[float] = []
    start = before = clock()
    while not made or before - start < seconds:
        call()
        after = clock()
        made.append(after - before)
        before = after
    return tuple(made)
