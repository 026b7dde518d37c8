import bad_pictures
import numpy as np
import pytest
from bad_pictures import class_folders, encode, exif, mask_folders, tree_state
from PIL import Image

from patchform.data.checks.base import look
from patchform.data.checks.copies import overlap
from patchform.data.checks.examination import check, examine
from patchform.data.dataset import open_evaluation
from patchform.data.faults import Faults
from patchform.errors import DataError
from patchform.records import Preprocessing
from patchform.settings import DataSettings
from patchform.tasks.base import find_task

PLAIN = Preprocessing()


def listing(root):
    return open_evaluation(root, DataSettings(), ("a", "b"))


def spoil(root, names=("half.jpg", "empty.jpg", "page.jpg")):
    for name in names:
        (root / "a" / name).write_bytes(bad_pictures.bad()[name][0])


def test_good_data_pass_unchanged(tmp_path):
    given = listing(class_folders(tmp_path, {"a": 3, "b": 2}))
    calls = []
    kept, report = check(given, PLAIN, progress=lambda done, every: calls.append((done, every)))
    assert kept == given
    assert (report.checked, report.used, report.faults) == (5, 5, ())
    assert calls == [(index, 5) for index in range(1, 6)]


def test_faults_stop_are_counted_and_named(tmp_path):
    class_folders(tmp_path, {"a": 3, "b": 2})
    spoil(tmp_path)
    before = tree_state(tmp_path)
    with pytest.raises(DataError, match=r"3 of 8 pictures.*a/empty\.jpg: the file is empty.*a/page\.jpg: .*HTML"):
        check(listing(tmp_path), PLAIN)
    with pytest.raises(DataError):
        check(listing(tmp_path), PLAIN, skip_bad=0.37)
    kept, report = check(listing(tmp_path), PLAIN, skip_bad=0.375)
    assert len(kept) == report.used == 5
    assert [fault.where for fault in report.faults] == ["a/empty.jpg", "a/half.jpg", "a/page.jpg"]
    assert tree_state(tmp_path) == before


def test_more_than_five_faults_are_cut(tmp_path):
    class_folders(tmp_path, {"a": 1, "b": 1})
    spoil(tmp_path, [name for name in bad_pictures.bad() if name.endswith(".jpg")])
    with pytest.raises(DataError) as caught:
        check(listing(tmp_path), PLAIN)
    assert str(caught.value).count(": ") == 6


def test_a_class_must_not_vanish(tmp_path):
    class_folders(tmp_path, {"a": 0, "b": 9})
    spoil(tmp_path, ["empty.jpg"])
    with pytest.raises(DataError, match='left of class "a"'):
        check(listing(tmp_path), PLAIN, skip_bad=0.5)


def test_oddities_are_noted(tmp_path):
    class_folders(tmp_path, {"a": 1, "b": 1})
    good = bad_pictures.good()
    for name in ("animated.gif", "deep.png", "long.png"):
        (tmp_path / "a" / name).write_bytes(good[name])
    (tmp_path / "a" / "gif.jpg").write_bytes(good["picture.gif"])
    notes = examine(listing(tmp_path), PLAIN).notes
    for part in ("1 pictures hold several frames", "1 pictures of 16 bits", "above 100", ".jpg are GIF"):
        assert sum(part in note for note in notes) == 1
    deep = examine(listing(tmp_path), Preprocessing(bits=16)).notes
    assert not any("16 bits" in note for note in deep)


def test_equal_files_in_both_parts_are_found(tmp_path):
    train, validation = tmp_path / "train", tmp_path / "val"
    class_folders(train, {"a": 3, "b": 3})
    class_folders(validation, {"a": 2, "b": 2}, seed=1)
    assert overlap(listing(train), listing(validation)) == ()
    (validation / "b" / "copy.png").write_bytes((train / "a" / "001.png").read_bytes())
    assert overlap(listing(train), listing(validation)) == (("a/001.png", "b/copy.png"),)


