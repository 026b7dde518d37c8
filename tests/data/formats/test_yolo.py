import numpy as np
import pytest
import yaml
from annotated import random_listing
from bad_pictures import encode, exif, gradient, tree_state
from PIL import Image

from patchform.data.dataset import open_data
from patchform.data.faults import Faults
from patchform.data.formats.yolo import Yolo
from patchform.errors import DataError
from patchform.records import Preprocessing
from patchform.settings import DataSettings

yolo = Yolo()

PLAIN = DataSettings()
WIDTH, HEIGHT = 50, 40
BOX = "1 0.5 0.5 0.2 0.25"


def placed(root, labels, *, pictures="images/train", texts="labels/train", names="cat dog", orientation=1):
    """Pictures, a file of labels for each that is not None, and names."""
    for folder in (pictures, texts):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in labels.items():
        data = encode(Image.fromarray(gradient(HEIGHT, WIDTH)), "JPEG", exif=exif(orientation))
        (root / pictures / f"{name}.jpg").write_bytes(data)
        if text is not None:
            (root / texts / f"{name}.txt").write_text(text)
    if names:
        (root / "classes.txt").write_text("\n".join(names.split()))
    return root


def described(root, **content):
    (root / "data.yaml").write_text(yaml.safe_dump({"names": ["cat", "dog"], **content}))
    return root


def opened(path):
    return open_data(DataSettings(path=str(path)), seed=0, preprocessing=Preprocessing(), task="detection")


@pytest.mark.parametrize(
    ("pictures", "texts", "path"),
    [
        ("images", "labels", "."),
        ("images/train", "labels/train", "images/train"),
        ("images/train", "labels/train", "."),
        ("train/images", "train/labels", "train"),
        ("train", "train", "train"),
        (".", ".", "."),
        ("images/a/b", "images/a/b", "images/a/b"),
    ],
)
def test_folders(tmp_path, pictures, texts, path):
    placed(tmp_path, {"a": f"{BOX}\n", "b": "", "c": None}, pictures=pictures, texts=texts)
    before = tree_state(tmp_path)
    assert yolo.recognises(tmp_path / path)
    listing = yolo.open(tmp_path / path, PLAIN, None)
    assert listing.classes == ("cat", "dog")
    assert [item.path.name for item in listing.items] == ["a.jpg", "b.jpg", "c.jpg"]
    assert listing.items[0].objects.boxes.tolist() == [[20, 15, 30, 25]]
    assert [len(item.objects.boxes) for item in listing.items] == [1, 0, 0]
    assert "1 pictures have no file of labels, so no objects" in listing.notes
    assert tree_state(tmp_path) == before


def test_a_folder_of_pictures_alone_is_none(tmp_path):
    placed(tmp_path, {"a": None}, pictures=".", texts=".")
    (tmp_path / "notes.txt").write_text("")
    assert not yolo.recognises(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {"train": "images/train", "val": "images/val"},
        {"train": "./images/train", "val": ["images/val"], "test": "images/gone"},
        {"path": ".", "train": "images/train", "val": "images/val"},
        {"path": "../elsewhere", "train": "images/train", "val": "images/val"},
        {"path": "images", "train": "train", "test": "val"},
        {"train": "../images/train", "val": "../images/val"},
        {"train": "train.txt", "val": "images/val"},
    ],
)
def test_parts_are_those_of_data_yaml(tmp_path, content):
    root = described(placed(tmp_path / "set", {"a": BOX}, names=""), **content)
    placed(root, {"b": BOX, "c": BOX}, pictures="images/val", texts="labels/val", names="")
    (root / "train.txt").write_text("./images/train/a.jpg\n\n")
    for path in (root, root / "data.yaml"):
        train, validation, _ = opened(path)
        assert [item.path.name for item in train.items] == ["a.jpg"]
        assert [item.path.name for item in validation.items] == ["b.jpg", "c.jpg"]
        assert train.items[0].objects.boxes.tolist() == [[20, 15, 30, 25]]


def test_paths_in_a_yaml_of_this_folder_may_be_whole(tmp_path):
    root = described(
        placed(tmp_path, {"a": BOX}), train=str(tmp_path / "images/train"), val=str(tmp_path / "images/train")
    )
    assert yolo.parts(root) == (tmp_path / "images/train",) * 2


