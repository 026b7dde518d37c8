"""A run that learns from Python objects: as from folders, and known again when it goes on."""

import numpy as np
import pytest
import yaml

import patchform as pf
from patchform.data import python_sets
from patchform.errors import DataError, ModelFileError

NAMES = ["dark", "light"]


class Shades:
    """Pictures of two shades: no list, and nothing that is on a disk."""

    def __init__(self, count, start=0):
        self.count, self.start = count, start

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        draw = np.random.default_rng(self.start + index)
        return draw.integers(0, 100, (20, 24, 3), np.uint8) + np.uint8(150 * (index % 2)), index % 2


def train(runs, data, **settings):
    options = {"epochs": 1, "batch_size": 8, "tensorboard": False, "threads": 1, "device": "cpu"}
    return pf.train(
        "classification",
        data=data,
        classes=NAMES,
        runs=str(runs),
        name="first",
        progress=False,
        model={"backbone": "vit/nano", "options": {"width": 48, "depth": 2, "heads": 3}},
        preprocessing={"size": [16, 16], "resize": "squash"},
        schedule={"warmup_epochs": 0},
        training=options | settings.pop("training", {}),
        **settings,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs"), (Shades(32), Shades(8, 100)), training={"epochs": 3})


def test_it_learns_and_is_judged_and_looked_at(run):
    assert run.best == 1.0
    assert run.model.classes == tuple(NAMES)
    scores = pf.evaluate(run.folder, data=Shades(10, 200), classes=NAMES)
    assert (scores.samples, scores.numbers["top1"]) == (10, 1.0)
    page = (run.folder / "report.html").read_text()
    assert page.count("<img") >= 6  # the pictures of the object
    assert "python:Shades-" in page
    assert pf.evaluate(run.folder).samples == 8  # those of the run, as long as they are there
    predictor = pf.load(run.folder, device="cpu")
    assert predictor(Shades(2)[1][0]).as_json()["label"] == "light"


def test_it_goes_on_with_equal_data_alone(tmp_path, monkeypatch):
    first = train(tmp_path, Shades(16))
    kept = yaml.safe_load((first.folder / "recipe.yaml").read_text())["data"]["path"]
    assert kept.startswith("python:Shades-")
    longer = {"training": {"epochs": 2}, "resume": True}
    with pytest.raises(ModelFileError, match="data differ"):
        train(tmp_path, Shades(16, 1), **longer)
    assert train(tmp_path, Shades(16), **longer).step == 4
    monkeypatch.setattr(python_sets, "_held", {})
    with pytest.raises(DataError, match=r"a Python object, which is not here.*give it"):
        pf.train(first.folder, resume=True, progress=False)


def test_processes_that_load_see_it_too(tmp_path):
    done = train(tmp_path, Shades(16), training={"epochs": 1})
    same = pf.train(
        done.folder,
        name="second",
        runs=str(tmp_path),
        progress=False,
        data={"path": python_sets.hold(Shades(16), NAMES), "workers": 2},
    )
    assert [row["train_loss"] for row in same.history] == [row["train_loss"] for row in done.history]
