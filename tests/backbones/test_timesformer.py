import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from patchform.backbones.timesformer import VARIANTS, DividedBlock, TimeSformer
from patchform.heads.linear import Linear
from patchform.published.timesformer import LAYOUTS, SCORES
from patchform.weights.rules import recognise

REFERENCE = Path(os.environ.get("PATCHFORM_REFERENCE", Path(__file__).parents[3] / "shared/reference"))
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference vectors (PATCHFORM_REFERENCE)")
FULL_SIZE = {
    "b": "TimeSformer-B divided 8x224",
    "hr": "TimeSformer-HR divided 16x448",
    "l": "TimeSformer-L divided 96x224",
}


class Classifier(nn.Module):
    """Backbone and head by the names that the layouts use."""

    def __init__(self, backbone, classes):
        super().__init__()
        self.backbone = backbone
        self.head = Linear(width=backbone.width, classes=classes)

    def forward(self, clips):
        return self.head(self.backbone(clips))


def variant(name, **options):
    row = VARIANTS[name]
    return TimeSformer(**{"image_size": row.image_size, **row.options, **options})


def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
        if "norm" in name and name.endswith("weight"):
            tensor += 1


def swap(state, one, other):
    for name in [name for name in state if one in name]:
        twin = name.replace(one, other)
        state[name], state[twin] = state[twin], state[name]


# ------------------------------------------------------------------------------------------------------ golden vectors


def golden(name):
    data = load_file(REFERENCE / f"golden/{name}.safetensors")
    error = json.loads((REFERENCE / f"golden/{name}.json").read_text())["golden"]["fp32_vs_fp64_max_abs_err_and_scale"]
    state = {f"model.{key.removeprefix('param.')}": data[key] for key in data if key.startswith("param.")}
    return data, state, {key: 10 * values[0] for key, values in error.items()}


def filled(state):
    ours = Classifier(TimeSformer(image_size=32, frames=3, patch=8, width=24, depth=2, heads=3), classes=10).eval()
    ours.load_state_dict(LAYOUTS["facebook"].load(state, ours.state_dict())[0])
    return ours


@torch.no_grad()
def errors(name, spoil=None):
    """Largest error of every block and of the output, over what is allowed."""
    data, state, allowed = golden(name)
    if spoil:
        spoil(state)
    ours, seen = filled(state), {}
    for number, block in enumerate(ours.backbone.blocks):
        block.register_forward_hook(
            lambda block, inputs, out, key=f"block{number}": seen.update(
                {key: torch.cat([out[0], out[1].flatten(1, 2)], 1)}
            )
        )
    seen["output"] = ours(data["input"].transpose(1, 2))
    return {key: ((seen[key] - data[key]).abs().max() / limit).item() for key, limit in allowed.items()}


@needs_reference
@pytest.mark.parametrize("name", ["timesformer_divided", "timesformer_divided_resized"])
def test_same_numbers_as_the_authors_code(name):
    assert max(errors(name).values()) <= 1


@needs_reference
@pytest.mark.parametrize(
    "pair",
    [("temporal_attn", "attn"), ("blocks.0.temporal_norm1", "blocks.0.norm1"), ("blocks.1.norm1", "blocks.1.norm2")],
)
def test_control_exchanged_parts_give_other_numbers(pair):
    def spoil(state):
        if pair == ("temporal_attn", "attn"):
            swap(state, ".temporal_attn.", ".attn.")
        else:
            swap(state, *pair)

    assert errors("timesformer_divided", spoil)["output"] > 1000


# ------------------------------------------------------------------------------------------------------- transformers


def their_model():
    timesformer = pytest.importorskip("transformers.models.timesformer")
    config = timesformer.TimesformerConfig(
        image_size=32, patch_size=8, num_frames=3, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=96, num_labels=7, attention_type="divided_space_time", layer_norm_eps=1e-6,
    )  # fmt: skip
    model = timesformer.TimesformerForVideoClassification(config).eval()
    randomise(model)
    return model


@pytest.mark.slow
@torch.no_grad()
def test_same_numbers_as_transformers():
    theirs = their_model()
    ours = Classifier(TimeSformer(image_size=32, frames=3, patch=8, width=24, depth=2, heads=3), classes=7).eval()
    state = theirs.state_dict()
    assert recognise(LAYOUTS, state, ours.state_dict()) == "transformers"
    tensors, report = LAYOUTS["transformers"].load(state, ours.state_dict())
    assert not report.dropped
    ours.load_state_dict(tensors)
    clips = torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found, rounded = ours(clips), theirs(clips).logits
    exact = theirs.double()(clips.double()).logits
    assert exact.std() > 0.1
    assert (found - exact).abs().max() <= 10 * (rounded - exact).abs().max()
    written = LAYOUTS["transformers"].dump(tensors, sizes={"channels": 3, "patch": 8})
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name].float()) for name in state)


