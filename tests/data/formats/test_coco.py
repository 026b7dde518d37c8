import json

import numpy as np
import pytest
from annotated import runs
from bad_pictures import encode, exif, gradient, tree_state
from PIL import Image

from patchform.data import json_lists
from patchform.data.checks.base import look
from patchform.data.checks.examination import check, examine
from patchform.data.dataset import open_data
from patchform.data.faults import KINDS, Faults
from patchform.data.formats.coco import Coco
from patchform.data.listing import RLE
from patchform.data.outlines import outline_box
from patchform.errors import DataError, UsageError
from patchform.records import Preprocessing
from patchform.settings import DataSettings
from patchform.tasks.instance_segmentation import InstanceSegmentation

coco = Coco()

PLAIN = DataSettings()
WIDTH, HEIGHT = 48, 32


def annotation(image=1, category=7, bbox=(2, 3, 10, 12), **more):
    return {"image_id": image, "category_id": category, "bbox": list(bbox), "area": 99.5, "iscrowd": 0, **more}


def document(annotations, *, images=("a.jpg", "b.jpg"), categories=((7, "cat"), (2, "dog")), **more):
    return {
        "info": {"year": 2020},
        "images": [
            {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT} for number, name in enumerate(images, 1)
        ],
        "annotations": [{"id": number, **record} for number, record in enumerate(annotations, 1)],
        "categories": [{"id": id_, "name": name} for id_, name in categories],
        **more,
    }


def placed(root, content, *, file="annotations/instances_train.json", folder="train", names=("a.jpg", "b.jpg")):
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    for name in names:
        picture = root / folder / name
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(encode(Image.fromarray(gradient(HEIGHT, WIDTH)), "JPEG"))
    return path


def faults_of(root, annotations, **more):
    """(kind, where, what) of all that is wrong, and the listing without it."""
    faults = Faults()
    listing = coco.open(placed(root, document(annotations, **more)), PLAIN, None, faults)
    return [(fault.kind, fault.where, fault.what) for fault in faults], listing


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/instances_train.json", "train"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/instances_train2017.json", "images"),
        ("annotations/train.json", "train/images"),
        ("train_annotations.json", "train"),
        ("annotations/instances_train.json", "."),
        ("train.json", "data"),
        ("annotations/person_keypoints_train2017.json", "train2017"),
    ],
)
def test_where_files_lie(tmp_path, file, folder):
    placed(tmp_path, document([annotation()]), file=file, folder=folder)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations" / "captions_train2017.json").write_text('{"images": [], "annotations": []}')
    (tmp_path / "package.json").write_text('{"name": "site"}')
    before = tree_state(tmp_path)
    assert coco.recognises(tmp_path)
    assert coco.parts(tmp_path) == (tmp_path / file, None)
    listing = coco.open(tmp_path / file, PLAIN, None)
    assert [item.path for item in listing.items] == [tmp_path / folder / "a.jpg", tmp_path / folder / "b.jpg"]
    assert listing.items[0].objects.boxes.tolist() == [[2, 3, 12, 15]]
    assert tree_state(tmp_path) == before


def test_a_file_in_each_folder_as_roboflow_writes(tmp_path):
    for part in ("train", "valid", "test"):
        placed(tmp_path / part, document([annotation()]), file="_annotations.coco.json", folder=".")
    pre = Preprocessing(resize="keep")
    train, validation, _ = open_data(DataSettings(path=str(tmp_path)), seed=0, preprocessing=pre, task="detection")
    assert (train.root, validation.root) == (tmp_path / "train", tmp_path / "valid")
    assert not coco.recognises(tmp_path)


def test_several_lists_of_a_part_are_not_guessed_at(tmp_path):
    for year in (2014, 2017):
        placed(tmp_path, document([]), file=f"annotations/instances_train{year}.json")
    with pytest.raises(DataError, match="2 lists of annotations"):
        coco.parts(tmp_path)
    with pytest.raises(DataError, match="2 lists of annotations"):
        coco.open(tmp_path, PLAIN, None)


