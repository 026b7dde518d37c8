"""Tar shards as data: WebDataset's keys and classes, and the same numbers as from the same pictures as files."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_pictures import encode
from PIL import Image
from tarred import special, tar

from patchform.data.dataset import open_data, open_evaluation, split_listing
from patchform.data.formats.shards import ClassShards
from patchform.data.formats.unlabelled import UnlabelledFolder
from patchform.data.formats.unlabelled_shards import UnlabelledShards
from patchform.data.listing import Item
from patchform.data.loader import TrainingBatches, training_loader
from patchform.device import RunOptions
from patchform.doctor import diagnose, task_of
from patchform.errors import DataError
from patchform.model import build_model
from patchform.prediction import Predictor
from patchform.probing.frozen import features
from patchform.records import Preprocessing
from patchform.settings import AugmentationSettings, DataSettings
from patchform.tasks.classification import Classification

shards = ClassShards()
unlabelled = UnlabelledFolder()
unlabelled_shards = UnlabelledShards()

TINY = Preprocessing(size=(16, 16), crop_share=1.0)
NAMES = ("ant", "bee")


def picture(seed=0, format="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels), format)


def samples(start, count, names=NAMES):
    """Members of `count` samples, of classes in turn."""
    members = {}
    for number in range(start, start + count):
        members[f"b/{number:03}.cls"] = names[number % len(names)].encode() + b"\n"
        members[f"{'ab'[number % 2]}/{number:03}.png"] = picture(number)
        members[f"{'ab'[number % 2]}/{number:03}.cls"] = names[number % len(names)].encode() + b"\n"
    return members


@pytest.fixture
def folder(tmp_path):
    """Two shards of six pictures each."""
    for number in range(2):
        tar(tmp_path / "set" / f"train-{number:03}.tar", samples(6 * number, 6))
    return tmp_path / "set"


def unpacked(shards_, root):
    """The same as files: each shard a folder of its name."""
    for shard in sorted(shards_.rglob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                file = root / shard.relative_to(shards_) / member.name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.extractfile(member).read())
    return root


def opened(path, task="classification", seed=0, **settings):
    return open_data(DataSettings(path=str(path), **settings), seed=seed, preprocessing=TINY, task=task)


def listed(path, classes=None, task=shards):
    return task.open(Path(path), DataSettings(), classes)


def names(listing):
    return [listing.name(index) for index in range(len(listing))]


# ---------------------------------------------------------------------------------------------------- as from files


def test_the_order_is_that_of_the_same_pictures_as_files(folder, tmp_path):
    files = listed(unpacked(folder, tmp_path / "files"), task=unlabelled)
    found = listed(folder)
    assert names(found) == names(files)
    assert names(found)[:2] == ["train-000.tar/a/000.png", "train-000.tar/a/002.png"]
    assert [item.path.parent.parent.name for item in found.items] == ["train-000.tar"] * 6 + ["train-001.tar"] * 6
    assert found.classes == NAMES
    assert [item.classes for item in found.items] == [(0,), (0,), (0,), (1,), (1,), (1,)] * 2
    assert names(listed(folder, task=unlabelled_shards)) == names(files)


def alike(one, other):
    same = [a.classes.equal(b.classes) for a, b in zip(one.targets, other.targets, strict=True)]
    return one.images.equal(other.images) and all(same) and one.names == other.names and one.sizes == other.sizes


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_equal_those_of_files_bit_for_bit_from_any_step_on(folder, tmp_path, workers):
    root = unpacked(folder, tmp_path / "files")
    found = listed(folder)
    files = replace(
        found,
        root=root,
        items=tuple(Item(root / found.name(row), item.classes) for row, item in enumerate(found.items)),
    )

    def run(listing, start=0, workers=0, seed=3):
        order = TrainingBatches(12, 5, seed, start, 7)
        return list(
            training_loader(
                Classification().training_samples(listing, TINY, AugmentationSettings(), seed), order, workers
            )
        )

    whole = run(files)
    assert all(alike(one, other) for one, other in zip(run(found, 0, workers), whole, strict=True))
    assert all(alike(one, other) for one, other in zip(run(found, 4, workers), whole[4:], strict=True))
    assert not alike(run(found, seed=4)[0], whole[0])  # control
    halves = [[names(part) for part in split_listing(listing, 0.25, 5)] for listing in (found, files)]
    assert halves[0] == halves[1]


def test_how_a_shard_was_filled_does_not_matter(folder, tmp_path):
    backwards = tar(tmp_path / "other" / "train-000.tar", list(samples(0, 6).items())[::-1], tarfile.GNU_FORMAT)
    one, other = listed(folder / "train-000.tar"), listed(backwards)
    assert one.as_bytes() == other.as_bytes()
    assert names(one)[0] == "train-000.tar/a/000.png"


# -------------------------------------------------------------------------------------------------- where shards lie


def test_a_flat_folder_and_a_single_shard_are_split(folder):
    for path, number in ((folder, 12), (folder / "train-001.tar", 6)):
        for task, classes in (("classification", NAMES), ("pretraining", ())):
            splits = opened(path, task, validation_share=0.34)
            assert len(splits.train) + len(splits.validation) == number
            assert len(splits.validation) == (4 if number == 12 else 2)
            assert splits.train.classes == classes
            assert any("held out" in note for note in splits.notes)


def test_train_and_val_beside_each_other(tmp_path):
    tar(tmp_path / "train" / "deep" / "0.tar", samples(0, 5))
    tar(tmp_path / "val" / "0.tar", samples(5, 2))
    splits = opened(tmp_path)
    assert (len(splits.train), len(splits.validation)) == (5, 2)
    assert names(splits.validation) == ["0.tar/a/006.png", "0.tar/b/005.png"]
    assert names(splits.train)[0] == "deep/0.tar/a/000.png"
    unsupervised = opened(tmp_path, "pretraining")
    assert (unsupervised.train.classes, unsupervised.validation.classes) == ((), NAMES)
    assert len(opened(tmp_path / "train", validation=str(tmp_path / "val" / "0.tar")).validation) == 2


@pytest.mark.parametrize("held_out", ["val-0.tar", "set_validation_00.tar", "000-TEST.tar"])
def test_shards_to_validate_on_among_those_to_learn_from_are_refused(folder, held_out):
    tar(folder / "vala-0.tar", samples(20, 2))
    assert len(listed(folder)) == 14  # control: not a word of its own
    tar(folder / held_out, samples(30, 2))
    for task in (shards, unlabelled_shards):
        with pytest.raises(DataError, match=r"to validate on in one folder.*train/ and val/"):
            listed(folder, task=task)


def test_pictures_as_files_come_first_and_shards_in_folders_are_no_classes(folder, tmp_path):
    tar(tmp_path / "deep" / "x" / "0.tar", samples(0, 3))
    tar(tmp_path / "deep" / "y" / "0.tar", samples(3, 3))
    assert opened(tmp_path / "deep").train.classes == NAMES
    (tmp_path / "deep" / "x" / "a.png").write_bytes(picture())
    (tmp_path / "deep" / "y" / "a.png").write_bytes(picture())
    assert open_evaluation(tmp_path / "deep", DataSettings(), ("x", "y")).counts() == (1, 1)
    assert len(open_evaluation(tmp_path / "deep", DataSettings(), (), "pretraining")) == 2


def test_compressed_shards_are_refused_not_overlooked(folder, tmp_path):
    (folder / "train-002.tar.gz").write_bytes(b"\x1f\x8b" + bytes(1000))
    with pytest.raises(DataError, match=r"no random access in .*train-002\.tar\.gz"):
        opened(folder)
    (tmp_path / "only").mkdir()
    (folder / "train-002.tar.gz").rename(tmp_path / "only" / "0.tgz")
    with pytest.raises(DataError, match=r"unpack the compression"):
        opened(tmp_path / "only", "pretraining")


# ------------------------------------------------------------------------------------------------- keys and classes


def test_classes_are_texts_and_numbers_are_in_their_order(tmp_path):
    texts = {"0": b"10", "1": b" 9\r\n", "2": b"\xef\xbb\xbf100", "3": b"9"}
    members = {f"{key}.cls": text for key, text in texts.items()} | {f"{key}.jpg": b"x" for key in texts}
    found = listed(tar(tmp_path / "0.tar", members))
    assert found.classes == ("9", "10", "100")
    assert [item.classes for item in found.items] == [(1,), (0,), (2,), (0,)]
    assert any("9 -> 0" in note for note in found.notes)
    assert listed(tmp_path / "0.tar", ("100", "9", "10", "11")).items[0].classes == (2,)
    with pytest.raises(DataError, match='1 unknown class: "100"'):
        listed(tmp_path / "0.tar", ("9", "10"))


def test_keys_end_at_the_first_dot_of_the_file_name(tmp_path):
    members = {
        **{"v1.0/1.left.png": b"x", "v1.0/1.right.PNG": b"x", "v1.0/1.cls": b"bee", "v1.0/1.json": b"{}"},
        **{"v1.0/2.png": b"x", "v1.0/2.CLS": b"ant", "v1.0/2.left.cls": b"no", "2.png": b"x", "2.cls": b"cow"},
        **{"v1.0/._2.png": b"x", "__MACOSX/3.png": b"x", "4.cls": b"alone", "README": b"x"},
    }
    found = listed(tar(tmp_path / "0.tar", members))
    assert names(found) == ["0.tar/2.png", "0.tar/v1.0/1.left.png", "0.tar/v1.0/1.right.PNG", "0.tar/v1.0/2.png"]
    assert [found.classes[item.classes[0]] for item in found.items] == ["cow", "bee", "bee", "ant"]
    assert '1 samples of several pictures, each counts: "0.tar/v1.0/1"' in found.notes
    assert "ignored members that are no pictures: {'.cls': 2, 'no suffix': 1, '.json': 1}" in found.notes


def test_one_key_in_two_shards_is_two_samples(tmp_path):
    for number, name in enumerate(NAMES):
        tar(tmp_path / f"{number}.tar", {"0.png": b"x", "0.cls": name.encode()})
    found = listed(tmp_path)
    assert names(found) == ["0.tar/0.png", "1.tar/0.png"]
    assert [item.classes for item in found.items] == [(0,), (1,)]


def test_pictures_without_a_class_are_named_and_nothing_is_guessed(tmp_path):
    members = {f"{number}.png": b"x" for number in range(7)} | {"0.cls": b"ant", "1.json": b'{"cls": 3}'}
    with pytest.raises(DataError, match=r'6 of 7 pictures have no class: "0\.tar/1\.png", .* and 1 more .*a/1\.cls'):
        listed(tar(tmp_path / "0.tar", members))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "no class"),
        (b" \n", "no class"),
        (b"a\nb", "not one class"),
        (b"a\0", "not one class"),
        (b"\xff", "not UTF-8"),
        (b"x" * 1001, "1001 bytes"),
        ((3).to_bytes(8, "little"), "not one class"),
    ],
)
def test_what_is_no_class_is_refused(tmp_path, text, what):
    with pytest.raises(DataError, match=rf"{what}.* in .*0\.tar/a/1\.cls"):
        listed(tar(tmp_path / "0.tar", {"a/1.png": b"x", "a/1.cls": text}))


def test_classes_that_differ_by_case_only_are_refused(tmp_path):
    with pytest.raises(DataError, match="differ only by case"):
        listed(tar(tmp_path / "0.tar", {"1.png": b"x", "1.cls": b"Ant", "2.png": b"x", "2.cls": b"ant"}))


def test_shards_without_a_picture_are_refused_and_links_are_told(tmp_path):
    link = special("b.png", tarfile.SYMTYPE, "a.png")
    shard = tar(tmp_path / "0.tar", {"a.txt": b"x", "": link})
    for task in (shards, unlabelled_shards):
        with pytest.raises(DataError, match="no picture in the shards"):
            listed(shard, task=task)
    found = listed(tar(tmp_path / "0.tar", {"a.png": b"x", "": link}), task=unlabelled_shards)
    assert (names(found), found.notes) == (["0.tar/a.png"], ('ignored 1 links in shards: "b.png"',))


def test_without_labels_classes_count_only_to_judge_on_and_only_if_all_have_one(tmp_path):
    members = {"1.png": b"x", "1.cls": b"ant", "2.png": b"x", "2.cls": b"\xff"}
    found = listed(tar(tmp_path / "0.tar", members), task=unlabelled_shards)  # not even looked into
    assert found.classes == found.counts() == ()
    assert found.notes == ("ignored members that are no pictures: {'.cls': 2}",)
    tar(tmp_path / "0.tar", members | {"2.cls": b"bee"})
    judged = listed(tmp_path / "0.tar", (), unlabelled_shards)
    assert (judged.classes, judged.counts()) == (NAMES, (1, 1))
    assert "judged by their 2 classes" in judged.notes
    tar(tmp_path / "0.tar", members | {"2.cls": b"ant"})  # one class says nothing
    assert listed(tmp_path / "0.tar", (), unlabelled_shards).classes == ()
    tar(tmp_path / "0.tar", members | {"3.png": b"x"})
    some = listed(tmp_path / "0.tar", (), unlabelled_shards)
    assert some.classes == ()
    assert any("1 of 3 pictures have no class" in note for note in some.notes)


# -------------------------------------------------------------------------------------------------------- afterwards


def test_a_diagnosis_of_shards(folder):
    before = {file: file.read_bytes() for file in folder.iterdir()}
    assert task_of(folder) == "classification"
    found = diagnose(DataSettings(path=str(folder)))
    assert (found.fatal, found.parts[0].numbers) == (0, (6, 6))
    tar(folder / "train-002.tar", samples(0, 1) | {"b/099.png": picture(99)[:-30], "b/099.cls": b"ant"})
    found = diagnose(DataSettings(path=str(folder)))
    assert [(kind, number, first[0][1].where) for kind, number, first in found.by_kind()] == [
        ("picture-bad", 1, "train-002.tar/b/099.png"),
        ("picture-repeated", 1, "train-002.tar/a/000.png"),
    ]
    (folder / "train-003.tar").write_bytes(before[folder / "train-000.tar"][:1500])
    (fault,) = diagnose(DataSettings(path=str(folder))).by_kind()
    assert "ends at byte 1500" in json.dumps(fault)
    assert all(file.read_bytes() == data for file, data in before.items())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("classification", backbone="vit/nano", head="linear", classes=NAMES, preprocessing=TINY)


def test_predictions_of_members_are_those_of_files(folder, tmp_path, model):
    root = unpacked(folder, tmp_path / "files")
    predictor = Predictor(model, device="cpu")
    inside = "train-000.tar/a/002.png"
    (one,), (other,) = predictor.predict(str(folder / inside)), predictor.predict(root / inside)
    assert one.error is None
    assert one.target.scores.equal(other.target.scores)
    every = list(predictor.predict(str(folder / "train-001.tar")))
    assert [Path(found.name).name for found in every] == [f"{number:03}.png" for number in (6, 8, 10, 7, 9, 11)]
    missing, *_ = predictor.predict([folder / "train-000.tar" / "none.png", root / inside])
    assert "no such member" in missing.error


def test_features_are_kept_until_the_shard_changes(folder, tmp_path, model):
    said = []

    def run():
        listing = listed(folder / "train-000.tar")
        cpu = RunOptions(device="cpu")
        return features(model, listing, options=cpu, cache=tmp_path / "cache", progress=lambda *done: said.append(done))

    first = run()
    assert said
    said.clear()
    assert run().summaries.equal(first.summaries)
    assert not said
    tar(folder / "train-000.tar", samples(0, 6) | {"a/000.png": picture(50)})
    assert not run().summaries.equal(first.summaries)
    assert said
