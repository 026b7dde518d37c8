"""What a prediction leaves in its folder: names that never collide, ids, nothing stale; and what it passes over."""

import hashlib
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from squares import detector, picture

from patchform.data.inputs import find
from patchform.data.outputs import LIST, distinct
from patchform.data.results import picture_ids
from patchform.errors import DataError, FolderError, UsageError
from patchform.prediction import Predictor, write
from patchform.tasks.detection import Detection

SQUARES = ((0, 5, 5, 10, 250), (1, 30, 8, 12, 140))


@pytest.fixture(scope="module")
def predictor():
    return Predictor(detector(facts={"ids": (7, 8, 9)}), Detection(), device="cpu")


def put(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture((40, 64), *SQUARES).permute(1, 2, 0).numpy()).save(path, format="PNG")
    return paths[0]


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {LIST}


def rows_of(folder):
    return json.loads((folder / "results.json").read_text())


def listed(file, images, categories=(("red", 1), ("green", 2), ("blue", 3)), **more):
    """COCO's json of these pictures, {name: id}."""
    document = {
        "images": [{"id": id_, "file_name": name} for name, id_ in images.items()],
        "annotations": [],
        "categories": [{"id": id_, "name": name} for name, id_ in categories],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document | more))
    return file


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("several", [False, True])
def test_pictures_of_one_name_in_two_folders_stay_apart(several, predictor, tmp_path):
    put(tmp_path / "in" / "x" / "1.png", tmp_path / "in" / "y" / "1.png")
    sources = [tmp_path / "in" / "x", tmp_path / "in" / "y"] if several else tmp_path / "in"
    write(predictor, sources, out=tmp_path / "coco", format="coco")
    assert {row["image_id"] for row in rows_of(tmp_path / "coco")} == {"x/1.png", "y/1.png"}
    write(predictor, sources, out=tmp_path / "yolo", format="yolo")
    wanted = {"predictions.jsonl", "x/1.png.png", "y/1.png.png"}
    assert files_of(tmp_path / "yolo") == wanted | {"labels/x/1.txt", "labels/y/1.txt", "labels/data.yaml"}
    lines = [json.loads(line) for line in (tmp_path / "yolo" / "predictions.jsonl").read_text().splitlines()]
    assert [os.path.relpath(line["file"], tmp_path / "in") for line in lines] == ["x/1.png", "y/1.png"]


@pytest.mark.parametrize(
    ("places", "paths", "wanted"),
    [
        (["1.png", "2.png"], ["/a/1.png", "/b/2.png"], ["1.png", "2.png"]),
        (["1.png", "1.png"], ["/a/c/1.png", "/a/d/e/1.png"], ["c/1.png", "d/e/1.png"]),
        (["1.png", "1.png", "2.png"], ["/a/1.png", "/b/1.png", "/b/2.png"], ["a/1.png", "b/1.png", "b/2.png"]),
        (["A.png", "a.png"], ["/a/A.png", "/a/a.png"], ["A.png", "a.png-2"]),
        (["stdin", "stdin"], [None, None], ["stdin", "stdin-2"]),
        (["a", "a.png/b"], ["/i/a", "/i/a.png/b"], ["a", "a.png-2/b"]),  # a folder where a file lies
        (["predictions.jsonl/a", "a"], ["/i/predictions.jsonl/a", "/i/a"], ["predictions.jsonl-2/a", "a"]),
        (["x" * 300, "x" * 301], ["/a/" + "x" * 300, "/a/" + "x" * 301], ["x" * 200, "x" * 200 + "-2"]),
    ],
)
def test_names_that_never_fall_together(places, paths, wanted):
    assert distinct(places, [None if path is None else Path(path) for path in paths], (".png", ".mp4")) == wanted


