import numpy as np
import pytest
import torch
import yaml
from annotated import random_listing
from bad_pictures import encode, exif, gradient, tree_state
from PIL import Image

from patchform.data.dataset import open_data, open_evaluation
from patchform.data.faults import Faults
from patchform.data.formats.yolo import Yolo
from patchform.data.results import yolo_lines
from patchform.errors import DataError
from patchform.records import Instances, Preprocessing
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


def test_other_yaml_is_none(tmp_path):
    (tmp_path / "recipe.yaml").write_text("task: detection\n")
    assert not yolo.recognises(tmp_path / "recipe.yaml")
    (tmp_path / "broken.yaml").write_text("names: [a\n")
    with pytest.raises(DataError, match="not YAML"):
        opened(tmp_path / "broken.yaml")


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
        ("names: [a]\nnames: [b]\n", 'the key "names" a second time'),
        ("names: {0: a, 0: b}\n", 'the key "0" a second time'),
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


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [no, yes]", ("no", "yes")),
        ("names: [010, 1.0]", ("010", "1.0")),
        ("names: [null, ~]", ("null", "~")),
        ("names: [1e3, 0x1F]", ("1e3", "0x1F")),
        ("names: [2020-01-01, '7']", ("2020-01-01", "7")),
        ("names:\n  0: off\n  1: 1_000", ("off", "1_000")),
        ("names:\n- True\n- .inf", ("True", ".inf")),
        ("'names': {'1': b, '0': a}", ("a", "b")),
    ],
)
def test_names_are_the_text_that_is_written(tmp_path, text, names):
    root = placed(tmp_path, {"a": BOX}, names="")
    (root / "data.yaml").write_text(text + "\n")
    assert yolo.open(root, PLAIN, None).classes == names


def test_names_that_yaml_would_read_otherwise_are_written_and_read_again(tmp_path):
    listing = yolo.open(placed(tmp_path / "a", {"a": BOX}, names="no 010"), PLAIN, None)
    yolo.write(listing, tmp_path / "b", pictures="copy")
    assert yolo.open(tmp_path / "b", PLAIN, None).classes == ("no", "010")
    yolo.write(listing, tmp_path / "b", part="val", pictures="copy")
    assert set(yaml.safe_load((tmp_path / "b" / "data.yaml").read_text())) == {"names", "train", "val"}


@pytest.mark.parametrize("names", ["cat", "[cat, '']", "{0: cat, 1: }", "[[cat]]", "{cat: 0}", "{0: a, 00: b}"])
def test_names_that_are_none(tmp_path, names):
    root = placed(tmp_path, {"a": BOX}, names="")
    (root / "data.yaml").write_text(f"names: {names}\n")
    with pytest.raises(DataError, match=r"names are|has no name"):
        yolo.open(root, PLAIN, None)


def test_names_of_the_file_that_was_given(tmp_path):
    root = placed(tmp_path, {"a": BOX, "c": BOX}, names="")
    placed(root, {"b": BOX}, pictures="images/val", texts="labels/val", names="")
    parts = "train: images/train\nval: images/val\n"
    (root / "custom.yaml").write_text(f"{parts}names: [elk, owl]\n")
    (root / "training.yaml").write_text("epochs: 5\n")
    for path in (root, root / "custom.yaml"):
        train, validation, _ = opened(path)
        assert train.classes == validation.classes == ("elk", "owl")
        assert open_evaluation(path, PLAIN, ("owl", "elk"), "detection").items[0].classes == (0,)
    (root / "other.yml").write_text(f"{parts}names: [cat, dog]\n")
    assert opened(root / "other.yml").train.classes == ("cat", "dog")
    assert opened(root / "custom.yaml").validation.classes == ("elk", "owl")
    with pytest.raises(DataError, match=r'2 files that name classes: "custom.yaml", "other.yml"'):
        opened(root)
    (root / "data.yaml").write_text(f"{parts}names: [ant, bee]\n")
    assert opened(root).train.classes == ("ant", "bee")
    other = DataSettings(path=str(root / "custom.yaml"))  # what was trained on is no file of what is judged on
    assert open_evaluation(root / "other.yml", other, ("cat", "dog"), "detection").items[0].classes == (1,)


