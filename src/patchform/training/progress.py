"""What a run says while it goes: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from patchform.errors import printable
from patchform.training.pace import Pace, Work, in_words

FIRST, EVERY = 5.0, 30.0
"""Seconds until the first line of a pipe, and between two."""
BAR = 10
"""Columns of a bar: the line is to stay within 80."""


class _Stderr:
    """stderr as it is now. A terminal that was lost, or a reader that went away, does not end a run.

    Bars are drawn with marks that steer the terminal: they go past a stream that spells out what is not printable. What
    a run says has been spelt out before.
    """

    def __getattr__(self, name: str) -> Any:
        if name == "rich_proxied_file":  # else rich would write past this
            raise AttributeError(name)
        return getattr(_innermost(), name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            _innermost().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            _innermost().flush()


def _innermost() -> Any:
    stream = sys.stderr
    while (behind := getattr(stream, "rich_proxied_file", None)) is not None:
        stream = behind
    return stream


class Reporter:
    """Speaks on stderr: on a terminal a bar; elsewhere a line after a few seconds, and then one every half a minute.

    Args:
        shown: False says nothing but notes.
        heard: False says nothing at all.
    """

    def __init__(self, *, shown: bool, heard: bool = True) -> None:
        self._console = Console(
            file=cast("IO[str]", _Stderr()), soft_wrap=True, highlight=False, markup=False, quiet=not heard
        )
        self._shown = shown and heard
        self._live: Progress | None = None
        if self._shown and self._console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(BAR)
            self._live = Progress(
                *columns, console=self._console, transient=True, redirect_stdout=False, redirect_stderr=False
            )
        self._pace = Pace(0, Work(0, 1, 0))
        self._due = time.monotonic() + FIRST
        self._since, self._images = time.perf_counter(), 0

    def begin(self, step: int, work: Work) -> None:
        """The run goes on from a step."""
        self._pace = Pace(step, work)
        self._due = time.monotonic() + FIRST
        self._since, self._images = time.perf_counter(), 0
        if self._live is not None:
            self._task = self._live.add_task("", total=work.steps, completed=step)
            self._live.start()

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """Say one line, in any case."""
        self._console.print(printable(text))

    def looking(self, what: str, done: int, count: int) -> None:
        """Before the first step, so many of the files were looked at."""
        if self._shown and self._is_due():
            self._console.print(f"looking at the files {what}: {done} of {count}")

    def step(self, step: int, *, epoch: int, loss: float, images: int) -> None:
        """A step was taken on so many images."""
        self._images += images
        self._pace.step(step, images)
        self._say(
            f"epoch {epoch}  step {step}/{self._pace.work.steps}  loss {loss:.4f}  {self.speed():.3g} images/s", step
        )

    def validating(self, done: int) -> None:
        """A validation has seen so many samples."""
        self._pace.validating(done)
        self._say(f"validating  {done} of {self._pace.work.samples}")

    def epoch(self, epoch: int, step: int, numbers: dict[str, float | None]) -> None:
        """An epoch ended; the speed is counted anew."""
        self._pace.validated(step)
        if self._shown:
            scores = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items() if value is not None)
            self._console.print(f"epoch {epoch}  step {step}/{self._pace.work.steps}  {scores}{self._left()}")
            self._due = time.monotonic() + EVERY
        self._since, self._images = time.perf_counter(), 0

    def speed(self) -> float:
        """Images a second in this epoch."""
        return self._images / max(time.perf_counter() - self._since, 1e-9)

    def _say(self, line: str, step: int | None = None) -> None:
        """Into the bar, or where it is due as a line."""
        if self._live is not None:
            self._live.update(self._task, completed=step, description=line + self._left())
        elif self._shown and self._is_due():
            self._console.print(line + self._left())

    def _left(self) -> str:
        left = self._pace.left()
        return "" if not left else f"  {in_words(left)} left"

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now < self._due:
            return False
        self._due = now + EVERY
        return True
