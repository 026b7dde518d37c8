"""Small models of every kind of file, for tests of what runs them."""

from __future__ import annotations

import torch
from torch import nn

from patchform import __version__, outputs
from patchform.export.graph import Graph, example
from patchform.model import build_model
from patchform.records import Preprocessing
from patchform.runtime.description import EXTRA, FILE_FORMAT, KEY, FileDescription


def randomised(model, seed=0, scale=0.3):
    """The model with parameters that say something."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * scale)
    return model.eval()


def a_classifier(classes=("cat", "dog", "owl"), **options):
    torch.manual_seed(0)
    preprocessing = options.pop("preprocessing", Preprocessing(size=(32, 32)))
    return randomised(
        build_model("classification", backbone="vit/nano", head="linear", classes=classes,
                    preprocessing=preprocessing, **options)
    )  # fmt: skip


class Named(nn.Module):
    """The graph with its outputs by name."""

    def __init__(self, model):
        super().__init__()
        self.whole = Graph(model)

    def forward(self, images, sizes):
        return dict(self.whole(images, sizes)._asdict())


def program(model, size=(32, 32), *, batch=None, fixed=False):
    """Of torch.export: free, or of one size and number."""
    images, sizes = example(model, size, batch=batch or 2)
    if batch == 1:
        images, sizes = images[:1], sizes[:1]
    free = {axis: torch.export.Dim.DYNAMIC for axis in range(images.dim()) if axis != images.dim() - 3}
    numbers = {0: torch.export.Dim.DYNAMIC}
    if fixed:
        free = {} if batch else {0: torch.export.Dim.DYNAMIC}
        numbers = {} if batch else numbers
    with torch.no_grad():
        return torch.export.export(Named(model), (images, sizes), dynamic_shapes=(free, numbers), strict=False)


def described(model, **changes):
    """What a file of a model says of itself."""
    images, sizes = example(model, model.preprocessing.size)
    with torch.no_grad():
        record = Graph(model)(images, sizes)
    values = {
        "format": FILE_FORMAT,
        "patchform": __version__,
        "task": model.architecture.task,
        "task_options": {"labels": model.head.labels} if hasattr(model.head, "labels") else {},
        "architecture": model.architecture,
        "classes": model.classes,
        "ids": model.ids,
        "thresholds": model.thresholds,
        "preprocessing": model.preprocessing,
        "resizes": False,
        "inputs": ("images", "sizes"),
        "record": type(record).__name__,
        "outputs": record._fields,
        "batch": 0,
        "sizes": (),
        "least": 8,
        "dtype": "float32",
    }
    assert outputs.record_of(values["record"]) is type(record)
    return FileDescription(**(values | changes))


def write_onnx(path, program, description, *, text=None, external=False):
    """A file with a description, or with any text in its place."""
    onnx = torch.onnx.export(
        program, dynamo=True, opset_version=20, verbose=False, input_names=["images", "sizes"],
        output_names=list(description.outputs),
    )  # fmt: skip
    onnx.model.metadata_props[KEY] = description.as_text() if text is None else text
    onnx.save(path, external_data=external)
    return path


def write_program(path, program, description):
    torch.export.save(program, path, extra_files={EXTRA: description.as_text()})
    return path


def write_openvino(path, onnx, description):
    import openvino

    model = openvino.Core().read_model(onnx)
    model.set_rt_info(description.as_text(), KEY)
    openvino.save_model(model, path, compress_to_fp16=False)
    return path
