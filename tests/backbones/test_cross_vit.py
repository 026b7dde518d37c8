import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from patchform.backbones.cross_vit import VARIANTS, CrossViT
from patchform.errors import UsageError
from patchform.heads.linear import Linear
from patchform.published.cross_vit import LAYOUTS, SCORES
from patchform.weights.rules import recognise

REFERENCE = Path(os.environ.get("PATCHFORM_REFERENCE", Path(__file__).parents[3] / "shared/reference"))
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference vectors (PATCHFORM_REFERENCE)")
PUBLISHED_ROWS = [name for name in VARIANTS if name != "nano"]
SMALL = {"widths": (24, 48), "depths": ((1, 2), (1, 3)), "heads": 3, "mlp_ratio": 3.0}
"""The size of the golden vectors."""


class Classifier(nn.Module):
    """Backbone and head by the names that the layouts use."""

    def __init__(self, backbone, classes):
        super().__init__()
        self.backbone = backbone
        self.head = Linear(backbone.feature_info, classes=classes)

    def forward(self, images):
        return self.head(self.backbone(images))


def variant(name, **options):
    row = VARIANTS[name]
    return CrossViT(**{"image_size": row.image_size, **row.options, **options})


def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
        if tensor.dim() == 1 and name.endswith("weight"):
            tensor += 1


def swap(state, one, other):
    for name in [name for name in state if one in name]:
        twin = name.replace(one, other)
        state[name], state[twin] = state[twin], state[name]


# ------------------------------------------------------------------------------------------------------ golden vectors


@torch.no_grad()
def errors(name, change=None):
    """Largest error of the stems, of every stage and of the output, over what is allowed."""
    data = load_file(REFERENCE / f"golden/{name}.safetensors")
    table = json.loads((REFERENCE / f"golden/{name}.json").read_text())["golden"]["fp32_vs_fp64_max_abs_err_and_scale"]
    state = {key.removeprefix("param."): data[key] for key in data if key.startswith("param.")}
    stem = "convolutions" if "dagger" in name else "patches"
    ours = Classifier(CrossViT(image_size=64, scales=(60 / 64, 1), stem=stem, **SMALL), classes=10).eval()
    assert recognise(LAYOUTS, state, ours.state_dict()) == "ibm"
    ours.load_state_dict(LAYOUTS["ibm"].load(state, ours.state_dict())[0])
    if change:
        change(ours.backbone)
    seen = {}
    for branch, stem in enumerate(ours.backbone.stems):
        stem.register_forward_hook(lambda m, x, y, key=f"patch_embed{branch}": seen.update({key: y.flatten(1, 2)}))
    for number, stage in enumerate(ours.backbone.stages):

        def keep(stage, inputs, out, number=number):
            seen.update({f"block{number}.branch{branch}": x for branch, x in enumerate(out)})

        stage.register_forward_hook(keep)
    seen["output"] = ours(data["input"])
    assert seen.keys() == table.keys()
    return {key: ((seen[key] - data[key]).abs().max() / (10 * values[0])).item() for key, values in table.items()}


@needs_reference
@pytest.mark.parametrize("name", ["crossvit", "crossvit_dagger"])
def test_same_numbers_as_the_authors_code(name):
    assert max(errors(name).values()) <= 1


def norm_after_the_question(backbone):
    """Fusion with its norm on the patches only."""
    for stage in backbone.stages:
        for fusion in stage.fusions:
            norm = fusion.norm.forward
            fusion.norm.forward = lambda x, norm=norm: torch.cat([x[:, :1], norm(x[:, 1:])], 1)


def swap_norms(backbone):
    block = backbone.stages[0].branches[1][0]
    block.norm1, block.norm2 = block.norm2, block.norm1


def swap_fusion_norms(backbone):
    fusion = backbone.stages[1].fusions[1]
    fusion.norm, fusion.leave[0] = fusion.leave[0], fusion.norm


@needs_reference
@pytest.mark.parametrize("change", [norm_after_the_question, swap_norms, swap_fusion_norms])
def test_control_misplaced_norms_give_other_numbers(change):
    assert errors("crossvit", change)["output"] > 100


# --------------------------------------------------------------------------------------------------------------- timm


