"""A head on features that were computed once: the run that looks at every step, in its numbers; one look a picture."""

import csv

import kills
import pytest
import tiny
import torch

from patchform.backbones.vit import ViT
from patchform.errors import FolderError, UsageError
from patchform.evaluation import evaluate_run
from patchform.model import load
from patchform.records import Batch
from patchform.settings import TeacherSettings
from patchform.training import loop, resuming
from patchform.training.cached_features import NO_AUGMENTATION
from patchform.weights import files

PLAIN = {"crop_scale": (1.0, 1.0), "flip": 0.0}


def recipe(pictures, runs, name, cached=True, **sections):
    model = {"frozen": "all", "head_options": {"dropout": 0.1}} | sections.pop("model", {})
    data = {"features": str(runs / "features")} if cached else {}
    training = {"epochs": 2, "ema": 0.5} | sections.pop("training", {})
    return tiny.recipe(pictures, runs, name, model=model, data=data, training=training, **sections)


def numbers(folder):
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    return [[float(row[name]) for name in ("train_loss", "top1", "log_loss")] for row in rows]


@pytest.fixture
def looked_at(monkeypatch):
    """Pictures that any backbone has seen."""
    seen, forward = [], ViT.forward
    monkeypatch.setattr(
        ViT, "forward", lambda self, images, **more: (seen.append(len(images)), forward(self, images, **more))[1]
    )
    return lambda: sum(seen) - seen.count(1)  # without the picture that a new model is shown


def test_it_learns_what_a_run_does_that_looks_at_every_step(pictures, tmp_path, looked_at):
    own = recipe(pictures, tmp_path, "cached", augmentation={"mixup": 0.4, "flip": 1.0})  # which is left out
    cached = loop.train(own, progress=False)
    assert looked_at() == 200 + 40
    plain = loop.train(recipe(pictures, tmp_path, "plain", cached=False, augmentation=PLAIN), progress=False)
    assert looked_at() == 240 + 2 * 240
    wanted, found = numbers(plain.folder), numbers(cached.folder)
    assert found == [pytest.approx(row, rel=1e-5) for row in wanted]
    other = loop.train(recipe(pictures, tmp_path, "other", cached=False), progress=False)
    assert numbers(other.folder)[-1] != pytest.approx(wanted[-1], rel=1e-5)  # the control: augmentation
    first, second = (files.read_tensors(run.folder / "model.safetensors") for run in (cached, plain))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-4, atol=1e-5)


def test_what_it_leaves_is_a_run_as_any_other(pictures, tmp_path):
    run = loop.train(recipe(pictures, tmp_path, "run"), progress=False)
    batch = Batch(torch.rand(2, 3, 32, 32), (), ("", ""), ((32, 32),) * 2)
    one, other = (model.predict(batch) for model in (run.model, load(run.folder)))
    assert all(torch.equal(left.scores, right.scores) for left, right in zip(one, other, strict=True))
    scores = evaluate_run(run.folder, pictures, device="cpu")
    best = max(row[1] for row in numbers(run.folder))
    assert scores.numbers["top1"] == pytest.approx(best)
    assert resuming.load(run.folder / "recipe.yaml").augmentation == NO_AUGMENTATION


def test_the_disk_keeps_them(pictures, tmp_path, looked_at, capsys):
    loop.train(recipe(pictures, tmp_path, "first"), progress=False)
    said = capsys.readouterr().err
    assert f"features    each picture is looked at once, without augmentation; kept in {tmp_path}/features" in said
    assert looked_at() == 240
    loop.train(recipe(pictures, tmp_path, "second", optimizer={"lr": 1e-2}), progress=False)
    assert looked_at() == 240
    loop.train(recipe(pictures, tmp_path, "third", training={"seed": 1}), progress=False)  # other weights
    assert looked_at() == 480


class Cut(BaseException):
    """The end of a process, without one."""


@pytest.mark.parametrize("kept", [True, False])
def test_it_resumes_to_the_same_bits(pictures, tmp_path, monkeypatch, kept):
    whole = loop.train(recipe(pictures, tmp_path, "whole"), progress=False)
    own, passes = recipe(pictures, tmp_path, "cut"), []

    def failpoint(name):
        passes.append(name)
        if len(passes) == 11:
            raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(loop, "failpoint", failpoint)
        with pytest.raises(Cut):
            loop.train(own, progress=False)
    if not kept:
        (tmp_path / "features").rename(tmp_path / "gone")
    loop.train(own, resume=True, progress=False)
    assert kills.outcome(tmp_path / "cut") == kills.outcome(whole.folder)


REFUSED = [
    ({"model": {"frozen": 1}}, "data.features is for a backbone that stays as it is; set model.frozen all"),
    ({"model": {"frozen_epochs": 1}}, "data.features is for a backbone that stays as it is; set model.frozen all"),
    ({"model": {"frozen": 0, "adapter": "lora"}}, "data.features is for a backbone that stays as it is"),
    ({"model": {"head": "token_label", "head_options": {}}}, "a head that reads their summary alone; take the head li"),
    (
        {"loss": {"teacher": TeacherSettings(model="runs/teacher")}},
        "data.features, and a teacher, who looks at pictures",
    ),
]


@pytest.mark.parametrize(("sections", "words"), REFUSED)
def test_what_is_refused_before_data_are_read(tmp_path, sections, words):
    with pytest.raises(UsageError, match=words):
        loop.train(recipe("nowhere", tmp_path, "run", **sections), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_features_do_not_lie_in_the_data(pictures, tmp_path):
    data = {"features": str(pictures / "train/features")}
    with pytest.raises(FolderError, match="train/features"):
        loop.train(tiny.recipe(pictures / "train", tmp_path, model={"frozen": "all"}, data=data), progress=False)
    assert not (pictures / "train/features").exists()
