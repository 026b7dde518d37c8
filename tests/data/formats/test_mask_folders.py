import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bad_pictures import encode, mask_folders, tree_state
from PIL import Image
from torchvision.datasets import Cityscapes

from patchform.data.checks.examination import check
from patchform.data.dataset import open_data, open_evaluation
from patchform.data.formats.mask_folder import _LABEL_IDS, _TRAIN_IDS, CITYSCAPES, MaskFolders
from patchform.data.mask_files import decode_mask
from patchform.data.pictures import MaskedPictures
from patchform.data.segmentation_transforms import evaluation_scene
from patchform.errors import DataError, UsageError
from patchform.records import Preprocessing
from patchform.settings import DataSettings

masks = MaskFolders()

TASK = "semantic_segmentation"
PLAIN = DataSettings()
KEEP = Preprocessing(size=(16, 16), resize="keep")
REAL = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[4] / "shared" / "data")) / TASK


def named(root, names="sky road tree"):
    (root / "classes.txt").write_text("\n".join(names.split()) + "\n")
    return root


def opened(path, **settings):
    return open_data(DataSettings(path=str(path), **settings), seed=0, preprocessing=KEEP, task=TASK)


def pairs(listing):
    return [(listing.name(index), item.mask.name) for index, item in enumerate(listing.items)]


def test_pictures_and_masks_pair_by_name(tmp_path):
    named(mask_folders(tmp_path, ["b", "a", "deep/c.x"]))
    (tmp_path / "masks" / "notes.md").write_text("")
    before = tree_state(tmp_path)
    listing = masks.open(tmp_path, PLAIN, None)
    assert pairs(listing) == [("a.png", "a.png"), ("b.png", "b.png"), ("deep/c.x.png", "c.x.png")]
    assert listing.classes == ("sky", "road", "tree")
    assert listing.mask_codes.ids == ((0, 0), (1, 1), (2, 2), (255, 255))
    assert 'in masks 0 is class "sky"; 255 is ignored' in listing.notes
    assert tree_state(tmp_path) == before


@pytest.mark.parametrize(
    ("pictures", "others"),
    [
        ("images/{}", "masks/{}"),
        ("images/{}", "annotations/{}"),
        ("{}/images", "{}/masks"),
        ("{}/images", "{}/labels"),
    ],
)
@pytest.mark.parametrize("parts", [("train", "val"), ("training", "validation")])
def test_parts_may_lie_above_or_below(tmp_path, pictures, others, parts):
    for part, names in zip(parts, (["a", "b", "c"], ["d"])):
        mask_folders(tmp_path, names, pictures=pictures.format(part), masks=others.format(part))
    splits = opened(named(tmp_path))
    assert [len(splits.train), len(splits.validation)] == [3, 1]
    assert splits.validation.items[0].mask.parts[-3:-1] == Path(others.format(parts[1])).parts
    assert len(open_evaluation(tmp_path, PLAIN, ("sky", "road", "tree"), TASK)) == 1
    below = tmp_path / Path(pictures.format(parts[0]).removesuffix("/images"))
    assert len(open_evaluation(below, PLAIN, ("sky", "road", "tree"), TASK)) == 3  # a part by its own path
    assert sum("0 is class" in note for note in splits.notes) == 1
    assert not any("not in the validation set" in note for note in splits.notes)


def test_one_folder_is_split(tmp_path):
    splits = opened(named(mask_folders(tmp_path, map(str, range(10)))))
    assert [len(splits.train), len(splits.validation)] == [8, 2]
    assert splits.train.mask_codes is not None
    assert splits.train.mask_codes == splits.validation.mask_codes


CITY = ("aachen/aachen_000000_000019", "ulm/ulm_000001_000019")


def cityscapes(root, ending, value):
    for name in CITY:
        for folder, tail, array in (
            ("leftImg8bit/train", "_leftImg8bit.png", np.zeros((4, 6, 3), np.uint8)),
            ("gtFine/train", ending, np.full((4, 6), value, np.uint8)),
            ("gtFine/train", "_gtFine_color.png", np.zeros((4, 6, 3), np.uint8)),
        ):
            place = root / folder / (name + tail)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(encode(Image.fromarray(array), "PNG"))
    return root


