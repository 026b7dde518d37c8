"""From a model and a folder of pictures to a file of int8 that says what it left out."""

import pytest
import torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from PIL import Image  # noqa: E402

import patchform as pf  # noqa: E402
from patchform.commands.export_int8 import converter  # noqa: E402
from patchform.descriptions import Preprocessing  # noqa: E402
from patchform.errors import UsageError  # noqa: E402
from patchform.export.int8_options import Int8Options  # noqa: E402
from patchform.export.options import ExportOptions  # noqa: E402
from patchform.export.writing import export_model  # noqa: E402
from patchform.records import Batch  # noqa: E402
from patchform.runtime.opening import describe, open_model  # noqa: E402

CLASSES = ("dark", "light")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of two classes, of several sizes."""
    root = tmp_path_factory.mktemp("pictures")
    draw = torch.Generator().manual_seed(0)
    for label, base in zip(CLASSES, (20, 160)):
        (root / label).mkdir()
        for index in range(9):
            pixels = torch.randint(0, 90, (40 + index, 52 - index, 3), dtype=torch.uint8, generator=draw) + base
            Image.fromarray(pixels.numpy()).save(root / label / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    model = pf.build_model(
        "classification",
        backbone="resnet/nano",
        head="linear",
        classes=CLASSES,
        preprocessing=Preprocessing(size=(32, 32)),
    )
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(value * (1 + 0.2 * torch.randn(value.shape, generator=draw)).abs())
    return model.eval()


@pytest.fixture(scope="module")
def exported(classifier, folder, tmp_path_factory):
    path, said = tmp_path_factory.mktemp("file") / "model.onnx", []
    to_int8 = converter(path.parent, classifier, format="onnx", data=folder, images=12, least_snr=5, say=said.append)
    (written,) = export_model(classifier, path, ExportOptions(dtype="int8"), to_int8=to_int8)
    return written, said


def test_the_file_says_what_it_left_out(exported):
    written, said = exported
    told = describe(written.path)
    assert told == written.description
    assert told.dtype == "int8"
    assert "head.classifier: last layer" in told.left_out
    assert "backbone.stem: first layer" in told.left_out
    assert said[0].startswith("int8, static")
    assert len(said) == 1 + len(told.left_out)
    kinds = [node.op_type for node in onnx.load(written.path).graph.node]
    assert kinds.count("QuantizeLinear") > 5


def test_it_answers_nearly_as_the_model_at_other_sizes(exported, classifier):
    file = open_model(exported[0].path)
    draw = torch.Generator().manual_seed(3)
    for number, size in ((1, (32, 32)), (3, (33, 47)), (2, (61, 32))):
        images = torch.randint(0, 256, (number, 3, *size), dtype=torch.uint8, generator=draw)
        batch = Batch(images, (), ("",) * number, (size,) * number)
        for one, other in zip(classifier.predict(batch), file.predict(batch)):
            assert 0 < (one.scores - other.scores).abs().max() < 0.1


def test_openvino_computes_the_same(exported):
    pytest.importorskip("openvino")
    from patchform.runtime.sessions import RuntimeOptions

    images = torch.randint(0, 256, (2, 3, 40, 33), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    batch = Batch(images, (), ("", ""), ((40, 33),) * 2)
    first = open_model(exported[0].path).predict(batch)
    second = open_model(exported[0].path, RuntimeOptions(runtime="openvino")).predict(batch)
    for one, other in zip(first, second):
        assert (one.scores - other.scores).abs().max() < 0.05


def test_without_pictures_it_is_dynamic_or_refused(classifier, tmp_path):
    source = tmp_path / "nothing"
    source.mkdir()
    with pytest.raises(UsageError, match="does not say which pictures"):
        converter(source, classifier, format="onnx", method="static")(source, source, None)
    with pytest.raises(UsageError, match="OpenVINO is slow"):
        converter(source, classifier, format="openvino", method="dynamic")
    with pytest.raises(UsageError, match="int8 without pictures"):
        export_model(classifier, tmp_path / "model.onnx", ExportOptions(dtype="int8"))
    with pytest.raises(UsageError, match=r"int8 in a \.pt2"):
        export_model(classifier, tmp_path / "model.pt2", ExportOptions(dtype="int8", format="torch"))


def test_defaults_are_said_once():
    from patchform.commands import export_int8

    assert Int8Options().least_snr == export_int8.SNR
