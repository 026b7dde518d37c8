"""A check that was made before is not made again, and never gives another answer than a new one."""

import json
import os
import shutil
import threading

import numpy as np
import pytest
from bad_pictures import class_folders, encode, mask_folders, tree_state
from PIL import Image

from patchform.data import check_cache
from patchform.data.checks import examination
from patchform.data.checks.examination import check, examine
from patchform.data.dataset import open_evaluation
from patchform.data.listing import Item, Listing, MaskCodes, PolygonMask
from patchform.records import Preprocessing
from patchform.settings import DataSettings

PLAIN = Preprocessing()
NAMES = ("sky", "road", "tree")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHFORM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checks"


@pytest.fixture
def looked(monkeypatch):
    """How often pictures were decoded."""
    times, real = [], examination._examined
    monkeypatch.setattr(examination, "_examined", lambda *given: times.append(1) or real(*given))
    return times


def masks(root, names=NAMES, **settings):
    return open_evaluation(root, DataSettings(**settings), names, "semantic_segmentation")


def fresh(listing, preprocessing=PLAIN, examined=examination._examined):
    return examined(listing, preprocessing, None)


def put_back(file, data):
    """Other content of the same size, with the old time."""
    status = file.stat()
    assert len(data) == status.st_size
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def raw_mask(value):
    """A mask whose size in bytes does not depend on its content."""
    return encode(Image.fromarray(np.full((24, 32), value, np.uint8)), "BMP")


def same_size_label(root):
    (root / "masks" / "a.bmp").write_bytes(raw_mask(1))


def same_size_and_time_label(root):
    put_back(root / "masks" / "a.bmp", raw_mask(77))


def same_size_and_time_picture(root):
    put_back(root / "images" / "a.png", b"x" * (root / "images" / "a.png").stat().st_size)


def swapped(root):
    """Two pictures change places; one of them is bad, and they are alike in size and time."""
    first, second = root / "images" / "b.png", root / "images" / "c.png"
    first.rename(root / "images" / "x")
    second.rename(first)
    (root / "images" / "x").rename(second)


def added(root):
    shutil.copyfile(root / "images" / "a.png", root / "images" / "new.png")
    shutil.copyfile(root / "masks" / "a.bmp", root / "masks" / "new.bmp")


def removed(root):
    (root / "images" / "b.png").unlink()
    (root / "masks" / "b.png").unlink()


def made(root):
    """A picture whose mask has a fixed size, and two of equal size and time, of which one is bad."""
    mask_folders(root, ["a", "b", "c"])
    (root / "masks" / "a.png").unlink()
    (root / "masks" / "a.bmp").write_bytes(raw_mask(0))
    size = (root / "images" / "b.png").stat().st_size
    (root / "images" / "c.png").write_bytes(bytes(size))
    for name in "bc":
        os.utime(root / "images" / f"{name}.png", ns=(10**18, 10**18))
    return root


@pytest.mark.parametrize(
    "edit", [same_size_label, same_size_and_time_label, same_size_and_time_picture, swapped, added, removed]
)
def test_edits_of_the_data_are_seen(edit, tmp_path, looked):
    root = made(tmp_path / "set")
    before = examine(masks(root), PLAIN)
    assert examine(masks(root), PLAIN) == before == fresh(masks(root))
    looked.clear()
    edit(root)
    found = examine(masks(root), PLAIN)
    assert len(looked) == 1
    assert found == fresh(masks(root)) != before


def test_the_control_a_key_that_sees_nothing_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(check_cache, "key", lambda *_: "0" * 40)
    root = made(tmp_path / "set")
    examine(masks(root), PLAIN)
    same_size_label(root)
    assert examine(masks(root), PLAIN) != fresh(masks(root))


@pytest.mark.parametrize("names", [("sky", "road", "bush"), ("road", "sky", "tree"), ("sky", "road")])
def test_classes_renamed_or_in_another_order_are_seen(names, tmp_path, looked):
    root = made(tmp_path / "set")
    examine(masks(root), PLAIN)
    assert examine(masks(root, names), PLAIN) == fresh(masks(root, names))
    assert examine(masks(root, names, zero="ignore"), PLAIN) == fresh(masks(root, names, zero="ignore"))
    assert len(looked) == 3


