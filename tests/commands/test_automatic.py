"""What is chosen where a task is only named: by the data, the machine and the time."""

import dataclasses
import shlex
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

from patchform import cli
from patchform.commands import automatic, recipes
from patchform.commands.short_forms import SHORT_FORMS
from patchform.errors import UsageError
from patchform.training import trial
from patchform.training.trial import Durations

TIERS = {"small": 32, "small_64": 64, "small_128": 128, "small_other": 500, "fine_tune": 224}


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """Recipes that differ in their input alone."""
    folder = tmp_path / "packaged"
    (folder / "classification").mkdir(parents=True)
    for name, size in TIERS.items():
        settings = {
            "task": "classification",
            "preprocessing": {"size": size},
            "model": {"backbone": "vit/nano"},
            "optimizer": {"lr": 1e-3},
            "schedule": {"warmup_epochs": 3},
            "training": {"epochs": 50, "batch_size": 64},
        }
        (folder / "classification" / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(recipes, "PACKAGED", folder)
    monkeypatch.setattr(automatic, "_workers", lambda: 0)


@pytest.fixture
def paces(monkeypatch):
    """Seconds of an epoch by the side of the input, to be changed, and the sides of what was measured."""
    seconds, measured = {32: 1.0, 64: 4.0, 70: 4.0, 128: 16.0, 224: 1.0}, []

    def measure(recipe, splits):
        measured.append(recipe.preprocessing.size[0])
        return Durations(epoch=seconds[recipe.preprocessing.size[0]], validation=0.0, start=0.0)

    monkeypatch.setattr(trial, "measure", measure)
    return SimpleNamespace(seconds=seconds, measured=measured)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """120 pictures of 100 x 160 pixels of two classes."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(120):
        place = folder / ("sea" if number % 2 else "land")
        place.mkdir(exist_ok=True)
        Image.new("RGB", (160, 100), (number, 0, 90)).save(place / f"{number:03d}.png")
    return folder


def chosen(photos, time=None, **typed):
    typed["data"] = {"path": str(photos)} | typed.get("data", {})
    recipe, settings, notes = automatic.choose("classification", typed, time=time)
    return recipe, recipes.resolve(recipe, settings), notes


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1h30m", 5400), ("2d", 172800), (" 1.5H ", 5400)]
)
def test_times_are_read(text, seconds):
    assert automatic.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["15", "", "m", "0m", "1.2.3s", "-5m", "15 minutes", "15m!", "1h,30m"])
def test_other_times_are_refused(text):
    with pytest.raises(UsageError, match="a time of"):
        automatic.seconds_of(text)


@pytest.mark.usefixtures("packaged")
def test_the_largest_recipe_that_suits_pictures_and_time_is_taken(photos, paces):
    recipe, resolved, notes = chosen(photos, "15m")
    assert recipe == "classification/small_128"  # 16 s x 50 < 900 s; 100 pixels are enlarged by 1.28
    assert resolved.training.epochs == 53  # 0.95 * 900 / 16
    assert paces.measured == [128]
    assert notes[0] == (
        "data: 96 pictures to learn from and 24 to judge by, of 2 classes, 160 x 100 pixels in the median"
    )
    assert "recipe classification/small_128" in notes[1]
    assert notes[1].endswith("; that takes about 14 min here")


@pytest.mark.usefixtures("packaged")
def test_a_slower_machine_takes_smaller_ones(photos, paces):
    paces.seconds |= {128: 20.0, 64: 17.0}
    recipe, resolved, _ = chosen(photos, "15m")
    assert (recipe, paces.measured) == ("classification/small_64", [128, 64])
    assert resolved.training.epochs == 50
    paces.seconds |= {64: 100.0, 32: 95.0}
    recipe, resolved, _ = chosen(photos)  # a quarter of an hour is the default
    assert (recipe, resolved.training.epochs) == ("classification/small", 9)
    assert resolved.schedule.warmup_epochs == 0.9
    _, resolved, _ = chosen(photos, "10s")
    assert resolved.training.epochs == 1


@pytest.mark.usefixtures("packaged", "paces")
def test_pictures_are_not_enlarged_for_a_recipe(tmp_path):
    for name in "ab":
        (tmp_path / "small" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (49, 60)).save(tmp_path / "small" / name / f"{number}.png")
    assert chosen(tmp_path / "small")[0] == "classification/small"  # not 64 for sides of 49
    assert chosen(tmp_path / "small", preprocessing={"size": 70})[0] == "classification/small_64"  # asked for


@pytest.mark.usefixtures("packaged", "paces")
def test_what_is_typed_is_never_chosen(photos):
    _, resolved, _ = chosen(photos)
    assert (resolved.training.batch_size, resolved.optimizer.lr) == (8, 3.5e-4)  # 96 pictures: 12 steps an epoch
    assert resolved.training.precision == "auto"
    typed = {"batch_size": "48", "precision": "float32", "validate_every": 2}
    _, resolved, notes = chosen(photos, training=typed, schedule={"warmup_epochs": 0.5}, data={"workers": 1})
    training = resolved.training
    assert (training.batch_size, training.precision, training.validate_every) == (48, "float32", 2)
    assert (resolved.optimizer.lr, resolved.schedule.warmup_epochs, resolved.data.workers) == (1e-3, 0.5, 1)
    assert notes[1].startswith("chosen: recipe classification/small_128, training.epochs 53; ")


@pytest.mark.usefixtures("packaged")
def test_typed_epochs_are_taken_without_measuring(photos, paces):
    recipe, resolved, notes = chosen(photos, training={"epochs": 7})
    assert (recipe, resolved.training.epochs, paces.measured) == ("classification/small_128", 7, [])
    assert notes[1].endswith("nothing was measured (--time 1h: longer)")


@pytest.mark.usefixtures("packaged", "paces")
def test_who_starts_from_weights_gets_the_recipe_for_that(photos):
    assert chosen(photos, model={"init_from": "swin/t.ms_in1k"})[0] == "classification/fine_tune"


@pytest.mark.usefixtures("packaged", "paces")
def test_a_named_recipe_stays_as_it_is(photos):
    typed = {"data": {"path": str(photos)}}
    assert automatic.choose("classification/small_64", typed) == ("classification/small_64", typed, ())
    recipe, settings, _ = automatic.choose("classification/small_64", typed, time="10m")
    assert recipe == "classification/small_64"
    assert settings == {"training": {"epochs": 142}, **typed}
    made = dataclasses.replace(recipes.resolve("classification/small_64"), data=recipes.resolve(recipe, typed).data)
    assert automatic.choose(made, {}, time="10m").settings["training"]["epochs"] == 142
    assert automatic.choose("classification", {}) == ("classification", {}, ())  # no data: said by the run itself


@pytest.mark.usefixtures("packaged", "paces")
def test_the_command_that_is_said_asks_for_the_same(photos):
    _, resolved, notes = chosen(photos, "5m", optimizer={"weight_decay": 0.1}, name="first")
    label, _, words = notes[2].partition(": ")
    assert label == "the same again"
    _, verb, recipe, *flags = shlex.split(words)
    assert verb == "train"
    short = {form.option: f"--{form.setting}" for form in SHORT_FORMS}
    assert {"--data", "--epochs", "--batch", "--lr"} < set(flags)
    typed = recipes.nested({short.get(flag, flag)[2:]: value for flag, value in zip(flags[::2], flags[1::2])})
    again = recipes.resolve(recipe, typed)
    assert again == dataclasses.replace(resolved, name=None)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--time", "soon"], "a time of 'soon'"),
        (["--time", "5m", "--training.epochs", "3"], "a time and training.epochs"),
        (["--time", "5m", "--resume"], "a time, of a run that goes on"),
    ],
)
def test_times_that_say_nothing_are_refused(photos, tmp_path, capsys, words, what):
    code = cli.main(["train", "classification", "--data", str(photos), "--runs", str(tmp_path), *words])
    assert (code, capsys.readouterr().err.count(what)) == (2, 1)
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_not_timed(photos, monkeypatch):
    monkeypatch.setattr(automatic, "_several_processes", lambda: True)
    with pytest.raises(UsageError, match="several processes"):
        chosen(photos, "5m")
    assert chosen(photos)[1].training.epochs == recipes.resolve("classification").training.epochs


@pytest.mark.usefixtures("packaged", "paces")
def test_a_plan_is_of_the_time_that_is_given(photos, monkeypatch):
    planned = []

    def remember(recipe, **options):
        planned.append(recipe)
        raise UsageError("enough")

    monkeypatch.setattr("patchform.training.plan.plan", remember)
    wanted = []
    for time in ("40s", "80s", None):
        words = [] if time is None else ["--time", time]
        assert cli.main(["train", "classification", "--data", str(photos), "--plan", *words]) == 2
        wanted.append(chosen(photos, time)[1])
    found = [(recipe.preprocessing.size, recipe.training.epochs) for recipe in planned]
    assert found == [(recipe.preprocessing.size, recipe.training.epochs) for recipe in wanted]
    assert len(set(found)) == 3