def test_ids_with_gaps_in_any_order_before_their_images_and_as_texts(tmp_path):
    content = document(
        [annotation("two", "x"), annotation(9, 0), annotation("two", 0)], categories=[("x", "b"), (0, "a")]
    )
    content["images"][0]["id"], content["images"][1]["id"] = 9, "two"
    turned = {key: content[key] for key in ("annotations", "categories", "images")}
    listing = coco.open(placed(tmp_path, turned), PLAIN, None)
    assert (listing.classes, listing.ids) == (("b", "a"), ("x", 0))
    assert [(item.objects.id, item.objects.classes.tolist(), item.classes) for item in listing.items] == [
        (9, [1], (1,)),
        ("two", [0, 1], (0, 1)),
    ]
    again = coco.open(tmp_path / "annotations" / "instances_train.json", PLAIN, ("elk", "a", "b"))
    assert (again.classes, again.ids) == (("elk", "a", "b"), (1, 0, "x"))


def test_outlines_of_all_kinds_crowds_and_pictures_without_objects(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:9, 4:20] = True
    plain = runs(mask)
    polygons = [[1, 2, 10, 2, 10, 9], [20, 20, 30, 20, 30.5, 30, 20, 30]]
    listing = coco.open(
        placed(
            tmp_path,
            document(
                [
                    annotation(segmentation=polygons),
                    annotation(segmentation={"size": list(plain.size), "counts": list(plain.counts)}, iscrowd=1),
                    annotation(),
                    annotation(segmentation=[]),
                ]
            ),
        ),
        PLAIN,
        None,
    )
    first, second = (item.objects for item in listing.items)
    assert first.segmentations[0][1].tolist() == [[20, 20], [30, 20], [30.5, 30], [20, 30]]
    assert first.segmentations[0][0].dtype == np.float32
    assert first.segmentations[1:] == (plain, None, None)
    assert first.crowd.tolist() == [False, True, False, False]
    assert first.areas.tolist() == [99.5] * 4
    assert (len(second.boxes), second.crowd, second.segmentations, second.size) == (0, None, None, (HEIGHT, WIDTH))
    assert listing.notes == (
        "1 of 2 pictures have no object; they are kept",
        "1 crowd regions count for nothing: neither right nor wrong",
    )


def test_compressed_run_lengths_are_checked_as_pycocotools_writes_them(tmp_path):
    tools = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(0)
    annotations = []
    for _ in range(20):
        mask = random.uniform(0, 1, (HEIGHT, WIDTH)) > random.uniform(0.02, 0.98)
        found = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
        annotations.append(annotation(segmentation={"size": found["size"], "counts": found["counts"].decode()}))
    faults, listing = faults_of(tmp_path, annotations)
    assert faults == []
    assert listing.items[0].objects.segmentations[3] == RLE(found_bytes(annotations[3]), (HEIGHT, WIDTH))


