"""What holds for every format of annotated objects, found by look-up."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from annotated import random_listing, same
from bad_pictures import tree_state

from patchform.data.checks.base import look
from patchform.data.checks.examination import check
from patchform.data.dataset import formats, has_validation, open_data, open_evaluation
from patchform.data.faults import Faults
from patchform.data.formats.base import WritableFormat
from patchform.errors import DataError, FolderError, UsageError
from patchform.records import Preprocessing
from patchform.settings import DataSettings
from patchform.tasks.base import find_task

TASKS = ("detection", "instance_segmentation")
FORMATS = {
    name: format_
    for name, format_ in formats().items()
    if set(format_.tasks) & set(TASKS) and format_.takes != "objects"  # of Python, which are not on a disk
}
PRECISION = {"yolo": 1e-5}
"""Pixels; the others are exact."""
KEEP = Preprocessing(size=(16, 16), resize="keep")
DATA = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[4] / "shared" / "data"))


def opened(path, task="detection", faults=None, **settings):
    return open_data(DataSettings(path=str(path), **settings), seed=0, preprocessing=KEEP, task=task, faults=faults)


def test_the_formats():
    assert set(FORMATS) == {"coco", "voc", "yolo"}
    assert set(FORMATS) == {name for name, format_ in formats().items() if isinstance(format_, WritableFormat)}
    assert "instance_segmentation" not in FORMATS["voc"].tasks


@pytest.mark.parametrize("outlines", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_write_then_read_is_identity(name, outlines, tmp_path):
    format_ = FORMATS[name]
    if outlines and "outlines" not in format_.keeps:
        return
    for seed in range(12):
        source, target = tmp_path / f"source{seed}", tmp_path / f"target{seed}"
        parts = {}
        for part in ("train", "val"):
            parts[part] = random_listing(source / part, seed, keeps=format_.keeps, segmentations=outlines, prefix=part)
            before = tree_state(source)
            assert format_.write(parts[part], target, part=part, pictures="link") == ()
            assert tree_state(source) == before
        assert format_.recognises(target)
        assert has_validation(target, "detection")
        before = tree_state(target)
        train, validation, _ = opened(target, "instance_segmentation" if outlines else "detection")
        assert tree_state(target) == before
        for listing, back in ((parts["train"], train), (parts["val"], validation)):
            assert back.classes == listing.classes
            assert back.objects
            if "ids" in format_.keeps:
                assert back.ids == listing.ids
            found = {Path(back.name(index)).name: item for index, item in enumerate(back.items)}
            assert len(found) == len(listing)
            for item in listing.items:
                same(item.objects, found[item.path.name].objects, PRECISION.get(name, 0))
                assert item.classes == found[item.path.name].classes


@pytest.mark.parametrize("name", FORMATS)
def test_the_comparison_finds_a_difference(name, tmp_path):
    format_ = FORMATS[name]
    listing = random_listing(tmp_path / "source", 3, keeps=format_.keeps)
    item = listing.items[1]
    moved = item.objects._replace(boxes=item.objects.boxes + np.float32(1e-3))
    format_.write(replace(listing, items=(item._replace(objects=moved),)), tmp_path / "target", pictures="copy")
    back = open_evaluation(tmp_path / "target", DataSettings(), listing.classes, "detection")
    with pytest.raises(AssertionError):
        same(item.objects, back.items[0].objects, PRECISION.get(name, 0))


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_written_into_the_data_or_over_a_file(name, tmp_path):
    listing = random_listing(tmp_path / "source", 0)
    before = tree_state(tmp_path)
    for inside in (tmp_path / "source", tmp_path / "source" / "new", tmp_path / "other" / ".." / "source" / "deep"):
        with pytest.raises(FolderError, match="inside the data set"):
            FORMATS[name].write(listing, inside)
    assert tree_state(tmp_path) == before
    FORMATS[name].write(listing, tmp_path / "target")
    with pytest.raises(FolderError, match="exists already"):
        FORMATS[name].write(listing, tmp_path / "target")


@pytest.mark.parametrize("name", FORMATS)
def test_classes_by_name_missing_pictures_and_digest(name, tmp_path):
    format_ = FORMATS[name]
    listing = random_listing(tmp_path / "source", 5, keeps=format_.keeps)
    format_.write(listing, tmp_path / "target", pictures="copy")
    root = tmp_path / "target"
    order = ("mouse <x>", "elk", "cat", "dog & cat")
    back = open_evaluation(root, DataSettings(), order, "detection")
    assert back.classes == order
    theirs = [order[class_] for item in sorted(back.items) for class_ in item.objects.classes]
    ours = [listing.classes[class_] for item in listing.items for class_ in item.objects.classes]
    assert sorted(theirs) == sorted(ours)
    assert sum(not len(item.objects.boxes) for item in back.items) >= 1
    assert any("have no object; they are kept" in note for note in back.notes)
    with pytest.raises(DataError, match="unknown class"):
        open_evaluation(root, DataSettings(), ("cat", "dog & cat"), "detection")
    some = open_evaluation(root, DataSettings(classes=("cat",)), ("cat",), "detection")
    assert len(some) == len(back)
    assert sum(len(item.objects.boxes) for item in some.items) == ours.count("cat")
    with pytest.raises(UsageError, match=r'no class "cta".*is it "cat"'):
        open_evaluation(root, DataSettings(classes=("cta",)), ("cat",), "detection")

    digest = back.as_bytes()
    assert digest == open_evaluation(root, DataSettings(), order, "detection").as_bytes()
    moved = back.items[1].objects._replace(boxes=back.items[1].objects.boxes + 1)
    assert (
        digest
        != replace(back, items=(back.items[0], back.items[1]._replace(objects=moved), *back.items[2:])).as_bytes()
    )

    assert check(back, KEEP)[1].faults == ()
    if name == "yolo":  # there a picture is listed by being there
        return
    back.items[2].path.unlink()
    back.items[4].path.unlink()
    with pytest.raises(DataError, match=r"2 listed pictures that are not there: .*looked in .*data\.skip_bad"):
        open_evaluation(root, DataSettings(), order, "detection")
    rest = open_evaluation(root, DataSettings(skip_bad=0.5), order, "detection")
    assert len(rest) == len(back) - 2
    assert any("2 pictures that are not there or cannot be read, left out" in note for note in rest.notes)


@pytest.mark.parametrize("name", [name for name in FORMATS if "outlines" in FORMATS[name].keeps])
def test_outlines_are_needed_for_instance_segmentation(name, tmp_path):
    FORMATS[name].write(random_listing(tmp_path / "source", 1), tmp_path / "target", pictures="copy")
    find_task("detection").refuse(opened(tmp_path / "target", "detection").train)
    listing, task = opened(tmp_path / "target", "instance_segmentation").train, find_task("instance_segmentation")
    with pytest.raises(DataError, match=r"objects with a box but no outline: .*object 1 of"):
        task.refuse(listing)
    faults = Faults()
    look(task.checks, task.subject(listing, training=True), faults, "listed")
    assert set(faults.counts) == {"outline-missing"}


@pytest.mark.parametrize(
    ("name", "pictures", "objects"),
    [
        ("detection/bccd", (277, 87), (3749, 1137)),
        ("detection/chess_pieces", (202, 86), (2107, 762)),
        ("instance_segmentation/five_objects", (400, 100), (400, 100)),
        ("instance_segmentation/dsb2018_nuclei", (513, 128), (18364, 4735)),
    ],
)
def test_real_sets_are_read_without_a_fault(name, pictures, objects):
    if not (DATA / name).is_dir():
        pytest.skip("no such data here")
    faults = Faults()
    train, validation, _ = opened(DATA / name, Path(name).parts[0], faults)
    assert list(faults) == []
    assert (len(train), len(validation)) == pictures
    assert tuple(sum(len(item.objects.boxes) for item in part.items) for part in (train, validation)) == objects
    assert check(replace(validation, items=validation.items[:8]), KEEP)[1].faults == ()
