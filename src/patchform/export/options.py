"""What is asked of an exported file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from patchform.runtime.description import Dtype
from patchform.schema import Natural, Range, Side

Format: TypeAlias = Literal["onnx", "torch", "openvino"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}
"""How files of each format end."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What a file is made to take, and in which numbers it computes."""

    format: Format = "onnx"
    """onnx: for onnxruntime, TensorRT and the like; torch: a .pt2 program of torch.export; openvino: .xml and .bin."""
    sizes: tuple[tuple[Side, Side], ...] = ()
    """(height, width) that it is made for, a file for each; empty: one file for any size."""
    dtype: Dtype = "float32"
    """Of weights and arithmetic; pictures stay uint8 and outputs float32."""
    resize_inside: bool = False
    """Take pictures of any size, those of a batch of one size, and resize them inside."""
    batch: Natural = 0
    """Pictures that go in at once; 0: any number."""
    opset: Annotated[int, Range(least=20, most=23)] = 20
    """Of ONNX."""
