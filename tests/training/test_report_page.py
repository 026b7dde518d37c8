"""The page: one file, every picture inside, no link that leads out."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from itertools import permutations

import pytest
import tiny
from PIL import Image

from patchform.evaluation import evaluate_run
from patchform.metrics.meanings import meaning
from patchform.report import write_report
from patchform.training import loop
from patchform.training.metrics_log import history


class Page(HTMLParser):
    """Collects what a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.images, self.outside, self.words, self.tags, self.titles = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        if tag == "img":
            self.images.append(values)
        for key in ("src", "href", "data", "action"):
            if values.get(key, "#")[:5] not in ("data:", "#") and not values.get(key, "#").startswith("#"):
                self.outside.append((tag, values[key]))

    def handle_data(self, data):
        self.words.append(data)
        if self.tags and self.tags[-1] == "h2" and data.strip():
            self.titles.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    pictures = tiny.pictures(folder / "pictures", count=48)
    done = loop.train(tiny.recipe(pictures, folder), progress=False)
    evaluate_run(done.folder, pictures)
    write_report(done.folder, pictures)
    return done.folder, pictures


def test_no_picture_is_missing_and_nothing_leads_out(run):
    page = Page()
    page.feed((run[0] / "report.html").read_text())
    assert len(page.images) > 6
    for image in page.images:
        assert image["alt"]
        kind, _, data = image["src"].partition(",")
        assert kind.startswith("data:image/")
        Image.open(io.BytesIO(base64.b64decode(data, validate=True))).verify()
    assert page.outside == []
    words = " ".join(page.words)
    for title in ("onfusion", "osition", "ttention"):
        assert title in words


def test_it_says_what_the_run_is_and_what_each_number_means(run):
    folder, _ = run
    text = (folder / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert len(text) < 2_000_000
    assert "script" not in page.tags
    assert "prefers-color-scheme: dark" in text
    words = " ".join(page.words)
    rows = ("judged at", "machine", "parameters", "started", "recipe", "data", "time taken", "the same again")
    assert all(row in page.words for row in rows)
    assert f"patchform train {folder}/recipe.yaml --name {folder.name}-again" in words
    for name in json.loads((folder / "evaluation.json").read_text())["numbers"]:
        assert meaning(name), name
    assert "expected calibration error" in words
    assert "mean of the classes' own accuracies" in words
    figure = next(part for part in text.split("<figure")[1:] if "<b>loss</b>" in part)
    assert all(name in figure.partition("</figure>")[0] for name in ("train_loss", "val_loss"))
    assert figure.partition("</figure>")[0].count("<polyline") == 2


def test_pictures_of_mistakes_stand_below_the_classes_that_are_mixed_up(run):
    folder, _ = run
    evaluation = json.loads((folder / "evaluation.json").read_text())
    names, counts = evaluation["tables"]["confusion"]["rows"], evaluation["tables"]["confusion"]["values"]
    pairs = permutations(range(len(names)), 2)
    wrong = {(row, column): counts[row][column] for row, column in pairs}
    (row, column), most = max(wrong.items(), key=lambda pair: pair[1])
    text = (folder / "report.html").read_text()
    assert most, "the control: a run of two epochs is wrong somewhere"
    assert f"<h3>{names[row]} taken for {names[column]}: {most} of {sum(counts[row])}</h3>" in text
    assert text.count(" taken for ") == min(4, sum(count > 0 for count in wrong.values()))


def test_the_history_of_a_run_is_plain_python(run):
    folder, _ = run
    epochs = history(folder)
    assert [row["epoch"] for row in epochs] == list(range(1, len(epochs) + 1))
    assert type(epochs[0]["epoch"]) is int
    assert list(epochs[0])[:4] == ["epoch", "step", "train_loss", "val_loss"]
    assert all(row["val_loss"] == row["log_loss"] and row["seconds"] > 0 for row in epochs)
    assert history(folder / "nowhere") == []


def test_a_model_without_positions_has_no_empty_sections(tmp_path):
    pictures = tiny.pictures(tmp_path / "pictures", count=24)
    recipe = tiny.recipe(pictures, tmp_path, model={"backbone": "resnet/nano"}, training={"epochs": 1})
    done = loop.train(recipe, progress=False)
    evaluate_run(done.folder, pictures)
    page = Page()
    page.feed(write_report(done.folder, pictures).read_text())
    assert page.outside == []
    assert page.images
    assert "Position embeddings" not in page.titles
    assert {"Numbers", "Learning", "Confusion"} <= set(page.titles)
    sections = (done.folder / "report.html").read_text().split("<section>")[1:]
    assert all(re.search(r"</h2>.*<(table|svg|img)", section, re.DOTALL) for section in sections)