def test_a_list_of_a_file_of_any_name(tmp_path):
    root = placed(tmp_path, {"a": BOX, "c": BOX}, names="")
    (root / "mine.txt").write_text("images/train/c.jpg\n")
    (root / "custom.yaml").write_text("train: mine.txt\nval: images/train\nnames: [elk, owl]\n")
    train, validation, _ = opened(root / "custom.yaml")
    assert ([item.path.name for item in train.items], len(validation), train.classes) == (["c.jpg"], 2, ("elk", "owl"))


@pytest.mark.parametrize(("number", "hints"), [("2", 0), ("3", 1), ("1", 1), ("two", 1)])
def test_a_number_of_classes_that_is_not_that_of_the_names(tmp_path, number, hints):
    root = placed(tmp_path, {"a": f"0 .1 .1 .1 .1\n{BOX}"}, names="")
    (root / "data.yaml").write_text(f"nc: {number}\nnames: [cat, dog]\n")
    listing = yolo.open(root, PLAIN, None, faults := Faults())
    assert (faults.counts["names-count"], faults.fatal) == (hints, 0)
    assert listing.classes == ("cat", "dog")
    assert sum("nc" in note for note in yolo.open(root, PLAIN, None).notes) == hints  # said in training too


POINTS = "0.45 0.45 2 0.5 0.5 1 0.55 0.55 0"


@pytest.mark.parametrize(
    ("shape", "points", "kinds"),
    [
        ("[3, 3]", POINTS, []),
        ("[3, 2]", "0.1 0.1 0.9 0.9 0.2 0.2", []),
        ("[3, 3]", "", []),
        ("[3, 3]", f"{POINTS} 0.9", ["score-ignored"]),
        ("[3, 2]", POINTS, ["record-bad"]),
        ("[4, 3]", POINTS, ["record-bad"]),
        ("null", POINTS, ["record-bad"]),
    ],
)
def test_key_points_are_left_out_and_said(tmp_path, shape, points, kinds):
    root = placed(tmp_path, {"a": f"1 0.5 0.5 0.2 0.25 {points}\n"}, names="")
    (root / "data.yaml").write_text(f"kpt_shape: {shape}\nnames: [cat, dog]\n")
    listing = yolo.open(root, PLAIN, None, faults := Faults())
    assert [fault.kind for fault in faults if fault.kind != "class-first"] == kinds
    boxes = listing.items[0].objects.boxes.tolist()
    assert boxes == ([] if kinds == ["record-bad"] else [[20, 15, 30, 25]])
    assert listing.items[0].objects.segmentations is None
    said = any("1 objects have key points, which are left out" in note for note in listing.notes)
    assert said == (bool(points) and bool(boxes))


