"""Files hold all that using them takes, are the same each time, and are written whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from patchform import cli
from patchform.errors import FolderError, ModelFileError, ResourceError, UsageError
from patchform.export import onnx_file, writing
from patchform.export.graph import FileGraph, example
from patchform.export.options import ExportOptions
from patchform.export.preparation import prepared
from patchform.layers.norms import BatchNorm2d
from patchform.model import build_model, save
from patchform.outputs import ObjectOutputs
from patchform.records import Preprocessing
from patchform.runtime.description import EXTRA, KEY, of_entries, of_program
from patchform.tasks.base import find_task, task_of

pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
"""torch 2.11's, of how it opens its own files."""

SIZES = [(32, 32), (33, 47), (96, 16), (16, 75)]


def a_model(backbone="vit/nano", classes=("cat", "dog", "owl"), **options):
    torch.manual_seed(0)
    options = {"preprocessing": Preprocessing(size=(32, 32))} | options
    model = build_model("classification", backbone=backbone, head="linear", classes=classes, **options).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=draw) * 0.3 + 0.1 * (tensor.dim() < 2))
        model.mean.fill_(0.4)
        model.std.fill_(0.3)
    return model


def expected(model, images):
    with torch.no_grad():
        return FileGraph(model, task_of(model.architecture, model.head))(images)


def assert_same(given, model, images, *, most=1e-5):
    wanted = expected(model, images)
    assert set(given) == set(wanted)
    for name, tensor in wanted.items():
        other = torch.as_tensor(np.asarray(given[name]))
        assert other.dtype == tensor.dtype, name
        if tensor.is_floating_point():
            torch.testing.assert_close(other, tensor, atol=most, rtol=0)
    assert torch.equal(torch.as_tensor(np.asarray(given["chosen"])), wanted["chosen"])


@pytest.fixture(scope="module")
def model():
    return a_model()


@pytest.fixture(scope="module")
def free(model, tmp_path_factory):
    """A file for any size, and a control."""
    path = tmp_path_factory.mktemp("free") / "model.onnx"
    said = []
    return writing.export_model(model, path, say=said.append)[0], said


@pytest.fixture(scope="module")
def session(free):
    return onnxruntime.InferenceSession(free[0].path)


def outputs_of(session, images):
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images.numpy()})))


def test_a_file_computes_what_the_model_does(model, session):
    for size in SIZES:
        for batch in (1, 3):
            images = example(model, size, batch=batch)[0]
            assert_same(outputs_of(session, images), model, images)


def test_another_mean_is_noticed(model, session):
    images = example(model, (32, 32))[0]
    model.mean.add_(0.01)
    with pytest.raises(AssertionError):
        assert_same(outputs_of(session, images), model, images)
    model.mean.sub_(0.01)


def test_inputs_and_outputs_have_names(session):
    assert [(one.name, one.shape, one.type) for one in session.get_inputs()] == [
        ("images", ["batch", 3, "height", "width"], "tensor(uint8)")
    ]
    assert [(one.name, one.shape) for one in session.get_outputs()] == [
        ("scores", ["batch", 3]),
        ("chosen", ["batch", 3]),
        ("top_scores", ["batch", 3]),
        ("top_classes", ["batch", 3]),
    ]


def test_it_says_what_it_is(free, model, session):
    told = of_entries(session.get_modelmeta().custom_metadata_map, "x")
    assert told == free[0].description
    assert (told.classes, told.preprocessing, told.architecture) == (
        model.classes,
        model.preprocessing,
        model.architecture,
    )
    assert told.inputs == ("images",)
    assert told.task_options == {"labels": "single"}
    assert told.outputs[: len(expected(model, example(model, (32, 32))[0]))] == told.outputs
    assert free[0].bytes == free[0].path.stat().st_size


def test_it_says_nothing_of_the_machine(free):
    content = free[0].path.read_bytes()
    for word in (b"site-packages", b".py", str(Path.home()).encode(), b"stack_trace", b"namespace"):
        assert word not in content
    loaded = onnx.load(free[0].path)
    assert not loaded.doc_string
    assert not any(node.metadata_props or node.doc_string for node in loaded.graph.node)
    assert [entry.key for entry in loaded.metadata_props] == [KEY]


def test_weights_are_there_once(free, model):
    loaded = onnx.load(free[0].path)
    weights = [entry.raw_data for entry in loaded.graph.initializer if len(entry.raw_data) > 64]
    assert len(weights) == len(set(weights))
    assert sum(map(len, weights)) <= 4.2 * sum(parameter.numel() for parameter in model.parameters())


