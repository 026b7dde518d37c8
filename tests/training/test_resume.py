"""A run that is stopped and resumed ends with the bits of one that was not."""

import json
import os
import random
import shutil
import signal

import kills
import pytest
import tiny
import torch

from patchform.errors import Interrupted, ModelFileError
from patchform.settings import LoRASettings
from patchform.training import checkpoint, loop, validation
from patchform.weights import files

OPTIONS = {
    "plain": {},
    "drop path": {"model": {"drop_path": 0.3}},
    "mixup": {"augmentation": {"mixup": 0.4, "cutmix": 1.0}},
    "policy": {"augmentation": {"policy": "rand_augment", "erasing": 0.5, "color_jitter": 0.3}},
    "average": {"training": {"ema": 0.9}},
    "parts": {"training": {"micro_batch": 12}},
    "clip": {"optimizer": {"clip": 0.5}},
    "balanced": {"data": {"balanced": True}},
    "bfloat16": {"training": {"precision": "bfloat16"}},
    "float16": {"training": {"precision": "float16"}},
    "checkpointing": {"model": {"checkpointing": True, "drop_path": 0.3}},
    "lamb": {"optimizer": {"name": "lamb"}},
    "sgd": {"optimizer": {"name": "sgd", "lr": 0.05}},
    "adapter": {
        "model": {"adapter": "lora", "lora": LoRASettings(dropout=0.2), "checkpointing": True},
        "training": {"ema": 0.9},
    },
    "everything": tiny.EVERYTHING,
}


class Cut(BaseException):
    """The end of a process, without one: nothing is saved on its way."""


def cut_at(monkeypatch, step):
    passes = []

    def failpoint(name):
        passes.extend([1] * (name == "before-log"))
        if len(passes) == step:
            raise Cut

    monkeypatch.setattr(loop, "failpoint", failpoint)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_resumes_to_the_same_bits(pictures, tmp_path, monkeypatch, option):
    sections = OPTIONS[option]
    whole = loop.train(tiny.recipe(pictures, tmp_path, "whole", **sections), progress=False)
    recipe = tiny.recipe(pictures, tmp_path, "cut", **sections)
    with monkeypatch.context() as patched:
        cut_at(patched, 11)  # two steps after a save, in the second epoch
        with pytest.raises(Cut):
            loop.train(recipe, progress=False)
    assert checkpoint.newest(tmp_path / "cut/checkpoints")[0].name == "step-00000009"
    torch.rand(3)  # whatever else a process draws
    loop.train(recipe, resume=True, progress=False)
    assert kills.outcome(tmp_path / "cut") == kills.outcome(whole.folder)


def test_a_run_without_a_checkpoint_begins_anew_and_a_finished_one_ends_at_once(
    pictures, tmp_path, monkeypatch, capsys
):
    recipe = tiny.recipe(pictures, tmp_path)
    with monkeypatch.context() as patched:
        cut_at(patched, 2)
        with pytest.raises(Cut):
            loop.train(recipe, progress=False)
    loop.train(recipe, resume=True, progress=False)
    assert "nothing was saved yet" in capsys.readouterr().err
    before = kills.outcome(tmp_path / "run")
    loop.train(recipe, resume=True, progress=False)
    assert kills.outcome(tmp_path / "run") == before


def test_a_stop_inside_the_validation_saves_the_step_and_validates_again(pictures, tmp_path, monkeypatch):
    sections = {"training": {"ema": 0.9, "save_every": 0}}
    whole = loop.train(tiny.recipe(pictures, tmp_path, "whole", **sections), progress=False)
    recipe, evaluate = tiny.recipe(pictures, tmp_path, "cut", **sections), validation.evaluate

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(validation, "evaluate", interrupted)
        with pytest.raises(Interrupted) as caught:
            loop.train(recipe, progress=False)
    assert caught.value.exit_code == 143
    last, _ = checkpoint.newest(tmp_path / "cut/checkpoints")
    assert last.name == "step-00000007"
    assert files.read_json(last / checkpoint.STATE)["counters"]["reported"] == 0
    loop.train(recipe, resume=True, progress=False)
    assert kills.outcome(tmp_path / "cut") == kills.outcome(whole.folder)


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    """A finished run, to be copied."""
    runs = tmp_path_factory.mktemp("finished")
    loop.train(tiny.recipe(pictures, runs, training={"ema": 0.9}), progress=False)
    return runs


