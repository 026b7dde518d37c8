from dataclasses import replace

import numpy as np
import pytest
import torch
from bad_pictures import class_folders, mask_folders, tree_state
from PIL import Image

from patchform.data import samples
from patchform.data.collate import PackedTargets
from patchform.data.dataset import (
    open_data,
    open_evaluation,
    open_training,
)
from patchform.data.listing import Item, Listing, Objects
from patchform.data.loader import TrainingBatches, aspects, evaluation_loader, training_loader
from patchform.data.pictures import LabelledPictures, MaskedPictures
from patchform.data.segmentation_transforms import training_scene
from patchform.data.transforms import training_transform, whole_size
from patchform.errors import DataError, UsageError
from patchform.geometry import masks
from patchform.records import Instances, Label, Preprocessing, Regions
from patchform.settings import AugmentationSettings, DataSettings
from patchform.tasks.classification import Classification
from patchform.tasks.detection import Detection
from patchform.tasks.semantic_segmentation import SemanticSegmentation

TINY = Preprocessing(size=(16, 16), crop_share=1.0)


def opened(path, seed=0, **settings):
    return open_data(DataSettings(path=str(path), **settings), seed=seed, preprocessing=TINY)


def names(listing):
    return [listing.name(index) for index in range(len(listing))]


def test_one_folder_is_split_reproducibly_and_by_class(tmp_path):
    counts = {"a": 50, "b": 10, "c": 2, "d": 1}
    class_folders(tmp_path / "one", counts)
    class_folders(tmp_path / "two", counts)
    train, validation, notes = opened(tmp_path / "one")
    assert train.counts() == (40, 8, 1, 1)
    assert validation.counts() == (10, 2, 1, 0)
    assert sorted(names(train) + names(validation)) == sorted(
        names(opened(tmp_path / "one", seed=1).train) + names(opened(tmp_path / "one", seed=1).validation)
    )
    assert names(opened(tmp_path / "two").validation) == names(validation)  # the place does not matter
    assert names(opened(tmp_path / "one", seed=1).validation) != names(validation)
    assert any("13 of 63" in note for note in notes)
    assert any('one picture, which is trained on: "d"' in note for note in notes)


@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "Val", "test"])
def test_train_and_val_folders(tmp_path, held_out):
    class_folders(tmp_path / "train", {"a": 3, "b": 2})
    class_folders(tmp_path / held_out, {"b": 1}, seed=1)
    splits = opened(tmp_path)
    assert len(splits.train) == 5
    assert splits.validation.classes == ("a", "b")
    assert splits.validation.items[0].classes == (1,)
    assert any('not in the validation set: "a"' in note for note in splits.notes)
    assert any("test/" in note for note in splits.notes) == (held_out == "test")
    assert len(open_evaluation(tmp_path, DataSettings(), ("b", "a"))) == 1


def test_a_class_in_validation_alone_stops(tmp_path):
    class_folders(tmp_path / "train", {"a": 1})
    class_folders(tmp_path / "val", {"a": 1, "b": 1})
    with pytest.raises(DataError, match='unknown class: "b"'):
        opened(tmp_path)


def test_train_alone_is_split_and_explicit_validation_is_used(tmp_path):
    class_folders(tmp_path / "data" / "train", {"a": 4, "b": 4})
    class_folders(tmp_path / "other", {"b": 3})
    assert opened(tmp_path / "data").train.classes == ("a", "b")
    assert len(opened(tmp_path / "data", validation=str(tmp_path / "other")).validation) == 3
    class_folders(tmp_path / "vehicles", {"train": 2, "bus": 2})  # a class may be called so
    assert opened(tmp_path / "vehicles").train.classes == ("bus", "train")


def test_lists_are_found_in_a_folder(tmp_path):
    class_folders(tmp_path, {"pictures": 3})
    (tmp_path / "train.csv").write_text("image,label\npictures/000.png,x\npictures/001.png,y\n")
    (tmp_path / "val.csv").write_text("image,label\npictures/002.png,y\n")
    splits = opened(tmp_path)
    assert (len(splits.train), len(splits.validation)) == (2, 1)
    (tmp_path / "val.csv").rename(tmp_path / "other.csv")
    with pytest.raises(DataError, match="too few"):  # one of each class: the list was read, not the folders
        opened(tmp_path)
    splits = opened(tmp_path, validation=str(tmp_path / "other.csv"))
    assert splits.validation.items[0].classes == (1,)


