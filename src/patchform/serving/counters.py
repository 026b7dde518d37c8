"""What a server counts, for Prometheus and for its own page."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)
RECENT = 200
"""Answers that a median is of."""


class Counters:
    """All of them. They say nothing of the model or of what was sent.

    Args:
        waiting: how many pictures wait.
    """

    def __init__(self, *, waiting: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("patchform_requests", "Answers, by status", ["status"], registry=registry)
        self._seconds = Histogram(
            "patchform_request_seconds", "From the head of a request for predictions to its answer",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._batches = Histogram(
            "patchform_batch_pictures", "Pictures that went through the model at once", buckets=SIZES, registry=registry
        )
        self._model = Histogram(
            "patchform_batch_seconds", "Of the model on a batch", buckets=SECONDS, registry=registry
        )
        self._restarts = Counter(
            "patchform_restarts", "Processes that ended and were replaced", ["process"], registry=registry
        )
        self._left = Counter(
            "patchform_left", "Pictures not worked on, since who had sent them left", registry=registry
        )
        Gauge("patchform_waiting", "Pictures that are decoded or wait", registry=registry).set_function(waiting)
        self._recent: deque[float] = deque(maxlen=RECENT)

    def answered(self, status: int) -> None:
        """A request was."""
        self._requests.labels(str(status)).inc()

    def predicted(self, seconds: float) -> None:
        """A request for predictions was answered."""
        self._seconds.observe(seconds)
        self._recent.append(seconds)

    @contextmanager
    def batch(self, pictures: int) -> Iterator[None]:
        """Around the model's work."""
        self._batches.observe(pictures)
        begin = time.monotonic()
        try:
            yield
        finally:
            self._model.observe(time.monotonic() - begin)

    def restarted(self, process: str) -> None:
        """A process was replaced."""
        self._restarts.labels(process).inc()

    def left(self) -> None:
        """A picture is not worked on."""
        self._left.inc()

    @property
    def latency(self) -> float | None:
        """Median of recent answers with predictions, seconds; None before the first."""
        return median(self._recent) if self._recent else None

    def as_text(self) -> bytes:
        """In the form that Prometheus reads."""
        return generate_latest(self._registry)
