import pytest
from PIL import Image

from patchform.data.dataset import open_data, open_evaluation
from patchform.data.formats.unlabelled import UnlabelledFolder
from patchform.errors import DataError
from patchform.records import Preprocessing
from patchform.settings import DataSettings

unlabelled = UnlabelledFolder()


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".png"):
            Image.new("RGB", (4, 4)).save(folder / name)
        else:
            (folder / name).write_text("x")
    return folder


@pytest.mark.parametrize("names", [("a.png", "b.png"), ("x/a.png", "y/z/b.png"), ("a.png", "deep/er/b.png")])
def test_any_folder_nested_or_flat(tmp_path, names):
    listing = unlabelled.open(write(tmp_path, *names, "notes.txt"), DataSettings(), None)
    assert [listing.name(index) for index in range(2)] == sorted(names)
    assert all(item.classes == () for item in listing.items)
    assert listing.classes == listing.counts() == ()
    assert listing.notes == ("ignored files that are no pictures: {'.txt': 1}",)


def test_folders_are_classes_only_to_judge_on(tmp_path):
    folder = write(tmp_path, "10/a.png", "9/b.png", "9/deep/c.png")
    judged = open_evaluation(folder, DataSettings(), (), "pretraining")
    assert judged.classes == ("9", "10")
    assert [item.classes for item in judged.items] == [(1,), (0,), (0,)]
    assert "judged by its 2 folders as classes" in judged.notes
    write(folder, "loose.png")  # not all lie in folders
    assert open_evaluation(folder, DataSettings(), (), "pretraining").classes == ()
    assert open_evaluation(write(tmp_path / "one", "x/a.png"), DataSettings(), (), "pretraining").classes == ()


def test_train_and_val_beside_each_other(tmp_path):
    write(tmp_path, "train/a.png", "train/x/b.png", "val/x/c.png", "val/y/d.png")
    splits = open_data(DataSettings(path=str(tmp_path)), seed=0, preprocessing=Preprocessing(), task="pretraining")
    assert (len(splits.train), splits.train.classes) == (2, ())
    assert (len(splits.validation), splits.validation.classes) == (2, ("x", "y"))


def test_a_folder_without_a_picture_is_refused(tmp_path):
    write(tmp_path, "a.txt")
    assert not unlabelled.recognises(tmp_path)
    with pytest.raises(DataError, match="no known layout"):
        open_data(DataSettings(path=str(tmp_path)), seed=0, preprocessing=Preprocessing(), task="pretraining")
    with pytest.raises(DataError, match="no picture"):
        unlabelled.open(tmp_path, DataSettings(), None)
