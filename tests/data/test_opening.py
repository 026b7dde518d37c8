"""Data that are for another task than the one that was named, or lie a folder deeper."""

import json

import numpy as np
import pytest
from bad_pictures import class_folders, encode, mask_folders
from PIL import Image

from patchform.data.dataset import open_data, open_evaluation
from patchform.data.inputs import expand
from patchform.doctor import task_of
from patchform.errors import DataError
from patchform.records import Preprocessing
from patchform.settings import DataSettings

TASKS = ("classification", "detection", "semantic_segmentation", "video_classification")
BOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
XML = f"<annotation><object><name>cat</name>{BOX}</object></annotation>"
ANNOTATION = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 0, "area": 25}
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 8}],
    "annotations": [ANNOTATION],
    "categories": [{"id": 1, "name": "cat"}],
}


def picture(file, seed=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file.write_bytes(encode(Image.fromarray(pixels), "JPEG"))


def text(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def coco(root):
    picture(root / "images" / "a.jpg")
    text(root / "annotations" / "instances_train.json", json.dumps(COCO))


def coco_flat(root):
    picture(root / "a.jpg")
    text(root / "_annotations.coco.json", json.dumps(COCO))


def voc(root):
    picture(root / "JPEGImages" / "a.jpg")
    text(root / "Annotations" / "a.xml", XML)


def yolo(root):
    picture(root / "images" / "a.jpg")
    text(root / "labels" / "a.txt", "0 0.5 0.5 0.2 0.2\n")
    text(root / "data.yaml", "names: [cat]\n")


def yolo_parts(root):
    for part in ("train", "valid"):
        picture(root / part / "images" / "a.jpg")
        text(root / part / "labels" / "a.txt", "0 0.5 0.5 0.2 0.2\n")
    text(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnames: [cat]\n")


def darknet(root):
    picture(root / "obj_train_data" / "a.jpg")
    text(root / "obj_train_data" / "a.txt", "0 0.5 0.5 0.2 0.2\n")
    text(root / "obj.names", "cat\n")
    text(root / "train.txt", "data/obj_train_data/a.jpg\n")


def masks(root):
    mask_folders(root, ["a", "b"], size=(8, 8))
    text(root / "classes.txt", "sky\nroad\ntree\n")


def classes(root):
    for number, name in enumerate(("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg")):
        picture(root / name, number)


def videos(root):
    for name in ("wave/1.mp4", "wave/2.mp4", "nod/1.mp4"):
        text(root / name, "not looked into")


LAYOUTS = {
    coco: "detection",
    coco_flat: "detection",
    voc: "detection",
    yolo: "detection",
    yolo_parts: "detection",
    darknet: "detection",
    masks: "semantic_segmentation",
    classes: "classification",
    videos: "video_classification",
}


def opened(path, task):
    return open_data(DataSettings(path=str(path)), seed=0, preprocessing=Preprocessing(size=(8, 8)), task=task)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("task", TASKS)
def test_the_right_task_is_named(tmp_path, layout, task):
    layout(tmp_path)
    assert task_of(tmp_path) == LAYOUTS[layout]
    if task == LAYOUTS[layout]:
        return
    with pytest.raises(DataError, match=rf"data for .*\b{LAYOUTS[layout]}\b") as caught:
        opened(tmp_path, task)
    assert "allow_empty_class" not in str(caught.value) or "or are they data for" in str(caught.value)
    with pytest.raises(DataError, match=rf"\b{LAYOUTS[layout]}\b"):
        open_evaluation(tmp_path, DataSettings(), ("x",), task)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_of_any_layout_may_be_learnt_from_without_labels(tmp_path, layout):
    layout(tmp_path)
    if layout is videos:
        with pytest.raises(DataError, match="but for video_classification"):
            opened(tmp_path, "pretraining")
        return
    picture(tmp_path / "more.jpg", 7)
    picture(tmp_path / "and.jpg", 8)
    assert len(opened(tmp_path, "pretraining").train) > 0


@pytest.mark.parametrize("layout", [voc, coco, yolo, masks])
def test_a_folder_around_a_layout_is_no_class(tmp_path, layout):
    layout(tmp_path / "unpacked" / "deeper")
    right = LAYOUTS[layout]
    with pytest.raises(DataError, match=rf"data for .*{right}.* give unpacked/deeper/"):
        opened(tmp_path, "classification")
    with pytest.raises(DataError, match=r"no known layout of data, but .* in deeper/.*; give that folder"):
        opened(tmp_path / "unpacked", right)


def test_a_list_beside_flat_pictures_is_named(tmp_path):
    picture(tmp_path / "a.jpg")
    text(tmp_path / "labels.csv", "image,label\na.jpg,cat\n")
    for task in ("classification", None):
        with pytest.raises(DataError, match=r"a CSV list in labels\.csv.*; give that file"):
            opened(tmp_path, task) if task else task_of(tmp_path)


def test_pictures_without_labels(tmp_path):
    picture(tmp_path / "a.jpg")
    for task in TASKS:
        with pytest.raises(DataError, match="but for pretraining"):
            opened(tmp_path, task)
    with pytest.raises(DataError, match="but for pretraining"):
        task_of(tmp_path)


def test_class_folders_with_strange_names_and_files_beside_are_class_folders(tmp_path):
    class_folders(tmp_path / "images", {"cat": 3, "dog": 3})
    text(tmp_path / "labels" / "notes.txt", "0 0.5 0.5 0.2 0.2\n")
    assert opened(tmp_path / "images", "classification").train.classes == ("cat", "dog")
    (tmp_path / "labels").rename(tmp_path / "notes")
    text(tmp_path / "images" / "project.xml", "<project/>")
    text(tmp_path / "images" / "cat" / "000.txt", "a cat on a mat")
    assert task_of(tmp_path / "images") == "classification"
    class_folders(tmp_path / "set", {"images": 3, "other": 3})
    assert opened(tmp_path / "set", "classification").train.classes == ("images", "other")


def test_captions_beside_pictures_are_no_lines_of_boxes(tmp_path):
    picture(tmp_path / "a.jpg")
    text(tmp_path / "a.txt", "a photo of 4 cats")
    text(tmp_path / "classes.txt", "cat")
    with pytest.raises(DataError, match="but for pretraining"):
        opened(tmp_path, "detection")


def test_a_path_in_other_case_is_offered(tmp_path, monkeypatch):
    classes(tmp_path / "My Photos")
    for listed in ("my photos", "My%20Photos", "my_photos"):
        with pytest.raises(DataError, match=f'no such file or folder.*there is "{tmp_path}/My Photos"'):
            opened(tmp_path / listed, "classification")
        with pytest.raises(DataError, match=f'there is "{tmp_path}/My Photos/cat/1.jpg"'):
            expand(tmp_path / listed / "cat" / "1.JPG")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match='there is "My Photos"'):
        opened("my photos", "detection")


def test_a_path_that_no_file_can_have(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        opened(tmp_path / ("x" * 5000), "detection")
