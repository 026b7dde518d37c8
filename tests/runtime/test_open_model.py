"""What cannot be opened is told in one line, with the exit code of its kind, and nothing is on stderr beside it."""

import shutil
import subprocess
import sys

import pytest
import torch
from exported import rewritten

from patchform.cli import main
from patchform.errors import ModelFileError, PatchformError, UsageError
from patchform.prediction import load
from patchform.runtime.onnx_notes import read_notes
from patchform.runtime.onnx_session import find_provider
from patchform.runtime.opening import describe, open_model, open_session, task_name
from patchform.runtime.sessions import RuntimeOptions

TRUSTED = RuntimeOptions(trust=True)


def refused(path, options=RuntimeOptions()):  # noqa: B008
    with pytest.raises(PatchformError) as caught:
        open_model(path, options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return caught.value


def damaged(file, to, how):
    content = file.read_bytes()
    to.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "cut at its end": content[:-3],
            "empty": b"",
            "words": b"hello " * 1000,
            "zeros": bytes(1000),
            "a page": b"<!DOCTYPE html><html><head><title>404</title></head></html>",
        }[how]
    )
    return to


@pytest.mark.parametrize("name", ["model.onnx", "model.xml", "model.pt2"])
@pytest.mark.parametrize("how", ["cut", "cut at its end", "empty", "words", "zeros", "a page"])
def test_damaged_files(classifier, tmp_path, name, how, capfd):
    file = damaged(classifier.folder / name, tmp_path / name, how)
    if name == "model.xml":
        shutil.copy(classifier.folder / "model.bin", tmp_path)
    runtimes = ("auto", "openvino") if name == "model.onnx" else ("auto",)
    for runtime in runtimes:
        error = refused(file, RuntimeOptions(runtime=runtime, trust=True))
        assert isinstance(error, ModelFileError)
        assert str(file) in str(error)
    assert capfd.readouterr().err == ""


def test_files_that_are_not_there(tmp_path, classifier):
    for name in ("a.onnx", "a.xml", "a.pt2"):
        assert str(refused(tmp_path / name, TRUSTED)) == f"no such file in {tmp_path / name}"
    (tmp_path / "b.onnx").mkdir()
    assert "not an intact model" in str(refused(tmp_path / "b.onnx"))
    (tmp_path / "c.bin").write_bytes(b"")
    assert "neither a run folder nor an exported file" in str(refused(tmp_path / "c.bin"))
    shutil.copy(classifier.folder / "model.onnx", tmp_path / "D.ONNX")
    assert open_model(tmp_path / "D.ONNX").classes == ("cat", "dog", "owl")


def test_weights_that_are_not_there(classifier, tmp_path, capfd):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(classifier.folder / "model.onnx")
    path = tmp_path / "a.onnx"
    onnx.save(model, path, save_as_external_data=True, location="a.onnx.data", size_threshold=1024)
    assert open_model(path).classes == ("cat", "dog", "owl")
    (tmp_path / "a.onnx.data").unlink()
    for runtime in ("onnxruntime", "openvino"):
        error = refused(path, RuntimeOptions(runtime=runtime))
        assert isinstance(error, ModelFileError)
        assert "a.onnx.data" in str(error)
    shutil.copy(classifier.folder / "model.xml", tmp_path)
    error = refused(tmp_path / "model.xml")
    assert isinstance(error, ModelFileError)
    assert "bin file" in str(error)
    assert capfd.readouterr().err == ""


