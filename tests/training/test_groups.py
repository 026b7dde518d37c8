"""Signals to a whole group, loader processes included, as `timeout`, Slurm, systemd and a terminal send them."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import kills
import pytest
import tiny
import torch
from torch.utils.data import Dataset

from patchform.data import workers
from patchform.data.loader import evaluation_loader
from patchform.errors import ResourceError
from patchform.records import Label, Sample
from patchform.training import checkpoint, loop

SECTIONS = {**tiny.EVERYTHING, "data": {"balanced": True, "workers": 2}}
TRIALS = int(os.environ.get("PATCHFORM_TRIALS", "3"))


def wish(pictures, tmp_path, **more):
    return {"path": str(pictures), "runs": str(tmp_path), "name": "run", "sections": SECTIONS} | more


@pytest.fixture(scope="module")
def reference(pictures, tmp_path_factory):
    """The outcome of the run that nobody stops, without loader processes."""
    recipe = tiny.recipe(pictures, tmp_path_factory.mktemp("reference"), **tiny.EVERYTHING)
    return kills.outcome(loop.train(recipe, progress=False).folder)


def until(process, folder, step):
    while len(kills.log(folder)) < step:
        assert process.poll() is None, kills.finish(process)
        time.sleep(0.002)


def group_is_gone(group, within=5.0):
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(TRIALS))
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_group_that_is_ended_loses_nothing(pictures, tmp_path, reference, number, trial):
    dice = random.Random(trial)
    process, folder = kills.start(wish(pictures, tmp_path)), tmp_path / "run"
    until(process, folder, dice.randrange(4, 12))
    time.sleep(dice.uniform(0, 0.03))
    code, said = kills.kill(process, number)
    assert code == (143 if number == signal.SIGTERM else -signal.SIGKILL), said
    assert group_is_gone(process.pid)
    if number == signal.SIGTERM:
        last, _ = checkpoint.newest(folder / "checkpoints")
        assert int(last.name[5:]) == kills.log(folder)[-1]["step"]
        assert "go on with: patchform train" in said
    code, said = kills.finish(kills.start(wish(pictures, tmp_path, resume=True)))
    assert code == 0, said
    assert kills.outcome(folder) == reference


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_other_signals_to_a_group_are_saved_too(pictures, tmp_path, number):
    process, folder = kills.start(wish(pictures, tmp_path)), tmp_path / "run"
    until(process, folder, 5)
    code, said = kills.kill(process, number)
    assert code == 128 + number, said
    last, _ = checkpoint.newest(folder / "checkpoints")
    assert int(last.name[5:]) == kills.log(folder)[-1]["step"]


# ---------------------------------------------------------------------------------------------- loader processes alone


class Numbers(Dataset):
    """Samples that say which process made them; some take long."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def __len__(self):
        return 64

    def __getitem__(self, key):
        if key[1] > 4:
            time.sleep(self.seconds)
        return Sample(torch.full((3, 2, 2), float(os.getpid())), Label(torch.tensor([0])), str(os.getpid()), (2, 2))


METHODS = ["fork", pytest.param("forkserver", marks=pytest.mark.slow), pytest.param("spawn", marks=pytest.mark.slow)]

LOAD = """
import multiprocessing, os, sys, time
sys.path.insert(0, sys.argv[2])
from test_groups import Numbers
from patchform.data.loader import evaluation_loader
if __name__ == "__main__":
    import signal
    multiprocessing.set_start_method(sys.argv[1])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: None)
    for count, batch in enumerate(evaluation_loader(Numbers(float(sys.argv[3])), 2, 2)):
        print(batch.names[0], flush=True)
        time.sleep(0.02)
    print("done", flush=True)
"""


@pytest.fixture
def loading(tmp_path):
    """A process that loads batches, in a group of its own; started by a method."""
    started = []

    def start(method, seconds=0.0):
        script = tmp_path / "load.py"
        script.write_text(LOAD)
        command = [sys.executable, str(script), method, str(Path(__file__).parent), str(seconds)]
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        )
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("method", METHODS)
def test_loader_processes_outlive_the_signals_of_their_group(loading, method):
    process = loading(method)
    workers = {process.stdout.readline().strip() for _ in range(4)}
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert out.endswith("done\n"), err
    assert set(out.split()[:-1]) <= workers
    assert process.returncode == 0


@pytest.mark.parametrize("method", METHODS)
def test_loader_processes_end_with_their_run(loading, method):
    process = loading(method, seconds=1000)
    workers = {process.stdout.readline().strip() for _ in range(2)}
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert group_is_gone(process.pid), workers


def test_a_process_that_is_killed_while_idle_is_missed_at_the_next_batch():
    loaded = iter(evaluation_loader(Numbers(), 2, 2))
    first, second = int(next(loaded).names[0]), int(next(loaded).names[0])
    os.kill(first, signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(ResourceError, match=rf"a data worker was killed.*SIGKILL, process {first}"):
        list(loaded)
    assert time.monotonic() - begun < 3
    del loaded
    assert second != first


def test_a_process_that_is_killed_while_waited_for_is_missed_at_once():
    loaded = iter(evaluation_loader(Numbers(1000), 1, 1))
    worker = int(next(loaded).names[0])
    for _ in range(4):
        next(loaded)
    begun = time.monotonic()
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -KILL {worker}"])
    with pytest.raises(ResourceError, match="a data worker was killed"):
        next(loaded)
    assert time.monotonic() - begun < 3  # torch alone looks every five seconds
    killer.wait()


class Slow(Numbers):
    """Samples that take longer than it takes to look after the processes."""

    def __getitem__(self, key):
        time.sleep(1.5 * workers.PATIENCE * (key[1] == 1))
        return super().__getitem__(key)


def test_a_slow_batch_is_waited_for():
    names = [name for batch in evaluation_loader(Slow(), 1, 1) for name in batch.names]
    assert len(names) == len(Slow())


class Unsendable(Numbers):
    """Samples that cannot go to another process."""

    def __getitem__(self, key):
        return super().__getitem__(key)._replace(name=threading.Lock())


def test_a_batch_that_cannot_be_sent_is_not_waited_for():
    with pytest.raises(ResourceError, match="a data worker cannot hand over a batch"):
        list(evaluation_loader(Unsendable(), 2, 1))


def test_the_end_of_a_loader_process_interrupts_nothing_else():
    """torch raises it wherever the run is: in the middle of a step, too."""
    before = signal.getsignal(signal.SIGCHLD)
    loaded = iter(evaluation_loader(Numbers(), 2, 2))
    worker = int(next(loaded).names[0])
    os.kill(worker, signal.SIGKILL)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:  # a step
        pass
    assert signal.getsignal(signal.SIGCHLD) == before
    with pytest.raises(ResourceError, match="a data worker was killed"):
        list(loaded)
