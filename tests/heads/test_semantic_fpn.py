"""Semantic FPN against the authors' numbers."""

import pytest
import torch
from reference import golden

from patchform.errors import UsageError
from patchform.heads.semantic_fpn import SemanticFPN
from patchform.records import FeatureInfo, Features
from patchform.weights.rules import Rules

CHANNELS, STRIDES = (8, 12, 16, 20), (4, 8, 16, 32)
FEATURES = FeatureInfo(CHANNELS, STRIDES, 0)
MMSEG = Rules(
    ("neck.lateral_convs.{i}.conv.{p}", "pyramid.laterals.{i}.{p}"),
    ("neck.fpn_convs.{i}.conv.{p}", "pyramid.outputs.{i}.{p}"),
    *(
        (f"decode_head.scale_heads.{{i}}.{2 * number}.{theirs}.{{p}}", f"branches.{{i}}.{number}.{ours}.{{p}}")
        for number in range(3)
        for theirs, ours in (("conv", "conv"), ("bn", "norm"))
    ),
    ("decode_head.conv_seg.{p}", "classify.{p}"),
)


def filled(state):
    built = SemanticFPN(FEATURES, classes=5, channels_pyramid=16, channels_inside=8)
    built.load_state_dict(MMSEG.load(state, built.state_dict())[0])
    return built.eval()


def features(data):
    return Features(tuple(data[f"input{number}"] for number in range(4)), STRIDES, (96, 144))


@torch.no_grad()
def test_same_numbers_as_mmsegmentation():
    _, data, state, rounding = golden("head_semantic_fpn")
    built = filled(state)
    for number, level in enumerate(built.pyramid(features(data).maps)):
        assert (level - data[f"fpn{number}"]).abs().max() <= 10 * rounding[f"fpn{number}"]
    logits = built(features(data)).cells.logits
    assert (logits - data["output"]).abs().max() <= 10 * rounding["output"]


@pytest.mark.parametrize("control", ["laterals", "bilinear", "doublings"])
@torch.no_grad()
def test_control_another_structure_gives_other_numbers(control, monkeypatch):
    from patchform.layers import pyramids

    _, data, state, rounding = golden("head_semantic_fpn")
    built = filled(state)
    if control == "laterals":
        built.pyramid.outputs = built.pyramid.outputs[::-1]
    elif control == "bilinear":
        real = pyramids.top_down
        monkeypatch.setattr(pyramids, "top_down", lambda maps, mode: real(maps, "bilinear"))
    else:
        built.doublings = [0, 0, 0, 0]
    logits = built(features(data)).cells.logits
    assert (logits - data["output"]).abs().max() > 1000 * rounding["output"]


def test_what_it_refuses():
    for wrong, match in (({"norm": "batch"}, "norm"), ({"dropout": -0.1}, "dropout")):
        with pytest.raises(UsageError, match=match):
            SemanticFPN(FEATURES, classes=3, **wrong)
