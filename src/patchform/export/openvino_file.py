"""Graphs as OpenVINO's .xml and .bin, made from ONNX."""

from __future__ import annotations

from pathlib import Path

from patchform.resources import writing
from patchform.runtime.description import KEY, FileDescription
from patchform.runtime.openvino_session import openvino


def write(onnx_file: Path, description: FileDescription, path: Path) -> None:
    """Write the .xml and beside it the .bin of an ONNX file; of float16 the weights are, and units may compute in it.

    Raises:
        ResourceError: the disk is full or the place is not writable.
    """
    tools = openvino()
    model = tools.convert_model(onnx_file)
    for key in list(model.rt_info):
        del model.rt_info[key]
    model.set_rt_info(description.as_text(), KEY)
    with writing(path):
        tools.save_model(model, path, compress_to_fp16=description.dtype == "float16")
