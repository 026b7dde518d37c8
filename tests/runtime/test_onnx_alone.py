"""The example that needs neither patchform nor torch says what patchform says."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exported import rewritten
from PIL import Image

from patchform.prediction import load

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_alone.py"
ALONE = """
import runpy, sys
for name in ("torch", "torchvision", "patchform", "onnx"):
    sys.modules[name] = None  # to import it is an error
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def alone(*words):
    """Lines of the example."""
    command = [sys.executable, "-c", ALONE, str(EXAMPLE), *map(str, words)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in finished.stdout.splitlines()]


def pictures(folder, sizes=((60, 90), (131, 40), (32, 32), (200, 201))):
    """Smooth ones, some of which a camera held otherwise."""
    paths = []
    for number, (height, width) in enumerate(sizes):
        values = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        picture = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)
        paths.append(folder / f"{number}.png")
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 1 else 1
        picture.save(paths[-1], exif=exif)
    return paths


def test_it_is_short():
    code = EXAMPLE.read_text().partition('"""\n\n')[2].splitlines()
    assert len([line for line in code if line.strip()]) <= 32


@pytest.mark.parametrize("resize", ["crop", "squash", "keep", "fit", "native"])
def test_classes(classifier, tmp_path, resize):
    preprocessing = dataclasses.replace(classifier.description.preprocessing, resize=resize, size=(40, 32))
    file = rewritten(classifier.folder / "model.onnx", tmp_path / "model.onnx", preprocessing=preprocessing)
    paths = pictures(tmp_path)
    given, expected = alone(file, *paths), list(load(file).predict(paths))
    assert [line["file"] for line in given] == [str(path) for path in paths]
    for line, prediction in zip(given, expected, strict=True):
        scores = dict(zip(classifier.model.classes, prediction.target.scores.tolist()))
        assert dict(line["found"]) == pytest.approx(scores, abs=1e-3)
        assert line["found"][0][0] == max(scores, key=scores.get)


def test_resampling_matters(classifier, tmp_path):
    """The control: another rule gives other numbers than the tolerance above."""
    preprocessing = dataclasses.replace(classifier.description.preprocessing, interpolation="nearest")
    file = rewritten(classifier.folder / "model.onnx", tmp_path / "model.onnx", preprocessing=preprocessing)
    paths = pictures(tmp_path)
    differences = [
        abs(score - prediction.target.scores[classifier.model.classes.index(label)].item())
        for line, prediction in zip(alone(file, *paths), load(classifier.folder / "model.onnx").predict(paths))
        for label, score in line["found"]
    ]
    assert max(differences) > 1e-3
