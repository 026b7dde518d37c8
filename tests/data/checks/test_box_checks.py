import json

import numpy as np
import pytest
from bad_pictures import encode, exif
from looking import found, kinds
from PIL import Image
from planted import make_set

from patchform.data.checks import boxes, notation
from patchform.data.dataset import open_training
from patchform.data.listing import RLE, Item, Listing, Objects
from patchform.data.outlines import outline_box
from patchform.errors import DataError
from patchform.settings import DataSettings

SIZE = (72, 96)
"""(height, width) of the pictures."""


def corners(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def coco(root, change, *, count=4, size=SIZE, **save):
    """Pictures with two objects each; `change` takes and returns a record."""
    numbers = np.random.default_rng(0)
    for part in ("train", "val"):
        (root / part).mkdir(parents=True)
        images, annotations = [], []
        for index in range(1, count + 1):
            pixels = Image.fromarray(numbers.integers(0, 256, (*size, 3), dtype=np.uint8))
            (root / part / f"{index}.jpg").write_bytes(encode(pixels, "JPEG", **save))
            images.append({"id": index, "file_name": f"{index}.jpg", "width": size[1], "height": size[0]})
            for number, (x, y, w, h) in enumerate([(2, 1, 9 + index, 11), (10, 8 + index, 14, 16)]):
                record = {"id": len(annotations), "image_id": index, "category_id": number, "area": w * h, "iscrowd": 0}
                annotations.append(change(record | {"bbox": [x, y, w, h], "segmentation": corners(x, y, w, h)}))
        document = {"images": images, "annotations": annotations}
        document["categories"] = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(document))
    return root


def as_corners(record):
    x, y, w, h = record["bbox"]
    return record | {"bbox": [x, y, x + w, y + h]}


def as_shares(record):
    (x, y, w, h), (height, width) = record["bbox"], SIZE
    return record | {"bbox": [x / width, y / height, w / width, h / height]}


def bare(record):
    return {key: value for key, value in record.items() if key != "segmentation"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda record: record, {}),
        (bare, {}),
        (lambda record: bare(record) | {"area": 1.0}, {}),  # areas of another kind tell nothing
        (as_corners, {"box-notation"}),
        (lambda record: bare(as_corners(record)), {"box-notation"}),  # by the areas
        (as_shares, {"box-shares"}),
        (lambda record: bare(as_shares(record)), {"box-shares"}),
        (lambda record: bare(as_corners(as_shares(record))), {"box-shares"}),
        (lambda record: record | {"bbox": [60, 40, 12, 14]}, {"box-outline"}),
        (lambda record: record | {"bbox": [60, 40, 12, 14], "iscrowd": 1}, {"nothing-to-learn"}),
        (lambda record: record | {"bbox": [record["bbox"][0] + 1, *record["bbox"][1:]]}, {}),
    ],
)
@pytest.mark.parametrize("task", ["detection", "instance_segmentation"])
def test_numbers_of_boxes_are_what_they_seem(change, expected, task, tmp_path):
    root = coco(tmp_path, change)
    outlined = "segmentation" in change({"bbox": [0, 0, 1, 1], "segmentation": [1]})
    lacking = set() if outlined or task == "detection" else {"outline-missing"}
    told = set(kinds(root, task)) - {"box-rival", "box-clipped"}
    assert told - lacking == set(expected)
    assert lacking <= told or expected


@pytest.mark.parametrize("change", [as_corners, as_shares])
def test_a_training_refuses_boxes_in_other_numbers(change, tmp_path):
    with pytest.raises(DataError, match=r"x1, y1, x2, y2|shares of width and height"):
        open_training(DataSettings(path=str(coco(tmp_path, change))), task="detection")


def of_boxes(root, rows, size, segmentations=None):
    objects = Objects(np.array(rows, np.float32), np.zeros(len(rows), np.int64), size, segmentations=segmentations)
    return Listing(classes=("a",), items=(Item(root / "a.png", (0,), objects=objects),), root=root)


def test_percent_is_a_hint_where_boxes_leave_most_of_large_pictures_empty(tmp_path):
    rows = [[index, index, index + 20, index + 20] for index in range(0, 80, 2)]
    assert [f.kind for f in found((boxes.PERCENT,), of_boxes(tmp_path, rows, (700, 900)))] == ["box-percent"]
    for other, size in ((rows, (150, 900)), (rows[:9], (700, 900)), ([*rows, [0, 0, 101, 9]], (700, 900))):
        assert found((boxes.PERCENT,), of_boxes(tmp_path, other, size)) == []


def test_bounds_of_run_lengths_are_those_of_their_pixels():
    numbers = np.random.default_rng(0)
    for _ in range(50):
        mask = np.zeros((9, 7), bool)
        top, left = numbers.integers(0, 5, 2)
        mask[top : top + numbers.integers(1, 6), left : left + numbers.integers(1, 4)] = True
        flat = np.concatenate([[False], mask.T.ravel(), [False]])
        edges = np.flatnonzero(np.diff(flat.astype(int)))
        runs = np.diff(np.concatenate([[0], edges, [mask.size]]))
        y, x = np.nonzero(mask)
        left, top, right, bottom = outline_box(RLE(tuple(runs.tolist()), (9, 7)))
        assert (left, right) == (x.min(), x.max() + 1)
        assert top <= y.min()
        assert bottom >= y.max() + 1
        if y.max() < 8 or y.min() > 0:  # else a run goes on in the next column
            assert (top, bottom) == (y.min(), y.max() + 1)


def test_few_and_small_numbers_are_pixels():
    limits = np.tile([[96, 72, 96, 72]], (4, 1)).astype(float)
    whole = np.array([[0, 0, 1, 1], [0, 1, 1, 2], [0, 0, 2, 2], [0.5, 0.5, 9, 9]], float)
    assert not notation.are_shares(whole, whole, limits).any()
    shares = np.array([[0.1, 0.2, 0.4, 0.5]] * 4)
    assert notation.are_shares(shares, shares, limits).all()
    assert not notation.are_shares(shares, shares, limits / 24).any()  # pictures of 4 x 3 pixels


@pytest.mark.parametrize(
    ("orientation", "size", "asked"),
    [(None, SIZE, 0), (1, SIZE, 0), (2, SIZE, 4), (3, SIZE, 4), (4, SIZE, 4), (6, (48, 48), 4)],
)
def test_orientations_that_sizes_cannot_check_are_hints(orientation, size, asked, tmp_path):
    root = coco(tmp_path, lambda record: record, size=size, **({"exif": exif(orientation)} if orientation else {}))
    assert kinds(root, "detection").get("orientation-untold", 0) == asked
    empty = coco(tmp_path / "empty", lambda record: record | {"iscrowd": 1}, size=size)
    assert "orientation-untold" not in kinds(empty, "detection")


def test_where_sizes_are_not_annotated_no_orientation_can_be_checked(tmp_path):
    root = make_set("yolo", tmp_path / "set", real=False)
    assert "orientation-untold" not in kinds(root)
    files = sorted((root / "images" / "train").iterdir())[:3]
    for file in files:
        file.write_bytes(encode(Image.open(file).convert("RGB"), "JPEG", exif=exif(6)))
    assert kinds(root)["orientation-untold"] == len(files)
