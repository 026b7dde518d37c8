"""What surrounds a run: its folder, the lock on it, and the wish to stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

from patchform import distributed, signals, system
from patchform.errors import FolderError, Interrupted
from patchform.resources import refused, writing
from patchform.training.progress import Reporter
from patchform.training.standing import LOCK as LOCK
from patchform.training.standing import RECIPE as RECIPE
from patchform.training.standing import owner_of
from patchform.weights import files
from patchform.weights.sources import BEST as BEST
from patchform.weights.sources import CHECKPOINTS as CHECKPOINTS


class RunContext(NamedTuple):
    """Where a run happens, and what it reports to."""

    folder: Path
    device: torch.device
    rank: distributed.Rank
    reporter: Reporter
    stop: Stop


ATTEMPTS = 5
"""To lock a folder, in a tenth of a second."""


def new_folder(runs: Path, name: str | None, *, stem: str) -> Path:
    """Make the folder of a new run; of several processes that ask for one name, one gets it.

    Args:
        runs: parent folder, made if need be.
        name: name of the run; None for the first free of `stem`-1, `stem`-2, ...
        stem: beginning of automatic names.

    Raises:
        FolderError: the name is taken; names the process if it is running.
        ResourceError: the folder is not writable.
    """
    number = 0
    while True:
        number += 1
        folder = runs / (name or f"{stem}-{number}")
        try:
            runs.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return folder
        except FileExistsError as error:
            if runs.is_dir() and not name:
                continue
            owner = owner_of(folder)
            remedy = "choose another name" if owner else "choose another name, or resume it"
            raise FolderError(f"the run exists already{owner}", where=folder, remedy=remedy) from error
        except OSError as error:
            raise refused(error, folder) from error


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Own a run folder. The lock ends with the process, however it ends, so none is ever stale.

    Raises:
        FolderError: another process owns it; names its number, host and start.
        ResourceError: the folder cannot be written.
    """
    with writing(folder / LOCK):
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        for attempt in range(ATTEMPTS):  # who only asks for the owner holds it for an instant
            if system.try_lock(descriptor):
                break
            if attempt == ATTEMPTS - 1:
                raise FolderError(f"in use{owner_of(folder)}", where=folder, remedy="wait for it or stop it")
            time.sleep(0.02)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with writing(folder / LOCK):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "start": now}).encode())
        _held.add(descriptor)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


_held: set[int] = set()


def _let_go() -> None:
    """A forked loader process must not keep the lock of a run that was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


system.after_fork(_let_go)


@contextmanager
def opened(runs: Path, name: str | None, *, stem: str, resume: bool) -> Iterator[Path]:
    """The locked folder of a new run, or of one that goes on; of several processes the first one makes and locks it.

    A new folder in which nothing was begun (no recipe was written) is removed again on an error.

    Args:
        runs: parent folder.
        name: name of the run; None for an automatic one.
        stem: beginning of automatic names.
        resume: the folder exists.

    Raises:
        FolderError: nothing to resume, or the folder exists or is in use.
        ResourceError: the folder is not writable.
    """
    with ExitStack() as stack:
        unbegun: list[Path] = []
        stack.callback(_remove, unbegun)

        def claim() -> str:
            if resume and not (name and (runs / name).is_dir()):
                raise FolderError("no run to resume", where=runs / (name or ""), remedy="name a run folder that exists")
            folder = runs / name if name and resume else new_folder(runs, name, stem=stem)
            stack.enter_context(lock(folder))
            for path in (folder, folder / CHECKPOINTS):
                files.clear_temporaries(path)
            return str(folder)

        folder = Path(distributed.broadcast_text(claim))
        try:
            yield folder
        except BaseException as error:
            if not resume and not (folder / RECIPE).exists():
                if distributed.rank_and_world().is_main:
                    shutil.rmtree(folder, ignore_errors=True)
                    unbegun.append(folder)  # once more without the lock: Windows keeps files that are open
                if isinstance(error, Interrupted):
                    raise Interrupted(
                        error.exit_code, after=" before anything was begun", remedy="start again"
                    ) from None
            raise


def _remove(folders: Sequence[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


SAME_WISH = 0.3
"""Seconds in which several signals are one wish: `timeout` sends its own to a process and then to its group, systemd
SIGHUP behind SIGTERM."""
URGENT = (signal.SIGTERM, signal.SIGINT)
"""A second one of these stops at once; the others only ask."""


class Stop:
    """Whether the user asked to stop: a first of `signals.STOPPING` is noted, a second Ctrl-C or SIGTERM stops at once.

    Use as a context manager in the main thread; elsewhere signals stay as they are and nothing is noted.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0
        self._process = os.getpid()
        self._previous: dict[int, _Handler] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in signals.asked()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked loader process: the run itself decides
            return
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._since = number, now
            with suppress(OSError):  # of a terminal that is gone
                os.write(2, b"stopping after this step; the run is saved first (Ctrl-C again: at once)\n")
        elif number in URGENT and now - self._since > SAME_WISH:
            raise signals.Stopped(number)

    def check(self) -> None:
        """Raise Interrupted if the user asked to stop."""
        if self.signal is not None:
            raise Interrupted(128 + self.signal)