@torch.no_grad()
@pytest.mark.parametrize("stem", ["patches", "convolutions"])
def test_same_numbers_as_timm(stem):
    crossvit = pytest.importorskip("timm.models.crossvit")
    theirs = crossvit.CrossVit(
        img_size=120, img_scale=(1.0, 112 / 120), patch_size=(12, 16), num_classes=7, embed_dim=(24, 48),
        depth=((1, 2, 0), (1, 3, 0)), num_heads=(3, 3), mlp_ratio=(3, 3, 1), multi_conv=stem == "convolutions",
    ).eval()  # fmt: skip
    randomise(theirs)
    ours = Classifier(CrossViT(image_size=120, scales=(1, 112 / 120), stem=stem, **SMALL), classes=7).eval()
    state = theirs.state_dict()
    assert recognise(LAYOUTS, state, ours.state_dict()) == "timm"
    tensors, report = LAYOUTS["timm"].load(state, ours.state_dict())
    assert not report.dropped
    ours.load_state_dict(tensors)
    images = torch.randn(2, 3, 120, 120, generator=torch.Generator().manual_seed(1))
    found, rounded = ours(images), theirs(images)
    exact = theirs.double()(images.double())
    assert exact.std() > 0.1
    assert (found - exact).abs().max() <= 10 * (rounded - exact).abs().max()


@torch.no_grad()
def test_layout_goes_back_to_the_same_function():
    """Two biases become one, so the numbers differ from the source; what the model computes does not."""
    crossvit = pytest.importorskip("timm.models.crossvit")
    theirs = crossvit.CrossVit(
        img_size=48, img_scale=(1.0, 1.0), patch_size=(12, 16), num_classes=7, embed_dim=(24, 48),
        depth=((1, 2, 0), (1, 3, 0)), num_heads=(3, 3), mlp_ratio=(3, 3, 1),
    ).eval()  # fmt: skip
    randomise(theirs)
    images, source = torch.randn(2, 3, 48, 48), {name: t.clone() for name, t in theirs.state_dict().items()}
    before = theirs(images)
    own = Classifier(CrossViT(image_size=48, scales=(1, 1), **SMALL), classes=7).state_dict()
    loaded, _ = LAYOUTS["timm"].load(source, own)
    written = LAYOUTS["timm"].dump(loaded, sizes={"channels": 3})
    again, _ = LAYOUTS["timm"].load(written, own)
    assert all(torch.equal(loaded[name], again[name]) for name in own)
    differ = {name for name in source if not torch.equal(source[name], written[name])}
    assert differ == {"head.0.bias", "head.1.bias"}
    theirs.load_state_dict(written)
    torch.testing.assert_close(theirs(images), before)


# -------------------------------------------------------------------------------------------------------------- sizes


def published(name):
    key = f"crossvit_{ {'ti': 'tiny', 's': 'small', 'b': 'base'}.get(name, name.removesuffix('_408')) }"
    table = json.loads((REFERENCE / "full_size.json").read_text())["CrossViT"]
    return table[key + ("_384" if name.endswith("_408") else "_224")]


@needs_reference
@pytest.mark.parametrize("name", PUBLISHED_ROWS)
def test_parameters_and_multiplications_are_counted_as_published(name):
    row = published(name)
    with torch.device("meta"):
        model = Classifier(variant(name), classes=1000).eval()
        side = VARIANTS[name].image_size
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, side, side))
    second_bias = 1000  # of the two heads that are one here
    assert sum(parameter.numel() for parameter in model.parameters()) + second_bias == row["params"]
    (flops,) = (flops["flops"] for flops in row["flops"].values())
    assert counter.get_total_flops() == flops


@pytest.mark.parametrize("name", PUBLISHED_ROWS)
def test_layout_knows_all_tensors_of_timm(name):
    timm = pytest.importorskip("timm")
    sizes = {"ti": "tiny_240", "s": "small_240", "b": "base_240"}
    with torch.device("meta"):
        theirs = timm.create_model(f"crossvit_{sizes.get(name, name if name.endswith('408') else name + '_240')}")
        ours = Classifier(variant(name), classes=1000)
    loaded, _ = LAYOUTS["timm"].load(theirs.state_dict(), ours.state_dict(), sizes={"channels": 3})
    written = LAYOUTS["timm"].dump(loaded, sizes={"channels": 3})
    shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in written.items()} == shapes


def test_published_rows_are_of_variants():
    assert [row.variant for row in SCORES] == PUBLISHED_ROWS


# ----------------------------------------------------------------------------------------------------------- contract