@pytest.mark.parametrize("shape", ["17", "[17]", "[17, 4]", "[a, b]", "[0, 3]", "[1.5, 2]"])
def test_shapes_of_key_points_that_are_none(tmp_path, shape):
    root = placed(tmp_path, {"a": BOX}, names="")
    (root / "data.yaml").write_text(f"kpt_shape: {shape}\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match="kpt_shape is not two whole numbers"):
        yolo.open(root, PLAIN, None)


@pytest.mark.parametrize("points", [POINTS + " 0.4 0.5 2", "0.45 0.45 0.5 0.5 0 0", "0.45 0.45 0.5 0.5 0.55 0.55"])
def test_what_may_be_key_points_is_a_hint(tmp_path, points):
    faults = Faults()
    yolo.open(placed(tmp_path, {"a": f"0 0.5 0.5 0.4 0.4 {points}\n"}), PLAIN, None, faults)
    assert faults.counts["points-likely"] == 1
    outline = "0 0.1 0.1 0.5 0.1 0.9 0.1 0.9 0.9 0.5 0.9\n"
    yolo.open(placed(tmp_path, {"a": outline}), PLAIN, None, faults := Faults())
    assert faults.counts.total() == 0


def test_oriented_boxes_are_called_so(tmp_path):
    turned = "0 0.5 0.2 0.74 0.5 0.5 0.8 0.26 0.5\n"  # a square of 40 x 50 pixels, on a corner
    straight = "1 0.2 0.2 0.8 0.2 0.8 0.8 0.2 0.8\n"
    listing = yolo.open(placed(tmp_path, {"a": turned + straight}), PLAIN, None, faults := Faults())
    assert faults.counts == {"box-oriented": 2}
    np.testing.assert_allclose(listing.items[0].objects.boxes[0], [13, 8, 37, 32], rtol=1e-6)
    for others in (straight, "0 0.5 0.2 0.9 0.5 0.5 0.8 0.26 0.5\n", turned + BOX):
        yolo.open(placed(tmp_path, {"a": others}), PLAIN, None, faults := Faults())
        assert not faults.counts["box-oriented"]
    dota = "100.0 100.0 200.0 100.0 200.0 200.0 100.0 200.0 plane 0\n"
    yolo.open(placed(tmp_path, {"a": dota}), PLAIN, None, faults := Faults())
    assert [(fault.kind, "DOTA" in fault.what) for fault in faults] == [("record-bad", True)]


def test_scores_of_predictions_are_left_out_and_said(tmp_path):
    (tmp_path / "labels").mkdir()
    instances = Instances(
        torch.tensor([[20.0, 15, 30, 25], [1, 2, 3, 4]]), torch.tensor([1, 0]), scores=torch.tensor([0.875, 1.0])
    )
    own = "\n".join(yolo_lines(instances, (HEIGHT, WIDTH)))
    root = placed(tmp_path, {"a": own}, pictures="images", texts="labels")
    listing = yolo.open(root, PLAIN, None, faults := Faults())
    np.testing.assert_allclose(listing.items[0].objects.boxes, [[20, 15, 30, 25], [1, 2, 3, 4]], rtol=1e-5)
    assert faults.counts == {"score-ignored": 2}
    assert any("2 lines with a sixth number" in note for note in yolo.open(root, PLAIN, None).notes)
    for number in ("1.57", "-0.3", "nan"):
        yolo.open(
            placed(tmp_path, {"a": f"{BOX} {number}"}, pictures="images", texts="labels"),
            PLAIN,
            None,
            faults := Faults(),
        )
        assert faults.counts == {"record-bad": 1}


def test_tracks_of_predictions_are_left_out_too(tmp_path):
    text = f"{BOX} 0.9 1\n0 0.5 0.5 0.2 0.25 0.8 12\n1 0.1 0.1 0.5 0.1 0.5 0.5\n"
    listing = yolo.open(placed(tmp_path, {"a": text}), PLAIN, None, faults := Faults())
    np.testing.assert_allclose(listing.items[0].objects.boxes, [[20, 15, 30, 25]] * 2 + [[5, 4, 25, 20]])
    assert faults.counts == {"score-ignored": 2}
    triangle = yolo.open(placed(tmp_path, {"a": f"{BOX} 0.9 1\n"}), PLAIN, None)
    assert triangle.items[0].objects.segmentations is not None


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("0 .3 .3 .6 .7\n1 .1 .2 .4 .5\n", "shares of corners x1, y1, x2, y2, not of centre and size"),
        ("0 .02 .1 .3 .05\n0 .6 .02 .1 .9\n", "shares of the upper left corner and the size"),
        ("0 20 20 10 10\n1 30 20 10 10\n", "pixels, where shares"),
        ("0 10 10 45 35\n1 5 20 40 39\n", "corners x1, y1, x2, y2 in pixels"),
    ],
)
def test_other_notations_are_recognised(tmp_path, lines, said):
    root = placed(tmp_path, {"a": lines})
    with pytest.raises(DataError, match=f"2 boxes that leave their picture.*looks like {said}") as caught:
        yolo.open(root, PLAIN, None)
    assert ("looks like pixels" in str(caught.value)) == said.startswith("pixels")


