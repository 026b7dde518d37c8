"""How long a run will still take, by what its steps and validations took so far."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

REMEMBERED = 100
"""Steps whose mean duration counts: a backbone that thaws makes them longer."""
PASSES = 3.0
"""A step is about as long as so many forward passes."""


class Work(NamedTuple):
    """What a run does, in steps and validations."""

    steps: int
    """Optimizer steps in all."""
    steps_per_validation: int
    samples: int
    """That each validation looks at."""

    def validations(self, step: int) -> int:
        """How many are due until a step: one each period, and one at the end."""
        short = step >= self.steps and self.steps % self.steps_per_validation > 0
        return min(step, self.steps) // self.steps_per_validation + short


class Pace:
    """Measures a run from a step on.

    Args:
        step: steps taken before.
        work: of the run.
        clock: seconds, of any beginning.
    """

    def __init__(self, step: int, work: Work, clock: Callable[[], float] = time.perf_counter) -> None:
        self.work, self._clock, self._step, self._validated = work, clock, step, step
        self._last, self._taken = clock(), 0
        self._steps: deque[float] = deque(maxlen=REMEMBERED)
        self._images: deque[int] = deque(maxlen=REMEMBERED)
        self._validation: float | None = None
        self._begun: float | None = None
        self._share = 0.0

    def step(self, step: int, images: int) -> None:
        """A step was taken on so many images."""
        now = self._clock()
        self._taken += 1
        if self._taken == 2:  # the first one made what later ones find there
            self._steps.clear()
            self._images.clear()
        self._steps.append(now - self._last)
        self._images.append(images)
        self._last, self._step = now, step

    def validating(self, done: int) -> None:
        """Of a validation so many samples are done."""
        now = self._clock()
        self._begun = self._last if self._begun is None else self._begun
        self._share = min(done / max(self.work.samples, 1), 1.0)
        if self._share > 0:
            self._validation = (now - self._begun) / self._share

    def validated(self, step: int) -> None:
        """An epoch has ended, with or without a validation."""
        self._validated, self._begun, self._share = step, None, 0.0
        self._last = self._clock()

    def left(self) -> float | None:
        """Seconds; None before the first step."""
        if not self._steps:
            return None
        a_step = sum(self._steps) / len(self._steps)
        a_validation = self._validation
        if a_validation is None:
            a_validation = a_step / max(sum(self._images) / len(self._images), 1) * self.work.samples / PASSES
        due = self.work.validations(self.work.steps) - self.work.validations(self._validated) - self._share
        return a_step * (self.work.steps - self._step) + a_validation * max(due, 0.0)


def in_words(seconds: float) -> str:
    """A duration in two units at most: "40 s", "3 min 20 s", "12 min", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes} min" + f" {rest} s" * (rest > 0)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h" + f" {minutes} min" * (minutes > 0)