@torch.no_grad()
@pytest.mark.parametrize("size", [(48, 48), (49, 70), (5, 24)])
def test_features_are_as_declared(size):
    backbone = variant("nano", in_channels=2).eval()
    randomise(backbone)
    images = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0))
    ends = []
    backbone.stages[-1].register_forward_hook(lambda stage, inputs, out: ends.extend(out))
    features = backbone(images)
    assert backbone.strides == features.strides == (6, 8)
    for found, end in zip(features.maps, ends):  # not normalised
        assert torch.equal(found.flatten(2).transpose(1, 2), end[:, 1:])
    for found, channels, stride in zip(features.maps, backbone.channels, backbone.strides, strict=True):
        assert found.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
    assert features.tokens.shape == (2, features.maps[1][0, 0].numel(), backbone.channels[1])
    assert features.summary.shape == (2, backbone.width)
    assert backbone.width == sum(backbone.channels)
    assert torch.equal(features.tokens, backbone.norms[1](ends[1])[:, 1:])
    one = backbone(images[1:])
    torch.testing.assert_close(one.summary[0], features.summary[1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("side", "scales", "strides", "rows"),
    [
        (240, (1, 224 / 240), (12, 17), (20, 14)),
        (224, (240 / 224, 1), (11, 16), (20, 14)),
        (408, (1, 384 / 408), (12, 17), (34, 24)),
        (250, (1, 224 / 240), (12, 17), (21, 15)),
    ],
)
def test_branches_see_their_own_size(side, scales, strides, rows):
    with torch.device("meta"):
        backbone = CrossViT(image_size=side, scales=scales, **SMALL).eval()
        features = backbone(torch.empty(1, 3, side, side // 2))
    assert features.strides == backbone.strides == strides
    assert tuple(found.shape[2] for found in features.maps) == rows


@torch.no_grad()
@pytest.mark.parametrize("scales", [(1, 1), (1, 0.75)])
def test_what_lies_on_padding_changes_nothing(scales):
    backbone = variant("nano", scales=scales).eval()
    randomise(backbone)
    for position in backbone.positions:
        nn.init.constant_(position.table, 0.3)  # or it would differ with the size of the grid
    images = torch.randn(2, 3, 49, 64, generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(2, 49, 64, dtype=torch.bool)
    padding[0, :, 30:], padding[1, 24:] = True, True
    clean = backbone(images, padding=padding)
    dirty = backbone(images.masked_fill(padding[:, None], float("nan")), padding=padding)
    assert torch.equal(clean.summary, dirty.summary)
    assert torch.equal(clean.padding, dirty.padding)
    assert clean.padding.shape[1:] == clean.maps[1].shape[2:]
    bare, none = backbone(images), backbone(images, padding=torch.zeros_like(padding))
    torch.testing.assert_close(bare.summary, none.summary)
    if scales == (1, 1):
        alone = backbone(images[1:, :, :24])  # without its padding: whole cells of both branches
        torch.testing.assert_close(clean.summary[1:], alone.summary, atol=1e-5, rtol=1e-4)
        assert clean.padding[1, :, 0].tolist() == [False] * 3 + [True] * 4
        assert not torch.allclose(bare.summary[1:], alone.summary, atol=1e-3)  # control


def test_every_parameter_learns():
    torch.manual_seed(0)
    backbone = variant("nano", drop_path=0.6)
    backbone(torch.randn(4, 3, 48, 48)).summary.square().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    rates = [fusion.residual.rate for stage in backbone.layers() for fusion in stage.fusions]
    assert rates == pytest.approx([0.3, 0.3, 0.6, 0.6])


def test_only_the_class_token_asks():
    fusion = variant("nano").stages[0].fusions[0]
    seen = []
    fusion.attention.q.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    fusion(torch.randn(2, 1, 16), torch.randn(2, 9, 32))
    assert seen == [(2, 1, 32)]


def test_convolutions_are_for_the_published_patches():
    with pytest.raises(UsageError, match="12 or 16"):
        CrossViT(patches=(8, 16), stem="convolutions")


@pytest.mark.slow
@torch.no_grad()
def test_traces_whole():
    backbone = variant("nano", scales=(1, 0.75)).eval()
    images, padding = torch.randn(2, 3, 48, 48), torch.zeros(2, 48, 48, dtype=torch.bool)
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    for given in (None, padding):
        torch.testing.assert_close(compiled(images, padding=given).summary, backbone(images, padding=given).summary)