def test_places_without_data_stop_and_name_the_layouts(tmp_path):
    (tmp_path / "file.bin").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "none", tmp_path / "file.bin", tmp_path / "empty"):
        with pytest.raises(DataError, match=r"class folders.*CSV") as caught:
            opened(path)
        assert str(path) in str(caught.value)
    with pytest.raises(UsageError, match="no data"):
        open_data(DataSettings(), seed=0, preprocessing=TINY)
    class_folders(tmp_path / "single", {"a": 1})
    with pytest.raises(DataError, match="too few"):
        opened(tmp_path / "single")
    with pytest.raises(UsageError, match="share"):
        opened(tmp_path / "single", validation_share=1.0)


def test_labels_of_several_classes_split(tmp_path):
    class_folders(tmp_path, {"p": 10})
    rows = "".join(f"p/{index:03d}.png,{'x|y' if index % 2 else 'x'}\n" for index in range(10))
    (tmp_path / "list.csv").write_text("image,labels\n" + rows)
    splits = opened(tmp_path / "list.csv", labels="multi")
    assert splits.validation.counts() == (2, 1)


@pytest.fixture
def pictures(tmp_path):
    class_folders(tmp_path, {"a": 6, "b": 6}, size=(20, 24))
    settings = AugmentationSettings(policy="trivial_augment", erasing=0.5)
    listing = open_evaluation(tmp_path, DataSettings(), ("a", "b"))
    return lambda seed=0: LabelledPictures(listing, training_transform(TINY, settings), TINY, seed)


def test_samples_say_what_they_are(pictures):
    sample = pictures()[0, 7]
    assert sample.image.shape == (3, 16, 16)
    assert sample.name == "b/001.png"
    assert sample.size == (20, 24)
    assert sample.target.classes.tolist() == [1]


def test_samples_depend_on_seed_epoch_and_index_alone(pictures):
    first, second = pictures(), pictures()
    keys = [(epoch, index) for epoch in range(2) for index in range(12)]
    expected = {key: first[key].image for key in keys}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert all(second[key].image.equal(expected[key]) for key in reversed(keys))
    assert torch.get_rng_state().equal(before)
    assert not all(second[0, index].image.equal(second[1, index].image) for index in range(12))
    assert not all(pictures(1)[key].image.equal(expected[key]) for key in keys)


def test_the_cache_changes_nothing_and_knows_its_limit(pictures, monkeypatch):
    cached = pictures()
    twice = [cached[0, index].image for index in (0, 1, 0)]
    assert len(cached._cache) == 2
    assert twice[0].equal(twice[2])
    monkeypatch.setattr(samples, "CACHE_BYTES", 12 * 20 * 24 * 3 - 1)
    plain = pictures()
    assert plain[0, 0].image.equal(twice[0])
    assert plain._cache is None


@pytest.fixture
def scenes(tmp_path):
    mask_folders(tmp_path, map(str, range(6)), size=(20, 24))
    preprocessing = Preprocessing(size=(16, 16), resize="native")
    listing = open_evaluation(tmp_path, DataSettings(), ("a", "b", "c"), "semantic_segmentation")
    transform = training_scene(preprocessing, AugmentationSettings(color_jitter=0.5))
    return lambda seed=0: MaskedPictures(listing, transform, preprocessing, seed)


def same(one, two):
    return one.image.equal(two.image) and one.target.classes.equal(two.target.classes)


def test_scenes_depend_on_seed_epoch_and_index_alone(scenes):
    first, second = scenes(), scenes()
    keys = [(epoch, index) for epoch in range(2) for index in range(6)]
    expected = {key: first[key] for key in keys}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert all(same(second[key], expected[key]) for key in reversed(keys))
    assert torch.get_rng_state().equal(before)
    assert not any(same(second[0, index], second[1, index]) for index in range(6))
    assert not any(same(scenes(1)[key], expected[key]) for key in keys)
    assert expected[0, 0].target.classes.dtype == torch.uint8
    assert expected[0, 0].size == (20, 24)


