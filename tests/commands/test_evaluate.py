"""`evaluate RUN` without more: on the share that the run held out of one folder."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import patchform as pf
from patchform import cli

SETTINGS = {
    "model": {"backbone": "vit/nano", "options": {"patch": 8, "width": 24, "depth": 2}},
    "preprocessing": {"size": 16},
    "training": {"epochs": 2, "batch_size": 16, "threads": 1, "tensorboard": False, "device": "cpu"},
    "optimizer": {"lr": 3e-3},
    "schedule": {"warmup_epochs": 0},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with pictures that one cannot tell apart well, one of them unreadable, and a run."""
    home, dice = tmp_path_factory.mktemp("home"), np.random.default_rng(0)
    for name, level in (("dark", 98), ("mid", 110), ("light", 122)):
        (home / "my photos" / name).mkdir(parents=True)
        for index in range(20):
            pixels = np.clip(level + dice.normal(0, 90, (18, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(home / "my photos" / name / f"{index}.png")
    (home / "my photos/mid/7.png").write_bytes(b"nothing")
    data = {"path": str(home / "my photos"), "skip_bad": 0.1}
    pf.train("classification", data=data, name="first", runs=str(home / "runs"), progress=False, **SETTINGS)
    return home


@pytest.fixture
def copy(home, tmp_path):
    """Another run folder, of the same pictures."""
    return shutil.copytree(home / "runs/first", tmp_path / "run")


def test_it_is_judged_by_what_it_held_out(home, copy, capsys):
    best = json.loads((copy / "checkpoints" / sorted(p.name for p in (copy / "checkpoints").glob("step-*"))[-1]
                       / "state.json").read_text())["counters"]["best"]  # fmt: skip
    capsys.readouterr()
    assert cli.main(["evaluate", str(copy), "--json", "--skip-bad", "0.1"]) == 0
    shown = capsys.readouterr()
    scores = json.loads(shown.out)
    assert scores["samples"] < 20
    assert 0 < scores["numbers"]["top1"] < 1
    assert scores["numbers"]["top1"] == pytest.approx(best)
    assert "pictures that training held out" in shown.err
    assert (copy / "report.html").is_file()
    whole = pf.evaluate(copy, home / "my photos", out=copy / "all", skip_bad=0.1)  # the control: all of them
    assert whole.samples == 59
    assert whole.numbers["top1"] != scores["numbers"]["top1"]


def test_other_pictures_are_not_taken_for_those(home, copy, capsys):
    extra = home / "my photos/dark/extra.png"
    shutil.copy(home / "my photos/dark/1.png", extra)
    try:
        assert cli.main(["evaluate", str(copy), "--skip-bad", "0.1"]) == 3
    finally:
        extra.unlink()
    said = capsys.readouterr().err.splitlines()[-1]
    assert "added, renamed or taken away since" in said
    assert said.endswith(f"patchform evaluate {copy} --data DIR")


def test_what_to_type_where_they_are_not_there_or_nothing_says_which(home, copy, capsys):
    (home / "my photos").rename(home / "moved")
    try:
        assert cli.main(["evaluate", str(copy)]) == 3
    finally:
        (home / "moved").rename(home / "my photos")
    assert "are not there, as seen from here" in capsys.readouterr().err
    shutil.rmtree(copy / "checkpoints")
    assert cli.main(["evaluate", str(copy)]) == 2
    assert "no checkpoint is left that says which pictures were held out" in capsys.readouterr().err
    (copy / "recipe.yaml").unlink()
    assert cli.main(["evaluate", str(copy)]) == 2
    assert f"patchform evaluate {copy} --data DIR" in capsys.readouterr().err
