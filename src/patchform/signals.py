"""Signals that ask a program to end: which they are, and what they do to a command that has nothing to save."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGBREAK")
STOPPING = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""From `timeout`, systemd, Slurm and `kill`; Ctrl-C; a terminal that was lost; the warnings of Slurm (as of
`--signal=USR1@60`) and of Grid Engine; a limit of processor time; Ctrl-Break on Windows, which has three of them. The
exit code is 128 + the number."""
KILL, BUS = (int(getattr(signal, name, number)) for name, number in (("SIGKILL", 9), ("SIGBUS", 7)))
"""What ends a process that takes too much memory, and one that finds no memory which it shares."""
_HANGUP, _CHILD = (getattr(signal, name, None) for name in ("SIGHUP", "SIGCHLD"))
MASKS = hasattr(signal, "pthread_sigmask")
"""Whether signals can be kept from a thread, and so from processes that it starts."""


class Stopped(KeyboardInterrupt):
    """A signal ends the command at once."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def asked() -> tuple[signal.Signals, ...]:
    """Those of `STOPPING` that mean something here: what was started with `nohup` is to outlive its terminal."""
    return tuple(one for one in STOPPING if one != _HANGUP or signal.getsignal(one) != signal.SIG_IGN)


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


@contextmanager
def blocked() -> Iterator[None]:
    """Signals that come meanwhile come afterwards; processes that are started are deaf to them. Nothing on Windows."""
    if not MASKS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_all() -> None:
    """Be deaf to them from here on, in the main thread of a process that another one ends."""
    if MASKS:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        return
    for one in STOPPING:
        signal.signal(one, signal.SIG_IGN)


def told_to_end(seconds: float) -> int | None:
    """Wait so long for SIGTERM, which is blocked, and return the process that sent it.

    Returns:
        None: nothing came, or nobody can wait for signals here (macOS, Windows).
    """
    if not hasattr(signal, "sigtimedwait"):
        time.sleep(seconds)
        return None
    told = signal.sigtimedwait([signal.SIGTERM], seconds)
    return None if told is None else told.si_pid


def of_children() -> Callable[[int, FrameType | None], Any] | int | None:
    """What is done when a child ends: None where the system does not tell."""
    return None if _CHILD is None else signal.getsignal(_CHILD)


def set_of_children(handler: object) -> None:
    """Set it again; the main thread alone may."""
    if _CHILD is not None:
        signal.signal(_CHILD, handler if callable(handler) else signal.SIG_DFL)


def kill_self() -> NoReturn:
    """End as by a power cut: nothing is tidied up."""
    if hasattr(signal, "SIGKILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(128 + KILL)


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise Stopped(number)