def found_bytes(record):
    return record["segmentation"]["counts"].encode()


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        ({"size": [WIDTH, HEIGHT], "counts": [10, 20, HEIGHT * WIDTH - 30]}, "outline-bad"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, 20, HEIGHT * WIDTH - 31]}, "outline-bad"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, -20, HEIGHT * WIDTH + 10]}, "outline-bad"),
        ({"size": [HEIGHT, WIDTH], "counts": [10**30]}, "outline-bad"),
        ({"size": [HEIGHT, WIDTH], "counts": "0o"}, "outline-bad"),
        ({"size": [HEIGHT, WIDTH], "counts": "oooooooooooooooooooooooo0"}, "outline-bad"),
        ({"size": [HEIGHT, WIDTH], "counts": "~~ "}, "outline-bad"),
        ({"size": [HEIGHT, WIDTH], "counts": []}, "outline-bad"),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, "outline-degenerate"),
        ({"size": [HEIGHT, WIDTH], "counts": [1.5]}, "outline-bad"),
        ({"size": [HEIGHT, WIDTH]}, "outline-bad"),
        ({"size": "large", "counts": []}, "outline-bad"),
        ({"size": "72", "counts": []}, "outline-bad"),
        ([[1, 2, 3, 4]], "outline-degenerate"),
        ([[1, 2, 3, 4, 5, 6, 7]], "outline-degenerate"),
        ([[5, 2, 5, 9, 5, 4]], "outline-degenerate"),
        ([[1, 2, 1e300, 4, 5, 6]], "outline-degenerate"),
        ([[1, 2, 10, 2, 10, 9], [1, 2, 3, 4]], "part-degenerate"),
        ([[1, 2, 1000000, 2, 10, 9]], "outline-clipped"),
        ([[1, "two", 10, 2, 10, 9]], "outline-bad"),
        ("polygon", "outline-bad"),
        (7, "outline-bad"),
    ],
)
def test_bad_outlines(tmp_path, segmentation, kind):
    faults, listing = faults_of(tmp_path, [annotation(), annotation(segmentation=segmentation)])
    assert [fault[0] for fault in faults] == [kind]
    objects = listing.items[0].objects
    assert objects.boxes.tolist() == [[2, 3, 12, 15]] * 2  # whatever the outline
    assert "box" in KINDS[kind].remedy or kind in ("part-degenerate", "outline-clipped")
    if kind in ("part-degenerate", "outline-clipped"):
        (polygon,) = objects.segmentations[1]
        assert abs(polygon).max() <= 2 * WIDTH
    else:
        assert objects.segmentations is None
        task = InstanceSegmentation()
        look(task.checks, task.subject(listing, training=True), told := Faults(), "listed")
        assert (told.counts["outline-missing"], told.fatal) == (2, 2)


@pytest.mark.parametrize(
    ("bbox", "kind", "kept"),
    [
        ((5, 5, 0, 10), "box-empty", False),
        ((5, 5, 10, 0), "box-empty", False),
        ((5, 5, -3, 10), "box-bad", False),
        ((5, 5, 1e999, 10), None, False),
        ((40, 20, 20, 20), "box-clipped", True),
        ((-3, 20, 20, 5), "box-clipped", True),
        ((50, 20, 20, 20), "box-outside", False),
        ((-30, 20, 30, 20), "box-outside", False),
        (("5", 5, 3, 10), "record-bad", False),
        ((5, 5, 3), "record-bad", False),
        (None, "record-bad", False),
    ],
)
def test_bad_boxes(tmp_path, bbox, kind, kept):
    good = [annotation(bbox=(index, 1, 10, 10)) for index in range(9)]
    content = document([*good, {**annotation(), "bbox": bbox}])
    text = json.dumps(content).replace("Infinity", "1e999")
    faults = Faults()
    listing = coco.open(placed(tmp_path, text), PLAIN, None, faults)
    assert [fault.kind for fault in faults] == [kind or "box-bad"]
    boxes = listing.items[0].objects.boxes
    assert len(boxes) == 9 + kept
    assert (boxes >= 0).all()
    assert (boxes <= (WIDTH, HEIGHT, WIDTH, HEIGHT)).all()
    assert ((boxes[:, 2:] - boxes[:, :2]) > 0).all()


