"""Small models as every kind of file, for tests of what runs them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from patchform.export import openvino_file
from patchform.export.options import ExportOptions
from patchform.export.writing import export_model
from patchform.model import Model, build_model, save
from patchform.records import Preprocessing
from patchform.runtime.description import KEY, FileDescription

CLASSES = ("cat", "dog", "owl")


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
    """All files of a model, those of OpenVINO made of its ONNX file."""
    save(model, folder / "run")
    (written,) = export_model(model, folder / "model.onnx", ExportOptions(**options))
    if "openvino" in formats:
        openvino_file.write(written.path, written.description, folder / "model.xml")
    if "torch" in formats:
        export_model(model, folder / "model.pt2", ExportOptions(format="torch", **options))
    return Files(folder, model, written.description)


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
