import os
import unicodedata

import pytest
from bad_pictures import class_folders
from looking import found, kinds, of_files, of_names

from patchform.data.checks import names
from patchform.data.dataset import open_evaluation, open_training
from patchform.data.listing import check_names
from patchform.errors import DataError
from patchform.settings import DataSettings
from patchform.tasks.base import find_task

NFC, NFD = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
LATIN = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    ("pair", "how"),
    [
        ((NFC, NFD), "NFC and NFD"),
        ((NFC.upper(), NFD), "NFC and NFD"),
        (("Cat", "cat"), "only by case or spaces"),
        (("traffic light", "trafficlight"), "only by case or spaces"),
        (("a\u00a0b", "a b"), "only by case or spaces"),
        (("cat", "cat\u200b"), "what is not seen"),
        (("co\u00adop", "coop"), "what is not seen"),
    ],
)
def test_names_that_look_alike_are_refused(pair, how, tmp_path):
    with pytest.raises(DataError, match=how):
        check_names(pair, tmp_path)
    check_names(("cafe", NFC, "cat", "dog"), tmp_path)


def test_a_class_of_another_form_than_the_known_one_is_explained(tmp_path):
    class_folders(tmp_path, {NFD: 1, "tea": 1})
    with pytest.raises(DataError, match=r"unknown class.*and the known .*NFC and NFD"):
        open_evaluation(tmp_path, DataSettings(), (NFC, "tea"))


@pytest.mark.parametrize(
    ("classes", "pairs"),
    [
        (("1", "1.0"), 1),
        (("01", "1", "2"), 1),
        (("0", "0.0", "00", "-1"), 2),
        (("1.1", "1.10"), 1),
        (("1", "2", "10", "-1", "1.5"), 0),
        (("1a", "01a"), 0),
        (("cat", "cats", "dog"), 1),
        (("bus", "bu", "glass", "glas", "as", "a"), 0),
        (("traffic_light", "traffic light"), 1),
        (("T-shirt", "tshirt", "t_shirt"), 2),
        (("1-1", "11"), 0),
        (("m\u00b2", "m2"), 1),
        (("\uff11", "1"), 1),
        (("cat", "cut", "dog"), 0),
    ],
)
def test_names_that_may_mean_one_class_are_hints(classes, pairs, tmp_path):
    rows = [fault for fault in found(names.OF_CLASSES, of_names(tmp_path, classes)) if fault.kind == "class-alike"]
    assert len(rows) == pairs
    assert not any(fault.fatal for fault in rows)


@pytest.mark.parametrize(
    ("classes", "number"),
    [
        (("cat,dog", "cat", "dog"), 1),
        (("cat,dog", "dog,cat"), 2),  # the first for its comma
        (("cat + dog", "dog", "cat"), 1),
        (("Cat and Dog", "cat", "dog"), 1),
        (("cat/dog", "dog", "cat"), 1),
        (("['cat', 'dog']", "bird"), 1),
        (("a;b", "x"), 0),
        (("tench, Tinca tinca", "great white shark, white shark"), 0),  # names of ImageNet
        (("1,5", "2,5"), 0),
        (("rock & roll", "jazz"), 0),
        (("land", "sand", "band"), 0),
        (("and", "or"), 0),
    ],
)
def test_names_that_look_like_several_are_hints(classes, number, tmp_path):
    rows = [fault for fault in found(names.OF_CLASSES, of_names(tmp_path, classes)) if fault.kind == "class-several"]
    assert len(rows) == number


def test_names_with_unseen_characters_or_blanks_are_hints(tmp_path):
    classes = ("ok", "red\x1b[31m", " left", "right ", "tab\there", "\u202ecod")
    rows = found((names.CONTROL, *names.OF_CLASSES), of_names(tmp_path, classes))
    assert [(fault.kind, fault.where) for fault in rows] == [
        ("name-blanks", 'class " left"'),
        ("name-blanks", 'class "right "'),
        ("name-control", "class 1"),
        ("name-control", "class 4"),
        ("name-control", "class 5"),
    ]
    assert all(text.isprintable() for fault in rows for text in (fault.where, fault.what))
    rows = found((names.CONTROL,), of_files(tmp_path, ["a"], ["a/\x1b]0;x\x07.jpg", "a/b.jpg"]))
    assert [(fault.kind, fault.where) for fault in rows] == [("name-control", "a/\\x1b]0;x\\x07.jpg")]
    elsewhere = tmp_path / f"{LATIN}\x1b"  # where the data lie is not of the data
    assert found((names.ENCODING, names.CONTROL), of_files(elsewhere, ["a"], ["a/b.jpg"])) == []


@pytest.mark.parametrize(("path", "kind"), [(f"{LATIN}/1.png", "name-bytes"), (f"tea/{LATIN}.png", "name-odd")])
def test_names_that_are_not_utf8_are_told_before_training_and_refused_for_classes(path, kind, tmp_path):
    for part in ("train", "val"):
        class_folders(tmp_path / part, {"cup": 2, "tea": 2})
        place = tmp_path / part / path
        try:
            place.parent.mkdir(exist_ok=True)
            place.write_bytes((tmp_path / part / "tea" / "001.png").read_bytes())
        except OSError:
            pytest.skip("a system that refuses such names")
    assert kinds(tmp_path)[kind] >= 1
    settings = DataSettings(path=str(tmp_path))
    listing, _ = open_training(settings)
    if kind == "name-odd":
        assert any("not UTF-8" in hint for hint in find_task("classification").refuse(listing))
        return
    with pytest.raises(DataError, match="not UTF-8"):
        find_task("classification").refuse(listing, training=True)
    with pytest.raises(DataError, match="not UTF-8"):
        find_task("classification").refuse(listing)
