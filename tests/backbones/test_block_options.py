"""Options that every family with such blocks has: biases of queries, keys and values, and widths that are rounded."""

import inspect

import pytest
import torch
from torch import nn

from patchform import lookup
from patchform.errors import UsageError
from patchform.layers.blocks import hidden_width
from patchform.model import build_backbone

NANOS = [name for name in lookup.backbones() if name.partition("/")[2].removeprefix("v2_").startswith("nano")]
OWN_ATTENTION = {"axial", "botnet", "parnet", "resnet", "stand_alone"}
"""Families whose attention, if any, is their own and has no such biases."""
PROJECTIONS = ("qkv", "q", "kv", "v", "semantic_attention")


def built(name, **options):
    with torch.device("meta"):
        return build_backbone(name, **options)


def biases(backbone):
    """Whether each projection to queries, keys and values has one."""
    named = [(name, layer) for name, layer in backbone.named_modules() if name.rpartition(".")[2] in PROJECTIONS]
    return {
        name: layer.bias is not None or hasattr(layer, "qv_bias")
        for name, layer in named
        if isinstance(layer, nn.Linear)
    }


@pytest.mark.parametrize("name", [name for name in NANOS if name.partition("/")[0] not in OWN_ATTENTION])
def test_biases_of_queries_keys_and_values_are_an_option(name):
    with_them, without = (biases(built(name, qkv_bias=value)) for value in (True, False))
    assert with_them
    assert all(with_them.values())
    outside = {"start.kv"} if name.startswith("dual_vit") else set()  # of the first semantic tokens, before any block
    assert not any(has for layer, has in without.items() if layer not in outside)
    published = biases(built(name))
    assert set(published.values()) == {not name.startswith("volo")}


def test_every_family_is_looked_at():
    families = {name.partition("/")[0] for name in NANOS}
    assert families == set(lookup.names("backbones"))


@torch.no_grad()
def test_backbones_without_biases_compute():
    for name in ("swin/nano", "swin/v2_nano", "vit/nano", "hybrid/nano", "volo/nano"):
        backbone = build_backbone(name, qkv_bias=False).eval()
        assert torch.isfinite(backbone(torch.ones(1, 3, 32, 32)).tokens).all()


def test_hidden_widths_are_rounded():
    assert int(10 * 2.9) == 28 + 1 == hidden_width(10, 2.9)
    assert int(100 * 1.1) == 110 == hidden_width(100, 1.1)
    assert int(100 * 0.29) == 28 < hidden_width(100, 0.29) == 29  # 28.999999999999996
    assert hidden_width(3, 0.1) == 1


def takes(name, option):
    return option in inspect.signature(lookup.backbone(name)[1].build).parameters


@pytest.mark.parametrize("name", [name for name in NANOS if takes(name, "mlp_ratio")])
def test_every_familys_hidden_widths_are_rounded(name):
    backbone = built(name, mlp_ratio=1.29)
    hidden = {
        (layer.in_features, layer.out_features)
        for path, layer in backbone.named_modules()
        if path.endswith("mlp.fc1") and isinstance(layer, nn.Linear)
    }
    assert hidden
    assert all(inner == round(1.29 * width) for width, inner in hidden)


# -------------------------------------------------------------------------------------------------------------- axial


@torch.no_grad()
def test_dilated_stages_of_axial_keep_the_map():
    plain, dilated = (build_backbone("axial/nano", dilated=number).eval() for number in (0, 1))
    assert dilated.strides == (*plain.strides[:-1], plain.strides[-2])
    images = torch.randn(2, 3, 64, 72, generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(2, 64, 72, dtype=torch.bool)
    padding[0, 40:], padding[0, :, 50:] = True, True
    features, coarse = (backbone(images, padding=padding) for backbone in (dilated, plain))
    for map_, stride in zip(features.maps, dilated.strides):
        assert map_.shape[2:] == (-(-64 // stride), -(-72 // stride))
    assert features.padding.shape[1:] == features.maps[-1].shape[2:]
    assert features.maps[-1].shape[2] == 2 * coarse.maps[-1].shape[2]
    shapes = {name: tensor.shape for name, tensor in dilated.state_dict().items()}
    other = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    assert {name for name in shapes if shapes[name] != other[name]} == {
        name for name in shapes if name.endswith("relative") and name.startswith(f"stages.{len(plain.strides) - 1}.")
    } - {f"stages.{len(plain.strides) - 1}.0.{axis}.relative" for axis in ("height", "width")}


def test_not_all_stages_are_dilated():
    with pytest.raises(UsageError, match="dilated"):
        build_backbone("axial/nano", dilated=len(build_backbone("axial/nano").strides))
