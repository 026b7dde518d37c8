"""Where a run's numbers go beside its folder: one file a logger, one small record for all.

A file `loggers/<name>.py`, of a plug-in too, holds one public subclass of `Logger`. `training.loggers` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from patchform import lookup, own_parts
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


def class_of(name: str) -> type[Logger]:
    """The class of a name. Raises UsageError where there is none."""
    if not name.startswith(own_parts.PREFIX):
        return lookup.the_class("loggers", name, Logger)
    kind = own_parts.find(own_parts.LOGGERS, name)
    if not (isinstance(kind, type) and issubclass(kind, Logger)):
        what = f"{name.removeprefix(own_parts.PREFIX)} is no class of loggers"
        raise UsageError(what, remedy="give a subclass of patchform.loggers.base.Logger")
    return kind


def opened(names: Sequence[str], run: LoggedRun) -> dict[str, Logger]:
    """The loggers that are named. Raises UsageError for a name without one, LoggerLost, OSError."""
    return {name: class_of(name)(run) for name in names}


def wanted(names: Sequence[str]) -> list[str]:
    """Of the loggers that are named, those that have a place for pictures or files."""
    kinds = {name: class_of(name) for name in names}
    return [name for name, kind in kinds.items() if kind.picture is not Logger.picture or kind.file is not Logger.file]


def hand_over(
    names: Sequence[str],
    run: LoggedRun,
    *,
    pictures: Mapping[str, Path],
    files: Sequence[Path],
    say: Callable[[str], None],
) -> None:
    """Give the loggers that have a place for them what a run that has ended leaves behind.

    Args:
        names: of the loggers.
        run: with the step at which it has ended.
        pictures: files by name.
        files: of the run folder.
        say: called with a line on a logger that is lost.

    Raises:
        UsageError: one is not installed.
        OSError: of one that writes to the disk.
    """
    for name in wanted(names):
        try:
            logger = class_of(name)(run)
            for title, file in pictures.items():
                logger.picture(title, file)
            for file in files:
                logger.file(file)
            logger.close(failed=False)
        except LoggerLost as lost:
            say(f"the logger {name} has not got the page and the pictures: {lost}")


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
