"""Processes that load: deaf to signals that are meant for the run, ended with it, missed when one is killed.

`timeout`, Slurm, systemd and a terminal send their signals to the whole group. What to do then is the run's affair:
were its loader processes to end first, it could not finish the step that it is to save.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from types import TracebackType
from typing import Any

import torch

from patchform import signals
from patchform.errors import ResourceError

PERIOD = 0.5
"""Seconds within which a loader process notices that the run is gone."""
PATIENCE = 1.0
"""Seconds after which who waits for a batch looks whether all processes are there: a loader's `timeout`."""
_LATE = "DataLoader timed out"
CANNOT_SEND = 75
"""Exit code of a loader process whose batch cannot go to the run."""
_REASONS = {
    CANNOT_SEND: ("cannot hand over a batch: no more memory or open files", "lower data.workers, or raise ulimit -n"),
    -signals.KILL: ("was killed, most often because memory ran out", "lower data.workers or training.batch_size"),
    -signals.BUS: ("has no more shared memory", "enlarge /dev/shm (docker run --shm-size 8g), or lower data.workers"),
}


def begin(_: int) -> None:
    """What a loader process does first: torch's `worker_init_fn`."""
    torch.set_num_threads(1)
    signals.ignore_all()  # where the process that forks it did not
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    # the thread that sends batches only prints its errors, and the run would wait for ever
    Queue._on_queue_feeder_error = staticmethod(_end_unsent)  # type: ignore[attr-defined]
    sys.excepthook = _pass_over_broken_connections


def _end_unsent(error: Exception, batch: object) -> None:
    os._exit(CANNOT_SEND)


def _pass_over_broken_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Of the thread that hands over memory: a run that ends takes no more of it, which is nobody's trouble."""
    if not isinstance(error, OSError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _end_with_parent(starter: int) -> None:
    """End when the run does, however it does, or when it says so: torch terminates what does not end by itself.

    Args:
        starter: the run, or the process that starts others for it and ends with it.
    """
    parent = multiprocessing.parent_process()
    while os.getppid() == starter and (parent is None or parent.is_alive()):
        sender = signals.told_to_end(PERIOD)
        if sender is not None and parent is not None and sender == parent.pid:
            break
    os._exit(0)


class Crew:
    """The loader processes of one loader.

    Args:
        processes: which they are.
    """

    def __init__(self, processes: list[BaseProcess]) -> None:
        self.processes = processes

    def next(self, loaded: Iterator[Any]) -> Any:
        """A batch of a loader whose `timeout` is `PATIENCE`, None at the end.

        That one of the processes was killed is seen while a batch is waited for, and at no other time: torch would tell
        it by a handler of signals, which raises wherever the run is, in the middle of a step or where Python can only
        print it.

        Raises:
            ResourceError: one was killed, or crashed.
            Exception: whatever the data set raised.
        """
        try:
            while True:
                self.check()
                broken = ""
                try:
                    return next(loaded, None)
                except (RuntimeError, OSError, EOFError) as error:
                    if not self.processes or not _is_of_processes(error):
                        raise
                    broken = (str(error) or type(error).__name__).split("\n")[0]
                if not broken.startswith(_LATE):
                    self._settle()
                    remedy = _REASONS[-signals.KILL][1]
                    raise ResourceError(f"a data worker was killed ({broken})", remedy=remedy)
        finally:  # a traceback holds this frame: nothing in it may keep the processes alive
            del loaded

    def _settle(self) -> None:
        """`check`, once the system has noted the end of the process whose connection broke."""
        for _ in range(50):
            self.check()
            time.sleep(0.01)

    def check(self) -> None:
        """Raise ResourceError if one of them was killed. Those that are done end with 0."""
        for process in self.processes:
            if code := process.exitcode:
                ended = ("crashed" if code < 0 else "ended", "set data.workers to 0 to see why")
                what, remedy = _REASONS.get(code, ended)
                how = signal.Signals(-code).name if -code in list(signal.Signals) else f"exit code {code}"
                raise ResourceError(f"a data worker {what} ({how}, process {process.pid})", remedy=remedy)


def _is_of_processes(error: BaseException) -> bool:
    """Whether torch speaks of one that is late or gone; what begins with "Caught" is an error of the data set."""
    if str(error).startswith("Caught "):
        return False
    return isinstance(error, OSError | EOFError) or "DataLoader worker (pid" in str(error) or _LATE in str(error)


@contextmanager
def hired() -> Iterator[Crew]:
    """Processes that begin meanwhile, however, are deaf to signals from the start; they are in the crew afterwards."""
    if signals.MASKS and multiprocessing.get_start_method() != "fork":  # its start would end the block
        with signals.blocked():
            resource_tracker.ensure_running()
    crew, others = Crew([]), set(multiprocessing.active_children())
    handler = signals.of_children()
    with signals.blocked():
        yield crew
    crew.processes = [process for process in multiprocessing.active_children() if process not in others]
    _quieten(handler)


def _quieten(handler: object) -> None:
    """Take back torch's handler, which raises errors of loader processes in the middle of whatever happens."""
    if threading.current_thread() is threading.main_thread() and _of_torch(signals.of_children()):
        signals.set_of_children(None if _of_torch(handler) else handler)


def _of_torch(handler: object) -> bool:
    return str(getattr(handler, "__module__", "")).startswith("torch.")
