"""Signals that ask a program to end: which they are, and what they do to a command that has nothing to save."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""From `timeout`, systemd, Slurm and `kill`; Ctrl-C; a terminal that was lost; the warnings of Slurm (as of
`--signal=USR1@60`) and of Grid Engine; a limit of processor time. The exit code is 128 + the number."""


class Stopped(KeyboardInterrupt):
    """A signal ends the command at once."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def asked() -> tuple[signal.Signals, ...]:
    """Those of `STOPPING` that mean something here: what was started with `nohup` is to outlive its terminal."""
    return tuple(one for one in STOPPING if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN)


@contextmanager
def ending_by_exception() -> Iterator[None]:
    """Any of the signals ends what happens here as Ctrl-C does: by an exception, so that everything is tidied up.

    What has a handler already is left alone, and so are all where this is not the main thread.
    """
    taken = []
    if threading.current_thread() is threading.main_thread():
        taken = [one for one in STOPPING if signal.getsignal(one) in (signal.SIG_DFL, signal.default_int_handler)]
    for one in taken:
        signal.signal(one, _stop)
    try:
        yield
    finally:
        for one in taken:
            signal.signal(one, signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL)


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise Stopped(number)
