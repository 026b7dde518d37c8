"""One run, one folder: names, the lock, the wish to stop."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

import kills
import pytest

from patchform import signals
from patchform.errors import FolderError, Interrupted, ResourceError
from patchform.training import run

HOLD = """
import sys, time
from pathlib import Path
from patchform.training import run
with run.opened(Path(sys.argv[1]), "one", stem="auto", resume=False) as folder:
    (folder / run.RECIPE).write_text("")
    if sys.argv[2] == "fork":
        import os
        if os.fork() == 0:
            time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that owns tmp_path/one."""
    started = []

    def start(mode="plain"):
        command = [sys.executable, "-c", HOLD, str(tmp_path), mode]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_automatic_names_are_distinct(tmp_path):
    names = [run.new_folder(tmp_path / "runs", None, stem="task-net").name for _ in range(3)]
    assert names == ["task-net-1", "task-net-2", "task-net-3"]


def test_a_name_that_is_taken_is_refused_and_an_unwritable_place_too(tmp_path):
    run.new_folder(tmp_path, "one", stem="")
    with pytest.raises(FolderError, match=r"exists already in .*one; choose another name, or resume it"):
        run.new_folder(tmp_path, "one", stem="")
    (tmp_path / "file").write_text("")
    with pytest.raises((ResourceError, FolderError)):
        run.new_folder(tmp_path / "file", None, stem="x")


def test_only_what_exists_is_resumed(tmp_path):
    for name in ("one", None):
        with pytest.raises(FolderError, match="no run to resume"), run.opened(tmp_path, name, stem="x", resume=True):
            pass


def test_a_run_in_use_names_its_process(tmp_path, holder):
    process = holder()
    told = rf"by process {process.pid} on \S+ since \d{{4}}-\d\d-\d\dT"
    with pytest.raises(FolderError, match=told), run.opened(tmp_path, "one", stem="x", resume=True):
        pass
    with pytest.raises(FolderError, match=told):
        run.new_folder(tmp_path, "one", stem="x")


@pytest.mark.parametrize("mode", ["plain", "fork"])
def test_a_killed_run_leaves_no_lock_even_while_its_loaders_live(tmp_path, holder, mode):
    process = holder(mode)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (tmp_path / "one" / ".tmp-1-x").mkdir()
    with run.opened(tmp_path, "one", stem="x", resume=True) as folder:
        assert not list(folder.glob(".tmp-*"))
        assert json.loads((folder / run.LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("begun", [False, True])
def test_a_folder_in_which_nothing_began_is_removed_on_an_error(tmp_path, begun):
    def fail(folder):
        if begun:
            (folder / run.RECIPE).write_text("")
        return 1 / 0

    with pytest.raises(ZeroDivisionError), run.opened(tmp_path, "one", stem="x", resume=False) as folder:
        fail(folder)
    assert (tmp_path / "one").exists() == begun


@pytest.mark.parametrize("number", signals.STOPPING)
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_a_second_interrupt_is_obeyed_at_once(number, second, capfd, monkeypatch):
    before = signal.getsignal(number)
    with run.Stop() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), second)  # `timeout` sends two, systemd SIGHUP behind SIGTERM: still one wish
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Interrupted) as caught:
            stop.check()
        assert caught.value.exit_code == 128 + number
        monkeypatch.setattr(run, "SAME_WISH", 0)
        os.kill(os.getpid(), signal.SIGUSR1)  # a warning hurries nobody
        with pytest.raises(signals.Stopped):
            os.kill(os.getpid(), second)
    assert signal.getsignal(number) is before
    assert "stopping after this step" in capfd.readouterr().err


def test_a_run_that_shall_outlive_its_terminal_does():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        with run.Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_of_four_at_once_one_trains(pictures, tmp_path):
    wish = {"path": str(pictures), "runs": str(tmp_path), "name": "run"}
    started = [kills.start(wish) for _ in range(4)]
    codes = [kills.finish(process)[0] for process in started]
    assert sorted(codes) == [0, 5, 5, 5]
