import numpy as np
import pytest
from annotated import random_listing
from bad_pictures import class_folders

from patchform.data.checks import amounts, boxes, copies
from patchform.data.checks.base import Subject
from patchform.data.dataset import open_evaluation
from patchform.data.faults import KINDS, Faults
from patchform.data.listing import Item, Listing, Objects
from patchform.settings import DataSettings


def looked(check, listing, numbers=()):
    faults = Faults()
    check.look(Subject(listing, tuple(numbers), True), faults)
    return faults


def listing_of(tmp_path, boxes, classes, crowd=None, names=("cat", "dog")):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    crowd = None if crowd is None else np.array(crowd)
    objects = Objects(boxes, np.array(classes, np.int64), (100, 100), crowd)
    return Listing(classes=names, items=(Item(tmp_path / "a.png", (), objects=objects),), root=tmp_path)


@pytest.mark.parametrize(
    ("rows", "classes", "crowd", "kinds"),
    [
        ([[0, 0, 20, 20], [50, 50, 80, 80]], [0, 1], None, []),
        ([[0, 0, 20, 20], [0, 0, 20, 20]], [0, 0], None, ["box-same"]),
        ([[0, 0, 20, 20], [0, 0, 20, 19]], [0, 0], None, []),  # two of a class may be close
        ([[0, 0, 20, 20], [0, 0, 20, 19]], [0, 1], None, ["box-rival"]),  # 19 / 20
        ([[0, 0, 20, 20], [0, 0, 20, 17]], [0, 1], None, []),  # 17 / 20
        ([[0, 0, 20, 20], [0, 0, 20, 20]], [0, 0], [False, True], []),
        ([[0, 0, 2.9, 20]], [0], None, ["box-tiny"]),
        ([[0, 0, 3, 20]], [0], None, []),
        ([], [], None, []),
    ],
)
def test_boxes(rows, classes, crowd, kinds, tmp_path):
    faults = looked(boxes.CLOSE, listing_of(tmp_path, rows, classes, crowd))
    assert [fault.kind for fault in faults] == kinds
    assert all(KINDS[kind].hint and not KINDS[kind].fatal for kind in kinds)
    for fault in faults:
        assert fault.where == f"a.png, object {len(rows)} of {len(rows)}"
        assert fault.box == tuple(np.float32(rows[-1]).tolist())


def test_pairs_are_those_of_a_loop(tmp_path):
    listing = random_listing(tmp_path, 3, number=12)
    faults = looked(boxes.CLOSE, listing)
    tiny = sum(int(min(b[2] - b[0], b[3] - b[1]) < boxes.TINY) for i in listing.items for b in i.objects.boxes)
    assert faults.counts["box-tiny"] == tiny > 0


@pytest.mark.parametrize(
    ("numbers", "kinds"),
    [
        ((10, 500), []),
        ((9, 500), ["class-rare"]),
        ((0, 500), ["class-unused"]),
        ((500, 0), ["class-unused"]),
        ((0, 0), []),
    ],
)
def test_classes(numbers, kinds, tmp_path):
    faults = looked(amounts.UNEVEN, listing_of(tmp_path, [], []), numbers)
    assert [fault.kind for fault in faults] == kinds
    faults.refuse(tmp_path)
    assert faults.notes() == ()


def test_objects_are_counted_without_crowds(tmp_path):
    rows = [[0, 0, 20, 20]] * 4
    assert amounts.objects_of(listing_of(tmp_path, rows, [1, 0, 1, 1], [False, False, True, False])) == (1, 2)


def test_copies_and_conflicts(tmp_path):
    class_folders(tmp_path, {"a": 3, "b": 3})
    first = (tmp_path / "a" / "001.png").read_bytes()
    for place in ("a/zz.png", "b/zz.png"):
        (tmp_path / place).write_bytes(first)
    faults = looked(copies.REPEATED, open_evaluation(tmp_path, DataSettings(), ("a", "b")))
    assert [(fault.kind, fault.where, fault.what) for fault in faults] == [
        ("picture-repeated", "a/zz.png", "a/001.png"),
        ("class-conflict", "b/zz.png", "a/001.png"),
    ]
