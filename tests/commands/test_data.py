import json
import os
import shutil

import numpy as np
import pytest
from data.bad_pictures import class_folders, tree_state
from data.planted import make_set
from PIL import Image

import patchform
from patchform import cli
from patchform.commands.data import ACTIONS, EXAMPLE, convert_data, show_data
from patchform.errors import FolderError, UsageError


def data(*words):
    return cli.main(["data", *map(str, words)])


def said(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def width(file):
    with Image.open(file) as picture:
        return picture.width


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    home = tmp_path_factory.mktemp("sets")
    return {name: make_set(name, home / name, real=False) for name in ("boxes", "outlines", "masks", "folders")}


def test_each_action_has_an_example(capsys):
    assert EXAMPLE.startswith("patchform data check")
    for name in ACTIONS:
        with pytest.raises(SystemExit):
            data(name, "--help")
        assert f"example: patchform data {name} " in capsys.readouterr().out
    assert data("fly") == 2


def test_check_says_clean_and_changes_nothing(sets, capsys):
    for root in sets.values():
        before = tree_state(root)
        assert data("check", root) == 0
        out = capsys.readouterr()
        assert out.out.splitlines()[-1].startswith("clean: no faults, ")
        assert out.err == ""
        assert tree_state(root) == before


def test_check_tells_faults_and_draws_them(sets, tmp_path, capsys):
    root = shutil.copytree(sets["boxes"], tmp_path / "set")
    file = root / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    for index, box in enumerate([[5, 5, -9, 9], [900, 5, 9, 9], [-8, 5, 20, 9]]):
        document["annotations"][index]["bbox"] = box
    file.write_text(json.dumps(document))
    (root / "val" / "val13.jpg").write_bytes(b"<html>")
    before = tree_state(root)
    assert data("check", root, "--out", tmp_path / "out") == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "detection: 12 pictures in train, 6 pictures in validation, 3 classes"
    (place,) = (index for index, line in enumerate(lines) if line.startswith("FAULT: 1 boxes with a negative side"))
    assert lines[place] == "FAULT: 1 boxes with a negative side or a number that is none (box-bad); mend or remove them"
    assert lines[place + 1] == "    train: train1.jpg, annotation 1: x1 5, y1 5, x2 -4, y2 14"
    assert any(line.startswith("mended: 1 boxes wholly outside") for line in lines)
    assert any(line.startswith("    validation: val13.jpg: ") and "HTML" in line for line in lines)
    assert lines[-2] == "2 faults, 0 hints"
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["box-bad-1.png", "box-clipped-3.png", "box-outside-2.png", "index.html"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert all(name in page for name in names[:3])
    outside = np.array(Image.open(tmp_path / "out" / "box-outside-2.png").convert("RGB")).astype(int)
    assert (abs(outside - (230, 20, 20)).max(-1) < 3).any()
    assert tree_state(root) == before
    assert data("check", root, "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["faults"], found["parts"]["train"]["pictures"]) == (2, 12)
    assert found["found"][0]["first"][0]["where"] == "val13.jpg"
    assert data("check", root, "--out", tmp_path / "out") == 5
    assert data("check", root, "--out", root / "out") == 5
    assert tree_state(root) == before


def test_check_takes_settings_and_is_strict_when_asked(sets, tmp_path, capsys):
    root = shutil.copytree(sets["folders"], tmp_path / "set")
    shutil.copyfile(root / "train" / "ants" / "000.png", root / "val" / "ants" / "copy.png")
    assert data("check", root) == 0
    assert "hint: 1 pictures of training that validation has too" in capsys.readouterr().out
    assert data("check", root, "--strict") == 3
    assert data("check", sets["masks"], "--data.classes", "[sky, road]") == 3
    assert "number 2 in" in capsys.readouterr().out
    assert data("check", sets["masks"], "--data.clases", "[sky]") == 2
    assert data("check", sets["masks"], "--optimizer.lr", "1") == 2
    assert data("check", tmp_path / "nowhere", "--json") == 3
    assert json.loads(said(capsys))["error"]["kind"] == "E-data"


def test_names_that_no_terminal_shows_and_tasks_that_are_none(sets, tmp_path, capsys):
    root = shutil.copytree(sets["folders"], tmp_path / "set")
    (root / "train" / "ants" / os.fsdecode(b"\xff\x1b[31m.jpg")).write_bytes(b"")
    assert data("check", root, "--out", tmp_path / "out") == 3
    assert "    train: ants/\\udcff\\x1b[31m.jpg: the file is empty\n" in capsys.readouterr().out
    for action, *more in (("check",), ("show", "--out", tmp_path / "a.png")):
        assert data(action, root, "--task", "detecton", *more) == 2
        assert 'did you mean "detection"?' in said(capsys)


@pytest.mark.parametrize("name", ["boxes", "outlines", "masks", "folders"])
def test_show_draws_the_truth(name, sets, tmp_path, capsys):
    assert data("show", sets[name], "--out", tmp_path / "sheet.png", "--count", 3, "--json") == 0
    shown = json.loads(capsys.readouterr().out)["pictures"]
    assert len(shown) == len(set(shown)) == 3
    assert width(tmp_path / "sheet.png") > 400
    assert data("show", sets[name], "--out", tmp_path / "sheet.png") == 5
    assert data("show", sets[name], "--out", sets[name] / "sheet.png") == 5
    assert data("show", sets[name], "--out", tmp_path / "val.png", "--part", "validation", "--count", 99) == 0
    assert data("show", sets[name], "--out", tmp_path / "no.png", "--count", 0) == 2


def test_show_draws_what_training_sees(tmp_path):
    root = class_folders(tmp_path / "set", {"a": 2, "b": 2}, size=(30, 40))
    (tmp_path / "r.yaml").write_text("task: classification\ndata: {image_size: 300}\n")
    names = show_data(root, tmp_path / "sheet.png", augmented=tmp_path / "r.yaml", count=1)
    assert len(names) == 1
    assert width(tmp_path / "sheet.png") == 8 + 300 + 8
    show_data(root, tmp_path / "again.png", augmented=tmp_path / "r.yaml", count=1)
    assert (tmp_path / "sheet.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    show_data(root, tmp_path / "smaller.png", augmented=tmp_path / "r.yaml", count=1, image_size=250)
    assert width(tmp_path / "smaller.png") == 8 + 250 + 8


@pytest.mark.parametrize("to", ["coco", "voc", "yolo"])
def test_convert_writes_a_clean_new_set(to, sets, tmp_path, capsys):
    root, before = sets["boxes"], tree_state(sets["boxes"])
    for pictures in ("link", "copy"):
        out = tmp_path / pictures
        assert data("convert", root, "--to", to, "--out", out, "--pictures", pictures) == 0
        found = patchform.check_data(out)
        assert found.fatal == 0
        assert [part.numbers for part in found.parts] == [part.numbers for part in patchform.check_data(root).parts]
        assert {file.is_symlink() for file in out.rglob("*.jpg")} == {pictures == "link"}
        assert data("convert", root, "--to", to, "--out", out) == 5
    assert data("convert", root, "--to", to, "--out", root / "new") == 5
    assert tree_state(root) == before
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".tmp")]


def test_convert_says_what_is_lost_and_leaves_nothing_half_done(sets, tmp_path, capsys):
    assert data("convert", sets["outlines"], "--to", "voc", "--out", tmp_path / "voc") == 0
    assert "lost: train: 36 outlines, which Pascal VOC's xml has no place for" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no annotated objects"):
        convert_data(sets["folders"], tmp_path / "new", to="coco")
    with pytest.raises(UsageError, match="did you mean"):
        convert_data(sets["boxes"], tmp_path / "new", to="cocoa")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.txt").write_text("")
    with pytest.raises(FolderError):
        convert_data(sets["boxes"], tmp_path / "new", to="coco")
    root = shutil.copytree(sets["boxes"], tmp_path / "set")
    (root / "train" / "train1.jpg").unlink()
    assert data("convert", root, "--to", "coco", "--out", tmp_path / "third") == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new", "set", "voc"]
