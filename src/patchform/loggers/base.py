"""Where a run's numbers go beside its folder: one file a logger, one small record for all.

A file `loggers/<name>.py`, of a plug-in too, holds one public subclass of `Logger`. `training.loggers` names them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from patchform import lookup
from patchform.errors import UsageError


class LoggedRun(NamedTuple):
    """What a logger knows of a run."""

    name: str
    folder: Path
    settings: Mapping[str, Any]
    """By dotted name, plain values."""
    step: int
    """The last optimizer step that counts: above 0 the run goes on, and what was logged beyond it will come again."""

    def remembered(self, name: str) -> str:
        """What a logger wrote into a file of the run folder when the run began; "" for a run that begins."""
        path = self.folder / name
        return path.read_text(encoding="utf-8").strip() if self.step and path.is_file() else ""


class LoggerLost(Exception):
    """A service that does not answer, or refuses: the run goes on without it."""


class Logger:
    """Takes numbers, pictures and files of one run.

    What writes to the disk raises OSError, as any file; what talks to a service raises LoggerLost, here and in all
    methods.

    Args:
        run: what is logged.

    Raises:
        UsageError: its package is not installed.
    """

    def __init__(self, run: LoggedRun) -> None:
        self.run = run

    @classmethod
    def check(cls) -> None:
        """Raise UsageError if its package is not installed."""

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take numbers of an optimizer step, from 1, such as "step/loss" and "epoch/top1"."""
        raise NotImplementedError

    def picture(self, name: str, file: Path) -> None:
        """Take a picture in a file; what has no place for pictures leaves it."""

    def file(self, file: Path) -> None:
        """Take a file of the run folder; what has no place for files leaves it."""

    def close(self, *, failed: bool) -> None:
        """The run ended, or `failed`."""
        raise NotImplementedError


def opened(names: Sequence[str], run: LoggedRun) -> dict[str, Logger]:
    """The loggers that are named. Raises UsageError for a name without one, LoggerLost, OSError."""
    return {name: lookup.the_class("loggers", name, Logger)(run) for name in names}


@contextmanager
def service(name: str) -> Iterator[None]:
    """Whatever a service's package raises within is LoggerLost; where it is not installed, UsageError."""
    try:
        yield
    except ImportError as error:
        remedy = f'pip install "patchform[{name}]", or leave it out of training.loggers'
        raise UsageError(f"the logger {name} is not installed ({error})", remedy=remedy) from error
    except Exception as error:
        raise LoggerLost(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
