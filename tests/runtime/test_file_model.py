"""Exported files say what their run says, whatever they are shown, and refuse what they do not take."""

import dataclasses
import io
import json
import re

import numpy as np
import pytest
import torch
from exported import CLASSES, a_model, rewritten
from PIL import Image

from patchform.cli import main
from patchform.data.transforms import evaluation_transform
from patchform.device import autocast
from patchform.errors import DataError, ModelFileError, UsageError
from patchform.evaluation import evaluate_run, results_of
from patchform.model import Model, save
from patchform.prediction import Predictor, load
from patchform.records import Batch
from patchform.runtime.file_model import FileModel
from patchform.runtime.opening import open_model
from patchform.runtime.sessions import RuntimeOptions

KINDS = {
    "onnxruntime": ("model.onnx", RuntimeOptions()),
    "openvino": ("model.xml", RuntimeOptions()),
    "openvino on onnx": ("model.onnx", RuntimeOptions(runtime="openvino", threads=1)),
    "torch": ("model.pt2", RuntimeOptions(trust=True)),
}
SIZES = ((32, 32), (40, 50), (57, 33), (91, 128), (33, 200), (8, 9))


def pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of three classes, as many sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for number, (height, width) in enumerate(SIZES):
        path = folder / CLASSES[number % 3] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels(height, width, number)).save(path)
    return folder


def scores(predictor, sources, **options):
    found = list(predictor.predict(sources, **options))
    assert [one.error for one in found] == [None] * len(found)
    return torch.stack([one.target.scores for one in found]), [one.target.classes.tolist() for one in found]


@pytest.fixture(scope="module", params=KINDS)
def file_predictor(request, classifier):
    name, options = KINDS[request.param]
    return load(classifier.folder / name, runtime=options)


# ------------------------------------------------------------------------------------------------------- same answers


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_file_says_what_its_run_says(classifier, file_predictor, photos, batch_size):
    expected, decided = scores(load(classifier.run, device="cpu"), photos, batch_size=batch_size)
    given, classes = scores(file_predictor, photos, batch_size=batch_size)
    assert classes == decided
    assert (given - expected).abs().max() < 1e-5
    assert expected.std(0).max() > 1e-3  # pictures differ: another order would be seen
    assert file_predictor.classes == CLASSES
    assert file_predictor.model.ids == (3, 5, 8)
    assert file_predictor.device == torch.device("cpu")


def test_another_model_says_something_else(classifier, photos):
    """The control of the above: numbers of that size are no accident."""
    expected, _ = scores(Predictor(a_model(head_options={"temperature": 1.01}), device="cpu"), photos)
    given, _ = scores(load(classifier.folder / "model.onnx"), photos)
    assert (given - expected).abs().max() > 1e-4


def test_input_of_any_size(classifier):
    """What windows are, and pictures that are not resized: any sides from `least` on."""
    model, runs = open_model(classifier.folder / "model.onnx"), open_model(classifier.run)
    assert isinstance(model, FileModel)
    for number, (height, width) in enumerate((*SIZES, (8, 8), (65, 9))):
        images = torch.from_numpy(pixels(height, width, number)).permute(2, 0, 1)[None].repeat(3, 1, 1, 1)
        batch = Batch(images, (), ("a",) * 3, ((height, width),) * 3)
        for one, other in zip(Model.predict(model, batch), runs.predict(batch), strict=True):
            assert (one.scores - other.scores).abs().max() < 1e-5


def test_batches_with_padding(classifier):
    """Each size goes by itself, and answers come in order."""
    runs, model = open_model(classifier.run), open_model(classifier.folder / "model.onnx")
    batch, padding = torch.zeros(3, 3, 40, 48, dtype=torch.uint8), torch.ones(3, 40, 48, dtype=torch.bool)
    for index, (height, width) in enumerate(((40, 30), (20, 48), (40, 30))):
        batch[index, :, :height, :width] = torch.from_numpy(pixels(height, width, index)).permute(2, 0, 1)
        padding[index, :height, :width] = False
    whole = Batch(batch, (), ("a", "b", "c"), ((40, 30), (20, 48), (40, 30)), padding)
    for one, other in zip(model.predict(whole), runs.predict(whole), strict=True):
        assert (one.scores - other.scores).abs().max() < 1e-5


def test_evaluation(classifier, photos, file_predictor, tmp_path):
    path, out = file_predictor.model.path, tmp_path / "out"
    options = RuntimeOptions(runtime="openvino" if "OpenVINO" in file_predictor.model.session.name else "auto",
                             trust=True)  # fmt: skip
    expected = evaluate_run(classifier.run, photos, out=tmp_path / "run", device="cpu")
    given = evaluate_run(path, photos, out=out, runtime=options, batch_size=2)
    assert given.samples == expected.samples == len(SIZES)
    assert given.numbers.keys() == expected.numbers.keys()
    for name, value in expected.numbers.items():
        assert given.numbers[name] == pytest.approx(value, abs=1e-5)
    assert given.tables["confusion"].values == expected.tables["confusion"].values
    assert json.loads((out / "evaluation.json").read_text())["samples"] == len(SIZES)


