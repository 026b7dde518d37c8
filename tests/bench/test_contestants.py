"""Models and files as contestants, and the verb."""

import json
import logging

import pytest
import torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx_graphs import convolutional, run  # noqa: E402

import patchform as pf  # noqa: E402
from patchform import __version__, model  # noqa: E402
from patchform.bench.comparison import random_inputs  # noqa: E402
from patchform.bench.contestants import Compiled, Eager, Skipped, of_file  # noqa: E402
from patchform.cli import main  # noqa: E402
from patchform.descriptions import Architecture, Preprocessing  # noqa: E402
from patchform.errors import ModelFileError, UsageError  # noqa: E402
from patchform.runtime.description import FILE_FORMAT, KEY, FileDescription  # noqa: E402

CLASSES = tuple("abcde")
SIZE = Preprocessing(size=(16, 16))


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    made = pf.build_model("classification", backbone="resnet/nano", head="linear", classes=CLASSES, preprocessing=SIZE)
    return made.eval()


def write(path, **changes):
    """A file by hand that takes any size, or says that it does not."""
    description = FileDescription(
        format=FILE_FORMAT,
        patchform=__version__,
        task="classification",
        task_options={},
        architecture=Architecture(
            task="classification", backbone="resnet/nano", head="linear", backbone_options={}, head_options={}
        ),
        classes=CLASSES,
        ids=None,
        thresholds=None,
        preprocessing=SIZE.resolved(),
        resizes=False,
        inputs=("images",),
        record="LabelOutputs",
        outputs=("scores",),
        **{"batch": 0, "sizes": (), "least": 8, "dtype": "float32", **changes},
    )
    graph = convolutional()
    onnx.helper.set_model_props(graph, {KEY: description.as_text()})
    onnx.save(graph, path)
    return graph


@pytest.fixture
def folder(classifier, tmp_path):
    model.save(classifier, tmp_path / "run")
    write(tmp_path / "run" / "model.onnx")
    return tmp_path / "run"


def test_eager_is_the_model(classifier):
    images, sizes = random_inputs(SIZE, (16, 16), 3)
    outputs = Eager(classifier).prepare(images, sizes)()
    with torch.no_grad():
        targets = classifier.predict(pf.records.Batch(images, (), ("", "", ""), tuple(map(tuple, sizes.tolist()))))
    for row, target in zip(outputs.scores, targets):
        torch.testing.assert_close(row, target.scores)


def test_where_there_is_no_compiler_the_reason_is_told(classifier, monkeypatch):
    def broken(module):
        def call(*inputs):
            raise RuntimeError("\nNo working C++ compiler found\nand more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(Skipped, match=r"^No working C\+\+ compiler found$"):
        Compiled(classifier).prepare(*random_inputs(SIZE, (16, 16), 1))


def test_files_run_in_each_of_their_runtimes(tmp_path):
    pytest.importorskip("openvino")
    graph = write(tmp_path / "model.onnx")
    images, sizes = random_inputs(SIZE, (16, 20), 2)
    (expected,) = run(graph, {"images": images.numpy()})
    files = list(of_file(tmp_path / "model.onnx", threads=1, trust=False, prefix="a/"))
    assert [file.name for file in files] == ["a/model.onnx onnxruntime", "a/model.onnx openvino"]
    for file in files:
        scores = file.prepare(images, sizes)()["scores"]
        torch.testing.assert_close(scores, torch.from_numpy(expected), atol=1e-5, rtol=0)
        assert file.bytes == (tmp_path / "model.onnx").stat().st_size


def test_files_are_given_nothing_that_they_do_not_take(tmp_path):
    write(tmp_path / "model.onnx", sizes=((16, 16),), batch=2)
    file = next(of_file(tmp_path / "model.onnx", threads=1, trust=False))
    assert file.prepare(*random_inputs(SIZE, (16, 16), 2))()
    with pytest.raises(Skipped, match="it takes 16x16 alone"):
        file.prepare(*random_inputs(SIZE, (16, 20), 2))
    with pytest.raises(Skipped, match="it takes 2 at once alone"):
        file.prepare(*random_inputs(SIZE, (16, 16), 1))
    with pytest.raises(UsageError, match="no exported file"):
        list(of_file(tmp_path / "model.tflite", threads=1, trust=False))
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelFileError):
        list(of_file(tmp_path / "bad.onnx", threads=1, trust=False))


def names(capsys, *words):
    assert main(["bench", *map(str, words), "--json", "--seconds", "0.001", "--batch", "2"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_brings_its_files_and_a_file_its_run(folder, capsys):
    found = names(capsys, folder, "--skip", "compiled", "--skip", "openvino", "--threads", "1")
    assert [row["name"] for row in found["rows"]] == ["eager", "model.onnx onnxruntime"]
    assert (found["size"], found["machine"]["threads"]) == ([16, 16], 1)
    for row in found["rows"]:
        assert row["latency"]["calls"] >= 9
        assert row["latency"]["median"] <= row["latency"]["p90"]
        assert list(row["images_per_second"]) == ["1", "2"]
    assert found["rows"][0]["times_as_fast"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    found = names(capsys, folder / "model.onnx", "--skip", "openvino", "--size", "16x24")
    assert [row["name"] for row in found["rows"]] == ["model.onnx onnxruntime", "eager"]
    assert found["size"] == [16, 24]


def test_each_is_named_once_and_by_its_folder_where_there_are_several(folder, tmp_path, capsys):
    write(tmp_path / "other.onnx")
    skip = ("--skip", "compiled", "--skip", "openvino")
    found = names(capsys, folder, folder / "model.onnx", *skip)
    assert [row["name"] for row in found["rows"]] == ["eager", "model.onnx onnxruntime"]
    found = names(capsys, folder, tmp_path / "other.onnx", *skip)
    assert [row["name"] for row in found["rows"]] == [
        "run/eager",
        "run/model.onnx onnxruntime",
        f"{tmp_path.name}/other.onnx onnxruntime",
    ]


def test_the_table_says_what_was_measured_where(folder, capsys):
    before = torch.get_num_threads()
    assert (
        main(["bench", str(folder), "--seconds", "0.001", "--batch", "1", "--skip", "compiled", "--threads", "1"]) == 0
    )
    assert torch.get_num_threads() == before
    out = capsys.readouterr().out
    for words in ("16 x 16 pixels", "eager", "model.onnx onnxruntime", "1 thread", "resizing pictures is not counted"):
        assert words in out


def test_bad_words_are_one_line(folder, tmp_path, capsys):
    for words, code, line in (
        ((folder, "--size", "large"), 2, "say height x width"),
        ((folder, "--skip", ""), 2, "nobody takes part"),
        ((tmp_path / "missing",), 4, "missing"),
        ((tmp_path / "missing.onnx",), 4, "no such file"),
    ):
        assert main(["bench", *map(str, words)]) == code
        error = capsys.readouterr().err.strip()
        assert line in error
        assert len(error.splitlines()) == 1


def test_what_the_compiler_logs_is_not_shown(classifier, monkeypatch, caplog):
    contestant, log = Compiled(classifier), logging.getLogger("torch._dynamo")

    def compiled(images, sizes):
        log.warning("Graph break")
        return contestant.module(images, sizes)

    monkeypatch.setattr(contestant, "compiled", compiled)
    contestant.prepare(*random_inputs(SIZE, (16, 16), 1))
    assert "Graph break" not in caplog.text
    log.warning("heard again")
    assert "heard again" in caplog.text
