"""A new task really is a folder of a few files: found, checked, trained, resumed, judged, shown and used."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import patchform as pf
from patchform import cli, lookup
from patchform.data.dataset import open_data
from patchform.data.loader import evaluation_loader
from patchform.errors import ModelFileError, UsageError
from patchform.prediction import write
from patchform.records import Preprocessing
from patchform.settings import DataSettings
from patchform.tasks.base import find_task

EXAMPLE = Path(__file__).parents[2] / "examples" / "counting"
FILES = ("tasks.counting", "heads.counter", "data.formats.counts")
RECIPE = """
task: counting
data: {image_size: 24, crop_share: 1.0}
model: {backbone: resnet/nano, head: counter}
augmentation: {crop_scale: [1.0, 1.0], crop_ratio: [1.0, 1.0]}
optimizer: {lr: 0.02, weight_decay: 0.0}
schedule: {warmup_epochs: 0.5}
training: {epochs: 30, batch_size: 16, threads: 1, device: cpu, loggers: []}
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The folder, as nobody has named it yet; forgotten again afterwards."""

    def forget():
        lookup._files.cache_clear()
        for name in FILES:
            sys.modules.pop(f"patchform.{name}", None)

    monkeypatch.setattr(lookup, "_plugins", [])
    forget()
    yield shutil.copytree(EXAMPLE, tmp_path / "mine")
    forget()


@pytest.fixture
def photos(tmp_path):
    """Squares of 4 pixels on black, none touching another, and how many there are."""
    dice = np.random.default_rng(0)
    for part, count in (("train", 64), ("val", 16)):
        folder = tmp_path / "photos" / part
        folder.mkdir(parents=True)
        with (folder / "counts.csv").open("w", newline="") as file:
            for index in range(count):
                pixels = np.zeros((24, 24, 3), np.uint8)
                cells = dice.permutation(16)[: dice.integers(1, 9)]
                for row, column in zip(*divmod(cells, 4)):
                    pixels[6 * row + 1 : 6 * row + 5, 6 * column + 1 : 6 * column + 5] = 255
                Image.fromarray(pixels).save(folder / f"{index}.png")
                csv.writer(file).writerow([f"{index}.png", len(cells)])
    return tmp_path / "photos"


def run(capsys, *words, code=0):
    assert cli.main([str(word) for word in words]) == code
    return capsys.readouterr().out


def test_a_folder_is_a_task(plugin, photos, tmp_path, capsys):
    recipe, runs = tmp_path / "counting.yaml", tmp_path / "runs"
    recipe.write_text(RECIPE)
    mine = ("--plugin", plugin)
    training = ("train", recipe, "--data.path", photos, "--name", "first", "--runs", runs)
    run(capsys, *training, code=UsageError.exit_code)  # control: nobody has named the folder
    assert f"patchform.{FILES[0]}" not in sys.modules

    checked = json.loads(run(capsys, "data", "check", photos, "--json", *mine))
    assert (checked["task"], checked["faults"]) == ("counting", 0)
    assert checked["parts"]["train"]["pictures"] == 64
    run(capsys, "data", "show", photos, "--out", tmp_path / "sheet.png", "--count", 4, *mine)

    run(capsys, *training, "--data.workers", 2, *mine)
    folder = runs / "first"
    evaluated = json.loads(run(capsys, "evaluate", folder, "--json", *mine))
    assert evaluated["samples"] == 16
    assert evaluated["numbers"]["off"] == pytest.approx(-evaluated["numbers"]["closeness"])
    numbers = [int(line.split(",")[1]) for line in (photos / "val" / "counts.csv").read_text().splitlines()]
    guess = np.abs(np.subtract(numbers, np.median(numbers))).mean()
    assert evaluated["numbers"]["off"] < guess / 3  # it has learnt to count
    page = (folder / "report.html").read_text()
    assert "<h2>Counts</h2>" in page
    assert page.count("the truth") == 6

    lines = run(
        capsys, "predict", folder, photos / "val", "--out", tmp_path / "answers", "--format", "totals", *mine
    ).splitlines()
    answers = {Path(one["file"]).name: one["count"] for one in map(json.loads, lines)}
    assert json.loads((tmp_path / "answers" / "totals.json").read_text()) == pytest.approx(answers, abs=1e-5)
    off = np.mean([abs(answers[f"{index}.png"] - number) for index, number in enumerate(numbers)])
    assert off == pytest.approx(evaluated["numbers"]["off"], abs=1e-5)
    with pytest.raises(UsageError, match="it has totals"):
        write(pf.load(folder), photos / "val", out=tmp_path / "other", format="coco")

    lookup._plugins.clear()  # control: without the folder the model says what is missing
    lookup._files.cache_clear()
    with pytest.raises(ModelFileError, match='no task "counting"'):
        pf.load(folder)


def test_a_run_of_it_is_resumed_to_the_same_bits(plugin, photos, tmp_path):
    pf.add_plugin(plugin)
    recipe = tmp_path / "counting.yaml"
    recipe.write_text(RECIPE)

    def train(name, epochs, **more):
        settings = {"training": {"epochs": epochs}, "schedule": {"name": "constant"}}
        return pf.train(recipe, data=photos, name=name, runs=tmp_path, progress=False, **settings, **more)

    whole, stopped = train("whole", 4), train("stopped", 2)
    assert (whole.step, stopped.step) == (16, 8)
    resumed = train("stopped", 4, resume=True)
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    counts = photos / "train" / "counts.csv"
    counts.write_text(counts.read_text().replace(",2", ",3"))
    with pytest.raises(ModelFileError, match="data"):  # what a format of one's own read is part of what was learnt from
        train("stopped", 6, resume=True)
    rows = [line.split(",") for line in (tmp_path / "whole" / "metrics.csv").read_text().splitlines()]
    assert {"off", "closeness", "train_loss"} <= set(rows[0])


def test_memory_is_planned_for_it(plugin, photos, tmp_path):
    pf.add_plugin(plugin)
    recipe = tmp_path / "counting.yaml"
    recipe.write_text(RECIPE)
    assert pf.plan(recipe, data=photos).ways[0].fits


def test_what_it_does_not_say_is_refused_or_nothing(plugin):
    pf.add_plugin(plugin)
    task = find_task("counting")
    assert task.files(task.made_up(None, (8, 8), None, torch.Generator())) == {}
    with pytest.raises(UsageError, match='no task "countin"; did you mean "counting"'):
        find_task("countin")


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_its_targets_come_out_of_workers(plugin, photos, method):
    pf.add_plugin(plugin)
    task, preprocessing = find_task("counting"), Preprocessing(size=(24, 24))
    splits = open_data(DataSettings(path=str(photos)), seed=0, preprocessing=preprocessing, task="counting")
    samples = task.evaluation_samples(splits.validation, preprocessing)
    loader = evaluation_loader(samples, 8, workers=1)
    loader.multiprocessing_context = method
    pairs = zip(loader, evaluation_loader(samples, 8), strict=True)
    assert [tuple(one.targets) == tuple(other.targets) for one, other in pairs] == [True, True]
