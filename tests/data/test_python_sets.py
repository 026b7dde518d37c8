"""Python objects as data sets: what is read of them, what is refused with its index, and that they are known again."""

import pickle
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from patchform.data import hub_sets, python_sets
from patchform.data.dataset import open_data, open_evaluation
from patchform.data.images import decode
from patchform.data.pictures import MaskedPictures, ObjectPictures
from patchform.data.videos import open_video
from patchform.errors import DataError, UsageError
from patchform.records import Preprocessing
from patchform.settings import DataSettings
from patchform.tasks.base import find_task

PLAIN = Preprocessing(size=(16, 16), resize="squash")


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def opened(items, task="classification", classes=None, **settings):
    paths = python_sets.paths_of(items, classes)
    return open_data(DataSettings(**paths, **settings), seed=0, preprocessing=PLAIN, task=task)


def whole(items, task="classification", classes=None, **settings):
    path = python_sets.paths_of(items, classes)["path"]
    return open_evaluation(path, DataSettings(**settings), (), task)


@pytest.mark.parametrize(
    "picture",
    [
        lambda array: array,
        lambda array: torch.from_numpy(array).permute(2, 0, 1),
        lambda array: array / np.float32(255),
        lambda array: torch.from_numpy(array).permute(2, 0, 1) / 255,
        Image.fromarray,
        lambda array: Image.fromarray(array).quantize(256, method=Image.Quantize.FASTOCTREE),
        lambda array: array.astype(np.uint16) * 257,
    ],
)
def test_pictures_of_any_kind_are_the_pixels_that_they_are(picture):
    array = pixels(0, 20, 30, 3)
    given = picture(array)
    listing = whole([(given, "cat")])
    wanted = np.array(given.convert("RGB")) if isinstance(given, Image.Image) else array
    assert decode(listing.items[0].path, PLAIN).permute(1, 2, 0).numpy().tolist() == wanted.tolist()


def test_files_and_turned_pictures(tmp_path):
    turned = Image.fromarray(pixels(0, 20, 30, 3))
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "a photo.jpg", exif=turned.getexif())
    with Image.open(tmp_path / "a photo.jpg") as lazy:
        listing = whole([(tmp_path / "a photo.jpg", 0), (str(tmp_path / "a photo.jpg"), 0), (lazy, 0)])
        found = [decode(item.path, PLAIN) for item in listing.items]
    assert all(image.shape == (3, 30, 20) and image.equal(found[0]) for image in found)
    memory = Image.open(tmp_path / "a photo.jpg")
    memory.load()
    (item,) = whole([(memory, 0)]).items
    assert decode(item.path, PLAIN).equal(found[0])


def test_classes_are_names_or_numbers_of_names():
    named = opened([(pixels(i, 8, 8, 3), ("dog", "cat")[i % 2]) for i in range(8)])
    assert named.train.classes == named.validation.classes == ("cat", "dog")
    assert (len(named.train), len(named.validation)) == (6, 2)
    numbered = [(pixels(i, 8, 8, 3), np.int64(i % 2)) for i in range(8)]
    listing = opened(numbered, classes=["dog", "cat"]).train
    assert listing.classes == ("dog", "cat")
    assert whole(numbered).classes == ("0", "1")
    model = open_evaluation(python_sets.hold(numbered, ["dog", "cat"]), DataSettings(), ("ant", "cat", "dog"))
    assert [item.classes for item in model.items[:2]] == [(2,), (1,)]  # by name, whatever the numbers
    with pytest.raises(DataError, match=r"classes of the data set are numbers.*classes=\['ant'"):
        open_evaluation(python_sets.hold(numbered), DataSettings(), ("ant", "cat", "dog"))
    several = [(pixels(i, 8, 8, 3), [0, 1] if i else []) for i in range(3)]
    assert [item.classes for item in whole(several, classes=["a", "b"], labels="multi").items] == [(), (0, 1), (0, 1)]
    with pytest.raises(DataError, match=r"item 0 of the data set has 0 classes.*multi"):
        whole(several, classes=["a", "b"])


def test_an_object_may_say_its_classes_and_both_parts_may_be_given():
    class Own(list):
        classes = ["dog", "cat"]

    first, second = (Own((pixels(i + start, 8, 8, 3), i % 2) for i in range(4)) for start in (0, 10))
    splits = opened((first, second))
    assert splits.train.classes == ("dog", "cat")
    assert (len(splits.train), len(splits.validation)) == (4, 4)
    assert not any("held out" in note for note in splits.notes)