def test_corners_in_place_of_sizes_are_recognised(tmp_path):
    corners = [annotation(bbox=(20 + index, 15, 40, 30)) for index in range(8)]
    faults, _ = faults_of(tmp_path, [*corners, *[annotation()] * 8])
    assert {fault[0] for fault in faults} == {"box-corners", "box-clipped"}
    assert ("box-corners", "a.jpg, annotation 1", "x1 20, y1 15, x2 60, y2 45, looks like x1, y1, x2, y2") in faults
    with pytest.raises(
        DataError, match=r"8 boxes that leave their picture, more than a fifth.*looks like x1, y1, x2, y2"
    ):
        coco.open(tmp_path / "annotations" / "instances_train.json", PLAIN, None)
    faults, _ = faults_of(tmp_path, [*corners[:3], *[annotation()] * 12])
    assert {fault[0] for fault in faults} == {"box-clipped"}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda c: c["images"][1].update(id=1), "id-twice"),
        (lambda c: c["annotations"][1].update(id=1), "id-twice"),
        (lambda c: c["categories"][1].update(id=7), "id-twice"),
        (lambda c: c["categories"][1].update(name="cat"), "id-twice"),
        (lambda c: c["annotations"][1].update(image_id=77), "picture-unknown"),
        (lambda c: c["annotations"][1].update(image_id="01"), "picture-unknown"),
        (lambda c: c["annotations"][1].update(category_id=77), "class-unknown"),
        (lambda c: c["annotations"][1].update(category_id=None), "record-bad"),
        (lambda c: c["annotations"][1].update(iscrowd=2), "record-bad"),
        (lambda c: c["annotations"][1].update(area="big"), "record-bad"),
        (lambda c: c["annotations"][0].update(id=None), "record-bad"),
        (lambda c: c["annotations"].append("text"), "record-bad"),
        (lambda c: c["annotations"].append([1]), "record-bad"),
        (lambda c: c["images"].append({"id": 3}), "record-bad"),
        (lambda c: c["images"].append({"id": True, "file_name": "a.jpg"}), "record-bad"),
        (lambda c: c["images"][1].update(width=-4), "record-bad"),
        (lambda c: c["images"][1].update(file_name="a.jpg"), "picture-twice"),
        (lambda c: c["images"][1].update(file_name="../../secret.jpg"), "picture-outside"),
        (lambda c: c["images"][1].update(file_name="/etc/passwd"), "picture-outside"),
        (lambda c: c["images"][1].update(file_name="C:\\secret.jpg"), "picture-outside"),
        (lambda c: c["images"][1].update(file_name="gone.jpg"), "picture-missing"),
    ],
)
def test_bad_records_are_collected(tmp_path, change, kind):
    content = document([annotation(), annotation(image=2, category=2)])
    change(content)
    file, faults = placed(tmp_path, content), Faults()
    listing = coco.open(file, PLAIN, None, faults)
    assert all(item.path.is_file() for item in listing.items)
    assert all(len(item.objects.boxes) <= 1 for item in listing.items)
    kinds = [fault.kind for fault in faults]
    assert kinds[0] == kind or kind in kinds
    assert set(kinds) <= {kind, "picture-unknown", "class-unknown", "picture-missing"}
    with pytest.raises(DataError, match=str(file)):
        coco.open(file, PLAIN, None)


def test_all_faults_are_told_at_once(tmp_path):
    bad = [annotation(image=70 + index) for index in range(7)] + [annotation(bbox=(1, 2, -1, 4))] + [annotation()] * 3
    with pytest.raises(DataError) as caught:
        coco.open(placed(tmp_path, document(bad)), PLAIN, None)
    text = str(caught.value)
    assert "8 faults (7 objects of a picture that is not listed, 1 boxes with a negative side" in text
    assert "image 70, annotation 1 (image_id 70); image 71" in text
    assert "image 75" not in text
    assert "list the picture, or remove them" in text


