import json

import numpy as np
import pytest
from bad_pictures import class_folders
from looking import found, kinds, of_names
from planted import make_set

from patchform.data.checks import amounts
from patchform.data.checks.base import Subject
from patchform.data.checks.examination import Report
from patchform.data.dataset import open_training
from patchform.data.listing import Item, Listing
from patchform.doctor import diagnose
from patchform.errors import DataError
from patchform.settings import DataSettings
from patchform.tasks.base import find_task


def listing(root, *classes):
    """Of items with these classes, among three."""
    items = tuple(Item(root / f"{index}.png", own) for index, own in enumerate(classes))
    return Listing(classes=("a", "b", "c"), items=items, root=root)


@pytest.mark.parametrize(
    ("classes", "training", "kinds"),
    [
        (((), ()), True, ["nothing-to-learn"]),
        (((), ()), False, ["nothing-to-judge"]),
        (((1,), (1,)), True, ["class-single"]),
        (((1,), (0,)), True, []),
        (((1,), ()), True, []),  # several labels: none is an answer too
        (((0, 1), (1,)), True, []),
        ((), True, []),
    ],
)
def test_nothing_and_one_class(classes, training, kinds, tmp_path):
    given = listing(tmp_path, *classes)
    checks = (amounts.NOTHING, amounts.SINGLE) if training else (amounts.NOTHING,)
    assert [fault.kind for fault in found(checks, given, given.counts(), training)] == kinds


@pytest.mark.parametrize("left", ["nothing", "crowds"])
def test_a_part_without_objects_is_refused_before_training(left, tmp_path):
    root = make_set("boxes", tmp_path / "set", real=False)
    for part in ("train", "val"):
        file = root / "annotations" / f"instances_{part}.json"
        document = json.loads(file.read_text())
        document["annotations"] = [one | {"iscrowd": 1} for one in document["annotations"] * (left == "crowds")]
        file.write_text(json.dumps(document))
    assert kinds(root, "detection")["nothing-to-learn"] == 1
    assert kinds(root, "detection", "validation")["nothing-to-judge"] == 1
    opened, _ = open_training(DataSettings(path=str(root)), task="detection")
    with pytest.raises(DataError, match="nothing to learn from: all 12 pictures"):
        find_task("detection").refuse(opened, training=True)
    assert any("nothing to judge by" in hint for hint in find_task("detection").refuse(opened))


def test_one_picture_or_one_class_is_said(tmp_path):
    class_folders(tmp_path / "one", {"a": 1})
    assert set(kinds(tmp_path / "one")) == {"nothing-to-hold-out", "class-single"}
    class_folders(tmp_path / "few", {"a": 1, "b": 1})
    assert kinds(tmp_path / "few")["nothing-to-hold-out"] == 1
    class_folders(tmp_path / "alone", {"a": 5})
    assert kinds(tmp_path / "alone") == {"class-single": 1}
    assert diagnose(DataSettings(path=str(tmp_path / "alone"))).fatal == 0


def lines(given, numbers, sizes=(), training=True, unit="pictures"):
    report = Report(checked=len(given), faults=(), notes=(), sizes=sizes)
    return list(amounts.summary(Subject(given, numbers, training, report), unit))


def test_how_much_there_is_is_said_in_a_line_each(tmp_path):
    given = listing(tmp_path, (0,), (0,), (0,), (1,))
    assert lines(given, (3, 1, 0), ((10, 20), (30, 50), (40, 60)), unit="objects") == [
        "sizes: 20 to 60 pixels wide, 10 to 40 high, median 50 x 30",
        'balance: from "c" 0 objects (0.0%) to "a" 3 objects (75.0%)',
        "small: 4 pictures for 3 classes; start from published weights (train --from NAME)",
    ]
    assert lines(given, (3, 1, 0), ((7, 8),) * 3, training=False)[0] == "sizes: all 8 x 7 pixels"
    many = listing(tmp_path, *[(0,)] * (3 * amounts.FEW))
    assert lines(many, (1, 1, 1), training=False) == lines(many, (1, 1, 1))
    assert lines(of_names(tmp_path, ()), ()) == []


def test_a_diagnosis_has_these_lines(tmp_path):
    class_folders(tmp_path, {"a": 4, "b": 12}, size=(16, 24))
    diagnosis = diagnose(DataSettings(path=str(tmp_path)))
    sizes, balance, small = diagnosis.parts[0].summary
    assert sizes == "sizes: all 24 x 16 pixels"
    assert balance == 'balance: from "a" 4 pictures (25.0%) to "b" 12 pictures (75.0%)'
    assert small.startswith("small: 16 pictures for 2 classes")
    assert tuple(diagnosis.as_json()["parts"]["train"]["summary"]) == (sizes, balance, small)
    assert np.isclose(sum(diagnosis.parts[0].numbers), 16)