@pytest.mark.parametrize("workers", [0, 2])
def test_scenes_come_out_of_workers_unchanged(scenes, workers):
    (batch,) = training_loader(scenes(), TrainingBatches(6, 6, 0, 0, 1), workers)
    for number, target in enumerate(batch.targets):
        index = int(batch.names[number].removesuffix(".png"))
        sample = scenes()[0, index]
        assert target.classes.equal(sample.target.classes)
        assert batch.images[number].equal(sample.image)


def test_masks_count_in_the_cache(scenes, monkeypatch):
    monkeypatch.setattr(samples, "CACHE_BYTES", 6 * 20 * 24 * 4)
    cached = scenes()
    assert same(cached[0, 0], cached[0, 0])
    assert cached._cache is not None
    monkeypatch.setattr(samples, "CACHE_BYTES", 6 * 20 * 24 * 4 - 1)
    plain = scenes()
    assert same(plain[0, 0], cached[0, 0])
    assert plain._cache is None


SHAPES = ((24, 30), (30, 24), (20, 20), (24, 30), (16, 40), (40, 16))


@pytest.fixture
def annotated(tmp_path):
    """Six pictures of several sizes with 0 to 2 triangles, and their listing."""
    items = []
    for number, (height, width) in enumerate(SHAPES):
        picture = np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
        boxes = np.array([[1, 2, 14, 15], [3.5, 4, 15.5, 12]], np.float32)[: number % 3]
        outlines = tuple((np.array([[x, y], [u, y], [u, v]], np.float32),) for x, y, u, v in boxes)
        classes = np.arange(len(boxes))
        objects = Objects(
            boxes, classes, (height, width), areas=np.ones(len(boxes), np.float32), segmentations=outlines
        )
        items.append(Item(tmp_path / f"{number}.png", tuple(classes.tolist()), objects=objects))
    return Listing(classes=("a", "b"), items=tuple(items), root=tmp_path)


FIT = Preprocessing(size=(24, 36), resize="fit", interpolation="bilinear")
LIVELY = AugmentationSettings(color_jitter=0.5, mosaic=0.5, copy_paste=0.5)