def test_another_task_and_another_way_to_decode_are_seen(tmp_path, looked):
    root = class_folders(tmp_path / "images", {"a": 2, "b": 2})
    class_folders(tmp_path / "masks", {"a": 2, "b": 2})
    labels = open_evaluation(root, DataSettings(), ("a", "b"))
    assert examine(labels, PLAIN).pixels is None
    with_masks = masks(tmp_path, ("a", "b"))
    assert {fault.kind for fault in examine(with_masks, PLAIN).faults} == {"mask-bad"}
    assert examine(labels, PLAIN) == fresh(labels)
    deep = Preprocessing(bits=16)
    (root / "a" / "000.png").write_bytes(encode(Image.fromarray(np.zeros((9, 9), np.uint16)), "PNG"))
    assert examine(labels, PLAIN) == fresh(labels) != examine(labels, deep) == fresh(labels, deep)


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"[" * 99_999])
def test_a_broken_file_is_made_anew(spoil, tmp_path, cache, looked):
    listing = masks(made(tmp_path / "set"))
    found = examine(listing, PLAIN)
    (file,) = cache.glob("*.json")
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    assert examine(listing, PLAIN) == found
    assert file.read_bytes() == whole
    file.write_bytes(whole.replace(b'"pixels": [', b'"pixels": [1'))  # whole JSON, but not what was written
    assert examine(listing, PLAIN) == found
    assert len(looked) == 3
    assert examine(listing, PLAIN) == found
    assert len(looked) == 3
    assert [one.name for one in cache.iterdir()] == [file.name]


def test_regions_of_other_classes_are_seen(tmp_path, looked):
    mask_folders(tmp_path / "set", ["a"])
    square = (np.array([[0, 0], [9, 0], [9, 9], [0, 9]], np.float32),)
    for class_ in (0, 1, 1):
        drawn = PolygonMask((square,), (class_,), (24, 32))
        item = Item(tmp_path / "set" / "images" / "a.png", (), drawn)
        listing = Listing(classes=NAMES, items=(item,), root=tmp_path, mask_codes=MaskCodes())
        pixels = examine(listing, PLAIN).pixels
        assert pixels == fresh(listing).pixels == tuple(81 * (index == class_) for index in range(3))
    assert len(looked) == 2


def test_another_version_is_seen(tmp_path, monkeypatch, looked):
    listing = masks(made(tmp_path / "set"))
    examine(listing, PLAIN)
    monkeypatch.setattr(check_cache, "__version__", "0.0.0")
    examine(listing, PLAIN)
    assert len(looked) == 2


def test_two_at_once_do_not_harm_each_other(tmp_path, cache):
    listing = masks(made(tmp_path / "set"))
    found, want = [], fresh(listing)
    threads = [threading.Thread(target=lambda: found.append(examine(listing, PLAIN))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [want] * 4
    assert json.loads(next(cache.glob("*.json")).read_bytes())["found"]["pixels"] == list(want.pixels)
    assert len(list(cache.iterdir())) == 1


def test_a_place_that_cannot_be_used_is_done_without(tmp_path, monkeypatch, looked):
    listing = masks(made(tmp_path / "set"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATCHFORM_CACHE", str(tmp_path / "file"))
    assert examine(listing, PLAIN) == examine(listing, PLAIN) == fresh(listing)
    monkeypatch.setenv("PATCHFORM_CACHE", str(tmp_path / "locked"))
    monkeypatch.setattr(check_cache.os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "no")))
    assert examine(listing, PLAIN) == fresh(listing)
    assert list((tmp_path / "locked" / "checks").iterdir()) == []


def test_the_data_stay_as_they_are_and_progress_ends(tmp_path):
    root = class_folders(tmp_path / "set", {"a": 2, "b": 3})
    listing, before = open_evaluation(root, DataSettings(), ("a", "b")), tree_state(root)
    for expected in ([1, 2, 3, 4, 5], [5]):
        calls = []
        check(listing, PLAIN, progress=lambda done, every: calls.append(done))  # noqa: B023
        assert calls == expected
    assert tree_state(root) == before


def test_the_oldest_go_first(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(check_cache, "KEPT", 2)
    for number in range(4):
        check_cache.store(f"{number}", {"faults": []})
        os.utime(cache / f"{number}.json", (number, number))
    check_cache.store("new", {"faults": []})
    assert check_cache.load("new") == {"faults": []}
    assert check_cache.load("0") is None
    assert len(list(cache.iterdir())) == 2
