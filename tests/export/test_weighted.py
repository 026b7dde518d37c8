"""Layers of ONNX graphs: which see what, and what is judged together."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx_graphs import FREE, Builder, convolutional  # noqa: E402

from patchform.export.weighted import Layer, groups_of, layers_of  # noqa: E402


def modules(layers):
    return [layer.module for layer in layers]


def test_first_inner_and_last_layers_are_told_apart():
    layers = layers_of(convolutional())
    assert modules(layers.first) == ["backbone.stem"]
    assert modules(layers.inner) == [
        "backbone.stages.0.conv",
        "backbone.stages.1.conv",
        "backbone.stages.2.conv",
        "head.hidden",
    ]
    assert modules(layers.last) == ["head.classifier"]
    assert layers.selected == layers.constant == ()
    assert [layer.parameters for layer in layers.inner] == [576, 576, 1152, 256]


def test_tables_that_follow_from_sizes_see_no_picture():
    build = Builder()
    build.node("Cast", [build.node("Shape", ["images"], "shape")], "lengths", to=1)
    build.linear("lengths", "backbone.position.mlp", 4, 4)
    x = build.conv(build.pixels(), "backbone.stem", 3, 4)
    x = build.node("Flatten", [build.node("GlobalAveragePool", [x], "pooled")], "flat")
    x = build.node("Add", [x, "backbone.position.mlp_out"], "placed")
    x = build.linear(x, "backbone.blocks.0.fc1", 4, 4)
    build.linear(x, "head.classifier", 4, 2)
    layers = layers_of(build.model("head.classifier_out", ["batch", 2]))
    assert modules(layers.constant) == ["backbone.position.mlp"]
    assert modules(layers.first) == ["backbone.stem"]
    assert modules(layers.inner) == ["backbone.blocks.0.fc1"]


def test_layers_behind_a_selection_are_apart_and_those_before_it_are_compared():
    build = Builder()
    x = build.conv(build.pixels(), "backbone.stem", 3, 4)
    x = build.conv(x, "backbone.stages.0", 4, 4)
    logits = build.conv(x, "head.rpn.logits", 4, 1, size=1)
    rows = build.node("Reshape", [logits, build.constant("row", np.array([0, -1]))], "rows")
    best = onnx.helper.make_node(
        "TopK", [rows, build.constant("k", np.array([4]))], ["best", "where"], name="node_best"
    )
    build.nodes.append(best)
    x = build.linear("best", "head.boxes.fc1", 4, 4)
    build.linear(x, "head.boxes.fc2", 4, 2)
    layers = layers_of(build.model("head.boxes.fc2_out", ["batch", 2]))
    assert modules(layers.selected) == ["head.boxes.fc1", "head.boxes.fc2"]
    assert modules(layers.last) == ["head.rpn.logits"]
    assert modules(layers.inner) == ["backbone.stages.0"]


def test_products_of_activations_hold_no_weights():
    build = Builder()
    x = build.linear(build.pixels(), "backbone.first", 5, 5)
    turned = build.node("Transpose", [x], "turned", perm=[0, 1, 3, 2])
    x = build.node("MatMul", [x, turned], "attention")
    build.node("MatMul", [x, build.constant("several", np.ones((3, 5, 5), np.float32))], "each")
    layers = layers_of(build.model("each", FREE))
    assert [layer.node for group in layers for layer in group] == ["node_backbone.first_product"]


def layer(module, parameters=1, weights=None):
    return Layer(f"node_{module}", "MatMul", module, weights or f"w_{module}", parameters, f"out_{module}")


def test_groups_are_stages_and_blocks():
    names = ["backbone.blocks.0.mlp.fc1", "backbone.blocks.0.mlp.fc2", "backbone.blocks.1.mlp.fc1", "head.classifier"]
    assert [(group.name, len(group.layers)) for group in groups_of([layer(name) for name in names])] == [
        ("backbone.blocks.0", 2),
        ("backbone.blocks.1", 1),
        ("head.classifier", 1),
    ]


def test_small_neighbours_are_joined():
    layers = [layer(f"backbone.blocks.{index}.fc", size) for index, size in enumerate((9, 1, 2, 9, 9))]
    groups = groups_of(layers, most=3)
    assert [(group.name, group.parameters) for group in groups] == [
        ("backbone.blocks.0 to backbone.blocks.2", 12),
        ("backbone.blocks.3", 9),
        ("backbone.blocks.4", 9),
    ]
    assert [member for group in groups for member in group.layers] == layers


def test_what_shares_weights_stays_together():
    one, other = layer("head.tower.0", weights="shared"), layer("head.tower.1", weights="shared")
    assert [group.layers for group in groups_of([one, other])] == [(one, other)]