def test_weights_from_elsewhere_are_not_read(classifier, tmp_path):
    """A file cannot make the runtime read other files of the machine."""
    onnx = pytest.importorskip("onnx")
    inner = tmp_path / "inner"
    inner.mkdir()
    onnx.save(
        onnx.load(classifier.folder / "model.onnx"), inner / "a.onnx",
        save_as_external_data=True, location="a.onnx.data", size_threshold=1024,
    )  # fmt: skip
    (inner / "a.onnx.data").rename(tmp_path / "secret")
    model = onnx.load(inner / "a.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    (inner / "a.onnx").write_bytes(model.SerializeToString())
    for runtime in ("onnxruntime", "openvino"):
        assert isinstance(refused(inner / "a.onnx", RuntimeOptions(runtime=runtime)), ModelFileError)


def test_files_of_others(classifier, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(classifier.folder / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    assert "not a file that patchform exported" in str(refused(tmp_path / "foreign.onnx"))
    newer = rewritten(classifier.folder / "model.onnx", tmp_path / "newer.onnx", text='{"format": 99}')
    assert "update patchform" in str(refused(newer))
    junk = rewritten(classifier.folder / "model.onnx", tmp_path / "junk.onnx", text="{")
    assert isinstance(refused(junk), ModelFileError)


def test_operators_of_others_are_not_loaded(classifier, tmp_path, capfd):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(classifier.folder / "model.onnx")
    model.graph.node[-1].domain, model.graph.node[-1].op_type = "com.somebody", "Anything"
    model.opset_import.append(onnx.helper.make_opsetid("com.somebody", 1))
    onnx.save(model, tmp_path / "custom.onnx")
    for runtime in ("onnxruntime", "openvino"):
        error = refused(tmp_path / "custom.onnx", RuntimeOptions(runtime=runtime))
        assert isinstance(error, ModelFileError)
        assert "Anything" in str(error)
    assert capfd.readouterr().err == ""


def test_programs_are_opened_when_they_are_trusted(classifier, capsys):
    path = classifier.folder / "model.pt2"
    assert "can run code of its author" in str(refused(path))
    assert main(["predict", str(path), str(path)]) == 4
    assert "--trust" in capsys.readouterr().err
    assert open_model(path, TRUSTED).session.name == "torch (cpu)"
    assert describe(path) == classifier.description  # which needs no trust


@pytest.mark.parametrize(
    ("module", "name", "options", "remedy"),
    [
        ("onnxruntime", "model.onnx", {}, "patchform[export]"),
        ("openvino", "model.onnx", {"runtime": "openvino"}, "patchform[openvino]"),
        ("openvino", "model.xml", {}, "patchform[openvino]"),
    ],
)
def test_missing_packages(classifier, monkeypatch, module, name, options, remedy):
    monkeypatch.setitem(sys.modules, module, None)
    error = refused(classifier.folder / name, RuntimeOptions(**options))
    assert isinstance(error, UsageError)
    assert f'pip install "{remedy}"' in str(error)


def test_nobody_is_told_of_the_use_of_openvino():
    asked = "from patchform.runtime.openvino_session import openvino; openvino()"
    seen = "from openvino.tools.ovc import telemetry; print(type(telemetry).__module__)"
    told = subprocess.run([sys.executable, "-c", f"{asked}; {seen}"], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


def test_options_that_do_not_fit(classifier):
    folder = classifier.folder
    for path, options, words in (
        (folder / "model.onnx", {"provider": "tpu"}, "it has cpu"),
        (folder / "model.onnx", {"provider": "azure"}, "no provider"),
        (folder / "model.xml", {"provider": "npu"}, "it has cpu"),
        (folder / "model.pt2", {"provider": "cuda", "trust": True}, "it has cpu"),
        (folder / "model.onnx", {"runtime": "torch"}, "take onnxruntime or openvino"),
        (folder / "model.xml", {"runtime": "onnxruntime"}, "take openvino"),
        (folder / "model.pt2", {"runtime": "openvino"}, "take torch"),
        (classifier.run, {"threads": 2}, "a run folder is run by torch"),
    ):
        error = refused(path, RuntimeOptions(**options))
        assert isinstance(error, UsageError), error
        assert words in str(error)
    with pytest.raises(UsageError, match="choose its provider"):
        load(folder / "model.onnx", device="cuda")


def test_providers_by_short_names():
    available = ["CUDAExecutionProvider", "AzureExecutionProvider", "CPUExecutionProvider"]
    assert find_provider("cuda", available) == "CUDAExecutionProvider"
    assert find_provider("CPUExecutionProvider", available) == "CPUExecutionProvider"
    with pytest.raises(UsageError, match=r"it has cpu, cuda$"):
        find_provider("azure", available)


@pytest.mark.parametrize(
    ("name", "runtime"), [("model.onnx", "auto"), ("model.onnx", "openvino"), ("model.xml", "auto")]
)
def test_sessions(classifier, name, runtime):
    """What measures files uses: tensors in, tensors by name out, as many threads as were asked for."""
    session = open_session(classifier.folder / name, RuntimeOptions(runtime=runtime, threads=1))
    assert session.threads == 1
    assert session.inputs == ("images",)
    images = torch.randint(0, 256, (3, 3, 40, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[40, 32]] * 3)
    outputs = session.run(images, sizes)
    assert tuple(outputs) == session.outputs == classifier.description.outputs
    again = session.run(images.flip(-1).contiguous().flip(-1), sizes)  # not laid out as numpy would
    for name in outputs:
        assert torch.equal(outputs[name], again[name])
    outputs["scores"].add_(1)  # they are the caller's
    assert torch.equal(session.run(images, sizes)["scores"], again["scores"])
    with pytest.raises(ModelFileError, match="cannot compute 1 x 5 x 40 x 32 pixels"):
        session.run(torch.zeros(1, 5, 40, 32, dtype=torch.uint8), sizes[:1])


def test_tasks_without_opening(classifier):
    for name in ("run", "model.onnx", "model.xml", "model.pt2"):
        assert task_name(classifier.folder / name) == "classification"


# ----------------------------------------------------------------------------------------------------- notes of a file


def test_notes_are_those_that_onnx_reads(classifier, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(classifier.folder / "model.onnx")
    onnx.helper.set_model_props(model, {"a": "", "": "ü" * 1000, "patchform": "{}"})
    onnx.save(model, tmp_path / "a.onnx")
    assert read_notes(tmp_path / "a.onnx") == {"a": "", "": "ü" * 1000, "patchform": "{}"}


def test_notes_of_spoiled_files(tmp_path):
    """Any bytes are read or refused, at once."""
    onnx = pytest.importorskip("onnx")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    onnx.helper.set_model_props(model, {"patchform": "{}", "b": "c"})
    content = model.SerializeToString()
    path, read = tmp_path / "a.onnx", 0
    draw = torch.Generator().manual_seed(0)
    for number in range(600):
        bytes_ = bytearray(content)
        if number < 300:
            index, value = (int(torch.randint(high, (), generator=draw)) for high in (len(bytes_), 256))
            bytes_[index] = value
        else:
            del bytes_[number % len(bytes_) :]
        path.write_bytes(bytes_)
        try:
            read_notes(path)
            read += 1
        except ModelFileError as error:
            assert "\n" not in str(error)  # noqa: PT017
    assert 100 < read < 590


SIGNALLED = """
import gc, os, signal, sys
from pathlib import Path
from patchform.runtime.openvino_session import OpenVinoSession
from patchform.runtime.sessions import RuntimeOptions
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
first, second = (OpenVinoSession(Path(sys.argv[1]), RuntimeOptions(threads=1)) for _ in range(2))
del first
gc.collect()
del second
gc.collect()
memory = [bytearray(20_000) for _ in range(1000)]
os.kill(os.getpid(), signal.SIGTERM)
print(len(heard), "heard")
"""


def test_signals_are_heard_after_openvino(classifier):
    """On processors with AMX each of its cores took the stack of handlers away with it, and a signal was the end."""
    command = [sys.executable, "-c", SIGNALLED, str(classifier.folder / "model.xml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1 heard\n"), done.stderr
