"""Small models as every kind of file, for tests of what runs them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from patchform.export import onnx_file, openvino_file, program_file
from patchform.export.graph import trace_file
from patchform.export.options import ExportOptions
from patchform.export.preparation import prepared
from patchform.export.writing import describe
from patchform.model import Model, build_model, save
from patchform.records import Preprocessing
from patchform.runtime.description import KEY, FileDescription
from patchform.tasks.base import task_of

CLASSES = ("cat", "dog", "owl")
RUNTIMES = (("run", {}), ("model.onnx", {}), ("model.onnx", {"runtime": "openvino"}), ("model.xml", {}))


class Files(NamedTuple):
    """A run folder, and beside it model.onnx, model.xml and model.pt2 of it."""

    folder: Path
    model: Model
    description: FileDescription

    @property
    def run(self) -> Path:
        return self.folder / "run"


def randomised(model, scale=0.3):
    """The model with parameters that say something."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * scale)
    return model.eval()


def a_model(task="classification", backbone="vit/nano", head="linear", classes=CLASSES, ids=None, **options):
    torch.manual_seed(0)
    preprocessing = options.pop("preprocessing", Preprocessing(size=(32, 32)))
    names = {"backbone": backbone, "head": head, "classes": classes, "ids": ids, "preprocessing": preprocessing}
    return randomised(build_model(task, **names, **options))


def write_files(model, folder, formats=("onnx", "openvino", "torch"), **options) -> Files:
    """All files of one graph, which takes any size unless `size` is given."""
    size, task = options.pop("size", None), task_of(model.architecture, model.head)
    wanted, ready = ExportOptions(**options), prepared(model)
    description, program = describe(ready, task, wanted, size), trace_file(ready, task, wanted, size)
    save(model, folder / "run")
    if "torch" in formats:
        program_file.write(program_file.without_notes(program), description, folder / "model.pt2")
    onnx_file.write(onnx_file.convert(program, description, opset=wanted.opset), folder / "model.onnx")
    if "openvino" in formats:
        openvino_file.write(folder / "model.onnx", description, folder / "model.xml")
    return Files(folder, model, description)


def rewritten(file, to, text=None, **changes):
    """A copy of an ONNX file that says something else of itself."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(file)
    (entry,) = [entry for entry in model.metadata_props if entry.key == KEY]
    if text is None:
        from patchform.runtime.opening import describe as said

        text = dataclasses.replace(said(file), **changes).as_text()
    entry.value = text
    onnx.save(model, to)
    return to
