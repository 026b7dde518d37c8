"""Whatever ends a run, what it learnt is on the disk whole, and the way on is said."""

import errno
import json
import os
import random
import shlex
import shutil
import signal
import sys

import kills
import pytest
import tiny
import torch

from patchform import cli, lookup
from patchform.data.pictures import LabelledPictures
from patchform.distributed import Rank
from patchform.errors import Interrupted, ModelFileError, ResourceError
from patchform.training import best, checkpoint, ema, loop, metrics_log, saving, step, validation
from patchform.training.progress import Reporter
from patchform.weights import files

PLAIN = {"training": {"ema": 0.9}}
NORMS = PLAIN | {"model": {"backbone": "resnet/nano", "head_options": {"dropout": 0.1}}}
"""Random numbers and running statistics that a forward pass moves before it fails."""
NO_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def saved(folder):
    """The step of the newest checkpoint, 0 without one."""
    newest = checkpoint.newest(folder / "checkpoints")[0]
    return int(newest.name[5:]) if newest else 0


def failing(function, number, error):
    """The function, whose n-th call fails when its work is done."""
    calls = []

    def broken(*arguments, **options):
        calls.append(1)
        result = function(*arguments, **options)
        if len(calls) == number:
            raise error
        return result

    return broken


@pytest.fixture(scope="module")
def runs(pictures, tmp_path_factory):
    """A finished run of each set of options."""
    place = tmp_path_factory.mktemp("finished")
    found = {}
    for name, options in (("plain", PLAIN), ("norms", NORMS)):
        found[name] = loop.train(tiny.recipe(pictures, place, name, **options), progress=False).folder
    return found


# ----------------------------------------------------------------------------------------------------- out of memory

