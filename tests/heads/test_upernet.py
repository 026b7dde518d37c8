"""UPerNet against the authors' numbers and against transformers."""

import pytest
import torch
from reference import golden, randomise, rounding_of
from torch import nn

from patchform.errors import UsageError
from patchform.heads.upernet import UPerNet
from patchform.model import build_backbone
from patchform.records import FeatureInfo, Features
from patchform.weights.rules import Rules

CHANNELS, STRIDES = (8, 12, 16, 20), (4, 8, 16, 32)
FEATURES = FeatureInfo(CHANNELS, STRIDES, 0)


def conv_norm(theirs, ours, norm="bn"):
    return ((f"{theirs}.conv.{{p}}", f"{ours}.conv.{{p}}"), (f"{theirs}.{norm}.{{p}}", f"{ours}.norm.{{p}}"))


def layout(norm, classify):
    return Rules(
        *conv_norm("decode_head.psp_modules.{i}.1", "pools.pools.{i}", norm),
        *conv_norm("decode_head.bottleneck", "pools.fuse", norm),
        *conv_norm("decode_head.lateral_convs.{i}", "laterals.{i}", norm),
        *conv_norm("decode_head.fpn_convs.{i}", "outputs.{i}", norm),
        *conv_norm("decode_head.fpn_bottleneck", "fuse", norm),
        (f"decode_head.{classify}.{{p}}", "classify.{p}"),
        *conv_norm("auxiliary_head.convs.0", "auxiliary_decoder.0", norm),
        (f"auxiliary_head.{classify}.{{p}}", "auxiliary_decoder.2.{p}"),
    )


MMSEG, TRANSFORMERS = layout("bn", "conv_seg"), layout("batch_norm", "classifier")


def head(layout, state, inside):
    built = UPerNet(FEATURES, classes=5, channels_inside=inside, norm="none")
    built.load_state_dict(layout.load(state, built.state_dict())[0])
    built.eval().training = True  # for the auxiliary decoder; norms and dropout stay as they are
    return built


def features(maps):
    return Features(tuple(maps), STRIDES, (4 * maps[0].shape[2], 4 * maps[0].shape[3]))


@torch.no_grad()
def test_same_numbers_as_mmsegmentation():
    _, data, state, rounding = golden("head_upernet")
    raw = head(MMSEG, state, 16)(features([data[f"input{number}"] for number in range(4)]))
    assert (raw.cells.logits - data["output"]).abs().max() <= 10 * rounding["output"]
    assert (raw.auxiliary[0].logits - data["output.aux"]).abs().max() <= 10 * rounding["output.aux"]


@pytest.mark.parametrize("control", ["pools", "outputs", "sum"])
@torch.no_grad()
def test_control_another_structure_gives_other_numbers(control, monkeypatch):
    _, data, state, rounding = golden("head_upernet")
    built = head(MMSEG, state, 16)
    if control == "pools":
        built.pools.pools = built.pools.pools[::-1]
    elif control == "outputs":
        built.outputs = built.outputs[::-1]
    else:
        monkeypatch.setattr("patchform.heads.upernet.top_down", lambda maps, mode: list(maps))
    raw = built(features([data[f"input{number}"] for number in range(4)]))
    assert (raw.cells.logits - data["output"]).abs().max() > 1000 * rounding["output"]


@pytest.mark.parametrize("grid", [(16, 16), (25, 19)])
@torch.no_grad()
def test_same_numbers_as_transformers(grid):
    from_transformers = pytest.importorskip("transformers.models.upernet.modeling_upernet")
    config = pytest.importorskip("transformers").UperNetConfig(
        hidden_size=16, num_labels=5, auxiliary_in_channels=16, auxiliary_channels=8, auxiliary_concat_input=False
    )
    theirs = nn.ModuleDict(
        {
            "decode_head": from_transformers.UperNetHead(config, list(CHANNELS)),
            "auxiliary_head": from_transformers.UperNetFCNHead(config, list(CHANNELS)),
        }
    )
    randomise(theirs).eval()
    built = head(TRANSFORMERS, theirs.state_dict(), 16)
    draw = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, c, *(-(-n // 2**i) for n in grid), generator=draw) for i, c in enumerate(CHANNELS)]
    raw = built(features(maps))
    for name, ours in (("decode_head", raw.cells), ("auxiliary_head", raw.auxiliary[0])):
        reference = Whole(theirs[name])
        wanted, error = reference(*maps), rounding_of(reference, *maps)
        assert (ours.logits - wanted).abs().max() <= 10 * error
        assert error < 1e-4


class Whole(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, *maps):
        return self.head(list(maps))


@pytest.mark.parametrize(("name", "millions"), [("t", 60), ("s", 81), ("b", 121)])
def test_parameters_on_swin_as_published(name, millions):
    """Liu et al. 2021, table 3."""
    with torch.device("meta"):
        backbone = build_backbone(f"swin/{name}")
        built = UPerNet(backbone.feature_info, classes=150)
    count = sum(p.numel() for part in (backbone, built) for p in part.parameters())
    assert round(count / 1e6) == millions
    if name == "t":
        transformers = pytest.importorskip("transformers")
        stages = [f"stage{number}" for number in range(1, 5)]
        config = transformers.UperNetConfig(
            backbone_config=transformers.SwinConfig(out_features=stages), num_labels=150
        )
        with torch.device("meta"):
            theirs = transformers.UperNetForSemanticSegmentation(config)
        assert count == sum(p.numel() for p in theirs.parameters()) == 59_943_398


def test_what_it_refuses():
    for wrong, match in (({"auxiliary": 4}, "no level 4"), ({"norm": "batch"}, "norm"), ({"dropout": 1.0}, "dropout")):
        with pytest.raises(UsageError, match=match):
            UPerNet(FEATURES, classes=3, **wrong)


def test_one_picture_on_one_cell_can_be_learnt_from():
    built = UPerNet(FEATURES, classes=3, channels_inside=8)
    maps = [torch.randn(1, c, n, n) for c, n in zip(CHANNELS, (8, 4, 2, 1))]
    raw = built(features(maps))  # torch's batch norm refuses one number a channel
    assert raw.cells.logits.isfinite().all()
    raw.cells.logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in built.pools.parameters())