def test_pictures_that_yolo_cannot_tell_apart_are_refused_before_anything_is_written(predictor, tmp_path):
    put(tmp_path / "in" / "x" / "a.jpg", tmp_path / "in" / "x" / "a.png")
    with pytest.raises(UsageError, match=r"x/a\.png and x/a\.jpg would have one file"):
        write(predictor, tmp_path / "in", out=tmp_path / "out", format="yolo")
    assert not (tmp_path / "out").exists()
    put(tmp_path / "names" / "classes.png")
    with pytest.raises(UsageError, match="the list of the classes"):
        write(predictor, tmp_path / "names", out=tmp_path / "out", format="yolo")


def test_names_of_classes_stand_beside_the_lines(predictor, tmp_path):
    put(tmp_path / "in" / "a.png")
    write(predictor, tmp_path / "in", out=tmp_path / "out", format="yolo")
    assert (tmp_path / "out" / "labels" / "classes.txt").read_text() == "red\ngreen\nblue\n"


def test_a_file_given_twice_is_looked_at_once(predictor, tmp_path):
    said = []
    put(tmp_path / "in" / "a.png")
    done = write(predictor, [tmp_path / "in", tmp_path / "in" / "a.png"], out=tmp_path / "out", say=said.append)
    assert done == (1, 0)
    assert said == ["1 file given more than once, looked at once"]


# ---------------------------------------------------------------------------------------------------------------- ids


def test_numbers_are_ids_only_where_they_differ():
    assert picture_ids(["0012.jpg", "b.jpg"]) == {"0012.jpg": 12, "b.jpg": "b.jpg"}
    assert picture_ids(["x/1.jpg", "y/2.jpg"]) == {"x/1.jpg": 1, "y/2.jpg": 2}
    for names in (["1.jpg", "01.jpg"], ["1.jpg", "1.png"], ["x/1.jpg", "y/1.jpg"], ["²3.jpg", "9" * 40 + ".jpg"]):
        assert picture_ids(names) == {name: name for name in names}


def test_ids_are_those_of_the_file_beside_the_pictures(predictor, tmp_path):
    said = []
    put(*(tmp_path / "train" / name for name in ("a.png", "b.png", "new.png")))
    listed(tmp_path / "train" / "_annotations.coco.json", {"a.png": 5, "b.png": "six"}, (("green", 40), ("red", 30)))
    write(predictor, tmp_path / "train", out=tmp_path / "out", format="coco", say=said.append)
    found = {(row["image_id"], row["category_id"]) for row in rows_of(tmp_path / "out")}
    assert found == {(5, 30), (5, 40), ("six", 30), ("six", 40)}
    assert "_annotations.coco.json" in said[-3]
    assert "1 of 3 pictures" in said[-2]
    assert 'new ids: "blue"' in said[-1]
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 3  # what has no id is not lost


def test_ids_of_a_file_that_is_named(predictor, tmp_path):
    put(*(tmp_path / "in" / name for name in ("x/1.png", "y/1.png", "deep.png")))
    file = listed(tmp_path / "gt.json", {"y/1.png": 1, "x\\1.png": 2, "elsewhere/deep.png": 3})
    write(predictor, tmp_path / "in", out=tmp_path / "out", format="coco", ids=file)
    rows = {row["image_id"] for row in rows_of(tmp_path / "out")}
    assert rows == {1, 2, 3}
    write(predictor, tmp_path / "in", out=tmp_path / "of", format="coco", ids=tmp_path)  # the only one in a folder
    assert rows_of(tmp_path / "of") == rows_of(tmp_path / "out")
    alone = listed(tmp_path / "one.json", {"1.png": 1})
    with pytest.raises(DataError, match="2 annotation files"):
        write(predictor, tmp_path / "in", out=tmp_path / "no", format="coco", ids=tmp_path)
    with pytest.raises(DataError, match=r"x/1\.png and y/1\.png are both the picture 1"):
        write(predictor, tmp_path / "in", out=tmp_path / "no", format="coco", ids=alone)
    other = listed(tmp_path / "other.json", {"q.png": 1})
    with pytest.raises(DataError, match="none of the 3 pictures"):
        write(predictor, tmp_path / "in", out=tmp_path / "no", format="coco", ids=other)
    for text in ("[]", "{}", '{"images": [{"id": 1}], "categories": []}', "no json"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError):
            write(predictor, tmp_path / "in", out=tmp_path / "no", format="coco", ids=tmp_path / "bad.json")
    with pytest.raises(UsageError, match="take the format coco"):
        write(predictor, tmp_path / "in", out=tmp_path / "no", format="yolo", ids=file)
    assert not (tmp_path / "no").exists()


