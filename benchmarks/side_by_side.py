"""What the experiments share that set ours beside another's: a core for each side, the time it took, epochs that fit.

Time is the processor's time of a process with one thread, which others on the machine do not add to. On an idle machine
it is that of the clock; both are printed.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

CALIBRATION = 3
"""Epochs, at most, of the short run that tells how many fit; a second one is twice as long."""
SHORT = 0.1
"""Share of the time that the short run may take, if it has more than one epoch."""
PLANNED = 0.95
"""Share of the time that is planned for: what the short runs tell is a few per cent off."""


class Spent(NamedTuple):
    """Seconds of the processor and of the clock on the wall."""

    core: float
    wall: float


class Clock:
    """Both, from now on."""

    def __init__(self):
        self.began = time.process_time(), time.perf_counter()

    def since(self):
        return Spent(time.process_time() - self.began[0], time.perf_counter() - self.began[1])


def fitted(run: Callable[[str, int], object], seconds: float):
    """Call `run(name, epochs)` with as many epochs as fit into so many seconds of a core, by short runs before.

    Returns:
        What it returned, the number of epochs, and what they took.
    """

    def timed(name, epochs):
        clock = Clock()
        return run(name, epochs), clock.since()

    _, first = timed("one", 1)
    length = max(1, min(CALIBRATION, int(SHORT * seconds / first.core)))
    if length > 1:
        _, first = timed("short", length)
    _, second = timed("longer", 2 * length)
    epoch = (second.core - first.core) / length
    epochs = max(1, int((PLANNED * seconds - (first.core - length * epoch)) / epoch))
    done, spent = timed("whole", epochs)
    return done, epochs, spent


def together(script: str, sides: Sequence[Sequence[str]]):
    """What each run of a script with such words printed last, as JSON; all run at once, each on a core of its own."""
    running = [_started(script, words, core) for core, words in enumerate(sides)]
    return [_last(process) for process in running]


def in_turn(script: str, sides: Sequence[Sequence[str]], *, keep: Path | None = None):
    """The same of more runs than there are cores: each core takes the next one when it is done with one.

    Args:
        script: as of `together`.
        sides: likewise.
        keep: folder for answers; a run whose answer is there is not done again.
    """
    waiting, found = list(enumerate(sides)), {}

    def answer(words, core):
        if keep is None:
            return _last(_started(script, words, core))
        place = keep / f"{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]}.json"
        if not place.exists():
            said = _last(_started(script, words, core))
            keep.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(said), encoding="utf-8")
        return json.loads(place.read_text(encoding="utf-8"))

    def work(core):
        while waiting:
            number, words = waiting.pop(0)
            found[number] = answer(words, core)

    cores = [threading.Thread(target=work, args=(core,)) for core in range(os.cpu_count() or 1)]
    for core in cores:
        core.start()
    for core in cores:
        core.join()
    return [found[number] for number in range(len(sides))]


def _started(script: str, words: Sequence[str], core: int):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, script, *words], env=environment, stdout=subprocess.PIPE, text=True)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, {core % os.cpu_count()})
    return process


def _last(process):
    return json.loads(process.communicate()[0].splitlines()[-1])