def test_what_is_going_on_is_said(free):
    assert len(free[1]) == 2
    assert all("model.onnx" in sentence for sentence in free[1])


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A .pt2 file of a model with batch norms, and the model."""
    model = a_model("resnet/nano", classes=[*"abcdefg"])
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    return writing.export_model(model, path, ExportOptions(format="torch"))[0], model


def test_a_program_computes_what_the_model_does(program):
    file, model = program
    loaded = torch.export.load(file.path).module()
    for size in SIZES:
        for batch in (1, 3):
            images = example(model, size, batch=batch)[0]
            assert_same(loaded(images), model, images)
    assert loaded(images)["top_classes"].shape == (3, 5)


def test_a_program_is_loaded_without_patchform(program, tmp_path):
    code = f"""
import sys, torch
program = torch.export.load({str(program[0].path)!r}).module()
print(sorted(program(torch.zeros(1, 3, 40, 33, dtype=torch.uint8))), "patchform" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.split("] ")[1].strip() == "False", done.stderr
    assert "'top_classes'" in done.stdout


def test_a_program_says_what_it_is_and_nothing_of_the_machine(program):
    import zipfile

    assert of_program(program[0].path) == program[0].description
    with zipfile.ZipFile(program[0].path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert b"site-packages" not in content, name
            assert name.endswith(EXTRA) or b"patchform" not in content, name


def test_files_are_the_same_each_time(program, tmp_path):
    file, model = program
    (again,) = writing.export_model(model, tmp_path / "model.pt2", ExportOptions(format="torch"))
    assert again.path.read_bytes() == file.path.read_bytes()


def test_a_file_of_one_size(model, tmp_path):
    options = ExportOptions(format="torch", sizes=((32, 48), (16, 16)), batch=2)
    files = writing.export_model(model, tmp_path / "m.pt2", options)
    assert [file.path.name for file in files] == ["m-32x48.pt2", "m-16x16.pt2"]
    assert [(file.description.sizes, file.description.batch) for file in files] == [(((32, 48),), 2), (((16, 16),), 2)]
    loaded = torch.export.load(files[0].path).module()
    images = example(model, (32, 48))[0]
    assert_same(loaded(images), model, images)
    for other in (images[:1], images[..., :32]):
        with pytest.raises(RuntimeError, match="to be equal to"):
            loaded(other)


def test_float16_halves_the_weights_and_unused_ones_are_gone(tmp_path):
    model = a_model()
    model.backbone.spare = nn.Linear(3, 3)
    options = ExportOptions(format="torch", dtype="float16")
    (file,) = writing.export_model(model, tmp_path / "m.pt2", options)
    loaded = torch.export.load(file.path)
    halves = {name for name, tensor in loaded.state_dict.items() if tensor.dtype == torch.float16}
    assert "inner.model.head.classifier.weight" in halves
    assert not any("spare" in name for name in loaded.state_dict)
    assert not any("norm" in name or "position" in name for name in halves)
    assert len(halves) > len(loaded.state_dict) / 2
    images = example(model, (33, 47))[0]
    given, wanted = loaded.module()(images), expected(model, images)
    assert all(given[name].dtype == wanted[name].dtype for name in wanted)
    apart = (given["scores"] - wanted["scores"]).abs().max()
    assert 0 < apart < 0.01


def test_pictures_are_resized_inside(tmp_path):
    model = a_model(preprocessing=Preprocessing(size=(32, 24), crop_share=0.9))
    options = ExportOptions(format="torch", resize_inside=True)
    (file,) = writing.export_model(model, tmp_path / "m.pt2", options)
    assert file.description.resizes
    from patchform.data.transforms import Fit

    loaded, fit = torch.export.load(file.path).module(), Fit(model.preprocessing)
    for size in ((32, 24), (50, 133), (7, 9), (200, 31)):
        images = example(model, size)[0]
        assert_same(loaded(images), model, torch.stack([fit(image) for image in images]), most=1e-3)


# ------------------------------------------------------------------------------------------------------ preparation


def test_batch_norms_are_folded_and_the_model_stays():
    model = a_model("resnet/nano")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ready = prepared(model)
    assert any(isinstance(module, BatchNorm2d) for module in model.modules())
    assert not any(isinstance(module, BatchNorm2d) for module in ready.modules())
    images = example(model, (40, 33))[0]
    assert_same(expected(ready, images), model, images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_backbones_are_fused():
    model = a_model("parnet/nano")
    ready = prepared(model)
    assert len(list(ready.backbone.parameters())) < len(list(model.backbone.parameters()))
    images = example(model, (64, 64))[0]
    assert_same(expected(ready, images), model, images, most=1e-4)


def test_a_shared_convolution_is_folded_for_each_norm():
    convolution, norms = nn.Conv2d(2, 2, 1), [BatchNorm2d(2), BatchNorm2d(2)]
    norms[1].running_mean.fill_(3)
    rows = nn.ModuleList(nn.Sequential(convolution, norm) for norm in norms).eval()
    x = torch.rand(1, 2, 3, 3)
    wanted = [row(x) for row in rows]
    holder = nn.Module()
    holder.backbone, holder.rows = nn.Identity(), rows
    holder.backbone.fuse = lambda: None
    ready = prepared(holder)
    for row, answer in zip(ready.rows, wanted):
        assert isinstance(row[1], nn.Identity)
        torch.testing.assert_close(row(x), answer)


# ------------------------------------------------------------------------------------------------- what is decided


def test_objects_that_count_are_those_that_predict_leaves():
    task = find_task("detection")
    scores = torch.tensor([[0.9, 0.5, 0.3, 0.3, 0.0]])
    outputs = ObjectOutputs(torch.rand(1, 5, 4), torch.tensor([[0, 1, 0, 1, -1]]), scores)
    thresholds = torch.tensor([0.3, 0.50001])
    confident = task.derived(outputs, thresholds)["confident"]
    assert confident.tolist() == [[True, False, True, False, False]]
    left = task.confident(outputs.predictions()[0], thresholds.tolist())
    assert torch.equal(left.scores, scores[confident])


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("m.pt2", {}, r"ends? in \.onnx, or say --format torch"),
        ("m.bin", {"format": "torch"}, r"ends? in \.pt2$"),
        ("m.onnx", {"sizes": ((8, 8), (8, 8))}, "twice"),
        ("m.onnx", {"sizes": ((8, 8),), "resize_inside": True}, "resize-inside"),
    ],
)
def test_what_does_not_go_together_is_refused(model, tmp_path, name, options, words):
    with pytest.raises(UsageError, match=words):
        writing.export_model(model, tmp_path / name, ExportOptions(**options))
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays(model, tmp_path):
    (tmp_path / "m.onnx").write_text("mine")
    with pytest.raises(FolderError, match="--overwrite"):
        writing.export_model(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "mine"


def test_a_file_that_is_not_proved_is_not_kept(model, tmp_path):
    seen = []

    def refuse(path):
        seen.append(path.name)
        raise ModelFileError("it is wrong")

    with pytest.raises(ModelFileError, match="it is wrong"):
        writing.export_model(model, tmp_path / "m.pt2", ExportOptions(format="torch", sizes=((16, 16),)), prove=refuse)
    assert seen == ["m.pt2"]
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(model, tmp_path):
    with pytest.raises(ResourceError):
        writing.export_model(model, tmp_path / "none" / "m.pt2", ExportOptions(format="torch", sizes=((16, 16),)))


def test_a_graph_that_is_tied_to_a_size_is_refused(model, tmp_path, monkeypatch):
    plain = type(model.backbone).forward

    def tied(self, images, **padding):
        return plain(self, images[..., : int(images.shape[-1])], **padding)

    monkeypatch.setattr(type(model.backbone), "forward", tied)
    with pytest.raises(UsageError, match=r"tied to sizes .* name the sizes that it will meet: --size 32x32"):
        writing.export_model(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    (file,) = writing.export_model(model, tmp_path / "m.onnx", ExportOptions(sizes=((32, 32),)))
    assert file.description.sizes == ((32, 32),)


def test_a_missing_package_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r'onnxscript is not installed; pip install "patchform\[export\]"'):
        writing.export_model(model, tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "onnxscript")
    with pytest.raises(UsageError, match=r"openvino"):
        writing.export_model(model, tmp_path / "m.xml", ExportOptions(format="openvino"))


def test_the_command_says_what_is_wrong(model, tmp_path, capsys):
    save(model, tmp_path / "run")
    for words, code, said in (
        (["--size", "12"], 2, "224x224"),
        (["--size", "0x4"], 2, "0x4"),
        (["--opset", "7"], 2, "opset"),
        (["--out", str(tmp_path / "m.xml")], 2, "--format openvino"),
    ):
        assert cli.main(["export", str(tmp_path / "run"), *words]) == code
        assert said in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path)]) == 4


def test_large_weights_lie_beside_the_file(model, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "LARGEST", 1000)
    (file,) = writing.export_model(model, tmp_path / "m.onnx", ExportOptions(sizes=((16, 16),)))
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert file.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    images = example(model, (16, 16))[0]
    assert_same(outputs_of(onnxruntime.InferenceSession(file.path), images), model, images)
    monkeypatch.undo()
    writing.export_model(model, tmp_path / "m.onnx", ExportOptions(sizes=((16, 16),)), overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx"}