@pytest.mark.parametrize("place", ["../other/images", "/etc", "images/../../other", "../../other", "C:/pictures"])
def test_data_yaml_leads_nowhere_else(tmp_path, place):
    placed(tmp_path / "other", {"a": BOX}, pictures="images", texts="labels")
    root = described(placed(tmp_path / "set", {"a": BOX}), train=place, val="images/train")
    with pytest.raises(DataError, match=r"train leads out of its folder|no such train"):
        yolo.parts(root)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("names: [a\n", "not YAML"),
        ("- a\n", "no keys"),
        ("names: !!python/object/apply:os.system ['true']\n", "not YAML"),
        ("names: {0: a, 2: b}\n", "without gaps"),
        ("names: 7\n", "no list of names"),
        ("names: [a]\ntrain: [x, y]\n", "several places"),
        ("names: [a]\ntrain: images/gone\n", "no such train"),
    ],
)
def test_bad_data_yaml(tmp_path, text, reason):
    root = placed(tmp_path, {"a": BOX}, names="")
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=reason):
        opened(root)


def test_names(tmp_path):
    root = placed(tmp_path, {"a": BOX}, names="")
    with pytest.raises(DataError, match="no names of classes"):
        yolo.open(root, PLAIN, None)
    assert yolo.open(root, DataSettings(classes=("cat", "dog")), None).classes == ("cat", "dog")
    assert yolo.open(root, PLAIN, ("cat", "dog")).items[0].classes == (1,)
    (root / "data.yaml").write_text("names: {1: dog, 0: cat}\n")
    assert yolo.open(root / "images" / "train", PLAIN, None).classes == ("cat", "dog")
    assert yolo.open(root, PLAIN, ("dog", "elk", "cat")).items[0].classes == (0,)


def test_outlines_and_boxes_in_one_file_upright(tmp_path):
    text = "0.0 0.1 0.2 0.5 0.2 0.5 0.6\n1 0.5 0.5 0.2 0.25\n"
    item = yolo.open(placed(tmp_path, {"a": text}, orientation=6), PLAIN, None).items[0]
    assert item.objects.size == (WIDTH, HEIGHT)  # turned: 40 wide, 50 high
    np.testing.assert_allclose(item.objects.boxes, [[4, 10, 20, 30], [16, 18.75, 24, 31.25]], rtol=1e-6)
    np.testing.assert_allclose(item.objects.segmentations[0][0], [[4, 10], [20, 10], [20, 30]], rtol=1e-6)
    assert item.objects.segmentations[1] is None


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("2 0.5 0.5 0.2 0.2", "class-unknown"),
        ("-1 0.5 0.5 0.2 0.2", "class-unknown"),
        ("inf 0.5 0.5 0.2 0.2", "record-bad"),
        ("cat 0.5 0.5 0.2 0.2", "record-bad"),
        ("1.5 0.5 0.5 0.2 0.2", "record-bad"),
        ("1 0.5 0.5 0.2", "record-bad"),
        ("1 0.5 0.5 0.2 0.2 0.9", "score-ignored"),
        ("1 0.5 0.5 0.2 0.2 1.9", "record-bad"),
        ("1 0.5 0.5 wide 0.2", "record-bad"),
        ("1 nan 0.5 0.2 0.2", "box-bad"),
        ("1 0.5 0.5 -0.2 0.2", "box-bad"),
        ("1 0.5 0.5 0 0.2", "box-empty"),
        ("1 0.95 0.5 0.2 0.2", "box-clipped"),
        ("1 1.5 0.5 0.2 0.2", "box-outside"),
        ("1 0.1 0.1 0.1 0.2 0.1 0.3", "box-empty"),
        (BOX, "box-twice"),
    ],
)
def test_faults(tmp_path, line, kind):
    good = "".join(f"0 0.5 0.5 0.2 0.{index}\n" for index in range(1, 10))
    faults = Faults()
    yolo.open(placed(tmp_path, {"a": f"{BOX}\n{line}\n{good}"}), PLAIN, None, faults)
    ((found, where, _, fatal, _),) = faults
    assert (found, where) == (kind, "train/a.jpg, line 2")
    if fatal:
        with pytest.raises(DataError, match=r"a\.jpg, line 2"):
            yolo.open(tmp_path, PLAIN, None)