def test_pictures_of_another_size_or_as_they_lie(tmp_path):
    placed(tmp_path, document([annotation(), annotation(3)], images=("a.jpg", "b.jpg", "c.jpg")), names=["c.jpg"])
    image = Image.fromarray(gradient(WIDTH, HEIGHT))  # lies on its side
    (tmp_path / "train" / "a.jpg").write_bytes(encode(image, "JPEG"))
    (tmp_path / "train" / "b.jpg").write_bytes(encode(Image.fromarray(gradient(HEIGHT, WIDTH)), "JPEG", exif=exif(6)))
    listing = coco.open(tmp_path, PLAIN, None)
    faults = examine(listing, Preprocessing()).faults
    assert [(fault.kind, fault.where) for fault in faults] == [("size-differs", "a.jpg"), ("size-turned", "b.jpg")]
    assert faults[1].what == "annotated as 48 x 32 pixels, it has 32 x 48 upright"
    assert faults[0].what == "annotated as 48 x 32 pixels, it has 32 x 48"
    kept, _ = check(listing, Preprocessing(), skip_bad=0.7)
    assert [item.path.name for item in kept.items] == ["c.jpg"]


def test_sizes_that_are_not_given_are_those_of_the_upright_pictures(tmp_path):
    content = document([annotation(bbox=(1, 1, 100, 100)), *[annotation(2)] * 5])
    for record in content["images"]:
        del record["width"], record["height"]
    file = placed(tmp_path, content)
    (tmp_path / "train" / "a.jpg").write_bytes(encode(Image.fromarray(gradient(HEIGHT, WIDTH)), "JPEG", exif=exif(8)))
    listing = coco.open(file, PLAIN, None)
    assert [item.objects.size for item in listing.items] == [(WIDTH, HEIGHT), (HEIGHT, WIDTH)]
    assert listing.items[0].objects.boxes.tolist() == [[1, 1, HEIGHT, WIDTH]]
    (tmp_path / "train" / "b.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"b\.jpg \(not a picture"):
        coco.open(file, PLAIN, None)


def test_documents_that_are_none(tmp_path):
    for text, reason in (
        ("[]", "a list, where an object is expected"),
        ('{"images": [], "annotations": []}', 'no list "categories"'),
        ('{"images": [], "annotations": [], "categories": []}', "no categories"),
    ):
        with pytest.raises(DataError, match=reason):
            coco.open(placed(tmp_path, text), PLAIN, None)
    with pytest.raises(UsageError):
        coco.open(placed(tmp_path, document([])), DataSettings(classes=("elk",)), None)


def test_class_names_that_differ_by_case(tmp_path):
    with pytest.raises(DataError, match='"cat" and "Cat "'):
        coco.open(placed(tmp_path, document([], categories=[(1, "cat"), (2, "Cat ")])), PLAIN, None)


def test_pycocotools_reads_what_is_written(tmp_path, capsys):
    tools = pytest.importorskip("pycocotools.coco")
    content = document([annotation(segmentation=[[1, 2, 10, 2, 10, 9.25]]), annotation(2, 2, (1.5, 2.5, 3.25, 4.75))])
    coco.write(coco.open(placed(tmp_path / "a", content), PLAIN, None), tmp_path / "b")
    theirs = tools.COCO(str(tmp_path / "b" / "annotations" / "instances_train.json"))
    assert theirs.loadAnns([1])[0]["segmentation"] == [[1, 2, 10, 2, 10, 9.25]]
    assert theirs.loadAnns([2])[0]["bbox"] == [1.5, 2.5, 3.25, 4.75]
    capsys.readouterr()


def test_a_large_set_is_listed_in_linear_time(tmp_path):
    images = [f"{number}.jpg" for number in range(3000)]
    content = document([annotation(1 + number % 3000) for number in range(20000)], images=images)
    listing = coco.open(placed(tmp_path, content, names=[]), DataSettings(skip_bad=0.99), None, Faults())
    assert len(listing) == 0
    assert json_lists.MAX_BYTES == 2_000_000_000


@pytest.mark.parametrize("lacking", [{}, {"bbox": None}, {"bbox": []}, {"bbox": [0, 0, 0, 0]}])
def test_a_box_that_is_not_given_is_that_of_the_outline(tmp_path, lacking):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:9, 4:20] = True
    column = np.zeros_like(mask)
    column[30:, 7] = column[:2, 8] = True  # one run, from the foot of a column to the head of the next
    outlines = [
        [[1, 2, 10, 2, 10, 9.5], [20, 20, 30, 20, 30, 30]],
        {"size": [HEIGHT, WIDTH], "counts": list(runs(mask).counts)},
        {"size": [HEIGHT, WIDTH], "counts": list(runs(column).counts)},
    ]
    records = [{**annotation(segmentation=outline), **lacking} for outline in outlines]
    for record in records:
        del record["area"]
        if not lacking:
            del record["bbox"]
    listing = coco.open(placed(tmp_path, document(records)), PLAIN, None)
    boxes = [[1, 2, 30, 30], [4, 3, 20, 9], [7, 0, 9, HEIGHT]]
    assert listing.items[0].objects.boxes.tolist() == boxes
    assert listing.items[0].objects.areas is None
    assert "3 boxes are those of their outlines, none was given" in listing.notes


def test_boxes_around_random_run_lengths():
    random = np.random.default_rng(3)
    for _ in range(50):
        mask = random.uniform(0, 1, (7, 9)) > random.uniform(0.5, 0.99)
        if not mask.any():
            assert outline_box(runs(mask)) is None
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert outline_box(runs(mask)) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert outline_box(RLE((3, 4), (7, 9))) is None  # too short
    assert outline_box(RLE(b"~~", (7, 9))) is None


@pytest.mark.parametrize("outline", [None, [], [[]], [[1, 2, 3, 4]], {"size": [1, 1], "counts": [1]}, "polygon"])
def test_neither_box_nor_outline(tmp_path, outline):
    faults, listing = faults_of(tmp_path, [annotation(), annotation(bbox=(), segmentation=outline)])
    assert [fault[:2] for fault in faults] == [("record-bad", "instances_train.json, annotations[1]")]
    assert "neither a bbox nor an outline" in faults[0][2]
    assert len(listing.items[0].objects.boxes) == 1


def test_names_and_sizes_of_the_other_type(tmp_path):
    content = document([annotation()], categories=((7, 10), (2, 9)))
    content["images"][0].update(width=str(WIDTH), height=str(HEIGHT))
    listing = coco.open(placed(tmp_path, content), PLAIN, None)
    assert (listing.classes, listing.items[0].objects.size) == (("10", "9"), (HEIGHT, WIDTH))
    content["categories"][0]["name"] = 1.5
    coco.open(placed(tmp_path, content), PLAIN, None, faults := Faults())
    assert faults.counts == {"record-bad": 1, "class-unknown": 1}


def test_keys_that_are_null_or_whole_numbers_with_a_point(tmp_path):
    record = annotation(1.0, 7.0, iscrowd=None, area=None, segmentation=None)
    faults, listing = faults_of(tmp_path, [record, annotation(1.5)])
    assert [(kind, what) for kind, _, what in faults] == [("record-bad", "'1.5' is no id")]
    assert listing.items[0].objects.classes.tolist() == [0]


@pytest.mark.parametrize("empty", [[], None])
def test_no_annotations_at_all(tmp_path, empty):
    listing = coco.open(placed(tmp_path, {**document([]), "annotations": empty}), PLAIN, None)
    assert [len(item.objects.boxes) for item in listing.items] == [0, 0]
    content = document([])
    del content["annotations"]
    with pytest.raises(DataError, match='no list "annotations"'):
        coco.open(placed(tmp_path, content), PLAIN, None)


def test_ids_of_the_other_type_are_matched_and_said(tmp_path):
    faults, listing = faults_of(tmp_path, [annotation("1", "7"), annotation("2", 2)])
    assert [item.objects.classes.tolist() for item in listing.items] == [[0], [1]]
    assert [fault[0] for fault in faults] == ["id-type"] * 3
    assert 'image_id the text "1", listed is the number 1' in {what for _, _, what in faults}
    (note,) = coco.open(tmp_path / "annotations" / "instances_train.json", PLAIN, None).notes
    assert "3 ids that are text where those listed are numbers" in note


def test_ids_of_the_other_type_that_are_not_clear(tmp_path):
    content = document([annotation("1"), annotation("01"), annotation("3")])
    content["images"].append({"id": "1", "file_name": "c.jpg", "width": WIDTH, "height": HEIGHT})
    content["images"] += [{"id": id_, "file_name": f"{id_}.jpg", "width": 9, "height": 9} for id_ in (4, 5)]
    faults = Faults()
    listing = coco.open(
        placed(tmp_path, content, names=("a.jpg", "b.jpg", "c.jpg", "4.jpg", "5.jpg")), PLAIN, None, faults
    )
    assert [len(item.objects.boxes) for item in listing.items] == [0, 0, 1, 0, 0]  # of its own type comes first
    assert faults.counts == {"picture-unknown": 2}
    faults, _ = faults_of(tmp_path, [annotation("01"), annotation(1, "x")])
    assert {(kind, what) for kind, _, what in faults} == {
        ("picture-unknown", "image_id '01' is text, those listed are numbers"),
        ("class-unknown", "category_id 'x' is text, those listed are numbers"),
    }


@pytest.mark.parametrize(
    ("listed", "there"),
    [
        ("my%20photo.jpg", "my photo.jpg"),
        ("A.JPG", "a.jpg"),
        ("train/deep/a.jpg", "a.jpg"),
        ("C:\\mine\\a.jpg", "a.jpg"),
        ("/data/upload/1/a.jpg", "a.jpg"),
    ],
)
def test_near_names_of_pictures_are_offered(tmp_path, listed, there):
    file = placed(tmp_path, document([annotation()], images=(listed,)), names=(there,))
    faults = Faults()
    assert len(coco.open(file, PLAIN, None, faults)) == 0
    (fault,) = faults
    assert fault.kind in ("picture-missing", "picture-outside")
    assert f'there is "train/{there}"' in fault.what
    with pytest.raises(DataError, match=there):
        coco.open(file, PLAIN, None)


def test_absolute_names_inside_the_set_and_detours(tmp_path):
    names = (f"{tmp_path}/train/a.jpg", "../train/b.jpg", f"file://{tmp_path}/train/c.jpg", "train/./d.jpg")
    file = placed(tmp_path, document([annotation()], images=names), names=("a.jpg", "b.jpg", "c.jpg", "d.jpg"))
    listing = coco.open(file, PLAIN, None)
    assert [listing.name(index) for index in range(4)] == [f"train/{name}.jpg" for name in "abcd"]
    assert len(listing.items[0].objects.boxes) == 1


def test_names_that_no_file_can_have(tmp_path):
    file, faults = placed(tmp_path, document([], images=("x" * 5000 + ".jpg", "a\0b.jpg", "b.jpg"))), Faults()
    assert len(coco.open(file, PLAIN, None, faults)) == 1
    assert [(fault.kind, len(fault.where) < 200) for fault in faults] == [("picture-missing", True)] * 2


def test_a_list_in_utf16(tmp_path):
    file = placed(tmp_path, document([annotation()]))
    file.write_bytes(file.read_text().encode("utf-16"))
    assert coco.recognises(file)
    assert coco.recognises(tmp_path)
    assert len(coco.open(file, PLAIN, None)) == 2


@pytest.mark.parametrize(
    "content",
    [
        [document([])],
        document([{"segments_info": [], "file_name": "a.png", "image_id": 1}]),
        {"images": [], "annotations": [{"id": 1, "caption": "a cat", "image_id": 1}]},
    ],
)
def test_lists_of_other_things_are_none(tmp_path, content):
    assert not coco.recognises(placed(tmp_path, content))
