"""Objects of files and of large pictures: thresholds, lines, slices."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from squares import detector, picture

from patchform.data.collate import collate
from patchform.errors import FolderError, UsageError
from patchform.evaluation import evaluate
from patchform.geometry import masks
from patchform.inference import MultiScale, SlicedObjects, preparation
from patchform.metrics.objects import ObjectPrecision
from patchform.model import Model
from patchform.prediction import SURE, Predictor, write
from patchform.records import Instances, Sample
from patchform.tasks.detection import Detection
from patchform.tasks.instance_segmentation import InstanceSegmentation

SQUARES = ((0, 5, 5, 10, 250), (1, 30, 8, 12, 140), (1, 8, 40, 6, 60), (2, 40, 40, 15, 30))


def boxes_of(*squares):
    return [[left, top, left + side, top + side] for _, left, top, side, _ in squares]


def asked(model, **options):
    return Predictor(model, Detection(), device="cpu", **options)


def test_thresholds_are_the_models_own_or_those_given():
    model, pixels = detector(), picture((64, 64), *SQUARES)
    (found,) = asked(model).predict(pixels)
    assert found.target.boxes.tolist() == boxes_of(*SQUARES[:2])  # above one half
    assert SURE == 0.5
    model = detector(facts={"thresholds": (0.99, 0.2, 0.1)})
    (found,) = asked(model).predict(pixels)
    assert found.target.boxes.tolist() == boxes_of(*SQUARES[1:])
    assert masks.to_dense(found.target.masks).sum((1, 2)).tolist() == [144, 36, 225]
    for threshold, number in ((0.0, 4), (0.2, 3), (1.1, 0)):
        (found,) = asked(model, threshold=threshold).predict(pixels)
        assert len(found.target.boxes) == len(found.target.masks.boxes) == number
    exact = model.predict(collate([Sample(pixels, None, "", (64, 64))]))[0].scores.tolist()
    model = detector(facts={"thresholds": (exact[0], exact[1], 1.0)})  # a score that is its threshold counts
    (found,) = asked(model).predict(pixels)
    assert len(found.target.boxes) == 2
    with pytest.raises(UsageError, match="a threshold of"):
        asked(model, threshold=-1)


def test_evaluation_never_applies_thresholds():
    model, pixels = detector(facts={"thresholds": (1.0, 1.0, 1.0)}), picture((64, 64), *SQUARES)
    truth = Instances(torch.tensor(boxes_of(*SQUARES)).float(), torch.tensor([0, 1, 1, 2]))
    batch = collate([Sample(pixels, truth, "a", (64, 64))])
    scores = evaluate(model, [batch], Detection(), metric=Detection().full_metric(model.classes, thresholds=(1,) * 3))
    assert scores.numbers["ap"] == 1.0
    assert scores.numbers["f1"] == 0.0


def test_lines_and_pictures_of_objects(tmp_path):
    pixels = picture((64, 64), *SQUARES)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "b.png")
    predictor = Predictor(detector(), InstanceSegmentation(), device="cpu")
    stream = io.StringIO()
    assert write(predictor, tmp_path, stream=stream, out=tmp_path / "out") == (2, 0)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert [one["name"] for one in first["objects"]] == ["red", "green"]
    assert first["objects"][0]["box"] == [5, 5, 10, 10]
    assert set(first["objects"][0]) == {"name", "class_id", "score", "box", "segmentation"}
    assert second["objects"] == []
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a.png.png", "b.png.png", "predictions.jsonl", ".written.jsonl"}


def test_formats_of_other_tools(tmp_path):
    for name in ("000139.png", "b.png"):
        Image.fromarray(picture((40, 64), *SQUARES[:2]).permute(1, 2, 0).numpy()).save(tmp_path / name)
    (tmp_path / "bad.png").write_bytes(b"x")
    predictor = Predictor(detector(), InstanceSegmentation(), device="cpu")
    assert write(predictor, tmp_path, out=tmp_path / "coco", format="coco") == (3, 1)
    rows = json.loads((tmp_path / "coco" / "results.json").read_text())
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(139, 1), (139, 2), ("b.png", 1), ("b.png", 2)]
    assert rows[1]["bbox"] == [30, 8, 12, 12]
    assert rows[1]["segmentation"]["size"] == [40, 64]
    with pytest.raises(FolderError, match="exists"):
        write(predictor, tmp_path / "b.png", out=tmp_path / "coco", format="coco")
    predictor = Predictor(detector(facts={"ids": (10, 11, 12)}), InstanceSegmentation(), device="cpu")
    write(predictor, tmp_path / "b.png", out=tmp_path / "ids", format="coco")
    assert [row["category_id"] for row in json.loads((tmp_path / "ids" / "results.json").read_text())] == [10, 11]

    assert write(predictor, tmp_path / "b.png", out=tmp_path / "yolo", format="yolo") == (1, 0)
    lines = [line.split() for line in (tmp_path / "yolo" / "labels" / "b.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == ["0", "1"]
    assert [float(number) for number in lines[1][1:5]] == pytest.approx([36 / 64, 14 / 40, 12 / 64, 12 / 40])
    with pytest.raises(FolderError, match="exists"):
        write(predictor, tmp_path / "b.png", out=tmp_path / "yolo", format="yolo")
    assert write(predictor, tmp_path / "b.png", out=tmp_path / "yolo", format="yolo", overwrite=True) == (1, 0)
    with pytest.raises(UsageError, match="needs a folder"):
        write(predictor, tmp_path / "b.png", format="yolo")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "b.jpg")
    with pytest.raises(UsageError, match=r"one file, labels/b\.txt"):
        write(predictor, [tmp_path / "b.png", tmp_path / "b.jpg"], out=tmp_path / "twins", format="yolo")


# ------------------------------------------------------------------------------------------------------------- slices


def many_squares(size, seed=0):
    """A picture of squares that do not touch: one in each cell of 24 pixels."""
    dice = np.random.default_rng(seed)
    squares = []
    for top in range(0, size[0] - 23, 24):
        for left in range(0, size[1] - 23, 24):
            down, across = dice.integers(1, 8, 2)
            side = int(dice.integers(6, 14))
            squares.append((int(dice.integers(3)), left + int(across), top + int(down), side, 100 + top % 150))
    return picture(size, *squares), squares


def sliced(pixels, way, model=None):
    model = model or detector((64, 64))
    batch = collate([Sample(pixels, None, "", tuple(pixels.shape[1:]))])
    return way(model, batch)[0]


@pytest.mark.parametrize("size", [(200, 260), (260, 100), (64, 64), (64, 40)])
def test_slices_find_each_small_object_once(size):
    pixels, squares = many_squares(size)
    way = SlicedObjects((64, 64), (40, 40), whole=False)
    found = sliced(pixels, way)
    assert sorted(found.boxes.tolist()) == sorted(boxes_of(*squares))
    with_whole = sliced(pixels, replace(way, whole=True)).boxes.tolist()  # it is coarse, so not all it says is the same
    assert not [box for box in boxes_of(*squares) if box not in with_whole]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.masks.size == size
    dense = masks.to_dense(found.masks)
    for mask, (left, top, right, bottom) in zip(dense, found.boxes.int().tolist()):
        assert mask[top:bottom, left:right].all()
        assert mask.sum() == (bottom - top) * (right - left)


def test_without_slices_a_small_input_does_not_show_them():
    pixels, squares = many_squares((200, 260))
    predictor = asked(detector((64, 64)), threshold=0.0)
    (coarse,) = predictor.predict(pixels)
    (fine,) = asked(detector((64, 64)), threshold=0.0, infer=SlicedObjects((64, 64), (40, 40), whole=False)).predict(
        pixels
    )
    assert sorted(fine.target.boxes.tolist()) == sorted(boxes_of(*squares))
    assert sorted(coarse.target.boxes.tolist()) != sorted(boxes_of(*squares))


def test_windows_are_prepared_as_pictures_are():
    pixels, squares = many_squares((100, 100))
    found = sliced(pixels, SlicedObjects((50, 50), (30, 30), whole=False), detector((100, 100)))  # twice as large
    assert sorted(found.boxes.tolist()) == sorted(boxes_of(*squares))


def test_parts_of_an_object_yield_to_the_whole_of_it():
    """A square that no window holds is seen in parts, which are surer than the whole: the picture is asked for too."""

    class Dimmer(Model):
        def predict(self, batch):
            found = super().predict(batch)
            areas = [(one.boxes[:, 2:] - one.boxes[:, :2]).prod(1) for one in found]
            return [one._replace(scores=1 / (1 + area)) for one, area in zip(found, areas)]

    model = detector((120, 120))
    dimmer = Dimmer(model.backbone, model.head, classes=model.classes, preprocessing=model.preprocessing).eval()
    pixels = picture((120, 120), (0, 10, 10, 90, 200), (1, 105, 105, 10, 200))
    wanted = [[10, 10, 100, 100], [105, 105, 115, 115]]
    assert sorted(sliced(pixels, SlicedObjects((60, 60), (30, 30)), dimmer).boxes.tolist()) == wanted
    parts = sliced(pixels, SlicedObjects((60, 60), (30, 30), whole=False), dimmer)
    assert len(parts.boxes) > 2
    union = sliced(pixels, SlicedObjects((60, 60), (30, 30), measure="union"), dimmer)
    assert len(union.boxes) > 2  # control: a part is a small share of the union


def test_slices_in_evaluation_and_batches_with_padding():
    samples = []
    for number, size in enumerate([(100, 130), (130, 100), (64, 200)]):
        pixels, squares = many_squares(size, seed=number)
        truth = Instances(torch.tensor(boxes_of(*squares)).float(), torch.tensor([index for index, *_ in squares]))
        samples.append(Sample(pixels, truth, str(number), size))
    model = detector((64, 64))
    way = SlicedObjects((64, 64), (40, 40))
    assert preparation(way, model.preprocessing).resize == "native"
    assert preparation(Model.predict, model.preprocessing) == model.preprocessing
    metric = ObjectPrecision(model.classes)
    assert evaluate(model, [collate(samples)], Detection(), metric=metric, infer=way).numbers["ap"] == 1.0


def test_slices_that_make_no_sense_are_refused():
    pixels, _ = many_squares((100, 100))
    with pytest.raises(UsageError, match="does not cover"):
        sliced(pixels, SlicedObjects((64, 64), (65, 64)))
    with pytest.raises(UsageError, match="not resized"):
        SlicedObjects((64, 64), (32, 32))(detector(), collate([Sample(pixels, None, "", (50, 50))]))
    with pytest.raises(UsageError, match="every pixel a class"):
        sliced(pixels, MultiScale((1.0,)))


@pytest.fixture
def film(tmp_path):
    """A square that goes right, two pixels a frame, ten frames a second."""
    pytest.importorskip("av")
    from patchform.data.encoded import write as write_film

    (tmp_path / "in").mkdir()
    write_film(tmp_path / "in" / "a.mp4", [picture((64, 64), (1, 8 + 2 * n, 24, 16, 250)) for n in range(12)], rate=10)
    return tmp_path / "in" / "a.mp4"


def test_films_are_looked_at_frame_by_frame(film, tmp_path):
    Image.fromarray(picture((64, 64), *SQUARES).permute(1, 2, 0).numpy()).save(film.parent / "b.png")
    stream, out = io.StringIO(), tmp_path / "out"
    done = write(asked(detector(), threshold=0.5), film.parent, stream=stream, out=out, batch_size=5)
    assert done == (2, 0)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("frame") for line in lines] == [*range(12), None]
    assert [line["time"] for line in lines[:-1]] == pytest.approx([n / 10 for n in range(12)])
    for number, line in enumerate(lines[:-1]):
        (one,) = line["objects"]
        assert one["class_id"] == 1
        assert np.abs(np.subtract(one["box"], [8 + 2 * number, 24, 16, 16])).max() <= 4
    from patchform.data.videos import open_video

    shown = open_video(out / "a.mp4.mp4")
    assert (len(shown), round(shown.rate)) == (12, 10)
    assert (out / "b.png.png").is_file()
    assert not (out / "a.mp4.png").exists()
    with pytest.raises(FolderError, match="exists"):
        write(asked(detector()), film, out=out)
    with pytest.raises(UsageError, match="for pictures"):
        write(asked(detector()), film, out=tmp_path / "other", format="coco")


def test_a_film_that_is_cut_says_so_and_the_others_go_on(film, tmp_path):
    cut = film.with_name("z.mp4")
    cut.write_bytes(film.read_bytes()[:-200])
    stream = io.StringIO()
    done = write(asked(detector()), [cut, film], stream=stream, out=tmp_path / "out")
    assert done == (2, 1)
    first, *others = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert "z.mp4" in first["file"]
    assert first["error"]
    assert len(others) == 12
    assert not (tmp_path / "out" / "z.mp4.mp4").exists()