# -------------------------------------------------------------------------------------------------------------- sizes


@needs_reference
@pytest.mark.parametrize("name", FULL_SIZE)
def test_parameters_are_counted_as_published(name):
    row = json.loads((REFERENCE / "full_size.json").read_text())["TimeSformer"][FULL_SIZE[name]]
    with torch.device("meta"):
        model = Classifier(variant(name), classes=row["num_classes"])
    assert sum(parameter.numel() for parameter in model.parameters()) == row["params"]
    assert len(model.state_dict()) == row["state_dict_tensors"]


def test_published_rows_are_of_variants():
    assert {row.variant for row in SCORES} == set(VARIANTS) - {"nano"}


# ----------------------------------------------------------------------------------------------------------- contract


@torch.no_grad()
@pytest.mark.parametrize(("frames", "size"), [(3, (32, 32)), (1, (33, 50)), (5, (8, 7))])
def test_features_are_as_declared(frames, size):
    backbone = variant("nano", in_channels=2).eval()
    randomise(backbone)
    clips = torch.randn(2, frames, 2, *size, generator=torch.Generator().manual_seed(0))
    features = backbone(clips)
    rows, columns = -(-size[0] // 8), -(-size[1] // 8)
    assert features.maps[0].shape == (2, *backbone.channels, rows, columns)
    assert features.tokens.shape == (2, frames * rows * columns, backbone.width)
    assert features.summary.shape == (2, backbone.width)
    one = backbone(clips[1:])
    torch.testing.assert_close(one.summary[0], features.summary[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.maps[0][0], features.maps[0][1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_tokens_are_frame_by_frame():
    backbone = variant("nano").eval()
    randomise(backbone)
    clips = torch.randn(1, 3, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(backbone.time)
    backwards = backbone(clips.flip(1)).tokens.unflatten(1, (3, 20))
    torch.testing.assert_close(backbone(clips).tokens.unflatten(1, (3, 20)).flip(1), backwards, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_what_lies_on_padding_changes_nothing():
    backbone = variant("nano").eval()
    randomise(backbone)
    nn.init.constant_(backbone.position.table, 0.3)  # or it would differ with the size of the grid
    clips = torch.randn(2, 3, 3, 33, 40, generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(2, 33, 40, dtype=torch.bool)
    padding[0, :, 20:], padding[1, 16:] = True, True
    clean = backbone(clips, padding=padding)
    dirty = backbone(clips.masked_fill(padding[:, None, None], float("nan")), padding=padding)
    assert torch.equal(clean.summary, dirty.summary)
    assert torch.equal(clean.padding, dirty.padding)
    assert clean.padding[0].sum() == 5 * 2  # of 5 columns the third is half real
    assert clean.padding[1].sum() == 3 * 5
    alone = backbone(clips[1:, :, :, :16])  # the second clip without its padding
    torch.testing.assert_close(clean.summary[1:], alone.summary, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(clean.maps[0][1:, :, :2], alone.maps[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(backbone(clips).summary[1:], alone.summary, atol=1e-3)  # control


def test_every_parameter_learns_and_later_blocks_start_without_time():
    torch.manual_seed(0)
    backbone = variant("nano", drop_path=0.5)
    first, second = backbone.layers()
    assert first.temporal_proj.weight.any()
    assert not second.temporal_proj.weight.any()
    features = backbone(torch.randn(4, 3, 3, 32, 32))
    (features.summary.square().sum() + features.tokens.sum()).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    assert [block.residual.rate for block in backbone.layers()] == [0, 0.5]


@torch.no_grad()
def test_groups_over_time_are_views():
    block = DividedBlock(8, 2).eval()
    places, seen = torch.randn(2, 6, 3, 8), []
    block.temporal_attention.qkv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    block(torch.randn(2, 1, 8), places)
    assert seen[0].shape == (2, 6, 3, 8)
    assert seen[0].is_contiguous()


@pytest.mark.slow
@torch.no_grad()
def test_traces_whole():
    backbone = variant("nano").eval()
    clips, padding = torch.randn(2, 3, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.bool)
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    for given in (None, padding):
        torch.testing.assert_close(compiled(clips, padding=given).summary, backbone(clips, padding=given).summary)