def test_masks_objects_and_clips():
    picture, mask = pixels(0, 12, 18, 3), np.zeros((12, 18), np.int64)
    mask[2:5, 3:9], mask[0] = 1, 255
    listing = whole(
        [(picture, mask), (picture, Image.fromarray(mask.astype(np.uint8)))], "semantic_segmentation", ["a", "b"]
    )
    samples = find_task("semantic_segmentation").evaluation_samples(listing, PLAIN)
    assert isinstance(samples, MaskedPictures)
    for index in range(2):
        assert samples[0, index].target.classes.tolist() == mask.tolist()
    dense = np.stack([mask == 1, mask == 255])
    target = {
        "boxes": torch.tensor([[3.0, 2, 9, 5], [0, 0, 18, 1]]),
        "labels": [1, 0],
        "masks": dense,
        "iscrowd": [0, 1],
    }
    listing = whole([(picture, target), (picture, {"boxes": [], "labels": []})], "instance_segmentation", ["x", "y"])
    samples = find_task("instance_segmentation").evaluation_samples(listing, PLAIN)
    assert isinstance(samples, ObjectPictures)
    objects = samples[0, 0].target
    assert objects.boxes.tolist() == target["boxes"].tolist()
    assert objects.classes.tolist() == [1, 0]
    assert objects.crowd.tolist() == [False, True]
    assert [int(bits) for bits in (objects.masks.bits.sum(),)] == [18 + 18]
    assert len(samples[0, 1].target.boxes) == 0
    frames = pixels(1, 5, 8, 9, 3)
    for clip in (frames, torch.from_numpy(frames).permute(0, 3, 1, 2)):
        video = open_video(whole([(clip, 0)], "video_classification").items[0].path)
        assert (len(video), video.size) == (5, (8, 9))
        assert video.frames([4, 0]).permute(0, 2, 3, 1).numpy().tolist() == frames[[4, 0]].tolist()


@pytest.mark.parametrize(
    ("item", "task", "said"),
    [
        ((3, 0), "classification", "int is no picture"),
        ((pixels(0, 8, 8, 3), 2), "classification", "class 2, and there are 2 names"),
        ((pixels(0, 8, 8, 3), -1), "classification", "class -1, and there are 2 names"),
        ((pixels(0, 8, 8, 3), 0.5), "classification", "is no class"),
        ((pixels(0, 8, 8, 3), "bird"), "classification", '"bird" that is none of the names'),
        ((pixels(0, 8, 8, 3) * 2.0, 0), "classification", "are in 0..1, these in"),
        (pixels(0, 8, 8, 3), "classification", r"is a ndarray; give \(picture, target\)"),
        (("nowhere.jpg", 0), "classification", "cannot be read: No such file"),
        ((pixels(0, 8, 8, 3), {"boxes": [[0, 0, 4, 4]], "labels": [0, 1]}), "detection", "for 2 labels"),
        ((pixels(0, 8, 8, 3), 1), "detection", "is a int without boxes and labels"),
        ((pixels(0, 8, 8, 3), {"boxes": [[4, 0, 0, 4]], "labels": [0]}), "detection", "item 1"),
    ],
)
def test_a_bad_item_is_named_by_its_index_in_one_line(item, task, said):
    good = {"classification": 0, "detection": {"boxes": [[0, 0, 4, 4]], "labels": [1]}}[task]
    with pytest.raises(DataError, match=said) as error:
        whole([(pixels(5, 8, 8, 3), good), item], task, ["a", "b"])
    assert "item 1" in str(error.value) or "bird" in said
    assert "\n" not in str(error.value)
    whole([(pixels(5, 8, 8, 3), good)] * 2, task, ["a", "b"])  # control


def test_bad_masks_are_found_where_pictures_are_looked_at():
    task = find_task("semantic_segmentation")
    for mask, said in ((np.full((8, 8), 2), "number 2"), (np.zeros((4, 8), int), "4 pixels"), (0.5, "give a mask")):
        listing = whole([(pixels(0, 8, 8, 3), mask)], "semantic_segmentation", ["a", "b"])
        with pytest.raises(DataError, match=said):
            task.evaluation_samples(listing, PLAIN)[0, 0]
    with pytest.raises(DataError, match=r"no names of classes.*classes="):
        open_data(
            DataSettings(path=python_sets.hold([(pixels(0, 8, 8, 3), np.zeros((8, 8), int))])),
            seed=0,
            preprocessing=PLAIN,
            task="semantic_segmentation",
        )


@pytest.mark.parametrize("data", [[], 3, {"a": 1}, (x for x in ())])
def test_what_is_no_data_set_is_refused(data):
    with pytest.raises(UsageError, match=r"no item|is no data set"):
        python_sets.paths_of(data)


