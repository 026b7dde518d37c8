"""Graphs whose weights are float16, and whose layers of weights compute in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from patchform.export.options import ExportOptions

_LAYERS = (F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d)
_CHECK = torch.ops.aten._assert_tensor_metadata.default


class _HalfLayers(TorchFunctionMode):
    """Within it layers of weights compute in float16. All else stays float32: norms, softmax, positions, boxes, the
    resizing of pictures and of maps, and what is added up from layer to layer.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function not in _LAYERS:
            return function(*args, **(kwargs or {}))
        halves = {name: _half(value) for name, value in (kwargs or {}).items()}
        return function(*map(_half, args), **halves).float()


def _half(value: Any) -> Any:
    return value.half() if isinstance(value, Tensor) and value.is_floating_point() else value


def computing(options: ExportOptions) -> AbstractContextManager[object]:
    """Within it graphs are made that compute as a file should. OpenVINO makes float16 of float32 itself."""
    return _HalfLayers() if halves(options) else nullcontext()


def halves(options: ExportOptions) -> bool:
    """Whether the graph itself is of float16."""
    return options.dtype == "float16" and options.format != "openvino"


def halved(program: ExportedProgram) -> ExportedProgram:
    """The program with weights that are used in float16 alone kept as such: half of its size."""
    graph, signature = program.graph, program.graph_signature
    weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in [node for node in graph.nodes if node.name in weights]:
        users = [user for user in node.users if user.target is not _CHECK]
        if not users or not all(_makes_half(user) for user in users):
            continue
        tensors = program.state_dict if weights[node.name] in program.state_dict else program.constants
        half: Tensor = tensors[weights[node.name]].detach().half()
        kept = isinstance(tensors[weights[node.name]], torch.nn.Parameter)
        tensors[weights[node.name]] = torch.nn.Parameter(half, requires_grad=False) if kept else half
        node.meta["val"] = node.meta["val"].half()
        for user in list(node.users):
            user.replace_all_uses_with(node)
            graph.erase_node(user)
    program.graph_module.recompile()
    return program


def _makes_half(node: Node) -> bool:
    """Whether it makes float16 of a tensor, and nothing else."""
    casts = (torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default)
    return node.target in casts and torch.float16 in (*node.args, *node.kwargs.values())