def test_the_command_line(classifier, photos, capsys, tmp_path):
    run, file = str(classifier.run), str(rewritten(classifier.folder / "model.onnx", tmp_path / "copy.onnx"))
    assert main(["evaluate", file, "--data", str(photos), "--threads", "1"]) == 0
    assert results_of(file) == tmp_path / "copy.onnx.evaluation"
    assert {"evaluation.json", "report.html"} <= {path.name for path in results_of(file).iterdir()}
    lines = {}
    for path, options in ((run, []), (file, []), (file, ["--runtime", "openvino", "--threads", "1"])):
        capsys.readouterr()
        out = tmp_path / f"{len(lines)}"
        assert main(["predict", path, str(photos), "--batch-size", "2", "--out", str(out), *options]) == 0
        told = capsys.readouterr()
        assert re.fullmatch(r"predictions.jsonl and pictures of the answers are in \S+\n", told.err)
        lines[len(lines)] = [json.loads(line) for line in told.out.splitlines()]
        assert len(list(out.rglob("*.png"))) == len(SIZES)
    for index in (1, 2):
        for one, other in zip(lines[index], lines[0], strict=True):
            assert (one["file"], one["label"]) == (other["file"], other["label"])
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_a_file_in_its_run_folder_is_evaluated_as_the_run(classifier, photos, tmp_path, capsys):
    """Its recipe says what is evaluated; the run's own evaluation stays."""
    run = tmp_path / "run"
    save(classifier.model, run)
    (run / "recipe.yaml").write_text(f"task: classification\ndata:\n  path: {photos}\n  validation: {photos}\n")
    rewritten(classifier.folder / "model.onnx", run / "model.onnx")
    assert main(["evaluate", str(run / "model.onnx")]) == 0
    assert f"images  {len(SIZES)}" in " ".join(capsys.readouterr().out.split()).replace("images ", "images  ")
    assert not (run / "evaluation.json").exists()
    assert (run / "model.onnx.evaluation" / "report.html").exists()


def test_films(classifier, file_predictor, tmp_path):
    pytest.importorskip("av")
    from patchform.data.encoded import write

    film = tmp_path / "a.mp4"
    write(film, (Image.fromarray(pixels(48, 64, number)) for number in range(3)), 5)
    expected = list(load(classifier.run, device="cpu").frames(film))
    given = list(file_predictor.frames(film))
    assert [time for time, _ in given] == [time for time, _ in expected]
    for (_, one), (_, other) in zip(given, expected, strict=True):
        assert (one.target.scores - other.target.scores).abs().max() < 1e-5


def test_bytes_arrays_and_what_is_no_picture(classifier):
    stream = io.BytesIO()
    Image.fromarray(pixels(40, 50)).save(stream, "png")
    file = load(classifier.folder / "model.onnx")
    one, other, bad = file.predict([stream.getvalue(), pixels(40, 50), b"nothing"])
    assert torch.equal(one.target.scores, other.target.scores)
    assert "not" in bad.error


# ------------------------------------------------------------------------------------------------ what it does not take


def test_a_file_of_one_size_refuses_others(classifier, tmp_path, capsys):
    preprocessing = dataclasses.replace(classifier.description.preprocessing, resize="native")
    changes = {"sizes": ((32, 32), (40, 24)), "preprocessing": preprocessing}
    file = rewritten(classifier.folder / "model.onnx", tmp_path / "fixed.onnx", **changes)
    names = []
    for number, (height, width) in enumerate(((32, 32), (32, 33), (40, 24), (24, 40))):
        Image.fromarray(pixels(height, width, number)).save(tmp_path / f"{number}.png")
        names.append(str(tmp_path / f"{number}.png"))
    assert main(["predict", str(file), *names]) == 8
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["error" in line for line in lines] == [False, True, False, True]
    assert lines[1]["error"] == (
        "an input of 32 x 33 pixels for a file that takes 32 x 32, 40 x 24; export it with --size free, or use the run"
        " itself"
    )
    data = tmp_path / "data" / "cat"
    data.mkdir(parents=True)
    for name in names[:2]:
        (data / name.rpartition("/")[2]).write_bytes((tmp_path / name).read_bytes())
    with pytest.raises(DataError, match=r"an input of 32 x 33 pixels .* in .*cat/1\.png"):
        evaluate_run(file, tmp_path / "data", out=tmp_path / "out", batch_size=1)


def test_sides_below_the_least_are_refused(classifier, tmp_path):
    file = rewritten(classifier.folder / "model.onnx", tmp_path / "least.onnx", least=33)
    (refused,) = load(file).predict(pixels(40, 40))
    assert "whose shortest side is 33" in refused.error


