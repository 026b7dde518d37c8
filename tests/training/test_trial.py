"""How long a run takes here, measured in a few steps; and runs that are as long as there is time."""

from types import SimpleNamespace

import pytest
import tiny

import patchform as pf
from patchform import cli
from patchform.data.dataset import open_data
from patchform.training import trial
from patchform.training.trial import Durations


def opened(recipe):
    return open_data(recipe.data, seed=0, preprocessing=recipe.preprocessing)


@pytest.fixture
def slow(monkeypatch):
    """An epoch takes a minute, whatever it does."""
    monkeypatch.setattr(trial, "measure", lambda recipe, splits: Durations(60.0, 0.0, 0.0))


@pytest.mark.usefixtures("slow")
def test_a_run_of_a_task_goes_on_by_what_it_chose(pictures, tmp_path, capsys):
    words = ["train", "classification", "--data", str(pictures), "--runs", str(tmp_path), "--name", "one"]
    words += ["--model.backbone", "vit/nano", "--time", "3m", "--training.loggers", "[]"]
    assert cli.main(words) == 0
    assert "the same again: patchform train classification/small" in capsys.readouterr().err
    before = (tmp_path / "one" / "recipe.yaml").read_text()
    assert "epochs: 2\n" in before
    assert cli.main([*words[:8], "--resume", "--training.epochs", "3"]) == 0
    after = (tmp_path / "one" / "recipe.yaml").read_text()
    assert after == before.replace("\n  epochs: 2\n", "\n  epochs: 3\n")


def test_a_pace_is_that_of_all_pictures(pictures, monkeypatch):
    """By a clock that is read twice a step and twice a validation, and goes on by a second each time."""
    ticks = iter(range(1000))
    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: next(ticks), monotonic=lambda: 0.0))
    recipe = tiny.recipe(pictures, "nowhere", training={"batch_size": 16})
    splits = opened(recipe)
    measured = trial.measure(recipe, splits)
    assert measured == (13.0, 1.0, 0.0)  # ceil(200 / 16) steps, 40 pictures of a validation, all seen
    assert measured.total(epochs=4, validate_every=3) == 4 * 13 + 2 + 1  # and one for the page
    monkeypatch.setattr(trial, "PICTURES", 10)
    assert trial.measure(recipe, splits).validation == 4.0


def test_a_pace_is_measured_of_whole_models(pictures, tmp_path):
    recipe = tiny.recipe(pictures, tmp_path, model={"frozen": 1, "frozen_epochs": 1, "init_from": "not/read"})
    assert all(seconds > 0 for seconds in trial.measure(recipe, opened(recipe))[:2])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("slow")
def test_python_has_a_time_too(pictures, tmp_path):
    run = pf.train(
        "classification",
        data=str(pictures),
        time="2m",
        runs=str(tmp_path),
        progress=False,
        model={"backbone": "vit/nano"},
        training={"loggers": ()},
    )
    assert run.step == 200 // 16 + 1
