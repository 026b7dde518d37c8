"""Planted faults, each found with its kind and its place; clean sets, which are called clean."""

import json
import re
import shutil

import pytest
from bad_pictures import tree_state
from planted import PLANTED, make_set

from patchform import lookup
from patchform.data.faults import KINDS
from patchform.doctor import SHOWN, diagnose, draw_faults, sheet, task_of
from patchform.errors import DataError, UsageError
from patchform.settings import DataSettings

SETS = sorted({row[0] for row in PLANTED.values()})
TASKS = {"masks": "semantic_segmentation", "folders": "classification", "list": "classification"}
TASKS |= {"outlines": "instance_segmentation"}


@pytest.fixture(scope="module", params=["generated", "real"])
def clean(request, tmp_path_factory):
    """A function from the name of a set to a clean one, made when it is first asked for."""
    home, made = tmp_path_factory.mktemp(request.param), {}

    def get(name):
        if name not in made:
            try:
                made[name] = make_set(name, home / name, real=request.param == "real")
            except FileNotFoundError:
                made[name] = None
        return made[name] or pytest.skip("no real data (set PATCHFORM_DATA)")

    return get


def settings(name, root):
    if name == "list":
        return DataSettings(path=str(root / "train.csv"), validation=str(root / "val.csv"))
    return DataSettings(path=str(root))


@pytest.mark.parametrize("name", SETS)
def test_clean_sets_are_clean_and_stay_as_they_are(name, clean):
    root = clean(name)
    before = tree_state(root)
    places = [root, *(place for place in root.rglob("*") if place.is_dir())]
    for place in places:
        place.chmod(0o555)
    try:
        found = diagnose(settings(name, root))
        draw_faults(found)
    finally:
        for place in places:
            place.chmod(0o755)
    assert found.fatal == 0
    assert found.task == TASKS.get(name, "detection")
    assert [part.name for part in found.parts] == ["train", "validation"]
    assert all(sum(part.numbers) > 0 for part in found.parts)
    assert tree_state(root) == before


@pytest.mark.parametrize("planted", PLANTED)
def test_planted_faults_are_found(planted, clean, tmp_path):
    name, spoil, kind, said = PLANTED[planted]
    root = shutil.copytree(clean(name), tmp_path / "set")
    sound = {row["kind"]: row["count"] for row in diagnose(settings(name, root)).as_json()["found"]}
    place = spoil(root)
    before = tree_state(root)
    found = diagnose(settings(name, root), task=TASKS.get(name))
    rows = {row: (number, first) for row, number, first in found.by_kind()}
    assert kind in rows
    assert rows[kind][0] > sound.get(kind, 0)
    texts = [f"{fault.where}: {fault.what}" for _, fault in rows[kind][1]]
    assert any(re.search(place, text) and said in text for text in texts)
    assert bool(found.fatal) == any(KINDS[row].fatal for row in rows) >= KINDS[kind].fatal
    json.dumps(found.as_json(), allow_nan=False)
    drawn = [fault for _, fault, _ in draw_faults(found)]
    assert kind not in ("box-outside", "mask-bad", "box-rival") or any(fault.kind == kind for fault in drawn)
    assert tree_state(root) == before


def test_enough_is_planted():
    assert len(PLANTED) >= 40


def test_of_many_the_first_are_shown(tmp_path):
    root = make_set("folders", tmp_path / "set", real=False)
    for file in (root / "train" / "ants").iterdir():
        file.write_bytes(b"")
    found = diagnose(DataSettings(path=str(root)))
    ((kind, number, first),) = found.by_kind()
    assert (kind, number, len(first), found.fatal) == ("picture-bad", 6, SHOWN, 6)


def test_faults_behind_an_empty_class_and_in_both_parts_are_found(tmp_path):
    root = make_set("folders", tmp_path / "set", real=False)
    (root / "train" / "wasps").mkdir()
    for part in ("train", "val"):
        (root / part / "ants" / "000.png").write_bytes(b"")
    found = diagnose(DataSettings(path=str(root)))
    assert [(part.name, dict(part.faults.counts)) for part in found.parts] == [
        ("train", {"layout": 1, "picture-bad": 1, "class-unused": 1}),
        ("validation", {"picture-bad": 1}),
    ]


def test_the_task_is_guessed_or_asked_for(tmp_path):
    for name in SETS:
        if name != "list":
            assert task_of(make_set(name, tmp_path / name, real=False)) == TASKS.get(name, "detection").replace(
                "instance_segmentation", "detection"
            )
    with pytest.raises(DataError, match="no such file"):
        task_of(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no known layout .* looked for .*COCO"):
        diagnose(DataSettings(path=str(tmp_path / "empty")))
    with pytest.raises(DataError, match="no data for detection, but for classification"):
        diagnose(DataSettings(path=str(tmp_path / "folders")), task="detection")
    with pytest.raises(UsageError):
        diagnose(DataSettings())
    both = tmp_path / "both"
    shutil.copytree(tmp_path / "masks" / "images" / "training", both / "images")
    (both / "labels").mkdir()
    with pytest.raises(UsageError, match="--task"):
        task_of(both)


LAYOUTS = {
    "boxes": "COCO's json",
    "yolo": "YOLO's images/",
    "voc": "Pascal VOC's",
    "masks": "images/ beside masks/",
    "folders": "a folder of class folders",
}


@pytest.mark.parametrize("task", lookup.names("tasks"))
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_wrong_task_names_the_right_one(name, task, tmp_path):
    root = make_set(name, tmp_path / "set", real=False)
    right = TASKS.get(name, "detection")
    if task in (right, "pretraining"):  # any pictures may be learnt from without labels
        assert diagnose(settings(name, root), task=task).fatal == 0
        return
    try:
        found = diagnose(settings(name, root), task=task)
    except DataError as error:
        told = str(error)
    else:
        assert found.fatal
        told = "; ".join(f"{fault.what} {KINDS[fault.kind].remedy}" for part in found.parts for fault in part.faults)
    if task == "instance_segmentation" and right == "detection" and name != "voc":
        assert "set task to detection" in told
        return
    assert LAYOUTS[name] in told
    assert re.search(rf"\bfor [a-z_ ]*\b{right}\b", told)


def test_a_sheet_has_room_for_all():
    from PIL import Image

    page = sheet([Image.new("RGB", size, "red") for size in ((960, 480), (100, 200), (480, 960), (10, 10), (5, 5))])
    assert page.size == (8 + 3 * 488, 8 + 480 + 8 + 10 + 8)