def test_every_damage_of_the_newest_checkpoint_is_seen_and_the_one_before_taken(finished, tmp_path):
    dice = random.Random(1)
    home = tmp_path / "checkpoints"
    shutil.copytree(finished / "run/checkpoints", home)
    before, last = checkpoint.steps(home)
    cases = 0
    for file in sorted(last.iterdir()):
        data = file.read_bytes()
        flips = []
        for _ in range(50 // 6 + 1):
            place = dice.randrange(len(data))
            flips.append(data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :])
        for damaged in [None, b"", data[: len(data) // 2], data[:-1], *flips, (before / file.name).read_bytes()]:
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            found, notes = checkpoint.newest(home)
            intact = damaged == data or (file.name == files.MANIFEST and not files.verify(last))
            if not intact:
                cases += 1
                assert found == before
                assert last.name in notes[0]
            file.write_bytes(data)
    assert cases >= 80
    for path in (before, last):
        (path / "state.json").write_text("")
    with pytest.raises(ModelFileError, match="no checkpoint is whole"):
        checkpoint.newest(home)


def test_a_damaged_checkpoint_costs_steps_and_not_bits(pictures, finished, tmp_path, capsys):
    shutil.copytree(finished / "run", tmp_path / "run")
    last = checkpoint.steps(tmp_path / "run/checkpoints")[-1]
    (last / "model.safetensors").write_bytes((last / "model.safetensors").read_bytes()[:-1])
    loop.train(tiny.recipe(pictures, tmp_path, training={"ema": 0.9}), resume=True, progress=False)
    said = capsys.readouterr().err
    assert "skipped a damaged checkpoint: step-00000014/model.safetensors" in said
    assert "resuming after step 12" in said
    assert kills.outcome(tmp_path / "run") == kills.outcome(finished / "run")


@pytest.mark.parametrize(
    ("sections", "keys"),
    [
        ({"model": {"backbone": "vit/nano", "options": {"depth": 3}}}, "average, backbone_options"),
        ({"training": {"ema": 0.0}}, "average"),
        ({"training": {"ema": 0.9, "seed": 1, "batch_size": 16}}, "batch_size, seed"),
        ({"training": {"ema": 0.9}, "optimizer": {"name": "lamb"}}, "optimizer"),
        ({"training": {"ema": 0.9}, "preprocessing": {"size": (64, 64)}}, "preprocessing"),
    ],
)
def test_another_run_is_not_resumed(pictures, finished, tmp_path, sections, keys):
    shutil.copytree(finished / "run", tmp_path / "run")
    with pytest.raises(ModelFileError, match=f"of another run: {keys} differ"):
        loop.train(tiny.recipe(pictures, tmp_path, **sections), resume=True, progress=False)


HOSTILE = {
    **{
        f"no {part}": lambda state, part=part: state.pop(part) for part in ("counters", "random", "identity", "machine")
    },
    "a step below 0": lambda state: state["counters"].update(step=-1),
    "a step beyond all": lambda state: state["counters"].update(step=10**18),
    "a step of another checkpoint": lambda state: state["counters"].update(step=3),
    "a step in words": lambda state: state["counters"].update(step="5"),
    "a step that is true": lambda state: state["counters"].update(step=True),
    "a validation to come": lambda state: state["counters"].update(reported=10**6),
    "an unknown counter": lambda state: state["counters"].update(other=5),
    "a counter too few": lambda state: state["counters"].pop("reported"),
    "a best score in words": lambda state: state["counters"].update(best="high"),
    "a machine that is a list": lambda state: state.update(machine=[1]),
    "an identity of nothing": lambda state: state.update(identity=None),
    "an odd generator": lambda state: state["random"].update(python=[3, [-1] * 625, None]),
    "another format": lambda state: state.update(format="1"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_state_that_is_none_is_refused(pictures, finished, tmp_path, what):
    shutil.copytree(finished / "run", tmp_path / "run")
    last = checkpoint.steps(tmp_path / "run/checkpoints")[-1]
    state = files.read_json(last / checkpoint.STATE)
    HOSTILE[what](state)
    tensors = {file.stem: files.read_tensors(file) for file in last.glob("*.safetensors")}
    with files.atomic_folder(last) as place:
        files.write_json(place / checkpoint.STATE, state)
        for name, each in tensors.items():
            files.write_tensors(place / f"{name}.safetensors", each)
    with pytest.raises(ModelFileError) as caught:
        loop.train(tiny.recipe(pictures, tmp_path, training={"ema": 0.9}), resume=True, progress=False)
    assert caught.value.exit_code == 4


def test_other_pictures_are_another_run(pictures, finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    other = tiny.pictures(tmp_path / "other", count=196)
    with pytest.raises(ModelFileError, match="of another run: data differ"):
        loop.train(tiny.recipe(other, tmp_path, training={"ema": 0.9}), resume=True, progress=False)


def test_another_machine_is_said(pictures, finished, tmp_path, capsys, monkeypatch):
    shutil.copytree(finished / "run", tmp_path / "run")
    here = checkpoint.machine
    monkeypatch.setattr(checkpoint, "machine", lambda model: here(model) | {"threads": 64})
    loop.train(tiny.recipe(pictures, tmp_path, training={"ema": 0.9}), resume=True, progress=False)
    assert "resuming with threads 64, was 1: results will be close, not identical" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- real processes

LONG = {**tiny.EVERYTHING, "training": tiny.EVERYTHING["training"] | {"epochs": 5}}


@pytest.fixture(scope="module")
def reference(pictures, tmp_path_factory):
    """The outcome of a run that nobody stops, made twice."""
    runs = tmp_path_factory.mktemp("reference")
    made = []
    for name in ("one", "two"):
        loop.train(tiny.recipe(pictures, runs, name, **LONG), progress=False)
        made.append(kills.outcome(runs / name))
    assert made[0] == made[1]
    return made[0]


def wish(pictures, tmp_path, **more):
    return {"path": str(pictures), "runs": str(tmp_path), "name": "run", "sections": LONG} | more


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2))
def test_three_kills_change_no_bit(pictures, tmp_path, reference, number):
    dice = random.Random(number)
    points = sorted(dice.sample(range(4, 30), 3))
    landed, outcome = kills.trial(wish(pictures, tmp_path), points, dice)
    assert landed == 3
    assert outcome == reference


@pytest.mark.slow
@pytest.mark.parametrize("point", kills.FAILPOINTS)
def test_a_kill_at_a_named_point_changes_no_bit(pictures, tmp_path, reference, point):
    number = {"half-written": 14, "before-fsync": 14, "before-log": 10, "before-best": 1}.get(point, 5)
    code, said = kills.finish(kills.start(wish(pictures, tmp_path), f"{point}:{number}"))
    assert code == -signal.SIGKILL, said
    assert checkpoint.newest(tmp_path / "run/checkpoints")[0] is not None
    code, said = kills.finish(kills.start(wish(pictures, tmp_path, resume=True)))
    assert code == 0, said
    assert kills.outcome(tmp_path / "run") == reference


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutant", "part"),
    [
        ("no_rng", "random"),
        ("no_ema", "average"),
        ("no_optimizer", "optimizer"),
        ("no_schedule", "model"),
        ("restart_epoch", "model"),
    ],
)
def test_a_forgetful_resume_is_caught(pictures, tmp_path, reference, mutant, part):
    landed, outcome = kills.trial(wish(pictures, tmp_path, mutant=mutant), [11], random.Random(0))
    assert landed == 1
    assert part in kills.differing(outcome, reference)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_this_step_and_stops(pictures, tmp_path, reference, number):
    process = kills.start(wish(pictures, tmp_path))
    while len(kills.log(tmp_path / "run")) < 5:
        assert process.poll() is None
    code, said = kills.kill(process, number)
    assert code == 128 + number
    assert "stopped as asked" in said
    last, _ = checkpoint.newest(tmp_path / "run/checkpoints")
    assert int(last.name[5:]) == kills.log(tmp_path / "run")[-1]["step"]
    assert kills.finish(kills.start(wish(pictures, tmp_path, resume=True)))[0] == 0
    assert json.dumps(kills.outcome(tmp_path / "run")) == json.dumps(reference)
