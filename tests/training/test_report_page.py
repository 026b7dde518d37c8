"""The page: one file, every picture inside, no link that leads out."""

import base64
import io
from html.parser import HTMLParser

import pytest
import tiny
from PIL import Image

from patchform.evaluation import evaluate_run
from patchform.report import write_report
from patchform.training import loop


class Page(HTMLParser):
    """Collects what a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.images, self.outside, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "img":
            self.images.append(values)
        for key in ("src", "href", "data", "action"):
            if values.get(key, "#")[:5] not in ("data:", "#") and not values.get(key, "#").startswith("#"):
                self.outside.append((tag, values[key]))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    pictures = tiny.pictures(folder / "pictures", count=48)
    done = loop.train(tiny.recipe(pictures, folder), progress=False)
    evaluate_run(done.folder, pictures)
    return done.folder, pictures


def test_no_picture_is_missing_and_nothing_leads_out(run):
    page = Page()
    page.feed(write_report(*run).read_text())
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


def test_a_model_without_positions_says_so(tmp_path):
    pictures = tiny.pictures(tmp_path / "pictures", count=24)
    recipe = tiny.recipe(pictures, tmp_path, model={"backbone": "resnet/nano"}, training={"epochs": 1})
    done = loop.train(recipe, progress=False)
    evaluate_run(done.folder, pictures)
    page = Page()
    page.feed(write_report(done.folder, pictures).read_text())
    assert page.outside == []
    assert page.images
