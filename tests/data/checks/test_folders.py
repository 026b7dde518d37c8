import shutil

import pytest
from bad_pictures import class_folders, mask_folders
from looking import found, kinds, of_files, of_names

from patchform.data.checks import folders
from patchform.data.dataset import open_training
from patchform.errors import DataError
from patchform.settings import DataSettings
from patchform.tasks.base import find_task


@pytest.mark.parametrize(
    "classes",
    [
        ("Training", "Testing"),
        ("train", "dev"),
        ("TRAIN_SET", "holdout"),
        ("train2017", "val2017", "test2017"),
        ("images", "labels"),
        ("images",),
        ("JPEGImages", "Annotations", "ImageSets"),
        ("train_images", "train_masks"),
        ("fold_0", "fold_1", "fold_2"),
    ],
)
def test_parts_and_kinds_of_files_are_no_classes(classes, tmp_path):
    (fault,) = found(folders.ALL, of_names(tmp_path, classes))
    assert (fault.kind, fault.fatal) == ("class-part", True)


@pytest.mark.parametrize(
    "classes",
    [
        ("train", "bus", "car"),  # a vehicle
        ("new", "old"),
        ("with_mask", "without_mask"),
        ("data", "noise"),
        ("0", "1"),
        ("positive", "negative"),
        ("testa", "testb"),
        ("label_a", "label_b"),
        (),
    ],
)
def test_classes_are_classes(classes, tmp_path):
    assert found(folders.ALL, of_names(tmp_path, classes)) == []


@pytest.mark.parametrize(
    ("paths", "kinds"),
    [
        (["ds/cat/1.jpg", "ds/dog/1.jpg"], ["class-nested"]),
        (["ds/cat/1.jpg", "ds/dog/1.jpg", "ds/1.jpg"], []),
        (["cat/1.jpg", "cat/2.jpg"], []),
        (["cat/a/1.jpg"], []),
        (["x/cat/1.jpg", "x/dog/1.jpg", "y/dog/1.jpg", "y/cat/2.jpg"], ["class-repeats"]),
        (["x/cat/1.jpg", "x/dog/1.jpg", "y/dog/1.jpg", "y/hen/2.jpg"], []),
        (["x/cat/1.jpg", "x/dog/1.jpg", "y/dog/1.jpg", "y/cat/2.jpg", "x/1.jpg"], []),
        (["x/1.jpg", "y/1.jpg"], []),
    ],
)
def test_folders_below_classes_tell_what_these_are(paths, kinds, tmp_path):
    names = sorted({path.split("/")[0] for path in paths})
    assert [fault.kind for fault in found(folders.ALL, of_files(tmp_path, names, paths))] == kinds


def test_a_training_refuses_parts_as_classes_and_says_what_is_below(tmp_path):
    for part in ("Training", "Testing"):
        class_folders(tmp_path / part, {"cat": 2, "dog": 2})
    assert kinds(tmp_path)["class-part"] == 1
    listing, _ = open_training(DataSettings(path=str(tmp_path)))
    with pytest.raises(DataError, match=r'named like parts.*"Testing", "Training" \(below them are "cat", "dog"\)'):
        find_task("classification").refuse(listing, training=True)
    find_task("classification").refuse(listing)  # what a model is judged on is taken by the model's classes
    (tmp_path / "Training").rename(tmp_path / "train")
    (tmp_path / "Testing").rename(tmp_path / "val")
    assert kinds(tmp_path) == {}


def test_a_folder_once_more_is_refused(tmp_path):
    class_folders(tmp_path / "ds" / "ds", {"cat": 3, "dog": 3})
    assert set(kinds(tmp_path / "ds")) == {"class-nested", "class-single"}
    assert kinds(tmp_path / "ds" / "ds") == {}


def test_masks_taken_for_classes_name_the_task(tmp_path):
    mask_folders(tmp_path, ["a", "b", "c"])
    (tmp_path / "classes.txt").write_text("sky\nroad\ntree\n")
    with pytest.raises(DataError, match=r"data for semantic_segmentation .* not class folders"):
        open_training(DataSettings(path=str(tmp_path)), task="classification")
    shutil.rmtree(tmp_path / "masks")
    with pytest.raises(DataError, match="for pretraining"):
        find_task("classification").refuse(open_training(DataSettings(path=str(tmp_path))).listing, training=True)
