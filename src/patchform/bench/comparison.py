"""Contestants against each other: latency of one picture, and pictures a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchform import resources
from patchform.bench.contestants import Contestant, Skipped
from patchform.bench.timing import Clock, Ratio, Timing, race
from patchform.descriptions import Preprocessing

BATCHES = (1, 8, 32)
Progress = Callable[[str, int, int], None]
"""What is done, how much, of how much."""


class Row(NamedTuple):
    """What became of a contestant."""

    name: str
    bytes: int | None
    """Of its file."""
    latency: Timing | None
    """Of one picture; None where it does not take one alone."""
    ratio: Ratio | None
    """How many times as fast as the first one, for one picture."""
    per_second: dict[int, float]
    """Pictures a second, by the number that go in at once."""
    skipped: tuple[str, ...]
    """Why it did not take part in something."""

    @property
    def best(self) -> tuple[int, float] | None:
        """The batch with the most pictures a second, and how many."""
        return max(self.per_second.items(), key=lambda row: row[1], default=None)

    def as_json(self) -> dict[str, Any]:
        """Plain values; seconds."""
        return {
            "name": self.name,
            "bytes": self.bytes,
            "latency": self.latency
            and {
                "median": self.latency.median,
                "p90": self.latency.p90,
                "calls": len(self.latency.calls),
            },
            "times_as_fast": self.ratio and self.ratio._asdict(),
            "images_per_second": {str(batch): value for batch, value in self.per_second.items()},
            "skipped": list(self.skipped),
        }


def compare(
    contestants: Sequence[Contestant],
    batches: Sequence[int],
    inputs: Callable[[int], tuple[Tensor, Tensor]],
    seconds: float,
    *,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> list[Row]:
    """Race all of them with each batch; with one picture, latency is read off too.

    Args:
        contestants: the first is what others are compared with.
        batches: pictures at once; 1 is always among them.
        inputs: images and sizes of a batch.
        seconds: for each contestant and batch.
        clock: tells seconds.
        progress: called with what is going on.
    """
    timings: dict[int, dict[str, Timing]] = {}
    skipped: dict[str, list[str]] = {contestant.name: [] for contestant in contestants}
    for batch in sorted({1, *batches}):
        images, sizes = inputs(batch)
        calls = {}
        for contestant in contestants:
            try:
                call = contestant.prepare(images, sizes)
                if not _fits(call):
                    raise Skipped("out of memory")
                calls[contestant.name] = call
            except Skipped as reason:
                skipped[contestant.name].append(f"batch {batch}: {reason}")
        shown = None if progress is None else _Rounds(progress, f"batch {batch}")
        timings[batch] = race(calls, seconds, clock=clock, progress=shown)
    single = timings[1]
    first = next(iter(single), None)
    rows = []
    for contestant in contestants:
        name, latency = contestant.name, single.get(contestant.name)
        per_second = {batch: batch / made[name].median for batch, made in timings.items() if name in made}
        ratio = latency.ratio(single[first]) if latency is not None and first is not None else None
        rows.append(Row(name, contestant.bytes, latency, ratio, per_second, tuple(skipped[name])))
    return rows


class _Rounds:
    """Progress of rounds under a name."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress, self._what = progress, what

    def __call__(self, done: int, count: int) -> None:
        self._progress(self._what, done, count)


def _fits(call: Callable[[], object]) -> bool:
    """Whether there is memory for a call."""
    try:
        call()
    except (RuntimeError, MemoryError) as error:
        if resources.out_of_memory(error):
            return False
        raise
    return True


def random_inputs(preprocessing: Preprocessing, size: tuple[int, int], batch: int) -> tuple[Tensor, Tensor]:
    """Pictures of noise, or clips of it, as files take them, and their sizes; the same in each run."""
    frames = (preprocessing.frames,) if preprocessing.frames else ()
    shape = (batch, *frames, preprocessing.channels, *size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([size], dtype=torch.int64).expand(batch, 2).contiguous()
    return (images.float() / 255 if preprocessing.bits > 8 else images), sizes
