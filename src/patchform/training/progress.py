"""What a run says while it goes: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from patchform.errors import printable


class _Stderr:
    """stderr as it is now. A terminal that was lost, or a reader that went away, does not end a run."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


class Reporter:
    """Speaks on stderr.

    Args:
        shown: False says nothing but notes.
        heard: False says nothing at all.
    """

    def __init__(self, *, shown: bool, heard: bool = True) -> None:
        self._console = Console(
            file=cast("IO[str]", _Stderr()), soft_wrap=True, highlight=False, markup=False, quiet=not heard
        )
        self._shown, self._steps = shown and heard, 0
        self._live: Progress | None = None
        if self._shown and self._console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=self._console
            )
        self._since, self._images = time.perf_counter(), 0

    def begin(self, step: int, steps: int) -> None:
        """The run goes on from a step and has so many."""
        self._steps = steps
        self._since, self._images = time.perf_counter(), 0
        if self._live is not None:
            self._task = self._live.add_task("", total=steps, completed=step)
            self._live.start()

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """Say one line, in any case."""
        self._console.print(printable(text))

    def step(self, step: int, *, epoch: int, loss: float, rate: float, images: int) -> None:
        """A step was taken on so many images."""
        self._images += images
        if self._live is not None:
            line = f"epoch {epoch}  step {step}/{self._steps}  loss {loss:.4f}  lr {rate:.2e}"
            self._live.update(self._task, completed=step, description=f"{line}  {self.speed():.0f} images/s")

    def epoch(self, epoch: int, step: int, numbers: dict[str, float | None]) -> None:
        """An epoch ended; the speed is counted anew."""
        if self._shown:
            scores = "  ".join(
                f"{name} {'n/a' if value is None else f'{value:.4g}'}" for name, value in numbers.items()
            )
            self._console.print(f"epoch {epoch}  step {step}/{self._steps}  {scores}")
        self._since, self._images = time.perf_counter(), 0

    def speed(self) -> float:
        """Images a second in this epoch."""
        return self._images / max(time.perf_counter() - self._since, 1e-9)
