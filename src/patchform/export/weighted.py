"""The layers of an ONNX graph that hold weights: which there are, which see pictures, and which come last.

Written for files of `export.onnx_file`, whose nodes have unique names and whose parameters are called as in the model.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

CONVOLUTION = "Conv"
PRODUCTS = ("MatMul", "Gemm")
SELECTIONS = ("TopK", "NonMaxSuppression")
"""Operators behind which rows are others as soon as a number changes a little."""
OWN_NAME = re.compile(r"[A-Za-z_]+(\.\w+)+")
MOST_GROUPS = 12


class Layer(NamedTuple):
    """A node with weights."""

    node: str
    """Its name."""
    kind: str
    """Operator: Conv, MatMul, Gemm."""
    module: str
    """Where in the model it is, such as "backbone.blocks.3.mlp.fc1"; the node's own name where that is not known."""
    weights: str
    """Name of the initializer."""
    parameters: int
    """Numbers in it."""
    output: str


class Group(NamedTuple):
    """Layers that are judged together."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """Numbers in all of them."""
        return sum(layer.parameters for layer in self.layers)


class Layers(NamedTuple):
    """All layers of a graph, in its order, each in one of the fields."""

    inner: tuple[Layer, ...]
    """That may be computed in other numbers."""
    first: tuple[Layer, ...]
    """That no other stands before."""
    last: tuple[Layer, ...]
    """That none comes after: what they give is compared."""
    selected: tuple[Layer, ...]
    """That see what was selected before, such as the boxes of regions."""
    constant: tuple[Layer, ...]
    """That see no picture."""


def layers_of(model: ModelProto) -> Layers:
    """The convolutions and matrix products of a graph that hold weights; of those in subgraphs nothing is known."""
    graph = model.graph
    named = {layer.node: layer for layer in _all_layers(graph)}
    sees = _of_pictures(graph)
    selected = _after(graph, lambda node: node.op_type in SELECTIONS)
    after = _after(graph, lambda node: node.name in named and node.output[0] in sees)
    before = _leads_to(graph, {node for node, layer in named.items() if layer.output in sees - selected})
    fields: dict[str, list[Layer]] = defaultdict(list)
    for node in graph.node:
        layer = named.get(node.name)
        if layer is None:
            continue
        if layer.output not in sees:
            field = "constant"
        elif any(name in selected for name in node.input):
            field = "selected"
        elif layer.node not in before:
            field = "last"
        elif not any(name in after for name in node.input):
            field = "first"
        else:
            field = "inner"
        fields[field].append(layer)
    return Layers(*(tuple(fields[field]) for field in Layers._fields))


def groups_of(layers: Sequence[Layer], most: int = MOST_GROUPS) -> list[Group]:
    """Layers by stage or block, in their order; where there are more than `most`, the smallest are joined."""
    rows: dict[str, list[Layer]] = {}
    owner: dict[str, str] = {}
    for layer in layers:  # what shares weights stays together: else they would be stored twice
        name = owner.setdefault(layer.weights, _stage(layer.module))
        rows.setdefault(name, []).append(layer)
    groups = [Group(name, tuple(members)) for name, members in rows.items()]
    while len(groups) > most:
        sums = [one.parameters + other.parameters for one, other in itertools.pairwise(groups)]
        here = sums.index(min(sums))
        one, other = groups[here : here + 2]
        name = f"{one.name.split(' to ')[0]} to {other.name.split(' to ')[-1]}"
        groups[here : here + 2] = [Group(name, one.layers + other.layers)]
    return groups


def _stage(module: str) -> str:
    """For "backbone.blocks.3.mlp.fc1" "backbone.blocks.3", for "head.classifier" that itself."""
    parts = module.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:2])


def _all_layers(graph: GraphProto) -> Iterable[Layer]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    for node in graph.node:
        if node.op_type not in (CONVOLUTION, *PRODUCTS) or len(node.input) < 2 or node.input[1] not in shapes:
            continue
        if node.op_type in PRODUCTS and len(shapes[node.input[1]]) != 2:
            continue  # several products at once: they have no channels that scales could be for
        weights, output = node.input[1], node.output[0]
        count = 1
        for length in shapes[weights]:
            count *= length
        biases = [name for reader in readers[output] if reader.op_type == "Add" for name in reader.input]
        owned = [name for name in (*node.input[1:], *biases) if name in shapes and OWN_NAME.fullmatch(name)]
        module = _module(owned[0]) if owned else node.name
        yield Layer(node.name, node.op_type, module, weights, count, output)


def _module(parameter: str) -> str:
    """For "inner.model.backbone.blocks.3.mlp.fc1.bias" "backbone.blocks.3.mlp.fc1"."""
    path = parameter.rpartition(".")[0]
    return re.sub(r"^(\w+\.)*?(?=(backbone|head)\b)", "", path)


def _after(graph: GraphProto, source: Callable[[NodeProto], bool]) -> set[str]:
    """Names of values that follow from nodes of a kind."""
    reached: set[str] = set()
    for node in graph.node:
        if source(node) or any(name in reached for name in node.input):
            reached.update(node.output)
    return reached


def _of_pictures(graph: GraphProto) -> set[str]:
    """Names of values that follow from pixels, not from shapes alone."""
    reached = {item.name for item in graph.input}
    for node in graph.node:
        if node.op_type not in ("Shape", "Size") and any(name in reached for name in node.input):
            reached.update(node.output)
    return reached


def _leads_to(graph: GraphProto, targets: set[str]) -> set[str]:
    """Names of nodes from which one of the target nodes, another than itself, follows."""
    needed: set[str] = set()
    leading: set[str] = set()
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            leading.add(node.name)
            needed.update(node.input)
        if node.name in targets:
            needed.update(node.input)
    return leading
