"""What tests of the page share: pictures of things, a model that finds them, and a browser that looks."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchform import drawing, lookup
from patchform.model import build_model, save
from patchform.records import Preprocessing

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
TOKEN = "let-me-in"
HOSTILE = '<img src=x onerror="window.bad=1"><b>blue</b>'
NAMES = ("red", "green", HOSTILE)
OWN = (0.4, 0.4, 0.4)
HEIGHT, WIDTH = 240, 320
BACKBONE = """
from patchform.descriptions import Variant
from squares import Pixels

class Raw(Pixels):
    def __init__(self, *, in_channels=3):
        super().__init__()

VARIANTS = {"nano": Variant(build=Raw, image_size=240, options={})}
"""
HEAD = """
import numpy as np
import torch
from scipy import ndimage
from squares import Squares
from patchform.geometry import masks
from patchform.records import Instances

class Things(Squares):
    def __init__(self, features, *, classes):
        super().__init__()

    def _found(self, image, real, size):
        found = []
        for index, channel in enumerate(image.numpy()):
            labels, _ = ndimage.label(channel > 0.12)
            for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
                box = [columns.start, rows.start, columns.stop, rows.stop]
                found.append((float(channel[labels == number].max()), index, box, labels == number))
        found.sort(key=lambda one: -one[0])
        dense = torch.from_numpy(np.array([one[3] for one in found]).reshape(-1, *image.shape[1:])).float()
        boxes = torch.tensor([one[2] for one in found], dtype=torch.float32).view(-1, 4)
        classes = torch.tensor([one[1] for one in found], dtype=torch.int64)
        return Instances(boxes, classes, torch.tensor([one[0] for one in found]), masks.from_dense(dense))
"""

CARD = {
    "task": "semantic_segmentation", "classes": ["road", "sky"], "thresholds": [0.5, 0.5], "videos": False,
    "colors": ["#00ff00", "#00ff00"], "facts": {}, "latency": None, "patchform": "0",
    "limits": {"body": 10**6, "pixels": 10**6},
}  # fmt: skip


def thing(pixels, channel, center, radii, level):
    """An ellipse of one color."""
    rows, columns = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    inside = ((rows - center[0]) / radii[0]) ** 2 + ((columns - center[1]) / radii[1]) ** 2 <= 1
    pixels[inside, channel] = level
    return inside


def scene():
    """(H, W, 3) uint8: a red thing that is sure, a green one that is not, a blue one in between; and the red mask."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    red = thing(pixels, 0, (80, 80), (50, 60), 240)
    thing(pixels, 1, (150, 230), (40, 50), 50)
    thing(pixels, 2, (50, 250), (30, 30), 150)
    return pixels, red


def encoded(pixels, kind="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def given(name="scene.png", content=None, kind="image/png"):
    return {"name": name, "mimeType": kind, "buffer": encoded(scene()[0]) if content is None else content}


def indexed(classes, **options):
    stream = io.BytesIO()
    drawing.index_picture(torch.from_numpy(classes)).save(stream, "PNG", **options)
    return stream.getvalue()


@contextmanager
def a_browser():
    """Chromium of the system, or Playwright's; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        if found is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip("no Chromium is installed")
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


def _plugin(folder):
    for name, text in (("backbones/raw_pixels.py", BACKBONE), ("heads/colored_things.py", HEAD)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def _run(plugin, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "_plugins", [plugin])
        lookup._files.cache_clear()
        seen = Preprocessing(size=(HEIGHT, WIDTH), resize="fit", interpolation="nearest", mean=(0.0,), std=(1.0,))
        words = {"backbone": "raw_pixels/nano", "head": "colored_things", "classes": NAMES, "preprocessing": seen}
        save(build_model("instance_segmentation", **words), folder, thresholds=OWN)
    lookup._files.cache_clear()
    return folder


@contextmanager
def serving(folder):
    """Address of a server of that model, whose files go into a folder."""
    plugin, errors = _plugin(folder / "own parts"), folder / "errors.txt"
    run = _run(plugin, folder / "things")
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": path, "PATCHFORM_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    words = ["serve", run, "--plugin", plugin, "--port", "0", "--json", "--workers", "1", "--limit", "body=3000000"]
    command = [sys.executable, "-m", "patchform", *map(str, words)]
    with (
        errors.open("w", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        try:
            line = process.stdout.readline()
            assert line, errors.read_text(encoding="utf-8")
            yield json.loads(line)["address"]
        finally:
            process.terminate()


class Visit:
    """A page, what it asked for and what it said."""

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page = self.context.new_page()
        self.requests, self.complaints = [], []
        self.page.set_default_timeout(10_000)
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on("console", lambda message: self._said(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.address = address

    def _said(self, text):
        if "getImageData" not in text:  # of `pixels`, that it be done otherwise
            self.complaints.append(text)

    def open(self, token=TOKEN):
        if token:
            self.context.add_init_script(f"sessionStorage.setItem('patchform-token', '{token}')")
        self.page.goto(self.address)
        self.page.wait_for_selector("#choose:enabled" if token else "#door[open]")
        return self.page

    def add(self, *files):
        before = self.page.locator(".picture").count()
        self.page.set_input_files("#files", [*files])
        self.settled(before + len(files))

    def settled(self, count):
        ready = "n => document.querySelectorAll('.picture .note:not(:empty), .veil.failed').length === n"
        self.page.wait_for_function(ready, arg=count)
        self.frame()

    def frame(self):
        """All is drawn."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def pixels(self):
        """Of the first canvas, (H, W, 4) uint8."""
        self.frame()
        read = """() => { const one = document.querySelector("canvas"), { width, height } = one;
            const data = one.getContext("2d").getImageData(0, 0, width, height).data;
            let text = ""; for (let at = 0; at < data.length; at += 8192)
                text += String.fromCharCode(...data.subarray(at, at + 8192));
            return [height, width, btoa(text)]; }"""
        height, width, text = self.page.evaluate(read)
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)

    def shown(self):
        return self.page.locator("tbody tr:visible").count()


def slide(page, name, value):
    page.locator(name).evaluate(
        "(one, value) => { one.value = value; one.dispatchEvent(new Event('input', { bubbles: true })); }", str(value)
    )


def opened_panel(page):
    page.locator("#controls .panel").evaluate("(one) => { one.open = true; }")
