import json

import pytest
from bad_pictures import class_folders, encode
from PIL import Image

from patchform.data.dataset import open_data
from patchform.data.foreign_formats import FOREIGN, foreign
from patchform.doctor import task_of
from patchform.errors import DataError
from patchform.records import Preprocessing
from patchform.settings import DataSettings

IMAGES = [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 8}]
SEGMENTS = [{"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}]}]
FILES = {
    # file: (content, part of the name)
    "panoptic_val.json": (
        {"images": IMAGES, "annotations": SEGMENTS, "categories": [{"id": 1, "name": "a"}]},
        "panoptic",
    ),
    "anything.json": ({"images": IMAGES, "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}]}, "captions"),
    "a.json": ({"flags": {}, "shapes": [{"label": "x", "points": [[1, 2]]}], "imagePath": "a.jpg"}, "labelme"),
    "via.json": ({"a.jpg7": {"regions": [{"shape_attributes": {"name": "rect"}}]}}, "VIA"),
    "via_project.json": ({"_via_settings": {}, "_via_img_metadata": {}}, "VIA"),
    "via.csv": ("filename,file_size,region_shape_attributes\na.jpg,1,{}\n", "VIA"),
    "_annotations.createml.json": ([{"image": "a.jpg", "annotations": [{"coordinates": {"x": 1}}]}], "CreateML"),
    "project-1.json": ([{"annotations": [{"result": [{"from_name": "x", "to_name": "y"}]}]}], "Label Studio"),
    "project-min.json": ([{"image": "a.jpg", "label": [{"x": 1, "rectanglelabels": ["a"]}]}], "Label Studio"),
    "annotations.xml": ("<?xml version='1.0'?>\n<annotations><version>1.1</version></annotations>", "CVAT"),
    "meta.json": ({"classes": [{"title": "a", "shape": "polygon"}]}, "Supervisely"),
    "bdd.json": ([{"name": "a.jpg", "labels": [{"box2d": {"x1": 1}}]}], "BDD100K"),
    "results.json": ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], "predictions"),
    "boxes.csv": ("filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,1,1,4,4\na.jpg,cat,3,3,5,5\n", "table of boxes"),
    "boxes.tsv": ("image\tlabel\tbbox\na.jpg\tcat\t[1, 2, 3, 4]\na.jpg\tcat\t[1, 2, 3, 5]\n", "table of boxes"),
    "bare.csv": ("a.jpg,1,2,3,4,cat\na.jpg,2,2,3,4,dog\n", "table of boxes without names"),
    "masks.csv": ("ImageId,EncodedPixels\na.jpg,1 3 10 5\n", "run lengths"),
    "train.parquet": ("PAR1", "Parquet"),
    "data-00000-of-00001.arrow": ("x", "Arrow"),
    "train.tfrecord-00000-of-00002": ("x", "TensorFlow"),
    "train.txt": ("a.jpg 0\nb.jpg 1\n", "plain text"),
    "metadata.jsonl": ('{"file_name": "a.jpg"}', "lines of JSON"),
    "train-images-idx3-ubyte": ("x", "arrays in one file"),
    "look.ipynb": ("{}", "notebook"),
    "data.pkl": ("x", "pickle"),
    "data.zip": ("PK\x03\x04", "zip"),
    "download": ("PK\x03\x04", "zip"),
    "data.7z": ("x", "7z"),
}


def written(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / name


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("task", ["detection", "classification", "semantic_segmentation"])
def test_files_of_other_programs_are_named(tmp_path, name, task):
    content, said = FILES[name]
    file = written(tmp_path, name, content)
    with pytest.raises(DataError, match=rf"{said}.*a format that is not read.*{name}; \w+") as caught:
        open_data(DataSettings(path=str(file)), seed=0, preprocessing=Preprocessing(), task=task)
    assert caught.value.remedy


@pytest.mark.parametrize("name", [name for name in FILES if "." in name and name != "train.txt"])
@pytest.mark.parametrize("below", [".", "annotations"])
def test_they_are_found_in_folders_of_pictures(tmp_path, name, below):
    (tmp_path / "b.jpg").write_bytes(encode(Image.new("RGB", (8, 8)), "JPEG"))
    content, said = FILES[name]
    written(tmp_path / below, name, content)
    with pytest.raises(DataError, match=rf"{said}.*a format that is not read"):
        open_data(DataSettings(path=str(tmp_path)), seed=0, preprocessing=Preprocessing(), task="detection")
    if below == "." and not name.endswith(("csv", "tsv")):
        with pytest.raises(DataError, match=rf"{said}.*a format that is not read"):
            task_of(tmp_path)


def test_utf16_is_looked_into_too(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(json.dumps(FILES["a.json"][0]).encode("utf-16"))
    known, where = foreign(file)
    assert (known.name.split("'")[0], where) == ("labelme", file)


@pytest.mark.parametrize(("folder", "said"), [("label_2", "KITTI"), ("labelTxt", "DOTA"), ("SegmentationClass", "VOC")])
def test_folders_tell_too(tmp_path, folder, said):
    (tmp_path / folder).mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(encode(Image.new("RGB", (8, 8)), "JPEG"))
    for task in ("detection", "semantic_segmentation", "classification"):
        with pytest.raises(DataError, match=f"{said}.*not read"):
            open_data(DataSettings(path=str(tmp_path)), seed=0, preprocessing=Preprocessing(), task=task)


def test_what_is_read_is_not_hindered_by_files_beside_it(tmp_path):
    class_folders(tmp_path, {"a": 3, "b": 3})
    for name, (content, _) in FILES.items():
        written(tmp_path, name, content)
    splits = open_data(DataSettings(path=str(tmp_path)), seed=0, preprocessing=Preprocessing(size=(8, 8)))
    assert splits.train.classes == ("a", "b")
    assert len({(known.name, known.signs, known.folders) for known in FOREIGN}) == len(FOREIGN)
