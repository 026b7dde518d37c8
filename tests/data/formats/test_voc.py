import numpy as np
import pytest
from annotated import random_listing
from bad_pictures import encode, gradient, tree_state
from PIL import Image

from patchform.data.dataset import open_data
from patchform.data.faults import Faults
from patchform.data.formats.voc import Voc
from patchform.errors import DataError
from patchform.records import Preprocessing
from patchform.settings import DataSettings

voc = Voc()

PLAIN = DataSettings()
WIDTH, HEIGHT = 48, 32
SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"


def thing(name="cat", corners=(3, 4, 12, 15), more=""):
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def xml(*objects, size=SIZE, filename="a.jpg"):
    return f"<annotation><filename>{filename}</filename>{size}{''.join(objects)}</annotation>"


def placed(root, documents, *, labels="Annotations", pictures="JPEGImages"):
    for folder in (labels, pictures):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in documents.items():
        (root / labels / f"{name}.xml").write_text(text)
        (root / pictures / f"{name}.jpg").write_bytes(encode(Image.fromarray(gradient(HEIGHT, WIDTH)), "JPEG"))
    return root


def lists(root, **parts):
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for part, names in parts.items():
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in names.split()))
    return root


@pytest.mark.parametrize(
    ("labels", "pictures"), [("Annotations", "JPEGImages"), ("annotations", "images"), (".", "."), ("Annotations", ".")]
)
def test_folders(tmp_path, labels, pictures):
    documents = {"b": xml(), "a": xml(thing("dog"), thing("cat", (1, 1, WIDTH, HEIGHT)))}
    placed(tmp_path, documents, labels=labels, pictures=pictures)
    (tmp_path / pictures / "alone.jpg").write_bytes(b"")
    before = tree_state(tmp_path)
    assert voc.recognises(tmp_path)
    assert voc.parts(tmp_path) is None
    listing = voc.open(tmp_path, PLAIN, None)
    assert listing.classes == ("cat", "dog")
    assert [item.path for item in listing.items] == [tmp_path / pictures / name for name in ("a.jpg", "b.jpg")]
    first, second = (item.objects for item in listing.items)
    assert first.boxes.tolist() == [[2, 3, 12, 15], [0, 0, WIDTH, HEIGHT]]
    assert (first.classes.tolist(), first.size) == ([1, 0], (HEIGHT, WIDTH))
    assert second.boxes.shape == (0, 4)
    assert "1 pictures without a file of annotations are left out" in listing.notes
    assert tree_state(tmp_path) == before


def test_lists_of_parts_and_difficult_objects(tmp_path):
    documents = {name: xml(thing(), thing(more="<difficult>1</difficult>")) for name in "abc"}
    lists(placed(tmp_path, documents), train="c a", val="b", trainval="a b c", cat_train="a c")
    settings = DataSettings(path=str(tmp_path))
    train, validation, _ = open_data(settings, seed=0, preprocessing=Preprocessing(), task="detection")
    assert [train.name(index) for index in range(2)] == ["c.jpg", "a.jpg"]
    assert [validation.name(0)] == ["b.jpg"]
    assert train.items[0].objects.crowd.tolist() == [False, True]
    assert "2 objects marked difficult count for nothing: neither right nor wrong" in train.notes


def test_xml_beside_pictures_in_folders_of_parts(tmp_path):
    for part in ("train", "valid"):
        placed(tmp_path / part, {"a": xml(thing())}, labels=".", pictures=".")
    settings = DataSettings(path=str(tmp_path))
    train, validation, _ = open_data(settings, seed=0, preprocessing=Preprocessing(), task="detection")
    assert (train.root, validation.root) == (tmp_path / "train", tmp_path / "valid")