def test_equal_data_have_one_path_and_others_another():
    items = [(pixels(i, 8, 8, 3), i % 2) for i in range(40)]
    path = python_sets.hold(items)
    assert python_sets.hold(list(items)) == path
    other = [*items[:30], (pixels(99, 8, 8, 3), 0), *items[31:]]
    relabelled = [*items[:30], (items[30][0], 1), *items[31:]]
    paths = {path, python_sets.hold(other), python_sets.hold(relabelled), python_sets.hold(items, ["a", "b"])}
    assert len(paths) == 4
    first, second = (open_evaluation(one, DataSettings(), ()) for one in (path, python_sets.hold(other)))
    assert first.as_bytes() != second.as_bytes()  # what a resume compares
    assert [item.classes for item in first.items] == [item.classes for item in second.items]


def test_items_that_differ_each_time_are_said():
    class Noise(list):
        def __getitem__(self, index):
            return torch.rand(3, 8, 8), index % 2

    assert any("differ each time" in note for note in opened(Noise(range(4))).notes)
    assert not any("differ each time" in note for note in opened([(pixels(i, 8, 8, 3), i % 2) for i in range(4)]).notes)


def test_an_object_that_is_gone_is_no_missing_folder(monkeypatch):
    path = python_sets.hold([(pixels(0, 8, 8, 3), 0)])
    monkeypatch.setattr(python_sets, "_held", {})
    with pytest.raises(DataError, match=r"a Python object, which is not here.*data="):
        open_evaluation(path, DataSettings(), ())


@pytest.mark.parametrize("other", [[(pixels(1, 8, 8, 3), lambda: 0)]])  # which cannot be handed over
def test_a_process_that_is_started_afresh_knows_its_own(monkeypatch, other):
    task = find_task("classification")
    items = [(pixels(0, 8, 8, 3), 0)]
    python_sets.hold([*other])
    samples = task.evaluation_samples(whole(items), PLAIN)
    wanted = samples[0, 0].image
    content = pickle.dumps(samples)
    monkeypatch.setattr(python_sets, "_held", {})
    assert pickle.loads(content)[0, 0].image.equal(wanted)
    assert len(python_sets._held) == 1


# -------------------------------------------------------------------------------------------- the library `datasets`


def rows(count, kinds=("Image", "ClassLabel")):
    """What a `datasets.Dataset` is seen as: columns with types, rows as dicts."""
    types = [type(kind, (SimpleNamespace,), {}) for kind in kinds]
    names = ["dog", "cat"]

    class Rows:
        column_names = ["picture", "animal"]
        features = {name: kind(names=names) for name, kind in zip(column_names, types)}

        def __len__(self):
            return count

        def __getitem__(self, index):
            return {"picture": Image.fromarray(pixels(index, 8, 8, 3)), "animal": index % 2}

    return Rows()


def test_columns_are_pictures_and_classes_where_that_is_clear():
    listing = opened(rows(8)).train
    assert listing.classes == ("dog", "cat")
    with pytest.raises(UsageError, match=r'columns "picture", "animal", of which 2 are pictures and 0 classes'):
        opened(rows(8, ("Image", "Image")))


def test_a_name_on_the_hub_is_asked_for_once_it_is_given(monkeypatch):
    asked = []
    library = ModuleType("datasets")
    library.load_dataset = lambda name: (asked.append(name), {"train": rows(6), "test": rows(4)})[1]
    monkeypatch.setitem(sys.modules, "datasets", library)
    splits = opened("hf:owner/animals")
    assert asked == ["owner/animals"]
    assert (len(splits.train), len(splits.validation)) == (6, 4)
    library.load_dataset = lambda name: {"all": rows(6)}
    with pytest.raises(DataError, match="none to learn from in hf:x"):
        opened("hf:x")
    monkeypatch.setitem(sys.modules, "datasets", None)  # it is not installed
    with pytest.raises(UsageError, match=r'pip install "patchform\[datasets\]"'):
        opened("hf:x")


def test_the_library_itself():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    columns = {"image": [Image.fromarray(pixels(i, 8, 8, 3)) for i in range(6)], "label": [i % 2 for i in range(6)]}
    listing = opened(datasets.Dataset.from_dict(columns, features=features)).train
    assert listing.classes == ("dog", "cat")
    assert hub_sets.are_columns(datasets.Dataset.from_dict(columns, features=features))


def test_what_takes_long_to_read_is_said(monkeypatch):
    now, said = [0.0], []

    class Slow:
        def __len__(self):
            return 50

        def __getitem__(self, index):
            now[0] += 1.0
            return np.full((4, 4), index, np.uint8), index % 2

    monkeypatch.setattr(python_sets.time, "monotonic", lambda: now[0])
    python_sets.paths_of(Slow(), None, said.append)
    assert said == ["reading the data set: 3 of 50 items", "reading the data set: 34 of 50 items"]
    said.clear()
    monkeypatch.setattr(python_sets, "PATIENCE", 100)  # control: what is quick is not said
    python_sets.paths_of(Slow(), None, said.append)
    assert said == []