def alike(one, two):
    """Whether two records are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return one.equal(two)
    return (
        one == two if not isinstance(one, tuple | PackedTargets) else len(one) == len(two) and all(map(alike, one, two))
    )


def test_pictures_with_objects_depend_on_seed_epoch_and_index_alone(annotated):
    first, second = (Detection().training_samples(annotated, FIT, LIVELY, 3) for _ in range(2))
    keys = [(epoch, index) for epoch in range(3) for index in range(6)]
    expected = {key: first[key] for key in keys}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert all(alike(second[key], expected[key]) for key in reversed(keys))
    assert torch.get_rng_state().equal(before)
    assert not any(alike(second[0, index], second[1, index]) for index in range(6))
    other = Detection().training_samples(annotated, FIT, LIVELY, 4)
    assert not any(alike(other[key], expected[key]) for key in keys)
    assert sum(len(sample.target.boxes) for sample in expected.values()) > 18
    for sample in expected.values():
        assert isinstance(sample.target, Instances)
        assert sample.target.masks.size == sample.image.shape[-2:]
        assert len(sample.target.boxes) == len(sample.target.masks.boxes) == len(sample.target.areas)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_objects_are_the_same_from_any_step_on_and_with_workers(annotated, workers):
    def run(start, workers):
        order = TrainingBatches(6, 2, 9, start, 6, groups=aspects(annotated))
        return list(training_loader(Detection().training_samples(annotated, FIT, LIVELY, 9), order, workers))

    whole = run(0, 0)
    assert all(alike(again, batch) for again, batch in zip(run(1, workers), whole[1:], strict=True))
    for batch in whole:
        for number, target in enumerate(batch.targets):
            real = batch.images.shape[-2:] if batch.padding is None else (~batch.padding[number]).nonzero().amax(0) + 1
            assert target.masks.size == tuple(map(int, real))


def test_evaluation_keeps_objects_in_the_pixels_of_their_picture(annotated):
    found = Detection().evaluation_samples(annotated, FIT)
    for index, (height, width) in enumerate(SHAPES):
        sample, objects = found[0, index], annotated.items[index].objects
        assert sample.size == sample.target.masks.size == (height, width)
        assert sample.target.boxes.equal(torch.from_numpy(objects.boxes))
        assert sample.image.shape[-2:] == whole_size(FIT, height, width)
        triangles = (objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(1) / 2
        assert masks.areas(sample.target.masks).tolist() == pytest.approx(triangles.tolist(), rel=0.2)
    assert [batch.images.shape[-2:] for batch in evaluation_loader(found, 1)][4] == (14, 36)


def test_masks_of_objects_are_decoded_where_there_are_outlines_and_count_in_the_cache(annotated, monkeypatch):
    plain = replace(
        annotated,
        items=tuple(item._replace(objects=item.objects._replace(segmentations=None)) for item in annotated.items),
    )
    assert Detection().evaluation_samples(plain, FIT)[0, 2].target.masks is None
    with pytest.raises(UsageError, match="copy_paste"):
        Detection().training_samples(plain, FIT, LIVELY, 0)
    mixed = replace(annotated, items=plain.items[:3] + annotated.items[3:])
    assert masks.areas(Detection().evaluation_samples(mixed, FIT)[0, 2].target.masks).tolist() == [
        169,
        96,
    ]  # their boxes
    sample = Detection().evaluation_samples(annotated, FIT)[0, 2].target
    size = 20 * 20 * 3 + 2 * (16 + 8 + 4 + 32) + len(sample.masks.bits)
    monkeypatch.setattr(samples, "CACHE_BYTES", 6 * size)
    cached = Detection().evaluation_samples(annotated, FIT)
    assert alike(cached[0, 2], cached[0, 2])
    assert cached._cache is not None
    monkeypatch.setattr(samples, "CACHE_BYTES", 6 * size - 1)
    uncached = Detection().evaluation_samples(annotated, FIT)
    assert alike(uncached[0, 2], cached[0, 2])
    assert uncached._cache is None


def test_objects_of_a_picture_of_another_size_are_a_fault(annotated):
    first = annotated.items[0]
    for size, remedy in (((30, 24), "orientation tag"), ((25, 30), "mend")):
        item = first._replace(objects=first.objects._replace(size=size))
        with pytest.raises(DataError, match=remedy) as caught:
            Detection().evaluation_samples(replace(annotated, items=(item,)), FIT)[0, 0]
        assert str(first.path) in str(caught.value)


@pytest.mark.parametrize(
    ("made", "kind", "task"), [("scenes", Regions, SemanticSegmentation()), ("pictures", Label, Classification())]
)
def test_the_task_decides_on_the_kind_of_truth(made, kind, task, request):
    listing = request.getfixturevalue(made)().listing
    preprocessing = Preprocessing(size=(8, 8), resize="squash")
    for some in (
        task.training_samples(listing, preprocessing, AugmentationSettings(), 3),
        task.evaluation_samples(listing, preprocessing),
    ):
        assert isinstance(some[0, 0].target, kind)
        assert some[0, 0].image.shape == (3, 8, 8)


def test_nothing_is_written_into_the_data(tmp_path, pictures):
    before = tree_state(tmp_path)
    opened(tmp_path)
    [pictures()[0, index] for index in range(12)]
    assert tree_state(tmp_path) == before


def test_folders_and_lists_beside_the_parts_are_said(tmp_path):
    for part in ("train", "val", "test", "more"):
        class_folders(tmp_path / part, {"a": 2, "b": 2})
    for name in ("labels.csv", "README.md", ".hidden.csv"):
        (tmp_path / name).write_text("x")
    notes = open_training(DataSettings(path=str(tmp_path))).listing.notes
    assert 'not used, beside train and val: "labels.csv", "more/", "test/"' in notes
    given = DataSettings(path=str(tmp_path / "train"), validation=str(tmp_path / "val"))
    assert not any("not used" in note for note in open_training(given).listing.notes)
