"""Graphs that compute in float16, and whose weights are."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from patchform.export.options import ExportOptions


def autocast(options: ExportOptions) -> AbstractContextManager:
    """Within it a graph is made whose products are of float16; sums, norms and positions stay as autocast has them.

    OpenVINO makes float16 of a graph of float32 itself.
    """
    if options.dtype == "float16" and options.format != "openvino":
        return torch.autocast("cpu", torch.float16)
    return nullcontext()


def halved(program: ExportedProgram) -> ExportedProgram:
    """The program with weights that are used in float16 alone kept as such: half of its size."""
    graph, signature = program.graph, program.graph_signature
    weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in list(graph.nodes):
        name = weights.get(node.name) if node.op == "placeholder" else None
        if name is None or not node.users or not all(_halves(user) for user in node.users):
            continue
        tensors = program.state_dict if name in program.state_dict else program.constants
        half = tensors[name].detach().half()
        tensors[name] = torch.nn.Parameter(half, False) if isinstance(tensors[name], torch.nn.Parameter) else half
        value: Tensor = node.meta["val"]
        node.meta["val"] = value.half()
        for user in list(node.users):
            user.replace_all_uses_with(node)
            graph.erase_node(user)
    program.graph_module.recompile()
    return program


def _halves(node: Node) -> bool:
    """Whether it makes float16 of a tensor, and nothing else."""
    casts = (torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default)
    return node.op == "call_function" and node.target in casts and torch.float16 in (*node.args, *node.kwargs.values())
