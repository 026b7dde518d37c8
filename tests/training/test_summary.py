"""What a run says before its first step, and keeps."""

import json
import re

import pytest
import tiny

from patchform import cli
from patchform.settings import Origin
from patchform.training import loop
from patchform.training.summary import SUMMARY

NAMES = ["recipe", "backbone", "head", "parameters", "frozen", "weights"]
NAMES += ["input", "data", "score", "device", "precision", "run folder", "started"]


def block(text):
    """The last summary in a text, by name, and what stands in front of it."""
    lines = text.splitlines()
    start = max(index for index, line in enumerate(lines) if line.startswith("recipe "))
    end = max(index for index, line in enumerate(lines) if line.startswith("started "))
    entries = lines[start : end + 1]
    labelled = "pretraining" not in lines[start]
    assert [line[:12].strip() for line in entries] == [name for name in NAMES if labelled or name != "score"]  # aligned
    return {line[:12].strip(): line[12:] for line in entries}, lines[:start]


@pytest.fixture
def said(pictures, tmp_path, capsys):
    """The summary of a run with settings of its own."""

    def run(name="run", *, resume=False, origin=None, **sections):
        capsys.readouterr()
        more = {} if origin is None else {"origin": origin}
        sections["training"] = {"epochs": 1} | sections.get("training", {})
        loop.train(tiny.recipe(pictures, tmp_path, name, **sections), resume=resume, progress=False, **more)
        return block(capsys.readouterr().err)

    return run


def test_a_run_says_what_it_trains(said, tmp_path):
    entries, before = said(model={"drop_path": 0.1}, origin=Origin("own.yaml", ("something went",)))
    assert before == ["something went"]
    assert entries["recipe"] == "own.yaml: classification, 1 epoch"
    assert entries["backbone"] == "vit/nano, 66,768 parameters; with drop_path 0.1"
    assert entries["head"] == "linear, 196 parameters"
    assert entries["parameters"] == "66,964, all of them train"
    assert entries["frozen"] == "nothing"
    assert entries["weights"] == "from nothing (seed 0)"
    assert entries["input"] == "32 x 32 pixels (crop), 3 channels"
    assert entries["data"].startswith(
        "200 pictures to learn from, 40 to validate on; batches of 32; 7 steps an epoch, 7 "
    )
    assert entries["score"] == "top1, higher is better: share of pictures whose best class is the right one"
    assert entries["device"] == "cpu, 1 thread"
    assert entries["precision"] == "float32"
    assert entries["run folder"] == str(tmp_path / "run")
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", entries["started"])
    assert block((tmp_path / "run" / SUMMARY).read_text()) == (entries, [])


def test_what_is_frozen_and_where_weights_come_from_is_said(said, tmp_path):
    said("first")
    start = str(tmp_path / "first")
    entries, _ = said("frozen", model={"frozen": 1, "frozen_epochs": 1, "init_from": start})
    assert entries["weights"] == start
    assert entries["frozen"] == "the stem and 1 of 2 layers of the backbone for 1 epoch, all of this run"
    trained, _, every = entries["parameters"].partition(" of ")
    assert every == "66,964 train"
    assert 196 < int(trained.replace(",", "")) < 66_964
    entries, _ = said("still", model={"frozen": "all"})
    assert (entries["frozen"], entries["parameters"]) == ("the backbone", "196 of 66,964 train")
    entries, _ = said("slow", optimizer={"backbone_rate": 0.0})
    assert (entries["frozen"], entries["parameters"]) == ("the backbone", "196 of 66,964 train")


def test_norms_that_stay_are_said(said):
    entries, _ = said(model={"backbone": "resnet/nano", "norms": "frozen"}, preprocessing={"size": (64, 64)})
    assert entries["frozen"].endswith("batch normalisations")
    assert "of" in entries["parameters"]
    assert entries["input"] == "64 x 64 pixels (crop), 3 channels"


def test_a_run_that_goes_on_says_so_and_adds_to_what_it_said(said, tmp_path):
    first, _ = said()
    entries, before = said(resume=True, training={"epochs": 2})
    assert entries["weights"] == "this run's own after step 7 of 14"
    assert "resuming after step 7" in before
    text = (tmp_path / "run" / SUMMARY).read_text()
    assert text.count("run folder") == 2
    assert block(text.split("\n\n")[0]) == (first, [])
    (tmp_path / "run" / SUMMARY).write_bytes(b"\xff\xfe damaged")
    said(resume=True, training={"epochs": 3})
    assert (tmp_path / "run" / SUMMARY).read_text().count("run folder") == 1


def test_a_method_without_labels_says_what_it_trains(said):
    options = {"width": 16, "depth": 1, "heads": 4}
    entries, _ = said(task="pretraining", model={"head": "mae", "head_options": options})
    assert entries["recipe"].endswith(": pretraining, 1 epoch")
    assert entries["head"].startswith("mae, ")
    assert entries["head"].endswith(" parameters; with width 16, depth 1, heads 4")


def test_that_there_is_but_one_class_is_said_before_the_first_epoch(tmp_path, capsys):
    folder = tiny.pictures(tmp_path / "pictures", count=40)
    for file in folder.glob("*/[vab]/*"):
        file.unlink()
    for place in folder.glob("*/[vab]"):
        place.rmdir()
    loop.train(tiny.recipe(folder, tmp_path), progress=True)
    first = capsys.readouterr().err.split("epoch 1")[0]
    assert 'hint: a single class, which is the answer to everything: class "h"' in first


def test_json_alone_is_on_standard_output(pictures, tmp_path, capsys):
    words = ["train", "classification", "--data", str(pictures), "--runs", str(tmp_path), "--name", "one", "--json"]
    words += ["--model.backbone", "vit/ti16", "--model.options.depth", "1", "--training.epochs", "1"]
    assert cli.main([*words, "--training.threads", "1", "--training.device", "cpu", "--no-page"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["run"] == str(tmp_path / "one")
    entries, before = block(err)
    assert before[3].startswith("backbone vit/ti16 in place of the recipe's vit/nano; its patch 4, width 128, depth 6")
    assert entries["recipe"] == "classification/small: classification, 1 epoch"
    assert entries["backbone"].startswith("vit/ti16, ")
    assert entries["backbone"].endswith("with depth 1, drop_path 0.05")