PHASES = {
    # where, which call fails, the step that can be saved, the options of the run
    "forward and backward": (step, "gradients", 5, 4, "norms"),
    "the validation": (validation, "evaluate", 1, 7, "plain"),
    "the move": (torch.optim.AdamW, "step", 5, 3, "plain"),
    "the average": (ema, "update", 5, 3, "plain"),
    "the keeping of the best": (best, "save", 1, 7, "plain"),
    "the end": (saving, "save", 1, 14, "plain"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_out_of_memory_anywhere_saves_the_last_whole_step(pictures, tmp_path, monkeypatch, runs, phase, capsys):
    room, name, number, kept, options = PHASES[phase]
    recipe = tiny.recipe(pictures, tmp_path, **{"plain": PLAIN, "norms": NORMS}[options])
    with monkeypatch.context() as patched:
        patched.setattr(room, name, failing(getattr(room, name), number, NO_MEMORY))
        with pytest.raises(ResourceError, match="out of memory with 32 images of 32x32") as caught:
            loop.train(recipe, progress=False)
    assert caught.value.exit_code == 7
    assert saved(tmp_path / "run") == kept
    said = capsys.readouterr().err
    assert ("ended half way: it is not saved" in said) == (kept == 3)
    assert f"saved after step {kept}; go on with: patchform train {tmp_path}/run --resume" in said
    loop.train(recipe, resume=True, progress=False)
    assert kills.outcome(tmp_path / "run") == kills.outcome(runs[options])


def test_a_bug_costs_no_work_either(pictures, tmp_path, monkeypatch, runs):
    recipe = tiny.recipe(pictures, tmp_path, **PLAIN)
    with monkeypatch.context() as patched:
        patched.setattr(step, "gradients", failing(step.gradients, 6, ZeroDivisionError()))
        with pytest.raises(ZeroDivisionError):
            loop.train(recipe, progress=False)
    assert saved(tmp_path / "run") == 5
    loop.train(recipe, resume=True, progress=False)
    assert kills.outcome(tmp_path / "run") == kills.outcome(runs["plain"])


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def short_of_memory():
    raise MemoryError


def short_of_shared_memory():
    raise RuntimeError("unable to write to file </torch_12_34>: No space left on device (28)")


@pytest.mark.parametrize(
    ("end", "line"),
    [
        (killed, r"a data worker was killed, most often because memory ran out \(SIGKILL, process \d+\)"),
        (short_of_memory, "out of memory with 32 pictures of a batch; lower data.workers"),
        (short_of_shared_memory, "no more shared memory in /dev/shm; enlarge it"),
    ],
)
def test_what_ends_a_loader_process_ends_the_run_which_is_saved(pictures, tmp_path, monkeypatch, runs, end, line):
    recipe = tiny.recipe(pictures, tmp_path, **PLAIN, data={"workers": 2})
    plain, mark = LabelledPictures.__getitem__, tmp_path / "mark"

    def spoiled(self, key):
        if key[0] == 1 and not mark.exists():
            mark.touch()
            end()
        return plain(self, key)

    with monkeypatch.context() as patched:
        patched.setattr(LabelledPictures, "__getitem__", spoiled)
        with pytest.raises(ResourceError, match=line):
            loop.train(recipe, progress=False)
    # An epoch has seven batches; in the second the other process may have given one before this one ends.
    assert 3 <= saved(tmp_path / "run") <= 8
    loop.train(recipe, resume=True, progress=False)
    assert kills.outcome(tmp_path / "run") == kills.outcome(runs["plain"])


# --------------------------------------------------------------------------------------------------- the best model


@pytest.fixture
def stopped(pictures, tmp_path, monkeypatch):
    """A run that was stopped two steps after its best was kept, and how to go on with it."""
    recipe = tiny.recipe(pictures, tmp_path, **PLAIN)
    with monkeypatch.context() as patched:
        patched.setattr(step, "gradients", failing(step.gradients, 10, ZeroDivisionError()))
        with pytest.raises(ZeroDivisionError):
            loop.train(recipe, progress=False)
    return recipe


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "a bit": lambda folder: flip(folder / "model.safetensors"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "an empty description": lambda folder: (folder / "model.json").write_text(""),
    "gone": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_best_model_is_put_back_before_training_goes_on(tmp_path, stopped, runs, damage, capsys):
    folder = tmp_path / "run"
    DAMAGES[damage](folder / "best")
    notes = best.BestModel(folder).check(state_of(folder).counters)
    assert len(notes) == 1
    assert "put back from its copy in checkpoints/best-00000007" in notes[0]
    assert not files.verify(folder / "best")
    assert (folder / "best/model.safetensors").stat().st_nlink == 1  # what damages one must not damage the other
    loop.train(stopped, resume=True, progress=False)
    assert kills.outcome(folder) == kills.outcome(runs["plain"])


def state_of(folder):
    return checkpoint._state(checkpoint.newest(folder / "checkpoints")[0])


def test_a_damaged_copy_is_made_anew_and_the_loss_of_both_is_said(tmp_path, stopped, capsys):
    folder, counters = tmp_path / "run", state_of(tmp_path / "run").counters
    copy = folder / "checkpoints/best-00000007"
    flip(copy / "model.safetensors")
    assert "made anew" in best.BestModel(folder).check(counters)[0]
    assert best.BestModel(folder).check(counters) == []
    shutil.rmtree(copy)  # as in runs of earlier versions
    assert best.BestModel(folder).check(counters) == []
    flip(copy / "model.safetensors")
    flip(folder / "best/model.safetensors")
    score = counters.best
    finished = loop.train(stopped, resume=True, progress=False)
    said = capsys.readouterr().err
    assert f"so is its copy: that of step 7, of score {score:.4g}, is lost" in said
    assert finished.best_step == 14
    assert not files.verify(folder)


def test_both_damaged_at_the_end_the_last_model_is_the_result(pictures, tmp_path, monkeypatch, capsys):
    recipe = tiny.recipe(pictures, tmp_path, training={"epochs": 1})
    plain = best.BestModel.final

    def damaged(self, *arguments):
        for path in tmp_path.rglob("*best*/model.safetensors"):
            flip(path)
        return plain(self, *arguments)

    monkeypatch.setattr(best.BestModel, "final", damaged)
    finished = loop.train(recipe, progress=False)
    assert finished.best is None
    assert "both copies of the best model are damaged" in capsys.readouterr().err
    assert not files.verify(finished.folder)


def test_each_checkpoint_keeps_the_best_that_it_speaks_of_and_no_other(pictures, tmp_path, monkeypatch):
    scores = iter([0.1, 0.2, 0.3, 0.15, 0.1, 0.1])
    plain = validation.evaluate

    def scored(*arguments, **options):
        found = plain(*arguments, **options)
        return found._replace(numbers=found.numbers | {found.better: next(scores)})

    monkeypatch.setattr(validation, "evaluate", scored)
    held = []
    prune = best.BestModel.prune

    def noted(self, spoken_of):
        prune(self, spoken_of)
        copies = {int(path.name[5:]) for path in self._copies.glob("best-*")}
        held.append(len(copies))
        assert copies - {0} == {number for number in checkpoint.best_steps(self._copies) if number}

    monkeypatch.setattr(best.BestModel, "prune", noted)
    sections = {"epochs": 6, "batch_size": 100, "keep": 2, "save_every": 0}
    loop.train(tiny.recipe(pictures, tmp_path, training=sections), progress=False)
    assert max(held) == 2
    assert held[-1] == 1


# ---------------------------------------------------------------------------------------------------------- the logs

LINES = {
    "random bytes": lambda data: random.Random(1).randbytes(len(data)),
    "a hole of zeros": lambda data: data[:60] + bytes(80) + data[140:],
    "zeros at the end": lambda data: data[:-90] + bytes(90),
    "not a number": lambda data: data.replace(b"0x1", b"0y1", 1).replace(b"1.", b"1!", 1),
    "a list": lambda data: b"[1]\n" + data,
    "deep": lambda data: b"[" * 100_000 + b"\n" + data,
    "a step twice": lambda data: data + data,
}


@pytest.mark.parametrize("name", [metrics_log.STEPS, metrics_log.METRICS])
@pytest.mark.parametrize("damage", LINES)
def test_of_a_damaged_log_what_can_be_read_is_kept(runs, tmp_path, name, damage):
    if (name, damage) == (metrics_log.METRICS, "a step twice"):
        pytest.skip("a table may say so")
    data = (runs["plain"] / name).read_bytes()
    for each in (metrics_log.STEPS, metrics_log.METRICS):
        shutil.copy(runs["plain"] / each, tmp_path)
    damaged = LINES[damage](data)
    (tmp_path / name).write_bytes(damaged)
    with metrics_log.MetricsLog(tmp_path, 14, 14) as log:
        notes = log.notes
        log.step(15, loss=0.5)
        log.epoch(3, 15, {"train_loss": 0.5})
    assert f"{name} is damaged" in notes[0]
    assert (tmp_path / f"{name}.damaged-1").read_bytes() == damaged
    lines = (tmp_path / name).read_bytes().splitlines()
    intact = set(data.splitlines())
    assert all(line in intact or line.startswith(b"epoch,") for line in lines[:-1])  # none is made up
    if damage in ("a list", "deep") and name == metrics_log.STEPS:
        assert lines[:-1] == data.splitlines()
    with metrics_log.MetricsLog(tmp_path, 15, 15) as log:
        assert not any("damaged" in note for note in log.notes)


@pytest.mark.parametrize("name", [metrics_log.STEPS, metrics_log.METRICS])
@pytest.mark.parametrize("rest", [0, 0.5])
def test_a_log_that_lacks_lines_says_which(runs, tmp_path, name, rest):
    for each in (metrics_log.STEPS, metrics_log.METRICS):
        shutil.copy(runs["plain"] / each, tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * rest)])
    with metrics_log.MetricsLog(tmp_path, 14, 14) as log:
        pass
    assert f"{name} lacks" in log.notes[-1]
    kept = (tmp_path / name).read_bytes()
    assert data.startswith(kept)


def test_whole_logs_and_half_a_line_are_nothing_to_speak_of(runs, tmp_path):
    for each in (metrics_log.STEPS, metrics_log.METRICS):
        shutil.copy(runs["plain"] / each, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with open(tmp_path / metrics_log.STEPS, "ab") as file:
        file.write(b'{"step": 15, "lo')
    with metrics_log.MetricsLog(tmp_path, 14, 14) as log:
        assert log.notes == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---------------------------------------------------------------------------------------------------------- the disk


def test_a_full_disk_at_any_write_leaves_a_run_that_ends_with_the_same_bits(pictures, tmp_path, monkeypatch):
    """Every write of a run in its turn: recipe, logs, parts of checkpoints, the best model, the model."""
    short = {"training": {"epochs": 2, "batch_size": 100, "save_every": 1, "ema": 0.9}}
    reference = kills.outcome(loop.train(tiny.recipe(pictures, tmp_path, "whole", **short), progress=False).folder)
    plain, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(descriptor)

    number, lines = 1, set()
    while True:
        calls.clear()
        recipe = tiny.recipe(pictures, tmp_path, f"run{number}", **short)
        folder = tmp_path / f"run{number}"
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            try:
                loop.train(recipe, progress=False)
            except ResourceError as error:
                lines.add(str(error.where).rpartition("/")[2].removeprefix(f".tmp-{os.getpid()}-"))
            else:
                break
        assert not list(folder.rglob(".tmp-*")), number
        if number % 5 == 0:  # each takes time
            loop.train(recipe, resume=(folder / "recipe.yaml").exists(), progress=False)
            assert kills.outcome(folder) == reference, number
        shutil.rmtree(folder, ignore_errors=True)
        number += 7
    assert len(lines) >= 4


def test_a_log_that_cannot_be_written_is_lived_with_where_that_is_asked(pictures, tmp_path, monkeypatch, capsys):
    plain, calls = metrics_log.replace_text, []

    def full(path, text):
        calls.append(path)
        if len(calls) > 2:
            raise ResourceError("cannot write (No space left on device)", where=path)
        plain(path, text)

    monkeypatch.setattr(metrics_log, "replace_text", full)
    recipe = tiny.recipe(pictures, tmp_path, training={"epochs": 3, "batch_size": 200, "on_save_error": "continue"})
    assert loop.train(recipe, progress=False).step == 3
    assert capsys.readouterr().err.count("not logged, going on") == 1


# ------------------------------------------------------------------------------------------------------- the way on


def test_the_command_to_go_on_can_be_typed(monkeypatch, tmp_path):
    awkward = tmp_path / "my runs/it's $1"
    command = saving.resume_command(awkward, Rank(0, 1))
    assert shlex.split(command) == ["patchform", "train", str(awkward), "--resume"]
    monkeypatch.setattr(lookup, "plugins", lambda: (tmp_path / "a b",))
    assert shlex.split(saving.resume_command(awkward, Rank(0, 1)))[-2:] == ["--plugin", str(tmp_path / "a b")]
    assert shlex.split(saving.resume_command(awkward, Rank(0, 4)))[:4] == ["torchrun", "--nproc-per-node", "4", "-m"]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # of several machines
    assert "on every machine" in saving.resume_command(awkward, Rank(0, 4))
    assert shlex.split(saving.resume_command(type(tmp_path)("-x/run"), Rank(0, 1)))[2] == "./-x/run"


def test_a_stopped_run_says_how_to_go_on_and_what_it_is_good_for(pictures, tmp_path, monkeypatch, capsys):
    recipe = tiny.recipe(pictures, tmp_path, **PLAIN)

    def asked(*arguments, **options):
        if len(kills.log(tmp_path / "run")) == 8:
            os.kill(os.getpid(), signal.SIGHUP)
        return plain(*arguments, **options)

    plain = step.gradients
    monkeypatch.setattr(step, "gradients", asked)
    with pytest.raises(Interrupted) as caught:
        loop.train(recipe, progress=False)
    assert caught.value.exit_code == 129
    line = f"stopped as asked after step 9 in {tmp_path}/run; go on with: patchform train {tmp_path}/run --resume"
    assert str(caught.value) == line
    assert "of step 7 and score" in capsys.readouterr().err
    monkeypatch.undo()
    command = shlex.split(str(caught.value).partition("go on with: ")[2])
    assert cli.main(command[1:]) == 0
    assert len(kills.log(tmp_path / "run")) == 14


def test_a_run_that_was_stopped_before_it_began_leaves_nothing(pictures, tmp_path, monkeypatch):
    plain = loop.open_training

    def asked(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(*arguments, **options)

    monkeypatch.setattr(loop, "open_training", asked)
    with pytest.raises(Interrupted, match="stopped as asked before anything was begun; start again"):
        loop.train(tiny.recipe(pictures, tmp_path), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_lost_terminal_is_nothing_to_a_run(monkeypatch):
    class Lost:
        def isatty(self):
            return False

        def write(self, text):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def flush(self):
            self.write("")

    monkeypatch.setattr(sys, "stderr", Lost())
    with Reporter(shown=True) as reporter:
        reporter.note("nobody hears it")
        reporter.epoch(1, 1, {"loss": 0.5})


def test_a_counter_too_few_is_called_that(runs, tmp_path):
    path = shutil.copytree(checkpoint.newest(runs["plain"] / "checkpoints")[0], tmp_path / "step-00000014")
    state = json.loads((path / checkpoint.STATE).read_text())
    for change, words in (
        (lambda counters: counters.pop("reported"), r"counters has no reported in .*; it is a mapping of step"),
        (lambda counters: counters.update(reported=14, other=1), "counters has a name that is not known: 'other'"),
    ):
        change(state["counters"])
        (path / checkpoint.STATE).write_text(json.dumps(state))
        with pytest.raises(ModelFileError, match=words):
            checkpoint._state(path)