def found(listing, report, task="semantic_segmentation"):
    """What the checks of a task say of what was found in files: kinds and places."""
    faults, kind = Faults(), find_task(task)
    look(kind.checks, kind.subject(listing, training=True, report=report), faults, "opened")
    return {(fault.kind, fault.where) for fault in faults}


def with_masks(root, names, **settings):
    mask_folders(root, names)
    return lambda: open_evaluation(root, DataSettings(**settings), ("sky", "road", "tree"), "semantic_segmentation")


def test_masks_are_checked_and_their_pixels_counted(tmp_path):
    opened = with_masks(tmp_path, ["a", "b", "c", "d"])
    ids = [np.array(Image.open(tmp_path / "masks" / f"{name}.png")) for name in "abcd"]
    kept, report = check(opened(), PLAIN)
    assert report.pixels == tuple(sum(int((each == index).sum()) for each in ids) for index in range(3))
    assert report.notes == ()
    ids[0][:2] = 9
    (tmp_path / "masks" / "a.png").write_bytes(encode(Image.fromarray(ids[0]), "PNG"))
    (tmp_path / "masks" / "b.png").write_bytes(encode(Image.fromarray(ids[1][:, 1:]), "PNG"))
    (tmp_path / "masks" / "c.png").write_bytes(encode(Image.fromarray(ids[2]), "PNG")[:-30])
    before = tree_state(tmp_path)
    reasons = r"3 of 4 .*a\.png: number 9 in 64 pixels.*b\.png: a mask of 31 x 24 .* of 32 x 24.*c\.png: .*cut short"
    with pytest.raises(DataError, match=reasons):
        check(opened(), PLAIN)
    kept, report = check(opened(), PLAIN, skip_bad=0.75)
    assert [item.mask.name for item in kept.items] == ["d.png"]
    assert report.pixels == tuple(int((ids[3] == index).sum()) for index in range(3))
    assert tree_state(tmp_path) == before


def test_masks_of_nothing_and_missing_classes_are_noted(tmp_path):
    opened = with_masks(tmp_path, ["a", "b"])
    for name, value in (("a", 255), ("b", 1)):
        content = encode(Image.fromarray(np.full((24, 32), value, np.uint8)), "PNG")
        (tmp_path / "masks" / f"{name}.png").write_bytes(content)
    report = check(opened(), PLAIN)[1]
    assert report.pixels == (0, 768, 0)
    assert any('1 masks hold nothing but ignored pixels: "a.png"' in note for note in report.notes)
    assert found(opened(), report) == {
        ("mask-from-one", "all 2 masks"),
        ("class-unused", 'class "sky"'),
        ("class-unused", 'class "tree"'),
        ("class-single", 'class "road"'),
    }
    for name, value in (("a", 1), ("b", 0)):
        content = encode(Image.fromarray(np.full((24, 32), value, np.uint8)), "PNG")
        (tmp_path / "masks" / f"{name}.png").write_bytes(content)
    assert found(opened(), check(opened(), PLAIN)[1]) == {("class-unused", 'class "tree"')}
    ignored = open_evaluation(tmp_path, DataSettings(zero="ignore"), ("sky",), "semantic_segmentation")
    assert found(ignored, check(ignored, PLAIN)[1]) == {("class-single", 'class "sky"')}


def test_pictures_turned_without_their_masks_are_noted(tmp_path):
    opened = with_masks(tmp_path, ["a", "b"])
    for name, orientation in (("a", 3), ("b", 6)):
        picture = Image.open(tmp_path / "images" / f"{name}.png").convert("RGB")
        (tmp_path / "images" / f"{name}.png").unlink()
        (tmp_path / "images" / f"{name}.jpg").write_bytes(encode(picture, "JPEG", exif=exif(orientation)))
    report = examine(opened(), PLAIN)
    assert [fault.where for fault in report.faults] == ["b.jpg"]
    assert "orientation tag" in report.faults[0].what
    assert [(hint.kind, hint.where, hint.what) for hint in report.hints] == [("orientation-untold", "a.jpg", "tag 3")]
