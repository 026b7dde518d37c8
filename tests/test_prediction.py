import dataclasses
import io
import json
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from patchform.data.dataset import open_evaluation
from patchform.data.loader import evaluation_loader
from patchform.data.pictures import LabelledPictures
from patchform.data.transforms import evaluation_transform
from patchform.errors import DataError, FolderError, UsageError
from patchform.evaluation import evaluate
from patchform.model import build_model, save
from patchform.prediction import Predictor, expand, load, write
from patchform.records import Preprocessing
from patchform.settings import DataSettings

NAMES = ("cat", "dog", "owl")
PREPROCESSING = Preprocessing(size=(32, 32))


def a_model():
    torch.manual_seed(0)
    model = build_model(
        "classification", backbone="vit/nano", head="linear", classes=NAMES, preprocessing=PREPROCESSING
    )
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # default weights say nearly nothing
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return model


@pytest.fixture(scope="module")
def predictor():
    return Predictor(a_model(), device="cpu")


def pixels(height=40, width=50, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def put(path, seed=0, **size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed=seed, **size)).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for number in (1, 2, 10):
        put(folder / f"{number}.png", seed=number, height=30 + number)
    return folder


def files_of(folder):
    """Names of all files but the list of what was written, which it must hold."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return names - {".written.jsonl"}


def scores(found):
    return torch.stack([prediction.target.scores for prediction in found])


# ------------------------------------------------------------------------------------------------------------ sources


def test_folders_are_read_in_natural_order_and_recursively(photos):
    put(photos / "more" / "3.jpg")
    put(photos / ".hidden" / "4.jpg")
    (photos / "notes.txt").write_text("hello")
    names = [os.path.relpath(source.name, photos) for source in expand(photos)]
    assert names == ["1.png", "2.png", "10.png", os.path.join("more", "3.jpg")]
    assert [source.name for source in expand(str(photos / "*.png"))] == [str(photos / f"{n}.png") for n in (1, 2, 10)]
    assert len(expand(str(photos / "**" / "*"))) == 4
    assert len(expand([photos, photos / "2.png"])) == 5


def test_odd_names_work(predictor, photos):
    for name in ("with space.png", "käse 猫.png", "new\nline.png", "-x.png", "[1].png", "\udcff.png"):
        put(photos / name)
    found = list(predictor.predict(photos))
    assert len(found) == 9
    assert all(prediction.error is None for prediction in found)
    assert next(predictor.predict(str(photos / "[1].png"))).error is None  # a file before a pattern
    for prediction in found:
        assert json.loads(json.dumps(predictor.record(prediction)))["file"] == prediction.name


def test_nothing_to_look_at_is_an_error_at_once(predictor, tmp_path):
    (tmp_path / "empty").mkdir()
    for sources in ([], tmp_path / "empty", str(tmp_path / "*.png"), tmp_path / "no.png"):
        with pytest.raises(DataError):
            predictor.predict(sources)
    with pytest.raises(UsageError):
        predictor.predict(pixels(), batch_size=0)


def test_link_loops_pipes_and_folders_named_like_pictures(predictor, photos):
    (photos / "loop").symlink_to(photos, target_is_directory=True)
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    (photos / "folder.png").mkdir()
    (photos / "empty.png").write_bytes(b"")
    os.mkfifo(photos / "pipe.png")
    found = {os.path.basename(prediction.name): prediction for prediction in predictor.predict(photos)}
    assert set(found) == {"1.png", "2.png", "10.png", "gone.png", "folder.png", "empty.png", "pipe.png"}
    assert {name for name, prediction in found.items() if prediction.error} == {
        "gone.png",
        "folder.png",
        "empty.png",
        "pipe.png",
    }
    (device,) = predictor.predict("/dev/zero")
    assert "regular file" in device.error


def test_all_forms_of_one_picture_agree(predictor, tmp_path):
    array = pixels()
    file = put(tmp_path / "a.png")
    forms = [
        str(file),
        file,
        file.read_bytes(),
        Image.fromarray(array),
        array,
        array.astype(np.float32) / 255,
        torch.from_numpy(array).permute(2, 0, 1),
    ]
    found = list(predictor.predict(forms, batch_size=1))  # bits are promised for batches of one shape alone
    assert [prediction.name for prediction in found[2:]] == [f"image-{index}" for index in range(2, 7)]
    exact = scores(found[:5] + found[6:])
    assert torch.equal(exact, exact[:1].expand_as(exact))
    torch.testing.assert_close(found[5].target.scores, exact[0], rtol=0, atol=0.02)  # resized before rounding
    swapped = next(predictor.predict(array[..., ::-1].copy()))  # control: BGR is another picture
    assert not torch.allclose(swapped.target.scores, exact[0], atol=1e-3)
    assert torch.equal(scores(predictor.predict(array)), exact[:1])  # one, not in a list
    assert torch.equal(scores(predictor.predict(iter([file]))), exact[:1])
    together = scores(predictor.predict(forms[:5] + forms[6:], batch_size=4))
    torch.testing.assert_close(together, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [pixels().astype(np.float32), np.full((8, 8, 3), np.nan, np.float32), np.zeros((2, 8, 8, 3), np.uint8), 7, None],
)
def test_wrong_values_are_errors_of_their_own(predictor, wrong):
    bad, good = predictor.predict([wrong, pixels()])
    assert bad.target is None
    assert bad.error
    assert good.error is None
    assert predictor.record(bad) == {"file": "image-0", "error": bad.error}


def test_standard_input(predictor, tmp_path, monkeypatch):
    content = put(tmp_path / "a.png").read_bytes()

    def given(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        return next(predictor.predict("-"))

    assert torch.equal(given(content).target.scores, next(predictor.predict(content)).target.scores)
    assert given(b"hello").error
    short = dataclasses.replace(predictor.preparation, most_bytes=len(content) - 1)
    monkeypatch.setattr(predictor, "preparation", short)
    assert "more than" in given(content).error


# --------------------------------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_batches_do_not_change_predictions(predictor, batch_size):
    pictures = [pixels(20 + 7 * seed, 60 - 5 * seed, seed) for seed in range(7)]
    alone = scores(predictor.predict(pictures, batch_size=1))
    torch.testing.assert_close(scores(predictor.predict(pictures, batch_size=batch_size)), alone, rtol=0, atol=1e-5)
    assert alone.std(0).max() > 1e-2  # control: the pictures are told apart


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_one_bad_picture_among_many(predictor, batch_size):
    pictures = [pixels(seed=seed) for seed in range(9)]
    wanted = scores(predictor.predict(pictures))
    found = list(predictor.predict([*pictures[:5], b"not a picture", *pictures[5:]], batch_size=batch_size))
    assert [index for index, prediction in enumerate(found) if prediction.error] == [5]
    torch.testing.assert_close(scores(found[:5] + found[6:]), wanted, rtol=0, atol=1e-5)


def test_predictions_that_are_not_finite_are_errors():
    model = a_model()
    with torch.no_grad():
        model.head.classifier.bias[0] = torch.nan
    (found,) = Predictor(model, device="cpu").predict(pixels())
    assert "finite" in found.error


def test_a_run_folder_gives_the_same_predictions(predictor, photos, tmp_path):
    save(a_model(), tmp_path / "run")
    again = load(tmp_path / "run", device="cpu")
    assert again.classes == NAMES
    assert torch.equal(scores(again.predict(photos)), scores(predictor.predict(photos)))
    rough = load(tmp_path / "run", device="cpu", precision="bfloat16")
    torch.testing.assert_close(scores(rough.predict(photos)), scores(again.predict(photos)), rtol=0, atol=0.1)


def test_predict_and_evaluate_give_the_model_the_same_tensors(tmp_path):
    """Portrait, turned by EXIF, grey, CMYK, palette, transparent, 16 bits: one way from file to input."""
    folder = tmp_path / "data" / "cat"
    put(folder / "portrait.jpg", height=90)
    put(folder / "wide.png", width=200)
    base = Image.fromarray(pixels())
    for tag in range(1, 9):
        exif = Image.Exif()
        exif[274] = tag
        base.save(folder / f"exif{tag}.jpg", exif=exif)
    for mode in ("L", "1", "P", "LA", "RGBA"):
        base.convert(mode).save(folder / f"{mode}.png")
    base.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")

    model, inputs = a_model(), []
    model.backbone.register_forward_pre_hook(lambda _, given: inputs.append(given[0].clone()))
    listing = open_evaluation(tmp_path / "data", DataSettings(), NAMES)
    pictures = LabelledPictures(listing, evaluation_transform(PREPROCESSING), PREPROCESSING)
    evaluator = Predictor(model, device="cpu")
    evaluate(model, evaluation_loader(pictures, 1), evaluator.task)
    evaluated, inputs[:] = dict(zip([listing.name(i) for i in range(len(listing))], inputs)), []
    found = list(evaluator.predict(tmp_path / "data", batch_size=1))
    assert len(found) == len(evaluated) == 17
    for prediction, tensor in zip(found, inputs):
        assert prediction.error is None
        assert torch.equal(tensor, evaluated[os.path.relpath(prediction.name, tmp_path / "data")])
    assert len({tensor.sum().item() for tensor in inputs}) > 10  # control: they are not all alike


# -------------------------------------------------------------------------------------------------------------- output


def test_lines_and_pictures(predictor, photos, tmp_path):
    put(photos / "1.jpg")  # the stem of 1.png
    put(photos / "deep" / "1.png")  # the name of 1.png
    (photos / "bad.png").write_bytes(b"x")
    stream, out = io.StringIO(), tmp_path / "out"
    done = write(predictor, photos, stream=stream, out=out, batch_size=2)
    assert done == (6, 1)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (out / "predictions.jsonl").read_text() == stream.getvalue()
    assert [os.path.relpath(line["file"], photos) for line in lines] == [
        "1.jpg",
        "1.png",
        "2.png",
        "10.png",
        "bad.png",
        os.path.join("deep", "1.png"),
    ]
    good = lines[0]
    assert set(good) == {"file", "label", "score", "top"}
    assert good["top"][0] == {"label": good["label"], "score": good["score"]}
    assert set(lines[4]) == {"file", "error"}
    names = {"1.jpg.png", "1.png.png", "deep/1.png.png", "2.png.png", "10.png.png", "predictions.jsonl"}
    assert files_of(out) == names
    with Image.open(out / "1.png.png") as picture:
        assert picture.mode == "RGB"


def test_nothing_is_overwritten_unless_told(predictor, photos, tmp_path):
    out = tmp_path / "out"
    write(predictor, photos, out=out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(FolderError, match="exists"):
        write(predictor, photos / "2.png", out=out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert write(predictor, photos, out=out, overwrite=True) == (3, 0)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_own_pictures_are_not_sources(predictor, photos):
    sources = {path.name: path.read_bytes() for path in photos.iterdir()}
    assert write(predictor, photos, out=photos / "out") == (3, 0)
    assert write(predictor, photos, out=photos / "out", overwrite=True) == (3, 0)
    with pytest.raises(UsageError, match="holds the sources"):
        write(predictor, photos, out=photos, overwrite=True)
    assert {path.name: path.read_bytes() for path in photos.iterdir() if path.is_file()} == sources


def test_an_interrupt_leaves_complete_lines(predictor, photos, tmp_path, monkeypatch):
    drawn = []

    def draw(prediction):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(prediction)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(predictor, "draw", draw)
    with pytest.raises(KeyboardInterrupt):
        write(predictor, photos, out=tmp_path / "out")
    text = (tmp_path / "out" / "predictions.jsonl").read_text()
    assert text.endswith("\n")
    assert len([json.loads(line) for line in text.splitlines()]) == 2
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    assert not list((tmp_path / "out").glob(".tmp*"))


def test_all_bad_is_still_valid_output(predictor, tmp_path):
    stream = io.StringIO()
    assert write(predictor, [b"a", b"b"], stream=stream) == (2, 2)
    assert all("error" in json.loads(line) for line in stream.getvalue().splitlines())


def test_drawing_needs_the_picture(predictor):
    kept, lost = (next(predictor.predict(pixels(), keep_images=keep)) for keep in (True, False))
    assert predictor.draw(kept).mode == "RGB"
    with pytest.raises(UsageError, match="keep_images"):
        predictor.draw(lost)