def test_parts_of_objects_and_sizes_that_are_not_given(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    size = "<size><width>0</width><height>0</height></size>"
    listing = voc.open(placed(tmp_path, {"a": xml(thing(more=part), size=size), "b": xml(size="")}), PLAIN, None)
    assert listing.items[0].objects.boxes.tolist() == [[2, 3, 12, 15]]
    assert [item.objects.size for item in listing.items] == [(HEIGHT, WIDTH)] * 2


def test_a_picture_of_another_name_is_the_one_that_is_named(tmp_path):
    placed(tmp_path, {"a": xml(filename="other.jpg"), "b": xml(filename="../../secret.jpg")})
    for name in "ab":
        (tmp_path / "JPEGImages" / f"{name}.jpg").unlink()
    (tmp_path / "JPEGImages" / "other.jpg").write_bytes(b"")
    faults = Faults()
    listing = voc.open(tmp_path, PLAIN, None, faults)
    assert [item.path.name for item in listing.items] == ["other.jpg"]
    assert [(fault.kind, fault.where) for fault in faults] == [("picture-missing", "b")]


@pytest.mark.parametrize(
    ("document", "kind", "what"),
    [
        ("<annotation>", "labels-bad", "no XML"),
        ("", "labels-bad", "no XML"),
        ("<html></html>", "labels-bad", "<html>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "labels-bad", "document type"),
        (xml("<object><name>cat</name></object>"), "labels-bad", "without a name or a bndbox"),
        (xml(thing(name=" ")), "labels-bad", "without a name"),
        (xml(thing(corners=(3, 4, "wide", 15))), "labels-bad", "not a number"),
        (xml(thing(corners=(3, 4, "", 15))), "labels-bad", "not a number"),
        (xml(thing(corners=(3, 4, "nan", 15))), "box-bad", "x2 nan"),
        (xml(thing(corners=(13, 4, 3, 15))), "box-bad", "x1 12, y1 3, x2 3"),
        (xml(thing(corners=(13, 4, 12, 15))), "box-empty", ""),
        (xml(thing(corners=(13, 4, WIDTH + 20, 15))), "box-clipped", ""),
        (xml(thing(corners=(WIDTH + 1, 4, WIDTH + 20, 15))), "box-outside", ""),
        (xml(thing(), size="<size><width>many</width></size>"), "labels-bad", "not a number"),
    ],
)
def test_faults(tmp_path, document, kind, what):
    good = xml(*[thing()] * 9)
    faults = Faults()
    listing = voc.open(placed(tmp_path, {"a": document, "b": good}), PLAIN, None, faults)
    ((found, where, said, fatal, _),) = faults
    assert found == kind
    assert where.startswith("a")
    assert what in said
    assert len(listing.items[-1].objects.boxes) == 9
    if fatal:
        with pytest.raises(DataError, match="a"):
            voc.open(tmp_path, PLAIN, None)


def test_whole_pixels_count_from_one_and_zero_is_no_fault(tmp_path):
    faults = Faults()
    listing = voc.open(placed(tmp_path, {"a": xml(thing(corners=(0, 0, 5, 5)))}), PLAIN, None, faults)
    assert listing.items[0].objects.boxes.tolist() == [[0, 0, 5, 5]]
    assert faults.fatal == 0


def test_lists_that_do_not_fit(tmp_path):
    lists(placed(tmp_path, {"a": xml(thing())}), train="a a gone")
    faults = Faults()
    listing = voc.open(tmp_path / "ImageSets" / "Main" / "train.txt", PLAIN, None, faults)
    assert len(listing) == 1
    assert sorted(faults.counts.items()) == [("labels-missing", 1), ("picture-twice", 1)]
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("\n")
    with pytest.raises(DataError, match="no picture is listed"):
        voc.open(tmp_path / "ImageSets" / "Main" / "train.txt", PLAIN, None)


def test_torchvision_reads_what_is_written(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    listing = random_listing(tmp_path / "source", 2, keeps=voc.keeps)
    for item in listing.items:  # they expect .jpg
        item.path.rename(item.path.with_suffix(".jpg"))
    moved = [item._replace(path=item.path.with_suffix(".jpg")) for item in listing.items[::2]]
    listing = type(listing)(classes=listing.classes, items=tuple(moved), root=listing.root)
    voc.write(listing, tmp_path / "VOCdevkit" / "VOC2012", pictures="copy")
    theirs = datasets.VOCDetection(str(tmp_path), year="2012", image_set="train")
    for (_, target), item in zip(theirs, listing.items, strict=True):
        objects = target["annotation"].get("object", [])
        corners = [[float(o["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
        np.testing.assert_allclose(np.array(corners).reshape(-1, 4) - (1, 1, 0, 0), item.objects.boxes)
        assert [o["name"] for o in objects] == [listing.classes[class_] for class_ in item.objects.classes]


def test_what_is_lost_is_said(tmp_path):
    listing = random_listing(tmp_path / "source", 1, segmentations=True)
    outlined = sum(len(item.objects.boxes) for item in listing.items)
    assert voc.write(listing, tmp_path / "target") == (f"{outlined} outlines, which Pascal VOC's xml has no place for",)


def learnt_and_validated(path):
    train, validation, notes = open_data(
        DataSettings(path=str(path)), seed=0, preprocessing=Preprocessing(size=(8, 8)), task="detection"
    )
    return [sorted(item.path.stem for item in part.items) for part in (train, validation)], notes


@pytest.mark.parametrize("folder", ["ImageSets/Main", "ImageSets", "imagesets/main"])
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"trainval": "a b", "test": "c d"}, [["a", "b"], ["c", "d"]]),
        ({"train": "a", "val": "b", "trainval": "a b", "test": "c d"}, [["a"], ["b"]]),
        ({"train": "a b", "test": "c"}, [["a", "b"], ["c"]]),
        ({"trainval": "a b c", "val": "c"}, [["a", "b"], ["c"]]),
        ({"trainval": "a b c d", "val": "c", "test": "d"}, [["a", "b"], ["c"]]),
    ],
)
def test_what_is_listed_to_test_on_is_not_learnt_from(tmp_path, parts, expected, folder):
    lists(placed(tmp_path, {name: xml(thing()) for name in "abcd"}), **parts)
    if folder == "ImageSets":
        for file in (tmp_path / "ImageSets" / "Main").iterdir():
            file.rename(tmp_path / "ImageSets" / file.name)
    if folder == "imagesets/main":
        for file in (tmp_path / "ImageSets" / "Main").iterdir():
            file.rename(file.with_name(file.name.upper()))
        (tmp_path / "ImageSets" / "Main").rename(tmp_path / "ImageSets" / "main")
        (tmp_path / "ImageSets").rename(tmp_path / "imagesets")
    assert learnt_and_validated(tmp_path)[0] == expected


def test_lists_to_test_on_alone(tmp_path):
    lists(placed(tmp_path, {name: xml(thing()) for name in "abcd"}), test="c d")
    listing = voc.open(tmp_path, DataSettings(path=str(tmp_path)), None)
    assert [item.path.stem for item in listing.items] == ["a", "b"]
    assert "2 pictures of test.txt are not learnt from" in listing.notes
    assert len(voc.open(tmp_path, PLAIN, ("cat",))) == 4  # to judge on
    lists(tmp_path, test="a b c d")
    with pytest.raises(DataError, match=r"all pictures are listed to test on.*train\.txt"):
        voc.open(tmp_path, PLAIN, None)


def test_a_list_that_is_named_is_taken_as_it_is(tmp_path):
    lists(placed(tmp_path, {name: xml(thing()) for name in "abc"}), trainval="a b c", val="c")
    file = tmp_path / "ImageSets" / "Main" / "trainval.txt"
    assert len(voc.open(file, DataSettings(path=str(file)), None)) == 3


def test_near_names(tmp_path):
    lists(placed(tmp_path, {"a": xml(thing()), "b": xml(thing())}), train="A.jpg JPEGImages/b " + "x" * 5000)
    faults = Faults()
    voc.open(tmp_path / "ImageSets" / "Main" / "train.txt", PLAIN, None, faults)
    whats = [fault.what for fault in faults if fault.kind == "labels-missing"]
    assert 'there is "a.xml"' in whats[0]
    assert 'there is "b.xml"' in whats[1]
    assert len(whats[2]) < 300
    (tmp_path / "JPEGImages" / "a.jpg").rename(tmp_path / "JPEGImages" / "A.JPG")
    voc.open(tmp_path, PLAIN, None, faults := Faults())
    assert [(fault.kind, fault.what.partition("; ")[2]) for fault in faults] == [
        ("picture-missing", 'there is "A.JPG", in other case')
    ]


def test_xml_in_other_encodings(tmp_path):
    root = placed(tmp_path, {"a": "", "b": ""})
    text = xml(thing("größe"))
    (root / "Annotations" / "a.xml").write_bytes(f'<?xml version="1.0" encoding="UTF-16"?>{text}'.encode("utf-16"))
    (root / "Annotations" / "b.xml").write_bytes(text.encode("latin-1"))
    faults = Faults()
    assert voc.open(root, PLAIN, None, faults).classes == ("größe",)
    assert [(fault.kind, fault.where) for fault in faults] == [("labels-bad", "b")]
    assert all("Latin-1" in fault.what for fault in faults)


def test_other_xml_is_none(tmp_path):
    placed(tmp_path, {"a": "<annotations><image/></annotations>"})
    assert not voc.recognises(tmp_path)