def test_several_files_of_ids_decide_nothing(predictor, tmp_path):
    said = []
    for part in ("train", "valid"):
        put(tmp_path / "in" / part / f"{part}.png")
        listed(tmp_path / "in" / part / "_annotations.coco.json", {f"{part}.png": 0})
    write(predictor, tmp_path / "in", out=tmp_path / "out", format="coco", say=said.append)
    assert {row["image_id"] for row in rows_of(tmp_path / "out")} == {"train/train.png", "valid/valid.png"}
    assert any("--ids FILE" in sentence for sentence in said)
    file = tmp_path / "in" / "train" / "_annotations.coco.json"
    put(tmp_path / "in" / "valid" / "train.png")  # of the other part, by the name of one of this
    write(predictor, tmp_path / "in", out=tmp_path / "one", format="coco", ids=file, say=said.append)
    assert {row["image_id"] for row in rows_of(tmp_path / "one")} == {0}
    assert '2 of 3 pictures are not in it, so not in the results: "valid/train.png", "valid/valid.png"' in said
    (tmp_path / "in" / "valid" / "train.png").unlink()
    (tmp_path / "in" / "valid" / "_annotations.coco.json").write_text('{"images": [1], "categories": [')
    write(predictor, tmp_path / "in" / "valid", out=tmp_path / "cut", format="coco", say=said.append)
    assert {row["image_id"] for row in rows_of(tmp_path / "cut")} == {"valid.png"}
    assert {row["category_id"] for row in rows_of(tmp_path / "cut")} == {7, 8}  # the model's own
    assert "ids are not those of" in said[-1]


