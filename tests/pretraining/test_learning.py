"""Runs without labels by the ordinary loop: what they write, that they resume to the same bits, what comes after."""

import csv
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from patchform.commands.probe import probe
from patchform.data.dataset import open_data
from patchform.errors import UsageError
from patchform.evaluation import evaluate_run
from patchform.model import load
from patchform.prediction import Predictor
from patchform.records import Preprocessing
from patchform.report import write_report
from patchform.settings import (
    AugmentationSettings,
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    Recipe,
    ScheduleSettings,
    TrainingSettings,
)
from patchform.training import loop
from patchform.training.plan import plan

SMALL = {
    "mae": {"width": 16, "depth": 1, "heads": 4},
    "masked_patches": {"target": "small_patch"},
    "dino": {"outputs": 64, "hidden": 32, "bottleneck": 16, "warm_epochs": 1, "masked": 1.0},
}
VIEWS = {
    "views": 2,
    "local_views": 2,
    "local_size": 16,
    "color_jitter": 0.4,
    "grey": 0.2,
    "blur": (1.0, 0.1, 0.5),
    "solarise": (0.0, 0.2, 0.0),
}


def write(folder, count, *, nested):
    """Stripes, upright and lying; nested or flat."""
    dice = np.random.default_rng(len(str(folder)))
    for index in range(count):
        y, x = np.mgrid[:36, :40]
        wave = np.sin((x, y)[index % 2] * 0.7 + dice.uniform(0, 6))
        pixels = 128 + 60 * wave[..., None] * dice.uniform(0.3, 1, 3) + dice.normal(0, 20, (36, 40, 3))
        place = folder / "hv"[index % 2] if nested else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """train/ flat, val/ in class folders."""
    folder = tmp_path_factory.mktemp("pictures")
    write(folder / "train", 40, nested=False)
    write(folder / "val", 24, nested=True)
    return folder


def recipe(method, pictures, runs, name="run", **sections):
    change = AugmentationSettings(crop_scale=(0.4, 1.0), **(VIEWS if method == "dino" else {}))
    return Recipe(
        task="pretraining",
        name=name,
        runs=str(runs),
        data=DataSettings(path=str(pictures), **sections.get("data", {})),
        preprocessing=Preprocessing(size=(32, 32)),
        model=ModelSettings(backbone="vit/nano", head=method, head_options=SMALL[method], drop_path=0.2),
        augmentation=change,
        optimizer=OptimizerSettings(lr=1e-3, clip=1.0),
        schedule=ScheduleSettings(warmup_epochs=0.5),
        training=TrainingSettings(
            epochs=3,
            batch_size=12,
            save_every=3,
            threads=1,
            device="cpu",
            loggers=(),
            **sections.get("training", {}),
        ),
    )


def outcome(folder):
    """Digests of the last checkpoint and of the model, and the losses."""
    files = sorted([*folder.glob("checkpoints/*12/*.safetensors"), *folder.glob("*.safetensors")])
    assert len(files) >= 4
    lines = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}, lines


class Cut(BaseException):
    """The end of a process, without one."""


PARTS = {"training": {"micro_batch": 5, "ema": 0.9}, "data": {"workers": 1}}