def test_cityscapes_by_train_ids_or_by_its_own(tmp_path):
    one = open_evaluation(cityscapes(tmp_path / "1", _TRAIN_IDS, 13), PLAIN, tuple(CITYSCAPES), TASK)
    two = masks.open(cityscapes(tmp_path / "2", _LABEL_IDS, 26), PLAIN, None)
    for listing in (one, two):
        assert len(listing) == 2
        assert listing.classes[13] == "car"
        assert decode_mask(listing.items[1].mask, listing.mask_codes).unique().tolist() == [13]
    assert one.name(0) == "train/" + CITY[0] + "_leftImg8bit.png"
    for number, class_ in ((0, 255), (7, 0), (10, 255), (33, 18), (255, 255)):
        assert dict(two.mask_codes.ids)[number] == class_
    assert len(dict(two.mask_codes.ids)) == 35
    cityscapes(tmp_path / "2", _TRAIN_IDS, 13)  # better when both exist
    assert dict(masks.open(tmp_path / "2", PLAIN, None).mask_codes.ids)[13] == 13
    with pytest.raises(UsageError, match="Cityscapes"):
        masks.open(tmp_path / "2", DataSettings(zero="ignore"), None)


def test_the_table_of_cityscapes_is_that_of_torchvision():
    known = {row.name: row.id for row in Cityscapes.classes if row.train_id not in (-1, 255)}
    assert list(CITYSCAPES.items()) == list(known.items())
    assert [row.train_id for row in Cityscapes.classes if row.name in known] == list(range(19))


def test_alone_and_twice_are_refused(tmp_path):
    named(mask_folders(tmp_path, ["a", "b"]))
    (tmp_path / "masks" / "a.png").rename(tmp_path / "masks" / "z.png")
    with pytest.raises(DataError, match='1 of 2 pictures have no mask: "a"'):
        masks.open(tmp_path, PLAIN, None)
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(DataError, match='1 of 2 masks have no picture: "z"'):
        masks.open(tmp_path, PLAIN, None)
    (tmp_path / "images" / "b.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="have one name"):
        masks.open(tmp_path, PLAIN, None)
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="no picture"):
        masks.open(tmp_path, PLAIN, None)


