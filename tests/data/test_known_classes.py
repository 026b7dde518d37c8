"""Classes of data that a model does not know: nothing where nothing has them, refused where something has."""

import json

import numpy as np
import pytest
from PIL import Image

from patchform.data.dataset import open_data, open_evaluation
from patchform.data.writing import check_apart, check_target
from patchform.descriptions import Preprocessing
from patchform.errors import DataError, FolderError
from patchform.settings import DataSettings

KNOWN = ("cat", "dog")
SETTINGS = DataSettings(allow_empty_class=True)


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path, format="PNG")
    return path


def coco(folder, used):
    put(folder / "a.png")
    boxes = [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 1, 5, 5]}]
    boxes += [{"id": 2, "image_id": 1, "category_id": 0, "bbox": [1, 1, 5, 5]}] * used
    categories = [{"id": 0, "name": "animals"}, {"id": 2, "name": "dog"}, {"id": 9, "name": "cat"}]
    images = [{"id": 1, "file_name": "a.png", "width": 30, "height": 20}]
    text = json.dumps({"images": images, "annotations": boxes, "categories": categories})
    (folder / "_annotations.coco.json").write_text(text)
    return folder, "detection"


def yolo(folder, used):
    put(folder / "images" / "a.png")
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text("1 .5 .5 .2 .2\n" + "0 .3 .3 .2 .2\n" * used)
    (folder / "classes.txt").write_text("animals\ndog\ncat\n")
    return folder, "detection"


def folders(folder, used):
    put(folder / "dog" / "a.png")
    (folder / "animals").mkdir()
    if used:
        put(folder / "animals" / "b.png")
    return folder, "classification"


def columns(folder, used):
    put(folder / "a.png")
    put(folder / "b.png")
    (folder / "list.csv").write_text(f"image,cat,dog,animals\na.png,0,1,0\nb.png,{int(not used)},0,{int(used)}\n")
    return folder / "list.csv", "classification"


LAYOUTS = [coco, yolo, folders, columns]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_class_that_nothing_has_is_a_note(layout, tmp_path):
    path, task = layout(tmp_path, used=False)
    listing = open_evaluation(path, SETTINGS, KNOWN, task)
    assert listing.classes == KNOWN
    assert any("unknown classes" in note and '"animals"' in note for note in listing.notes)
    assert max(class_ for item in listing.items for class_ in item.classes) == 1
    assert listing.ids is None or len(listing.ids) == len(KNOWN)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_class_that_something_has_is_refused(layout, tmp_path):
    path, task = layout(tmp_path, used=True)
    with pytest.raises(DataError, match=r'1 unknown class: "animals".* known are "cat", "dog"'):
        open_evaluation(path, SETTINGS, KNOWN, task)


def test_validation_may_name_more_than_training(tmp_path):
    coco(tmp_path / "train", used=False)
    document = json.loads((tmp_path / "train" / "_annotations.coco.json").read_text())
    document["categories"] = [{"id": 2, "name": "dog"}]
    (tmp_path / "train" / "_annotations.coco.json").write_text(json.dumps(document))
    coco(tmp_path / "valid", used=False)
    splits = open_data(
        DataSettings(path=str(tmp_path)), seed=0, preprocessing=Preprocessing(size=(8, 8)), task="detection"
    )
    assert splits.validation.classes == ("dog",)
    assert any('"animals", "cat"' in note for note in splits.notes)


# ------------------------------------------------------------------------------------------- nothing is written inside


def test_folders_inside_data_are_refused(tmp_path):
    path, task = folders(tmp_path / "set", used=False)
    listing = open_evaluation(path, SETTINGS, KNOWN, task)
    (tmp_path / "way").symlink_to(path)
    for inside in (path, path / "scores", path / "dog" / "x", tmp_path / "way" / "x", tmp_path / "set" / ".." / "set"):
        with pytest.raises(FolderError, match="inside the data set"):
            check_apart(inside, path, listing)
    for outside in (tmp_path, tmp_path / "set2", tmp_path / "scores"):
        check_apart(outside, path, listing)
        check_target(outside, path)


def test_a_list_refuses_the_folders_of_its_pictures_and_no_others(tmp_path):
    put(tmp_path / "photos" / "a.png")
    (tmp_path / "list.csv").write_text("image,label\nphotos/a.png,cat\n")
    listing = open_evaluation(tmp_path / "list.csv", SETTINGS, KNOWN)
    check_apart(tmp_path / "scores", tmp_path / "list.csv", listing)
    with pytest.raises(FolderError, match="inside the data set"):
        check_apart(tmp_path / "photos" / "scores", tmp_path / "list.csv", listing)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "classification", "--data", "{data}", "--runs", "{data}/runs"],
        ["evaluate", "{run}", "--data", "{data}", "--out", "{data}/scores"],
        ["evaluate", "{run}", "--data", "{parts}", "--out", "{parts}/val/scores"],
        ["features", "{run}", "{data}", "--out", "{data}/cat/f.safetensors"],
        ["probe", "{run}", "--data", "{data}", "--cache", "{data}/cache"],
        ["probe", "{run}", "--data", "{data}", "--cache", "", "--method", "linear", "--out", "{data}/linear"],
        ["predict", "{run}", "{data}", "--out", "{data}/answers"],
    ],
)
def test_every_command_that_writes_refuses(words, tmp_path, capsys):
    from patchform import cli
    from patchform.model import build_model, save

    for part in ("data", "parts/train", "parts/val"):
        for name in KNOWN:
            put(tmp_path / part / name / "1.png")
    save(build_model("classification", backbone="vit/nano", head="linear", classes=KNOWN), tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    names = {name: tmp_path / name for name in ("data", "parts", "run")}
    assert cli.main([word.format(**names) for word in words]) == 5
    assert "inside the data set" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