@pytest.mark.parametrize(
    ("lines", "hints"),
    [
        ("0 .4 .4 .6 .6\n1 .5 .5 .7 .7\n0 .42 .4 .6 .6\n", 1),
        ("0 .4 .4 .6 .6\n1 .5 .5 .7 .7\n", 0),  # two could be so by chance
        ("0 .4 .4 .6 .6\n1 .5 .5 .7 .7\n0 .42 .4 .6 .3\n", 0),
    ],
)
def test_corners_inside_their_picture_are_a_hint(tmp_path, lines, hints):
    yolo.open(placed(tmp_path, {"a": lines}), PLAIN, None, faults := Faults())
    assert (faults.counts["box-order"], faults.fatal) == (hints, 0)


def darknet(root, *, data=True, pictures=True):
    for part in ("train", "valid"):
        placed(
            root, {f"{part}1": BOX, f"{part}2": BOX}, pictures=f"obj_{part}_data", texts=f"obj_{part}_data", names=""
        )
        (root / f"{part}.txt").write_text("".join(f"data/obj_{part}_data/{part}{number}.jpg\n" for number in (1, 2)))
    (root / "obj.names").write_text("cat\ndog\n")
    if data:
        lines = (
            "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
        )
        (root / "obj.data").write_text(lines)
    for picture in () if pictures else root.rglob("*.jpg"):
        picture.unlink()
    return root


@pytest.mark.parametrize("data", [True, False])
def test_lists_of_darknet_as_cvat_writes_them(tmp_path, data):
    root = darknet(tmp_path, data=data)
    before = tree_state(root)
    for path in (root, *([root / "obj.data"] * data)):
        train, validation, _ = opened(path)
        assert [train.name(index) for index in range(2)] == [f"obj_train_data/train{n}.jpg" for n in (1, 2)]
        assert [item.path.name for item in validation.items] == ["valid1.jpg", "valid2.jpg"]
        assert train.classes == validation.classes == ("cat", "dog")
        assert train.items[0].objects.boxes.tolist() == [[20, 15, 30, 25]]
    assert len(yolo.open(root / "train.txt", PLAIN, None)) == 2
    assert len(yolo.open(root / "obj_train_data", PLAIN, None)) == 2
    assert tree_state(root) == before


def test_names_and_lists_that_are_called_otherwise(tmp_path):
    root = darknet(tmp_path)
    (root / "obj.names").rename(root / "birds.names")
    (root / "obj.data").rename(root / "birds.data")
    text = (root / "birds.data").read_text().replace("obj.names", "birds.names").replace("train.txt", "Train.txt")
    (root / "birds.data").write_text(text)
    (root / "train.txt").rename(root / "Train.txt")
    for path in (root, root / "birds.data"):
        train, validation, _ = opened(path)
        assert train.classes == validation.classes == ("cat", "dog")
        assert (len(train), len(validation)) == (2, 2)
    (root / "other.data").write_text("hello = there\n")
    assert not yolo.recognises(root / "other.data")


def test_lists_of_darknet_without_pictures(tmp_path):
    with pytest.raises(DataError, match=r"2 listed pictures that are not there: data/obj_train_data/train1\.jpg"):
        opened(darknet(tmp_path, pictures=False))


@pytest.mark.parametrize("base", [".", "./", "../set", "ROOT", "set-of-mine", "ROOT/../set"])
def test_a_path_that_stays_in_its_folder(tmp_path, base):
    root = tmp_path / "set"
    described(placed(root, {"a": BOX}), path=base.replace("ROOT", str(root)), train="images/train", val="images/train")
    train, _, notes = opened(root)
    assert len(train) == 1
    assert not any("followed" in note for note in notes)


