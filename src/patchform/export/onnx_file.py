"""Graphs as ONNX files: small, with names that mean something, and nothing of the machine that wrote them."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from patchform.errors import UsageError
from patchform.export.operators import onnx_translations
from patchform.resources import writing
from patchform.runtime.description import KEY, FileDescription
from patchform.weights import files

if TYPE_CHECKING:
    import onnx_ir

LARGEST = 1_900_000_000
"""Bytes of weights that lie in the file itself, as protobuf ends at 2 GiB; more lie in a file beside it."""
WEIGHTS = ".data"
"""What the name of that file has more."""


def check_installed() -> None:
    """Raise UsageError unless what writes ONNX is there."""
    try:
        import onnx  # noqa: F401
        import onnx_ir  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed", remedy='pip install "patchform[export]"') from None


def convert(program: ExportedProgram, description: FileDescription, *, opset: int) -> onnx_ir.Model:
    """The ONNX model of a graph, with what it says of itself."""
    with warnings.catch_warnings(), _silent("onnxscript"):
        warnings.simplefilter("ignore")  # of the converter, on itself
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            verbose=False,
            input_names=list(description.inputs),
            output_names=list(description.outputs),
            custom_translation_table=onnx_translations(),
        )
    assert converted is not None
    model: Any = converted.model
    shrink(model)
    _name_axes(model, "frames" if description.preprocessing.frames else "")
    model.graph.name = description.task
    model.producer_name, model.producer_version = KEY, description.patchform
    model.metadata_props.clear()
    model.metadata_props[KEY] = description.as_text()
    return model


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """A logger says nothing but errors meanwhile."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def shrink(model: onnx_ir.Model) -> None:
    """Leave nothing twice and nothing unused; take out notes on the code that it was made from."""
    from onnx_ir.passes import common

    for step in (
        common.LiftConstantsToInitializersPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        step(model)


def _name_axes(model: onnx_ir.Model, frames: str) -> None:
    """Call the free axes by what they are; forget shapes and types of all that is inside, which follow."""
    import onnx_ir

    names: dict[str, str] = {}
    images = model.graph.inputs[0]
    assert images.shape is not None
    axes = ("batch", *((frames,) if frames else ()), "channels", "height", "width")
    for axis, dimension in zip(axes, images.shape):
        if isinstance(dimension, onnx_ir.SymbolicDim) and dimension.value is not None:
            names[dimension.value] = axis

    def named(dimension: Any) -> Any:
        if isinstance(dimension, int):
            return dimension
        text = str(dimension.value)
        return re.sub(r"\bs\d+\b", lambda found: names.get(found[0], found[0]), text)

    ends = {*model.graph.inputs, *model.graph.outputs}
    for value in ends:
        if value.shape is not None:
            value.shape = onnx_ir.Shape([named(dimension) for dimension in value.shape])
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value not in ends:
                value.shape = value.type = None
    for value in ends:
        value.metadata_props.clear()


def write(model: onnx_ir.Model, path: Path) -> None:
    """Write an ONNX file; weights beyond `LARGEST` go into a file beside it, path + `WEIGHTS`.

    Raises:
        ResourceError: the disk is full or the place is not writable.
    """
    import onnx
    import onnx_ir

    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if weights > LARGEST:
        with writing(path, weights):
            onnx_ir.save(model, path, external_data=path.name + WEIGHTS)
    else:
        files.write_bytes(path, onnx_ir.serde.serialize_model(model).SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=True)


def describe_again(path: Path, description: FileDescription) -> None:
    """Let an ONNX file, with its weights inside, say this of itself instead."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {KEY: description.as_text()})
    files.write_bytes(path, model.SerializeToString(deterministic=True))