class Watched:
    """A session that notes what it is shown."""

    def __init__(self, session):
        self.session, self.shown = session, []

    def run(self, images, sizes):
        assert len(images) == len(sizes)
        self.shown.append(tuple(images.shape))
        return self.session.run(images, sizes)


def watched(file):
    predictor = load(file)
    predictor.model.session = Watched(predictor.model.session)
    return predictor, predictor.model.session.shown


def test_a_file_of_a_fixed_number_is_shown_that_many(classifier, photos, tmp_path):
    expected, _ = scores(load(classifier.run, device="cpu"), photos)
    for number in (1, 4, 7):
        predictor, shown = watched(rewritten(classifier.folder / "model.onnx", tmp_path / "fixed.onnx", batch=number))
        given, _ = scores(predictor, photos)
        assert {shape[0] for shape in shown} == {number}
        assert len(shown) == -(-len(SIZES) // number)
        assert (given - expected).abs().max() < 1e-5


def test_pixels_in_floating_point(classifier):
    """What 8 bits can say is taken, what they cannot is not rounded."""
    model = open_model(classifier.folder / "model.onnx")
    whole = torch.from_numpy(pixels(32, 32)).permute(2, 0, 1)[None]
    batch = Batch(whole, (), ("a",), ((32, 32),))
    (expected,), (given,) = model.predict(batch), model.predict(batch._replace(images=whole / 255))
    assert torch.equal(expected.scores, given.scores)
    between = (whole / 255 + 0.001).clamp(0, 1)
    with pytest.raises(UsageError, match="pixels of 8 bits"):
        model.predict(batch._replace(images=between))
    with pytest.raises(UsageError, match="channels"):
        model.predict(batch._replace(images=whole[:, :1]))
    with autocast("cpu", "bfloat16"), pytest.raises(UsageError, match="its own precision"):
        model.predict(batch)


def test_it_has_no_parts(classifier, photos, tmp_path, capsys):
    model = open_model(classifier.folder / "model.onnx")
    batch = Batch(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), (), ("a",), ((32, 32),))
    for call in (model.features, model):
        with pytest.raises(UsageError, match="gives predictions and no features"):
            call(batch)
    for words in (
        ["probe", str(model.path), "--data", str(photos)],
        ["features", str(model.path), str(photos), "--out", str(tmp_path / "y.safetensors")],
    ):
        assert main(words) == 2
        assert "gives predictions, not the features" in capsys.readouterr().err


def test_pictures_that_are_resized_inside(classifier, photos, tmp_path):
    """Such a file is shown the pictures as they are."""
    file = rewritten(classifier.folder / "model.onnx", tmp_path / "inside.onnx", resizes=True, least=1)
    predictor, shown = watched(file)
    assert predictor.model.preprocessing.resize == "native"
    scores(predictor, photos)
    assert sorted(shown) == sorted((1, 3, *size) for size in SIZES)


# ----------------------------------------------------------------------------------- files that contradict themselves


def test_outputs_that_are_not_what_is_said(classifier, tmp_path):
    path, batch = classifier.folder / "model.onnx", Batch(
        torch.zeros(2, 3, 32, 32, dtype=torch.uint8), (), ("a", "b"), ((32, 32),) * 2
    )  # fmt: skip
    few = rewritten(path, tmp_path / "few.onnx", classes=("cat",), ids=None)
    images = torch.from_numpy(np.stack([pixels(32, 32, n) for n in range(8)])).permute(0, 3, 1, 2)
    with pytest.raises(ModelFileError, match="of 1 names"):
        open_model(few).predict(batch._replace(images=images, names=("a",) * 8, sizes=((32, 32),) * 8))
    for record, words in (("ObjectOutputs", "are no ObjectOutputs"), ("NoSuchOutputs", "of a kind")):
        wrong = rewritten(path, tmp_path / f"{record}.onnx", record=record)
        with pytest.raises(ModelFileError, match=words):
            open_model(wrong).predict(batch)
    for changes in ({"outputs": ("scores", "other")}, {"inputs": ("images", "sizes")}):
        wrong = rewritten(path, tmp_path / "names.onnx", **changes)
        with pytest.raises(ModelFileError, match="where it says"):
            open_model(wrong)
    with pytest.raises(ModelFileError, match="task is not known"):
        open_model(rewritten(path, tmp_path / "task.onnx", task="counting"))


def test_a_file_is_prepared_for_as_its_run(classifier):
    run, file = open_model(classifier.run), open_model(classifier.folder / "model.onnx")
    assert file.preprocessing == run.preprocessing
    image = torch.from_numpy(pixels(50, 70)).permute(2, 0, 1)
    assert torch.equal(evaluation_transform(file.preprocessing)(image), evaluation_transform(run.preprocessing)(image))