@pytest.mark.parametrize("sections", [{}, pytest.param(PARTS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", SMALL)
def test_a_run_resumes_to_the_same_bits_and_says_how_it_goes(method, sections, pictures, tmp_path, monkeypatch):
    whole = loop.train(recipe(method, pictures, tmp_path, "whole", **sections), progress=False)
    passes = []

    def failpoint(name):
        passes.extend([1] * (name == "before-log"))
        if len(passes) == 8:  # two steps after a save, in the second epoch
            raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(loop, "failpoint", failpoint)
        with pytest.raises(Cut):
            loop.train(recipe(method, pictures, tmp_path, "cut", **sections), progress=False)
    torch.rand(3)
    loop.train(recipe(method, pictures, tmp_path, "cut", **sections), resume=True, progress=False)
    assert outcome(tmp_path / "cut") == outcome(whole.folder)

    assert whole.best is None
    rows = list(csv.DictReader((whole.folder / "metrics.csv").read_text().splitlines()))
    assert len(rows) == 3
    assert 0 <= float(rows[-1]["knn"]) <= 1
    assert 1 <= float(rows[-1]["effective_rank"]) <= 24
    assert not (whole.folder / "best").exists()
    numbers = evaluate_run(whole.folder, pictures).numbers
    assert numbers["knn"] == pytest.approx(float(rows[-1]["knn"]))


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    """A finished run of dino, the method with most beside its backbone."""
    return loop.train(recipe("dino", pictures, tmp_path_factory.mktemp("runs")), progress=False).folder


def test_the_result_starts_a_classifier_is_probed_and_predicts(finished, pictures, tmp_path, capsys):
    start = Recipe(
        runs=str(tmp_path),
        name="tuned",
        data=DataSettings(path=str(pictures / "val")),
        preprocessing=Preprocessing(size=(32, 32)),
        model=ModelSettings(backbone="vit/nano", init_from=str(finished)),
        optimizer=OptimizerSettings(backbone_rate=0.0),
        training=TrainingSettings(epochs=1, batch_size=12, threads=1, device="cpu", loggers=()),
    )
    tuned = loop.train(start, progress=False)
    said = capsys.readouterr().err
    assert "head.student" in said or "the source has another head" in said
    backbone = load(finished).backbone.state_dict()
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in tuned.model.backbone.state_dict().items())
    found = probe(finished, pictures / "val", method="linear", cache=None)
    assert found.scores.numbers["top1"] is not None
    answer = next(Predictor(load(finished)).predict(pictures / "train/000.png"))
    assert answer.target.scores.shape == (48,)


def test_a_page_shows_neighbours_and_reconstructions(pictures, tmp_path):
    folder = loop.train(recipe("mae", pictures, tmp_path), progress=False).folder
    evaluate_run(folder, pictures)
    page = write_report(folder, pictures).read_text()
    assert "Neighbours" in page
    assert page.count("<figure>") == 36  # 6 pictures, each with 5 neighbours
    assert "Reconstructions" in page


@pytest.mark.parametrize("method", SMALL)
def test_what_a_run_takes_is_planned(method, pictures, tmp_path):
    found = plan(recipe(method, pictures, tmp_path), room=1 << 40)
    assert found.best is not None
    assert found.best.peak > sum(found.held)


def test_a_pretraining_goes_on_from_another(finished, pictures, tmp_path):
    again = recipe("dino", pictures, tmp_path)
    again = replace(
        again, model=replace(again.model, init_from=str(finished)), training=replace(again.training, epochs=1)
    )
    assert loop.train(again, progress=False).step == 4


@pytest.mark.parametrize(
    ("method", "sections", "words"),
    [
        ("mae", {"training": {"patience": 2}}, "training.patience"),
        ("mae", {"augmentation": {"mixup": 0.2}}, "augmentation.mixup"),
        ("mae", {"augmentation": {"local_views": 2}}, "augmentation.local_views"),
        ("mae", {"augmentation": {"views": 2}}, "one crop"),
        ("dino", {"augmentation": {"views": 1, "local_views": 0, "grey": 0.0, "blur": (), "solarise": ()}}, "crops"),
    ],
)
def test_settings_that_do_not_fit_are_refused(method, sections, words, pictures, tmp_path):
    made = recipe(method, pictures, tmp_path)
    made = replace(made, **{key: replace(getattr(made, key), **values) for key, values in sections.items()})
    with pytest.raises(UsageError, match=words):
        loop.train(made, progress=False)


def test_views_are_for_pretraining(pictures, tmp_path):
    made = Recipe(data=DataSettings(path=str(pictures / "val")), augmentation=AugmentationSettings(views=2))
    with pytest.raises(UsageError, match="views is 2"):
        loop.train(made, progress=False)


def test_pictures_to_judge_on_are_held_out_where_there_are_none(pictures):
    splits = open_data(
        DataSettings(path=str(pictures / "val"), validation_share=0.25),
        seed=0,
        preprocessing=Preprocessing(),
        task="pretraining",
    )
    assert (len(splits.train), len(splits.validation)) == (18, 6)
    assert splits.train.classes == splits.validation.classes == ()
