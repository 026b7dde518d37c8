"""A run that goes on with other settings: each is said once, with what it does; the recipe of before is kept."""

import csv
import dataclasses
import shutil
from dataclasses import replace

import pytest
import tiny
import yaml

from patchform import schema
from patchform.device import FastPrecision
from patchform.errors import ModelFileError
from patchform.settings import Recipe
from patchform.training import loop, resuming
from patchform.training.recipe_files import load
from patchform.training.resuming import EFFECTS, Change, changes


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    """A finished run of two epochs, to be copied."""
    runs = tmp_path_factory.mktemp("finished")
    loop.train(tiny.recipe(pictures, runs), progress=False)
    return runs / "run"


@pytest.fixture
def go_on(finished, pictures, tmp_path, capsys):
    """Resumes a copy of the run with other settings; the copy, and the lines that it said."""
    shutil.copytree(finished, tmp_path / "run")

    def resume(**sections):
        capsys.readouterr()
        loop.train(tiny.recipe(pictures, tmp_path, **sections), resume=True, progress=False)
        return tmp_path / "run", capsys.readouterr().err.splitlines()

    return resume


def listed(said):
    """Lines on changed settings: [name, before, now, effect]."""
    if "settings that are no longer those that this run had:" not in said:
        return []
    start = said.index("settings that are no longer those that this run had:") + 1
    lines = [line for line in said[start:] if line.startswith("  ") and " -> " in line]
    return [[part.strip() for part in line.replace(" -> ", "  ", 1).split("  ") if part.strip()] for line in lines]


def test_every_change_is_said_once_with_what_it_does(go_on):
    folder, said = go_on(
        optimizer={"lr": 5e-3},
        augmentation={"flip": 0.1, "crop_scale": (0.25, 1.0)},
        data={"workers": 1},
        training={"epochs": 3, "keep": 3},
    )
    assert listed(said) == [
        ["data.workers", "0", "1", "changes no number"],
        ["augmentation.crop_scale", "[0.5, 1.0]", "[0.25, 1.0]", "from here on"],
        ["augmentation.flip", "0.5", "0.1", "from here on"],
        ["optimizer.lr", "0.002", "0.005", "from here on"],
        ["training.epochs", "2", "3", "the schedule is stretched over all of them"],
        ["training.keep", "2", "3", "changes no number"],
    ]
    assert load(folder / "recipe.yaml").optimizer.lr == 5e-3


def test_where_nothing_changed_nothing_is_said_nor_kept(go_on):
    folder, said = go_on()
    assert listed(said) == []
    assert not [line for line in said if "kept as" in line]
    assert [file.name for file in folder.glob("recipe*")] == ["recipe.yaml"]
    assert "every step was taken already: nothing is left to train" in said


def test_recipes_of_before_are_kept_one_beside_the_other(go_on, finished):
    began = (finished / "recipe.yaml").read_text()
    folder, said = go_on(optimizer={"lr": 5e-3})
    assert "the recipe until now is kept as recipe-1.yaml" in said
    second = (folder / "recipe.yaml").read_text()
    folder, said = go_on(optimizer={"lr": 6e-3})
    assert "the recipe until now is kept as recipe-2.yaml" in said
    assert (folder / "recipe-1.yaml").read_text() == began
    assert (folder / "recipe-2.yaml").read_text() == second
    assert [load(folder / f"recipe{part}.yaml").optimizer.lr for part in ("-1", "-2", "")] == [2e-3, 5e-3, 6e-3]


def rates(folder):
    return [float(row["lr"]) for row in csv.DictReader((folder / "metrics.csv").read_text().splitlines())]


def test_more_epochs_stretch_the_schedule_and_the_rate_that_rises_is_said(go_on, pictures, tmp_path):
    _, said = go_on(training={"epochs": 4})
    (rate,) = [line for line in said if line.startswith("the learning rate")]
    whole = loop.train(tiny.recipe(pictures, tmp_path, "whole", training={"epochs": 4}), progress=False)
    assert rates(tmp_path / "run")[2:] == rates(whole.folder)[2:]  # as if all of them had been asked for at once
    assert rates(tmp_path / "run")[1] == 0
    first = float(rate.split("goes on at ")[1].split(";")[0])
    assert rate.endswith("it was at its end at 0")
    assert rates(whole.folder)[2] < first < rates(whole.folder)[0]


@pytest.mark.parametrize("shape", [{"name": "constant"}, {"name": "steps", "milestones": (1.0,)}])
def test_a_rate_that_does_not_follow_the_length_goes_on_without_a_word(pictures, tmp_path, capsys, shape):
    loop.train(tiny.recipe(pictures, tmp_path, schedule=shape), progress=False)
    capsys.readouterr()
    loop.train(tiny.recipe(pictures, tmp_path, schedule=shape, training={"epochs": 3}), resume=True, progress=False)
    said = capsys.readouterr().err
    assert "training.epochs  2 -> 3" in said
    assert "the learning rate" not in said


def test_fewer_epochs_end_the_run(go_on):
    folder, said = go_on(training={"epochs": 1})
    assert listed(said) == [["training.epochs", "2", "1", "the schedule is stretched over all of them"]]
    assert "every step was taken already: nothing is left to train" in said
    assert (folder / "model.safetensors").exists()


