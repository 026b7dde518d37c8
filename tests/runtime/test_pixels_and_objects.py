"""Files of pixels and of objects, through windows, slices, mirror images and formats of results, say what runs say."""

import json

import numpy as np
import pytest
import torch
from exported import a_model, randomised, write_files
from PIL import Image
from reference import randomise

from patchform.cli import main
from patchform.data.detection_transforms import take
from patchform.errors import UsageError
from patchform.inference import MultiScale, SlicedObjects, SlidingWindow
from patchform.model import Model
from patchform.prediction import load
from patchform.records import Preprocessing
from patchform.runtime.sessions import RuntimeOptions

pytestmark = pytest.mark.slow

SIZES = ((60, 80), (80, 60), (60, 80), (101, 50), (33, 34))


def pictures(sizes=SIZES):
    """Smooth ones: of noise a segmenter says one thing everywhere."""
    for number, (height, width) in enumerate(sizes):
        values = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        yield np.array(Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC))


def noise(sizes=SIZES):
    """Of smooth ones a detector says one thing of many boxes, and which of them stay hangs on rounding."""
    for number, size in enumerate(sizes):
        yield np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    preprocessing = Preprocessing(size=(48, 48), resize="keep")
    model = a_model("semantic_segmentation", "resnet/nano", "semantic_fpn", preprocessing=preprocessing)
    return write_files(randomised(model, 0.1), tmp_path_factory.mktemp("segmenter"), formats=("openvino",))


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    preprocessing = Preprocessing(size=(64, 64), resize="keep")
    small = {"channels_inside": 16, "norm": "layer", "form": {"convolutions": 1}}
    options = {"ids": (3, 5, 8), "preprocessing": preprocessing, "head_options": small}
    model = a_model("detection", "resnet/nano", "retinanet", **options)
    randomise(model.backbone, scale=0.3)
    randomise(model.head, seed=1, scale=0.15)
    with torch.no_grad():  # scores that are all 1 would be ties, and which boxes stay hang on rounding
        model.head.classify.output.weight.mul_(0.1)
    return write_files(model, tmp_path_factory.mktemp("detector"), formats=())


@pytest.mark.parametrize(
    "infer",
    [
        Model.predict,
        SlidingWindow((32, 32), (20, 24)),
        SlidingWindow((40, 40), (20, 20), margin=8),
        MultiScale((1.0,), mirrored=True),
    ],
    ids=["whole", "windows", "margins", "mirrored"],
)
@pytest.mark.parametrize("file", ["model.onnx", "model.xml"])
def test_pixels(segmenter, file, infer):
    """Pictures of one batch that have several sizes go in one size after the other, as outputs have that size."""
    expected = list(load(segmenter.run, device="cpu", infer=infer).predict(list(pictures()), batch_size=8))
    given = list(load(segmenter.folder / file, infer=infer).predict(list(pictures()), batch_size=8))
    for one, other, size in zip(given, expected, SIZES, strict=True):
        assert one.error is None
        assert one.target.classes.shape == size
        assert one.target.classes.dtype == other.target.classes.dtype
        unequal = one.target.classes != other.target.classes
        if one.target.scores is None:
            assert unequal.float().mean() < 1e-3  # ties of windows
            continue
        assert (one.target.scores - other.target.scores).abs().max() < 1e-4
        best = other.target.scores.topk(2, 0).values
        assert not unequal[best[0] - best[1] > 1e-4].any()
    assert len({int(label) for one in expected for label in one.target.classes.unique()}) > 1


def test_scales_are_refused(segmenter):
    file = load(segmenter.folder / "model.onnx", infer=MultiScale((0.75, 1.0), mirrored=False))
    with pytest.raises(UsageError, match="pixels of 8 bits"):
        list(file.predict(next(pictures())))


def same_objects(given, expected):
    """As many objects of the same classes, boxes and scores within rounding; of equal scores the order hangs on it."""
    assert len(given.scores) == len(expected.scores) > 0
    given, expected = (by_place(one) for one in (given, expected))
    assert torch.equal(given.classes, expected.classes)
    assert (given.scores - expected.scores).abs().max() < 1e-4
    assert (given.boxes - expected.boxes).abs().max() < 1e-2


def by_place(objects):
    places = [(one, *map(round, box)) for one, box in zip(objects.classes.tolist(), objects.boxes.tolist())]
    return take(objects, torch.tensor(sorted(range(len(places)), key=places.__getitem__)))


@pytest.mark.parametrize(
    ("infer", "options"),
    [
        (Model.predict, {}),
        (Model.predict, {"runtime": "openvino"}),
        (SlicedObjects((40, 40), (24, 24)), {}),
    ],
    ids=["whole", "openvino", "slices"],
)
def test_objects(detector, infer, options):
    run = load(detector.run, device="cpu", threshold=0.0, infer=infer)
    file = load(detector.folder / "model.onnx", threshold=0.0, infer=infer, runtime=RuntimeOptions(**options))
    expected, given = (list(one.predict(list(noise()), batch_size=8)) for one in (run, file))
    for one, other in zip(given, expected, strict=True):
        same_objects(one.target, other.target)


def test_formats_of_results(detector, tmp_path, capsys):
    """COCO's results with the ids of the classes that the file knows."""
    paths = []
    for number, picture in enumerate(pictures()):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(picture).save(paths[-1])
    results = []
    for path in (detector.run, detector.folder / "model.onnx"):
        out = tmp_path / path.name
        words = ["predict", str(path), *paths, "--out", str(out), "--format", "coco", "--threshold", "0.01"]
        assert main(words) == 0
        capsys.readouterr()
        (file,) = [file for file in out.rglob("*.json") if "result" in file.name or "coco" in file.name]
        results.append(json.loads(file.read_text()))
    ordered = [
        sorted(rows, key=lambda row: (row["image_id"], row["category_id"], *map(round, row["bbox"])))
        for rows in results
    ]
    for one, other in zip(*ordered, strict=True):
        assert one["category_id"] == other["category_id"]
        assert one["category_id"] in (3, 5, 8)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.02)