def test_pycocotools_scores_the_results(predictor, tmp_path):
    tools = pytest.importorskip("faster_coco_eval")
    put(tmp_path / "in" / "img_1.rf.abc.png", tmp_path / "in" / "b.png")
    truth = [
        {"id": 10 * id_ + n, "image_id": id_, "category_id": n, "bbox": box, "area": box[2] ** 2, "iscrowd": 0}
        for id_ in (3, 4)
        for n, box in ((1, [5, 5, 10, 10]), (2, [30, 8, 12, 12]))
    ]
    images = {"img_1.rf.abc.png": 3, "b.png": 4}
    file = listed(tmp_path / "in" / "_annotations.coco.json", images, annotations=truth)
    write(predictor, tmp_path / "in", out=tmp_path / "out", format="coco")
    known = tools.COCO(str(file))
    judged = tools.COCOeval_faster(known, known.loadRes(str(tmp_path / "out" / "results.json")), "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    assert judged.stats[0] == pytest.approx(1.0)


# -------------------------------------------------------------------------------------------------------- overwriting


def test_overwriting_takes_away_what_was_written_and_nothing_else(predictor, tmp_path):
    said, out = [], tmp_path / "out"
    put(*(tmp_path / "in" / name for name in ("a.png", "x/b.png", "y/c.png")))
    write(predictor, tmp_path / "in", out=out, format="yolo")
    (out / "labels" / "y" / "c.txt").write_text("0 .5 .5 .1 .1\n")  # mended by hand
    (out / "labels" / "notes.txt").write_text("mine")
    write(predictor, tmp_path / "in" / "a.png", out=out, format="yolo", overwrite=True, say=said.append)
    kept = {"labels/y/c.txt", "labels/notes.txt"}
    assert files_of(out) == {"predictions.jsonl", "a.png.png", "labels/a.txt", "labels/classes.txt"} | kept
    assert not (out / "x").exists()
    assert (out / "labels" / "y" / "c.txt").read_text() == "0 .5 .5 .1 .1\n"
    assert len(said) == 1
    assert "2 other files stay" in said[0]
    write(predictor, tmp_path / "in" / "a.png", out=out, overwrite=True)  # no labels any more
    assert files_of(out) == {"predictions.jsonl", "a.png.png"} | kept


def test_a_list_of_a_stranger_deletes_nothing_outside(predictor, tmp_path):
    put(tmp_path / "in" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "out" / "way").symlink_to(tmp_path / "other")
    victims = [tmp_path / "victim.txt", tmp_path / "other" / "victim.txt"]
    for victim in victims:
        victim.write_text("dear")
    digest = hashlib.sha256(b"dear").hexdigest()
    names = ["../victim.txt", str(victims[0]), "way/victim.txt", "in/../../victim.txt", "\0", 5]
    lines = [json.dumps({"file": name, "sha256": digest}) for name in names]
    (tmp_path / "out" / LIST).write_text("\n".join([*lines, "{", "[1]", "null"]))
    write(predictor, tmp_path / "in", out=tmp_path / "out", overwrite=True)
    assert all(victim.read_text() == "dear" for victim in victims)


def test_an_interrupted_prediction_leaves_a_list_of_what_it_wrote(predictor, tmp_path, monkeypatch):
    put(*(tmp_path / "in" / f"{n}.png" for n in range(3)))
    task, draw, drawn = predictor.task, predictor.task.draw, []

    def interrupted(*arguments):
        drawn.append(1)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(task, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(predictor, tmp_path / "in", out=tmp_path / "out")
    monkeypatch.undo()
    write(predictor, tmp_path / "in" / "0.png", out=tmp_path / "out", overwrite=True)
    assert files_of(tmp_path / "out") == {"predictions.jsonl", "0.png.png"}


def test_places_that_are_taken_are_refused(predictor, tmp_path):
    put(tmp_path / "in" / "x" / "a.png")
    out = tmp_path / "out"
    out.mkdir()
    (out / "x").write_text("a file")
    with pytest.raises(FolderError, match="a file where a folder is to be"):
        write(predictor, tmp_path / "in", out=out, overwrite=True)
    (out / "x").unlink()
    (out / "x" / "a.png.png").mkdir(parents=True)
    with pytest.raises(FolderError):
        write(predictor, tmp_path / "in", out=out, overwrite=True)
    with pytest.raises(FolderError, match="inside the data set"):
        write(predictor, tmp_path / "in", out=tmp_path / "in" / "answers")
    assert not (tmp_path / "in" / "answers").exists()
    with pytest.raises(UsageError, match="holds the sources"):
        write(predictor, tmp_path / "in", out=tmp_path / "in" / "x")


# -------------------------------------------------------------------------------------------------------- passed over


def test_what_is_passed_over_is_counted_by_suffix(tmp_path):
    put(tmp_path / "a.png", tmp_path / "x" / "b.PNG")
    for name in ("c.heic", "x/d.HEIC", "x/y/e.cr2", "none", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    found = find(tmp_path)
    assert found.passed == {".heic": 2, ".cr2": 1, "without a suffix": 1}
    (note,) = found.notes()
    assert note.startswith("4 files passed over: 2 .heic, ")
    found = find(str(tmp_path / "*"))
    assert found.passed == {".heic": 1, "without a suffix": 1}
    assert found.deeper == 1
    assert find(str(tmp_path / "**" / "*")).deeper == 0
    assert find([tmp_path, str(tmp_path / "x" / "*")]).passed[".heic"] == 3
    assert find(tmp_path / "c.heic").notes() == ()  # a file that is named is looked at
    with pytest.raises(DataError, match=r"no picture \(1 file passed over: 1 \.cr2\)"):
        find(tmp_path / "x" / "y")


def test_what_is_passed_over_in_a_shard(tmp_path):
    put(tmp_path / "in" / "x" / "1.png", tmp_path / "in" / "y" / "1.png")
    for name in ("x/1.txt", "x/1.json", ".hidden"):
        (tmp_path / "in" / name).write_text("?")
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        archive.add(tmp_path / "in", arcname=".")
    found = find(tmp_path / "0.tar")
    assert [source.place for source in found.sources] == ["x/1.png", "y/1.png"]
    assert found.passed == {".txt": 1, ".json": 1}


def test_what_is_passed_over_for_a_model_of_clips(tmp_path):
    put(tmp_path / "frames" / "1.png", tmp_path / "frames" / "2.png", tmp_path / "poster.png")
    for name in ("film.mp4", "old.rm", "frames/notes.txt"):
        (tmp_path / name).write_bytes(b"?")
    found = find(tmp_path, videos=True)
    assert {source.place for source in found.sources} == {"film.mp4", "frames"}
    assert found.passed == {".rm": 1, ".png": 1, ".txt": 1}


def test_answers_are_no_sources_wherever_they_lie(predictor, tmp_path):
    put(tmp_path / "in" / "a.png")
    write(predictor, tmp_path / "in", out=tmp_path / "in" / "out")
    put(tmp_path / "in" / "out" / "mine.png")
    found = find(tmp_path / "in")
    assert [source.place for source in found.sources] == ["a.png", "out/mine.png"]
    assert found.written == 2
    assert "of an earlier prediction passed over" in found.notes()[-1]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("shots [new]/*.png", ["shots [new]/[1].png"]),
        ("shots [new]/**/*.png", ["shots [new]/[1].png", "shots [new]/x[y]/2.png"]),
        ("shots [n]/*.png", ["shots n/3.png"]),
        ("shots*/*.png", ["shots [new]/[1].png", "shots n/3.png"]),
        ("*/x[y]/?.png", ["shots [new]/x[y]/2.png"]),
        ("**/x[y]/2.png", ["shots [new]/x[y]/2.png"]),
        ("shots [new]/[1].*", ["shots [new]/[1].png"]),
        ("what?/*.png", ["what?/4.png"]),
    ],
)
def test_parts_of_patterns_that_are_there_are_no_patterns(pattern, names, tmp_path, monkeypatch):
    put(
        *(tmp_path / name for name in ("shots [new]/[1].png", "shots [new]/x[y]/2.png", "shots n/3.png", "what?/4.png"))
    )
    found = find(str(tmp_path / pattern))
    assert [os.path.relpath(source.content, tmp_path) for source in found.sources] == names
    monkeypatch.chdir(tmp_path)
    assert [source.name for source in find(pattern).sources] == names


def test_names_that_are_no_utf8(predictor, tmp_path):
    name = os.fsdecode(b"caf\xe9\x1b[31m")
    put(tmp_path / "in" / name / f"{name}.png")
    for format_ in ("coco", "yolo"):
        out = tmp_path / format_
        assert write(predictor, tmp_path / "in", out=out, format=format_) == (1, 0)
        (line,) = (out / "predictions.jsonl").read_text().splitlines()
        assert json.loads(line)["file"].endswith(f"{name}.png")
        assert write(predictor, tmp_path / "in", out=out, format=format_, overwrite=True) == (1, 0)
    assert (tmp_path / "yolo" / "labels" / name / f"{name}.txt").is_file()
    assert {row["image_id"] for row in rows_of(tmp_path / "coco")} == {f"{name}/{name}.png"}
    assert np.array(Image.open(tmp_path / "coco" / name / f"{name}.png.png")).ndim == 3
