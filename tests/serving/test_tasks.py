"""Answers of every task, as `patchform predict` gives them."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from sent import picture
from test_answers import JPEG, Asked, form

from patchform.model import build_model
from patchform.prediction import Predictor
from patchform.records import Preprocessing
from patchform.serving.decoder_process import prepared
from patchform.serving.jobs import Refusal

SMALL = {"channels_inside": 16}
DETR = SMALL | {"queries": 5, "transformer": {"depths": (1, 1), "heads": 2, "hidden": 16}}
MODELS = {
    "semantic_segmentation": ("setr", SMALL | {"decoder": "naive"}),
    "detection": ("detr", DETR),
    "instance_segmentation": ("detr_masks", DETR),
}


def asked_of(task, head, options, monkeypatch, folder, **preprocessing):
    """A server of a model of random weights that finds things."""
    model = build_model(
        task, backbone="vit/nano", head=head, classes=("cat", "dog", "owl"), head_options=options,
        preprocessing=Preprocessing(size=(32, 32), **preprocessing),
    )  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    predictor = Predictor(model, device="cpu")
    monkeypatch.setattr("test_answers.load", lambda *_, **__: predictor)
    return Asked(folder), predictor


@pytest.mark.parametrize("task", MODELS)
def test_a_picture(task, monkeypatch, folder):
    asked, predictor = asked_of(task, *MODELS[task], monkeypatch, folder)
    content = picture(4)
    found = asked("POST", "/predict", content=content, headers=JPEG).json()
    wanted = predictor(content).as_json()
    assert found == {name: value for name, value in wanted.items() if name != "file"} | {"size": [40, 50]}
    threshold = Predictor(predictor.model, device="cpu", threshold=0.0)(content).as_json()
    all_found = asked("POST", "/predict?threshold=0", content=content, headers=JPEG).json()
    assert {name: all_found[name] for name in threshold if name != "file"} == {
        name: value for name, value in threshold.items() if name != "file"
    }
    if "objects" in found:
        assert len(all_found["objects"]) > 0


def test_the_classes_of_all_pixels(monkeypatch, folder):
    asked, predictor = asked_of("semantic_segmentation", *MODELS["semantic_segmentation"], monkeypatch, folder)
    content = picture(4)
    found = asked("POST", "/predict?files=true", content=content, headers=JPEG).json()
    image = Image.open(io.BytesIO(base64.b64decode(found["files"]["classes.png"])))
    assert (image.mode, image.size) == ("P", (50, 40))
    assert np.array_equal(np.asarray(image), predictor(content).target.classes.numpy())
    assert "files" not in asked("POST", "/predict", content=content, headers=JPEG).json()


def test_a_picture_turned_by_its_camera(monkeypatch, folder):
    asked, _ = asked_of("semantic_segmentation", *MODELS["semantic_segmentation"], monkeypatch, folder)
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(picture(4))).save(stream, "JPEG", exif=exif)
    found = asked("POST", "/predict?files=true", content=stream.getvalue(), headers=JPEG).json()
    assert found["size"] == [50, 40]


def test_a_film(monkeypatch, folder, tmp_path):
    av = pytest.importorskip("av")
    asked, predictor = asked_of("video_classification", "linear", {}, monkeypatch, folder, frames=4)
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(12):
            pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        film.mux(stream.encode())
    content = path.read_bytes()
    found = asked("POST", "/predict", content=content, headers={"content-type": "video/mp4"})
    wanted = predictor(path).as_json()
    assert found.json() == {name: value for name, value in wanted.items() if name != "file"} | {"size": [48, 64]}
    several = asked("POST", "/predict", files=form(content, b"no film"))
    assert several.json()["answers"][1]["error"]["code"] == "bad_picture"
    cut = asked.refused("POST", "/predict", content=content[:300], headers={"content-type": "video/mp4"})
    assert cut == (400, "bad_picture")


def test_messages_name_no_place_of_the_server(monkeypatch, folder):
    _, predictor = asked_of("video_classification", "linear", {}, monkeypatch, folder, frames=4)
    said = prepared(b"no film", predictor.preparation)
    assert isinstance(said, Refusal)
    assert "/" not in said.message