def test_weights_are_not_read_a_second_time(go_on, finished):
    folder, said = go_on(model={"init_from": str(finished)}, training={"epochs": 3})
    assert listed(said)[0][:1] + listed(said)[0][-1:] == ["model.init_from", "not looked at: the run has its weights"]
    assert folder.exists()


@pytest.mark.parametrize(
    ("sections", "name"),
    [
        ({"loss": {"smoothing": 0.3}}, "loss.smoothing"),
        ({"model": {"options": {"depth": 3}}}, "model.options"),
        ({"preprocessing": {"size": (64, 64)}}, "preprocessing.size"),
        ({"training": {"seed": 3}}, "training.seed"),
        ({"training": {"batch_size": 16}}, "training.batch_size"),
        ({"training": {"ema": 0.5}}, "training.ema"),
        ({"optimizer": {"name": "sgd"}}, "optimizer.name"),
        ({"data": {"balanced": True}}, "data.balanced"),
    ],
)
def test_what_is_refused_is_said_by_its_name_and_changes_nothing(go_on, finished, sections, name, capsys, tmp_path):
    with pytest.raises(ModelFileError, match="of another run"):
        go_on(**sections)
    (change,) = listed(capsys.readouterr().err.splitlines())
    assert change[0] == name
    assert "refused" in change[-1]
    assert (tmp_path / "run/recipe.yaml").read_text() == (finished / "recipe.yaml").read_text()
    assert not (tmp_path / "run/recipe-1.yaml").exists()


def test_a_layer_may_be_frozen_or_thawed_where_a_run_goes_on(go_on):
    _, said = go_on(model={"frozen": 1}, training={"epochs": 3})
    assert ["model.frozen", "0", "1", "from here on"] in listed(said)
    _, said = go_on(training={"epochs": 4})
    assert ["model.frozen", "1", "0", "from here on"] in listed(said)


def test_what_a_change_does_is_known_of_every_setting():
    names = [field.name for field in schema.fields(Recipe())]
    for prefix in EFFECTS:
        assert any(name == prefix or name.startswith(f"{prefix}.") for name in names), prefix
    assert Change("data.workers", "0", "1").effect == "changes no number"
    assert Change("data.skip_bad", "0", "1").effect == resuming.CHECKED
    assert Change("model.transfer.head", "auto", "load").effect == resuming.UNREAD
    assert Change("augmentation.flip", "0", "1").effect == resuming.ONWARD


def test_where_a_run_lies_is_no_change():
    before = Recipe(name="a", runs="here")
    assert changes(before, replace(before, name="b", runs="there")) == []
    now = replace(before, data=replace(before.data, path="photos"))
    assert changes(before, now) == [Change("data.path", "null", "photos")]


@pytest.mark.parametrize("text", ["{", "optimizer: {speed: 3}", "a: &x 1\nb: *x", "optimizer: {lr: fast}", ""])
def test_a_recipe_that_cannot_be_read_is_said_and_ends_nothing(go_on, tmp_path, text):
    (tmp_path / "run/recipe.yaml").write_text(text)
    folder, said = go_on(training={"epochs": 3})
    assert sum("settings that changed since the run began are not known" in line for line in said) == 1
    assert load(folder / "recipe.yaml").training.epochs == 3


# ---------------------------------------------------------------------------------------------------------- precision


def fast(monkeypatch, precision, reason="so it is"):
    monkeypatch.setattr(resuming, "fast_precision", lambda device: FastPrecision(precision, reason))
    monkeypatch.setattr(
        resuming, "slow_precision", lambda device, asked: f"{asked} is slow here" if asked != precision else None
    )


def precision_of(said):
    return next(line.removeprefix("precision").strip() for line in said if line.startswith("precision"))


def test_a_run_keeps_the_precision_that_it_began_with(pictures, tmp_path, monkeypatch, capsys):
    sections = {"training": {"precision": "auto"}}
    fast(monkeypatch, "bfloat16")
    loop.train(tiny.recipe(pictures, tmp_path, **sections), progress=False)
    assert precision_of(capsys.readouterr().err.splitlines()) == "bfloat16 (auto: so it is)"
    assert load(tmp_path / "run/recipe.yaml").training.precision == "bfloat16"
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    fast(monkeypatch, "float32")  # another machine
    more = {"training": {"precision": "auto", "epochs": 3}}
    loop.train(tiny.recipe(pictures, tmp_path, **more), resume=True, progress=False)
    said = capsys.readouterr().err.splitlines()
    assert precision_of(said) == "bfloat16 (auto: what the run began with); bfloat16 is slow here"
    assert [change[0] for change in listed(said)] == ["training.epochs"]
    asked = {"training": {"precision": "float32", "epochs": 3}}  # by name it is another one
    loop.train(tiny.recipe(pictures, tmp_path, "copy", **asked), resume=True, progress=False)
    said = capsys.readouterr().err.splitlines()
    assert precision_of(said) == "float32"
    assert ["training.precision", "bfloat16", "float32", "from here on"] in listed(said)


def test_a_recipe_in_a_run_folder_is_complete(finished):
    values = yaml.safe_load((finished / "recipe.yaml").read_text())
    assert sorted(values) == sorted(field.name for field in dataclasses.fields(Recipe))
    assert values["training"]["precision"] == "float32"