def test_pixels_in_place_of_shares_are_recognised(tmp_path):
    root = placed(tmp_path, {"a": "0 20 20 10 10\n1 30 20 10 10\n"})
    with pytest.raises(DataError, match=r"2 boxes that leave their picture.*looks like pixels"):
        yolo.open(root, PLAIN, None)


@pytest.mark.parametrize(
    ("used", "classes", "hints"), [("1", None, 1), ("01", None, 0), ("0", None, 0), ("1", ("cat", "dog"), 0)]
)
def test_numbers_that_seem_to_begin_at_one(tmp_path, used, classes, hints):
    lines = "".join(f"{number} 0.5 0.5 0.2 0.2\n" for number in used)
    faults = Faults()
    yolo.open(placed(tmp_path, {"a": lines}), PLAIN, classes, faults)
    assert faults.counts["class-first"] == hints == faults.counts.total()
    assert faults.fatal == 0


def test_files_that_do_not_pair(tmp_path):
    root = placed(tmp_path, {"a": BOX})
    (root / "labels" / "train" / "gone.txt").write_text(BOX)
    (root / "labels" / "train" / "classes.txt").write_text("cat\ndog\n")
    (root / "images" / "train" / "a.png").write_bytes((root / "images" / "train" / "a.jpg").read_bytes())
    faults = Faults()
    yolo.open(root, PLAIN, None, faults)
    assert sorted(faults.counts.items()) == [("class-first", 1), ("labels-alone", 1), ("picture-twice", 1)]
    (root / "labels" / "train" / "a.txt").write_bytes(b"\xff\xfe\x00")
    yolo.open(root, PLAIN, None, faults := Faults())
    assert faults.counts["labels-bad"] == 2


def test_lists_lead_nowhere_else(tmp_path):
    root = described(placed(tmp_path / "set", {"a": BOX}), train="train.txt")
    (root / "train.txt").write_text("images/train/a.jpg\n../secret.jpg\n/etc/passwd\nimages/train/gone.jpg\n")
    faults = Faults()
    listing = yolo.open(root / "train.txt", PLAIN, None, faults)
    assert [item.path.name for item in listing.items] == ["a.jpg"]
    assert sorted(faults.counts.items()) == [("class-first", 1), ("picture-missing", 1), ("picture-outside", 2)]


def test_what_is_lost_is_said(tmp_path):
    listing = random_listing(tmp_path / "source", 1, keeps={"crowd"}, segmentations=True)
    item = listing.items[1]
    two = (item.objects.segmentations[0][0], item.objects.segmentations[0][0] + np.float32(20))
    item = item._replace(objects=item.objects._replace(segmentations=(two, *item.objects.segmentations[1:])))
    listing = type(listing)(classes=listing.classes, items=(*listing.items[2:], item), root=listing.root)
    crowds = sum(int(i.objects.crowd.sum()) for i in listing.items if i.objects.crowd is not None)
    assert crowds
    assert yolo.write(listing, tmp_path / "target", pictures="copy") == (
        f"{crowds} crowd regions, for which YOLO's text has no place",
        "1 outlines of several polygons became one, with lines between",
    )
    back = yolo.open(tmp_path / "target", PLAIN, None)
    named = {i.path.name: i for i in back.items}[item.path.name]
    (joined,) = named.objects.segmentations[0]
    tools = pytest.importorskip("faster_coco_eval").mask
    size = item.objects.size
    ours, theirs = (
        tools.decode(tools.merge(tools.frPyObjects([p.ravel().astype(float).tolist() for p in some], *size)))
        for some in (two, (joined,))
    )
    assert (ours != theirs).mean() < 0.02


def test_run_lengths_are_refused(tmp_path):
    listing = random_listing(tmp_path / "source", 1, keeps={"runs"}, segmentations=True)
    with pytest.raises(DataError, match=r"run lengths.*write COCO's json"):
        yolo.write(listing, tmp_path / "target")