@pytest.mark.parametrize("base", ["../datasets/c8", "ABOVE/datasets/c8", "..\\datasets\\c8", "~/c8", "D:/c8"])
def test_a_path_that_leads_elsewhere_is_not_followed_and_what_to_give_is_said(tmp_path, base):
    placed(tmp_path / "datasets" / "c8", {"a": BOX})
    (tmp_path / "cfg").mkdir()
    base = base.replace("ABOVE", str(tmp_path))
    described(tmp_path / "cfg", path=base, train="images/train")
    with pytest.raises(DataError, match=r'no such train: "images/train", and path ".*" leads out') as caught:
        opened(tmp_path / "cfg" / "data.yaml")
    assert base in str(caught.value)
    assert f"{tmp_path}/datasets/c8/images/train" in caught.value.remedy or base in ("~/c8", "D:/c8")
    placed(tmp_path / "cfg", {"b": BOX})  # and with pictures beside it is a note
    described(tmp_path / "cfg", path=base, train="images/train", val="images/train")
    notes = opened(tmp_path / "cfg").notes
    assert any(f'path "{base[:80]}" leads out of its folder and is not followed' in note for note in notes)


def test_folders_in_any_case(tmp_path):
    placed(tmp_path, {"a": BOX}, pictures="Images/train", texts="LABELS/train")
    assert yolo.recognises(tmp_path)
    assert len(yolo.open(tmp_path / "Images" / "train", PLAIN, None).items[0].objects.boxes) == 1
    placed(tmp_path / "voc", {"a": BOX}, pictures="JPEGImages", texts="labels")
    assert len(yolo.open(tmp_path / "voc", PLAIN, None).items[0].objects.boxes) == 1


def test_lists_with_names_that_are_near_long_or_whole(tmp_path):
    root = described(placed(tmp_path / "set", {"a": BOX, "b": BOX, "c": BOX}), train="train.txt")
    names = ["images\\train\\a.jpg", "images/train/B.JPG", "x" * 5000, f"{root}/images/train/c.jpg", "C:\\my\\a.jpg"]
    (root / "train.txt").write_bytes("\r\n".join(names).encode("utf-16"))
    listing = yolo.open(root / "train.txt", PLAIN, None, faults := Faults())
    assert [item.path.name for item in listing.items] == ["a.jpg", "c.jpg"]
    said = {fault.kind: fault.what for fault in reversed(list(faults))}
    assert 'there is "images/train/b.jpg", in other case' in said["picture-missing"]
    assert 'there is "images/train/a.jpg", in another folder' in said["picture-outside"]


def test_labels_and_parts_with_near_names(tmp_path):
    root = described(placed(tmp_path, {"a": BOX}), train="images/Train", val="images/train")
    with pytest.raises(DataError, match=r'no such train: "images/Train".*; there is "images/train"'):
        opened(root)
    (root / "labels" / "train" / "a.txt").rename(root / "labels" / "train" / "a.jpg.txt")
    yolo.open(root, PLAIN, None, faults := Faults())
    assert [(fault.kind, fault.what) for fault in faults] == [("labels-alone", 'there is "train/a.jpg"')]


def test_texts_in_utf16_and_labels_of_other_case(tmp_path):
    root = described(placed(tmp_path, {"a": BOX, "b": BOX}, names=""), train="images/train", val="images/train")
    for file in (root / "data.yaml", root / "labels" / "train" / "a.txt"):
        file.write_bytes(file.read_text().encode("utf-16"))
    (root / "labels" / "train" / "b.txt").rename(root / "labels" / "train" / "B.txt")
    listing = yolo.open(root / "images" / "train", PLAIN, None, faults := Faults())
    assert [len(item.objects.boxes) for item in listing.items] == [1, 0]
    assert [(fault.kind, fault.where) for fault in faults if fault.fatal] == [("labels-alone", "B.txt")]
    assert next(fault.what for fault in faults if fault.fatal).startswith('there is "b.jpg", in other case')
