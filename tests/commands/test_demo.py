import json
from itertools import combinations
from types import SimpleNamespace

import pytest

from patchform.commands import demo
from patchform.commands.recipes import resolve
from patchform.data.dataset import open_data, open_evaluation
from patchform.errors import FolderError, UsageError
from patchform.settings import DataSettings

pytest.importorskip("sklearn")
SHORT = {"training": {"epochs": 1, "loggers": (), "batch_size": 64, "threads": 1, "seed": 0}}


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(demo, "SCENES", {"train": 64, "val": 12, "test": 12})
    monkeypatch.setattr(demo, "CLIPS", {"train": 64, "val": 10, "test": 10})


@pytest.mark.slow
@pytest.mark.parametrize("task", list(demo.KINDS))
def test_a_demo_goes_the_whole_way(task, few, tmp_path, capsys):
    if task == "video":
        pytest.importorskip("av")
    made = demo.demo(tmp_path, task=task, progress=False, **SHORT)
    assert made.folder == tmp_path / demo.KINDS[task].folder
    assert made.run == made.folder / "digits"
    for name in ("report.html", "evaluation.json", "data", "digits/model.safetensors"):
        assert (made.folder / name).exists(), name
    answers = [
        json.loads(line) for line in (made.folder / "predictions" / "predictions.jsonl").read_text().splitlines()
    ]
    assert len(answers) == (5 if task == "video" else 10)
    assert all(demo._answer_text(answer) for answer in answers)
    assert made.scores.best is not None
    assert 0 <= made.scores.best <= 1
    (made.folder / "predictions" / "old.txt").write_text("")
    again = demo.demo(tmp_path, task=task, progress=False, **SHORT)  # replaces the first
    assert again.scores == made.scores
    assert not (made.folder / "predictions" / "old.txt").exists()


def test_scans_are_in_one_part_alone(few, tmp_path):
    first = demo.write_scenes(tmp_path / "a")
    assert [path.name for path in first] == [f"{number:04d}.png" for number in range(10)]
    assert len(list((tmp_path / "a" / "masks" / "train").iterdir())) == 64
    assert demo.write_scenes(tmp_path / "b")[3].read_bytes() == first[3].read_bytes()
    shown = demo.write_digits(tmp_path / "c")
    assert [path.parent.name for path in shown] == list(map(str, range(10)))
    names = ("train", "val", "test")
    parts = [{path.read_bytes() for path in (tmp_path / "c" / part).rglob("*.png")} for part in names]
    assert sum(len(list((tmp_path / "c" / part).rglob("*.png"))) for part in names) == 1797
    for one, other in combinations(parts, 2):
        assert len(one & other) <= 2  # a few scans are there twice


@pytest.mark.parametrize("task", list(demo.KINDS))
def test_the_number_is_of_pictures_that_chose_nothing(task, few, tmp_path, monkeypatch):
    """Whatever was trained on: validation never sees what the printed number and the predictions are of."""
    if task == "video":
        pytest.importorskip("av")
    asked, kind = {}, demo.KINDS[task]
    done = SimpleNamespace(folder=tmp_path / "run")
    monkeypatch.setattr(demo, "train", lambda recipe, data, **_: asked.update(data=data) or done)
    monkeypatch.setattr(demo, "evaluate", lambda run, data, **_: asked.update(test=data))
    monkeypatch.setattr(demo, "load", lambda run: None)
    monkeypatch.setattr("patchform.prediction.write", lambda predictor, sources, **_: asked.update(shown=sources))
    demo.demo(tmp_path, task=task, progress=False)

    recipe, settings = resolve(kind.recipe), DataSettings(path=str(asked["data"]))
    splits = open_data(settings, seed=0, preprocessing=recipe.preprocessing, task=recipe.task)
    test = open_evaluation(asked["test"], settings, splits.train.classes, recipe.task)
    seen = [{item.path.resolve() for item in part.items} for part in (splits.train, splits.validation, test)]
    assert all(seen)
    assert not any(one & other for one, other in combinations(seen, 2))
    assert {path.resolve() for path in asked["shown"]} <= seen[2]


def test_what_is_not_a_demo_stays(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("")
    with pytest.raises(FolderError, match="not of a demo"):
        demo.demo(tmp_path, progress=False)
    assert (tmp_path / "demo" / "mine.txt").exists()
    with pytest.raises(UsageError, match="there are: classification, segmentation"):
        demo.demo(tmp_path, task="weather")


def test_every_task_has_its_recipe():
    assert len({kind.folder for kind in demo.KINDS.values()}) == len(demo.KINDS)
    for kind in demo.KINDS.values():
        assert resolve(kind.recipe).task == kind.recipe.partition("/")[0]
