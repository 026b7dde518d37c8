"""Graphs as .pt2 files of torch.export, which torch opens without patchform."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from patchform.export.operators import decomposed
from patchform.resources import writing
from patchform.runtime.description import EXTRA, KEY, FileDescription

NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
"""What a graph remembers of the code that it was made from: paths of this machine among it."""


def without_notes(program: ExportedProgram) -> ExportedProgram:
    """The program, which from now on says nothing of the code that it was made from, and holds no example."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            for note in NOTES:
                node.meta.pop(note, None)
    program.example_inputs = None
    return program


def without_unused(program: ExportedProgram) -> ExportedProgram:
    """The program without weights that nothing in it uses: of auxiliary heads, teachers and the like."""
    signature = program.graph_signature
    weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    unused = [node for node in program.graph.nodes if node.name in weights and not node.users]
    names = {node.name for node in unused}
    signature.input_specs[:] = [spec for spec in signature.input_specs if spec.arg.name not in names]
    for node in unused:
        program.graph.erase_node(node)
    kept = set(weights.values()) - {weights[name] for name in names}
    for tensors in (program.state_dict, program.constants):
        for name in set(tensors) & (set(weights.values()) - kept):
            del tensors[name]
    program.graph_module.recompile()
    return program


def write(program: ExportedProgram, description: FileDescription, path: Path) -> None:
    """Write a .pt2 file. Raises ResourceError when the disk is full or the place is not writable."""
    own = any(str(node.target).startswith(f"{KEY}.") for node in program.graph.nodes)
    whole = without_notes(decomposed(program)) if own else program
    with writing(path):
        torch.export.save(whole, path, extra_files={EXTRA: description.as_text()})