def test_names_of_classes_come_from_somewhere_or_nothing_works(tmp_path):
    mask_folders(tmp_path, ["a"])
    with pytest.raises(DataError, match=r"no names of classes.*classes\.txt.*data\.classes"):
        masks.open(tmp_path, PLAIN, None)
    assert masks.open(tmp_path, DataSettings(classes=("x", "y", "z")), None).classes == ("x", "y", "z")
    (tmp_path / "classes.json").write_text(json.dumps(["u", "v", "w"]))
    assert masks.open(tmp_path, PLAIN, None).classes == ("u", "v", "w")
    named(tmp_path, "a b c")
    listing = masks.open(tmp_path, PLAIN, None)
    assert listing.classes == ("a", "b", "c")
    assert any("classes.txt" in note for note in listing.notes)
    file = tmp_path / "mine.txt"
    for text, reason in (("", "no names"), ("a\nA\n", "differ only"), ("\n".join(map(str, range(256))), "256 classes")):
        file.write_text(text)
        with pytest.raises(DataError, match=reason):
            masks.open(tmp_path, DataSettings(classes=str(file)), None)
    (tmp_path / "classes.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="not a list of names"):
        masks.open(tmp_path, DataSettings(classes=str(tmp_path / "classes.json")), None)


def test_zero_is_what_the_setting_says(tmp_path):
    named(mask_folders(tmp_path, ["a"], classes=4))
    with pytest.raises(DataError, match=r"mask a\.png: number 3 in \d+ pixels.*begin at 1"):
        check(masks.open(tmp_path, PLAIN, None), KEEP)
    listing = masks.open(tmp_path, DataSettings(zero="ignore"), None)
    assert listing.mask_codes.ids == ((1, 0), (2, 1), (3, 2), (0, 255), (255, 255))
    assert any('0 is unlabelled and ignored, 1 is class "sky"' in note for note in listing.notes)
    raw = np.array(Image.open(tmp_path / "masks" / "a.png"))
    found = decode_mask(listing.items[0].mask, listing.mask_codes).numpy()
    assert (found == np.where(raw == 0, 255, raw - 1)).all()


def test_another_number_may_be_ignored(tmp_path):
    named(mask_folders(tmp_path, ["a"], classes=4))
    listing = masks.open(tmp_path, DataSettings(ignore=3), None)
    assert dict(listing.mask_codes.ids) == {0: 0, 1: 1, 2: 2, 3: 255}
    assert any("3 is ignored" in note for note in listing.notes)
    with pytest.raises(UsageError, match='number of class "tree"'):
        masks.open(tmp_path, DataSettings(ignore=2), None)
    with pytest.raises(UsageError, match="65535"):
        masks.open(tmp_path, DataSettings(ignore=-1), None)


def test_known_classes_are_matched_by_name(tmp_path):
    named(mask_folders(tmp_path, ["a"]))
    listing = masks.open(tmp_path, PLAIN, ("tree", "sea", "sky", "road"))
    assert listing.classes == ("tree", "sea", "sky", "road")
    assert dict(listing.mask_codes.ids) == {0: 2, 1: 3, 2: 0, 255: 255}
    listing = masks.open(tmp_path, PLAIN, ("sky", "road"))
    assert any('unknown classes, refused where a mask has one: "tree"' in note for note in listing.notes)
    with pytest.raises(DataError, match=r'number 2 in .* pixels is "tree", a class that is not known here'):
        decode_mask(listing.items[0].mask, listing.mask_codes)
    with pytest.raises(DataError, match='unknown classes: "sky", "road", "tree"'):
        masks.open(tmp_path, PLAIN, ("cloud",))
    (tmp_path / "classes.txt").unlink()
    listing = masks.open(tmp_path, PLAIN, ("u", "v", "w"))
    assert dict(listing.mask_codes.ids) == {0: 0, 1: 1, 2: 2, 255: 255}
    assert any("no names" in note for note in listing.notes)


def test_colours(tmp_path):
    mask_folders(tmp_path, ["a"])
    ids = np.array(Image.open(tmp_path / "masks" / "a.png"))
    table = np.array([[70, 130, 180], [128, 64, 128], [0, 0, 0]], np.uint8)
    (tmp_path / "masks" / "a.png").write_bytes(encode(Image.fromarray(table[ids]), "PNG"))
    file = tmp_path / "colors.txt"
    file.write_text("blue sky 70 130 180\n128, 64, 128\troad\n\nvoid 0 0 0\n")
    settings = DataSettings(colors=str(file), classes=("road", "blue sky"))
    listing = masks.open(tmp_path, settings, None)
    assert any('ignored: "void"' in note for note in listing.notes)
    found = decode_mask(listing.items[0].mask, listing.mask_codes).numpy()
    assert (found == np.array([1, 0, 255])[ids]).all()
    assert masks.open(tmp_path, DataSettings(colors=str(file)), None).classes == ("blue sky", "road", "void")
    judged = masks.open(tmp_path, DataSettings(colors=str(file)), ("road", "sea", "blue sky"))  # of a model
    assert [class_ for _, class_ in judged.mask_codes.colors] == [2, 0, 255]
    with pytest.raises(DataError, match='without a colour: "sea"'):
        masks.open(tmp_path, DataSettings(colors=str(file), classes=("road", "sea")), None)
    with pytest.raises(UsageError, match=r"data\.zero"):
        masks.open(tmp_path, DataSettings(colors=str(file), zero="ignore"), None)
    for text, reason in (
        ("road 1 2\n", "line 1"),
        ("a 1 2 300", "line 1"),
        ("a 1 2 3\nb 1 2 3", "second"),
        ("", "no c"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=reason):
            masks.open(tmp_path, settings, None)


def test_what_does_not_go_with_masks_is_refused(tmp_path):
    named(mask_folders(tmp_path, ["a"]))
    with pytest.raises(UsageError, match="balanced"):
        masks.open(tmp_path, DataSettings(balanced=True), None)


def test_the_nearest_folders_count_and_several_are_said(tmp_path):
    inner = named(mask_folders(tmp_path / "images" / "set", ["a", "b"]))
    mask_folders(tmp_path, ["c"])  # images/ and masks/ around the set
    assert len(masks.open(inner, PLAIN, None)) == 2
    mask_folders(inner, ["a", "b"], masks="labels")
    listing = masks.open(inner, PLAIN, None)
    assert listing.items[0].mask.parent.name == "masks"
    assert any('masks/, not of "labels"' in note for note in listing.notes)


def test_layouts_serve_their_tasks_only(tmp_path):
    named(mask_folders(tmp_path, ["a", "b"]))
    with pytest.raises(DataError, match=r"data for semantic_segmentation .*, not class folders"):
        open_evaluation(tmp_path, DataSettings(), ("images", "masks"))
    assert open_evaluation(tmp_path, DataSettings(), ("sky", "road", "tree"), TASK).mask_codes is not None
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match=r"images/ beside masks/"):
        open_evaluation(tmp_path / "cats", DataSettings(), ("a",), TASK)
    (tmp_path / "images" / "odd").mkdir()
    with pytest.raises(DataError, match="no folder of masks"):
        open_evaluation(tmp_path / "images" / "odd", DataSettings(), ("a",), TASK)


def test_a_digest_knows_masks_and_their_coding(tmp_path):
    named(mask_folders(tmp_path, ["a"]))
    first = masks.open(tmp_path, PLAIN, None).as_bytes()
    assert first != masks.open(tmp_path, DataSettings(zero="ignore"), None).as_bytes()
    assert first == masks.open(tmp_path, PLAIN, None).as_bytes()


def test_camvid():
    if not (REAL / "camvid").exists():
        pytest.skip("no CamVid (set PATCHFORM_DATA)")
    splits = opened(REAL / "camvid")
    assert (len(splits.train), len(splits.validation)) == (367, 101)
    assert splits.train.classes[0] == "sky"
    assert len(splits.train.classes) == 11
    part = replace(splits.validation, items=splits.validation.items[::10])
    kept, report = check(part, KEEP)
    assert len(kept) == 11
    assert min(report.pixels) > 0
    assert report.notes == ()
    sample = MaskedPictures(kept, evaluation_scene(KEEP), KEEP)[0, 3]
    assert sample.target.classes.shape == sample.size == (240, 320)
    assert sample.image.shape == (3, 16, 21)


TABLE = (
    "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1576\t11664\t1172\t1\twall\n2\t0.1072\t6046\t612\t1\tbuilding, edifice\n"
)


def test_names_from_the_table_of_ade20k(tmp_path):
    mask_folders(tmp_path, ["a"])
    (tmp_path / "objectInfo150.txt").write_text(TABLE)
    listing = masks.open(tmp_path, replace(PLAIN, zero="ignore"), None)
    assert listing.classes == ("wall", "building")
    assert listing.mask_codes.ids == ((1, 0), (2, 1), (0, 255), (255, 255))
    assert any("objectInfo150.txt" in note for note in listing.notes)
    (tmp_path / "objectInfo150.txt").write_text(TABLE + "3\t0\t1\t1\t1\tbuilding, house\n")
    assert masks.open(tmp_path, PLAIN, None).classes == ("wall", "building, edifice", "building, house")
    for bad in ("Idx\tWord\n1\twall\n", "Idx\tName\n1\n", "Idx\tName\n", ""):
        (tmp_path / "objectInfo150.txt").write_text(bad)
        with pytest.raises(DataError, match="not a table"):
            masks.open(tmp_path, PLAIN, None)
