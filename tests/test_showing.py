"""Predictions, scores, runs and models as they show themselves: names, nothing that runs, one line in a terminal."""

import csv
import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from patchform.errors import DataError
from patchform.markup import Curve, chart, matrix
from patchform.metrics.base import Scores, Table
from patchform.model import Model, build_model
from patchform.prediction import Prediction, Predictor
from patchform.records import Instances, Preprocessing, Regions
from patchform.settings import Recipe
from patchform.tasks.detection import Detection
from patchform.tasks.semantic_segmentation import SemanticSegmentation
from patchform.training.loop import Run

HOSTILE = ("<script>alert(1)</script>", 'a" onload="alert(1)', "\x1b[31mred\u202e")
SIZE = Preprocessing(size=(32, 32), resize="squash")


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    model = build_model("classification", backbone="vit/nano", head="linear", classes=HOSTILE, preprocessing=SIZE)
    return Predictor(model, device="cpu")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "<img src=x onerror=alert(1)>.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(path)
    return path


def harmless(html):
    assert "<script" not in html
    assert "<img src=x" not in html
    assert ' onload="' not in html
    assert all(letter.isprintable() or letter in "\n\t" for letter in html)
    return html


def test_one_picture_gives_a_prediction_and_several_a_list(predictor, photo):
    one = predictor(str(photo))
    pixels = np.asarray(Image.open(photo))
    same = [predictor(photo), predictor(Image.open(photo)), predictor(pixels), *predictor([photo, pixels])]
    assert all(torch.equal(other.target.scores, one.target.scores) for other in same)
    assert [type(answer) for answer in (one, predictor([photo]), predictor(photo.parent))] == [Prediction, list, list]
    assert one.as_json() == predictor.record(one)
    assert one.as_json()["label"] in HOSTILE


def test_what_cannot_be_read_is_said_of_one_and_kept_among_several(predictor, photo):
    bad = photo.parent / "bad.jpg"
    bad.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad\.jpg"):
        predictor(bad)
    with pytest.raises(DataError, match="no such file"):
        predictor(photo.parent / "nowhere.jpg")
    good, wrong = predictor([photo, bad])
    assert good.error is None
    assert "bad.jpg" in wrong.error
    assert "bad.jpg" in harmless(wrong._repr_html_())


def test_a_prediction_shows_its_picture_and_names_and_nothing_runs(predictor, photo):
    one = predictor(photo)
    html = harmless(one._repr_html_())
    assert "&lt;script&gt;" in html
    assert "data:image/webp;base64," in html
    assert "tensor" not in repr(one)
    assert "\n" not in repr(one)
    assert "alert(1)" in repr(one)  # the name of a class, not its number
    assert "\x1b" not in repr(one)
    (without,) = predictor.predict(photo)
    assert "<img" not in without._repr_html_()


def test_objects_and_regions_say_names_and_counts():
    objects = Instances(torch.zeros(3, 4), torch.tensor([1, 1, 0]), torch.tensor([0.9, 0.8, 0.7]))
    assert repr(Prediction("a.jpg", objects, task=Detection(), classes=("cat", "dog"))) == (
        "Prediction(a.jpg: 2 dog, 1 cat)"
    )
    nothing = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    assert str(Prediction("a.jpg", nothing, task=Detection(), classes=("cat", "dog"))) == "no object"
    regions = Regions(torch.tensor([[0, 0, 0, 1]]))
    assert str(Prediction("a.jpg", regions, task=SemanticSegmentation(), classes=("sky", "road"))) == (
        "sky 75.0%, road 25.0%"
    )


def test_a_model_is_one_line_and_its_layers_are_those_of_its_parts(predictor):
    model = predictor.model
    assert repr(model).startswith("Model(classification: vit/nano under linear, ")
    assert "3 classes: " in repr(model)
    assert "\n" not in repr(model)
    assert "\n" in repr(model.backbone)
    assert repr(predictor) == f"Predictor({model!r})"
    harmless(model._repr_html_())
    assert isinstance(model, Model)


def scores():
    tables = {
        "classes": Table(("accuracy", "images", "predicted"), HOSTILE, [[0.5, 2, 1], [None, 0, 0], [1.0, 1, 2]]),
        "confusion": Table(HOSTILE, HOSTILE, [[1, 0, 1], [0, 0, 0], [0, 0, 1]]),
    }
    return Scores(3, "top1", {"top1": 2 / 3, "top5": None, "of_a_plugin": 0.25}, tables)


def test_scores_are_a_line_a_table_and_a_file():
    assert repr(scores()) == "Scores(3 images: top1 0.6667, of_a_plugin 0.25)"
    html = harmless(scores()._repr_html_())
    assert "share of the pictures whose class is the first guess" in html
    rows = list(csv.reader(io.StringIO(scores().as_csv())))
    assert rows[0] == ["class", "accuracy", "images", "predicted", "top1", "top5", "of_a_plugin"]
    assert rows[1] == [HOSTILE[0], "0.5", "2", "1", "", "", ""]
    assert rows[2][1:4] == ["", "0", "0"]
    assert rows[-1] == ["(all)", "", "3", "", str(2 / 3), "", "0.25"]
    assert "\x1b" not in scores().as_csv()


def test_a_run_shows_its_curves(predictor, tmp_path):
    lines = "epoch,step,train_loss,val_loss,top1\n1,4,1.5,,\n2,8,1.25,1.0,0.5\n3,12,1.0,inf,0.75\n"
    (tmp_path / "metrics.csv").write_text(lines)
    run = Run(tmp_path, predictor.model, 12, 0.75, 12, Recipe(), None)
    assert repr(run) == f"Run({tmp_path}: 12 steps, top1 0.75 after 12)"
    assert [row["val_loss"] for row in run.history][:2] == [None, 1.0]
    assert [row["top1"] for row in run.history] == [None, 0.5, 0.75]
    html = harmless(run._repr_html_())
    assert html.count("<svg") == 2
    assert html.count("<polyline") == 3
    assert run._replace(best=None)._repr_html_().count("<svg") == 1


@pytest.mark.parametrize(
    "points", [[(1, 0.5)], [(1, 0.0), (2, 0.0)], [(0, -1e-30), (1, 1e30)], [(1, 3.0), (2, 5.0), (1000, 4.0)]]
)
def test_charts_are_whole_and_stay_in_their_frame(points):
    text = chart(HOSTILE[0], [Curve(HOSTILE[1], points), Curve("nothing", [])]).replace("&nbsp;", " ")
    harmless(text)
    figure = ElementTree.fromstring(text)  # raises unless it is well-formed
    width, height = map(float, figure.find("svg").get("viewBox").split()[2:])
    for circle in figure.iter("circle"):
        assert 0 <= float(circle.get("cx")) <= width
        assert 0 <= float(circle.get("cy")) <= height
    assert "nan" not in text
    assert len(list(figure.iter("circle"))) == len(points)
    assert chart("nothing", [Curve("nothing", [])]) == ""


def test_a_matrix_is_shaded_by_its_rows():
    text = matrix([[3, 1], [0, 0]], ["a", HOSTILE[0]])
    harmless(text)
    assert "rgba(59, 130, 196, 0.56)" in text  # three quarters of the darkest
    assert text.count("rgba") == 2
