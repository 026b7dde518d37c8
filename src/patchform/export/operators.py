"""Operators of the library in the words of a file: ONNX's, and those of torch and torchvision."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx.experimental import _config as config

from patchform.geometry import detections

NMS = detections.nms._opoverload
LOWEST = float(np.finfo(np.float32).min)
"""Below all scores but minus infinity."""


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """By operator: `custom_translation_table` of `torch.onnx.export`. Needs onnxscript."""
    from onnx import TensorProto, helper
    from onnxscript import opset20 as op

    nothing = helper.make_tensor("nothing", TensorProto.FLOAT, [1], [-math.inf])

    def translate_nms(boxes: Any, scores: Any, groups: Any, number: int, overlap: float, most: int) -> Any:
        """`geometry.detections.nms`: ONNX's takes scores by class, and gives the boxes left in no order of scores."""
        classes = op.Constant(value=helper.make_tensor("classes", TensorProto.INT64, [1, number, 1], range(number)))
        none, second = op.Constant(value_float=-math.inf), op.Constant(value_ints=[1])
        own = op.Equal(op.Unsqueeze(groups, second), classes)  # (B, G, K)
        of_groups = op.Where(own, op.Unsqueeze(scores, second), none)
        left = op.NonMaxSuppression(
            boxes,
            of_groups,
            op.Constant(value_ints=[most]),
            op.Constant(value_floats=[_at_most(overlap)]),
            op.Constant(value_floats=[LOWEST]),
        )
        places = op.Gather(left, op.Constant(value_ints=[0, 2]), axis=1)  # image and box
        empty = op.ConstantOfShape(op.Shape(scores), value=nothing)
        kept = op.ScatterND(empty, places, op.GatherND(scores, places))  # (B, K)
        fill = op.Concat(op.Shape(scores, start=0, end=1), op.Constant(value_ints=[most]), axis=0)
        kept = op.Concat(kept, op.ConstantOfShape(fill, value=nothing), axis=1)  # there may be fewer than `most`
        best, index = op.TopK(kept, op.Constant(value_ints=[most]), axis=1)
        return op.Where(op.Greater(best, none), index, op.Constant(value_int=-1))

    def translate_linear(x: Any, weight: Any, bias: Any = None) -> Any:
        """`torch.nn.functional.linear` as a product of two axes: runtimes add the bias in it, of more axes apart."""
        if bias is None or x.shape is None:
            product = op.MatMul(x, op.Transpose(weight, perm=[1, 0]))
            return product if bias is None else op.Add(product, bias)
        if len(x.shape) == 2:
            return op.Gemm(x, weight, bias, transB=1)
        rows = op.Reshape(x, op.Concat(op.Constant(value_ints=[-1]), op.Shape(weight, start=1), axis=0))
        shape = op.Concat(op.Shape(x, end=-1), op.Shape(weight, end=1), axis=0)
        return op.Reshape(op.Gemm(rows, weight, bias, transB=1), shape)

    return {NMS: translate_nms, torch.ops.aten.linear.default: translate_linear}


def _at_most(number: float) -> float:
    """The largest float32 that is at most `number`: what is compared with it is float32, and torch compares doubles."""
    rounded = np.float32(number)
    return float(rounded if float(rounded) <= number else np.nextafter(rounded, np.float32(-math.inf)))


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """A program without operators of this library: torch opens it without it, once torchvision has been imported."""
    if all(node.target is not NMS for node in program.graph.nodes):
        return program
    with warnings.catch_warnings(), config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", "`create_unbacked_symint`", FutureWarning)  # of torchvision, on itself
        return program.run_decompositions({NMS: plain_nms})


def plain_nms(boxes: Tensor, scores: Tensor, groups: Tensor, number: int, overlap: float, most: int) -> Tensor:
    """`geometry.detections.nms` of torchvision's for one image and one group: each of them is moved to where no other
    is, in float64, which keeps the pixels of any number of groups. Overlaps are those of float64 too.
    """
    images, places = scores.shape
    exact, flat = boxes.double(), scores.flatten().double()
    low, extent = exact.amin(), exact.amax() - exact.amin() + 1
    own = torch.arange(images, device=boxes.device)[:, None] * number + groups
    moved = (exact + (own * extent)[..., None]).flatten(0, 1)
    # graphs of torchvision's take it that two boxes are left at least: two more, which are apart from all and the last
    corner = low - 2 - 2 * torch.arange(2, device=boxes.device)
    spare = torch.stack([corner, corner, corner + 1, corner + 1], 1)
    moved, flat = torch.cat([moved, spare]), torch.cat([flat, flat.new_full((2,), LOWEST)])
    rows = (flat > -math.inf).nonzero()[:, 0]
    kept = rows[torch.ops.torchvision.nms(moved[rows], flat[rows], overlap)]
    left = torch.full_like(flat, -math.inf).index_copy(0, kept, flat[kept])[:-2].view(images, places)
    left = torch.cat([left, left.new_full((images, most), -math.inf)], 1)
    best, index = left.sort(dim=1, descending=True, stable=True)
    return torch.where(best[:, :most] > -math.inf, index[:, :most], -1)
