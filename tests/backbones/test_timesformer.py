import pytest
import torch
from reference import Classifier, full_size, golden, randomise
from torch import nn

from patchform.backbones.timesformer import VARIANTS, DividedBlock
from patchform.published.timesformer import LAYOUTS, SCORES
from patchform.weights.rules import recognise

FULL_SIZE = {
    "b": "TimeSformer-B divided 8x224",
    "hr": "TimeSformer-HR divided 16x448",
    "l": "TimeSformer-L divided 96x224",
    "b_joint": "TimeSformer-B joint 8x224",
    "b_space": "TimeSformer-B space 8x224",
}
NANOS = ("nano", "nano_joint", "nano_space")
VECTORS = {
    "timesformer_divided": "nano",
    "timesformer_divided_resized": "nano",
    "timesformer_joint": "nano_joint",
    "timesformer_space": "nano_space",
}


def variant(name, **options):
    row = VARIANTS[name]
    return row.build(**{"image_size": row.image_size, **row.options, **options})


def swap(state, one, other):
    for name in [name for name in state if one in name]:
        twin = name.replace(one, other)
        state[name], state[twin] = state[twin], state[name]


# ------------------------------------------------------------------------------------------------------ golden vectors


@torch.no_grad()
def errors(name, spoil=None):
    """Largest error of every block and of the output, over what is allowed."""
    _, data, parameters, rounding = golden(name)
    state = {f"model.{key}": tensor for key, tensor in parameters.items()}
    if spoil:
        spoil(state)
    ours, seen = Classifier(variant(VECTORS[name], mlp_ratio=4.0)).eval(), {}
    ours.load_state_dict(LAYOUTS["facebook"].load(state, ours.state_dict())[0])
    for number, block in enumerate(ours.backbone.blocks):
        block.register_forward_hook(lambda block, inputs, out, key=f"block{number}": seen.update({key: out}))
    seen["output"] = ours(data["input"].transpose(1, 2))
    theirs = {key: as_ours(data[key], seen[key], data["input"].shape[2]) for key in rounding}
    return {key: ((together(seen[key]) - theirs[key]).abs().max() / (10 * rounding[key])).item() for key in rounding}


def together(seen):
    """Class token and places of a block with divided attention, as one sequence."""
    return seen if isinstance(seen, torch.Tensor) else torch.cat([seen[0], seen[1].flatten(1, 2)], 1)


def as_ours(tokens, seen, frames):
    """The authors' tokens of a clip are place by place; ours with joint attention frame by frame."""
    if not isinstance(seen, torch.Tensor) or tokens.dim() == 2 or tokens.shape[1] % frames == 2:  # one clip, or frames
        return tokens
    return torch.cat([tokens[:, :1], tokens[:, 1:].unflatten(1, (-1, frames)).transpose(1, 2).flatten(1, 2)], 1)


@pytest.mark.parametrize("name", VECTORS)
def test_same_numbers_as_the_authors_code(name):
    found = errors(name)
    assert len(found) > 1
    assert max(found.values()) <= 1


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("timesformer_divided", ".temporal_attn.", ".attn."),
        ("timesformer_divided", "blocks.0.temporal_norm1", "blocks.0.norm1"),
        ("timesformer_divided", "blocks.1.norm1", "blocks.1.norm2"),
        ("timesformer_joint", "blocks.1.norm1", "blocks.1.norm2"),
        ("timesformer_space", "blocks.0.norm1", "blocks.0.norm2"),
    ],
)
def test_control_exchanged_parts_give_other_numbers(name, one, other):
    assert errors(name, lambda state: swap(state, one, other))["output"] > 1000


@torch.no_grad()
def test_control_one_scheme_is_not_another():
    _, data, parameters, rounding = golden("timesformer_space")
    state = {f"model.{key}": tensor for key, tensor in parameters.items()} | {"model.time_embed": torch.zeros(1, 3, 24)}
    ours = Classifier(variant("nano_joint", mlp_ratio=4.0)).eval()
    ours.load_state_dict(LAYOUTS["facebook"].load(state, ours.state_dict())[0])
    assert (ours(data["input"].transpose(1, 2)) - data["output"]).abs().max() > 1e4 * rounding["output"]


# ------------------------------------------------------------------------------------------------------- transformers


SCHEMES = {"nano": "divided_space_time", "nano_joint": "joint_space_time"}
"""Space-only attention of transformers does not run on more than one clip."""


def their_model(scheme):
    timesformer = pytest.importorskip("transformers.models.timesformer")
    config = timesformer.TimesformerConfig(
        image_size=32, patch_size=8, num_frames=3, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=96, num_labels=7, attention_type=scheme, layer_norm_eps=1e-6,
    )  # fmt: skip
    return randomise(timesformer.TimesformerForVideoClassification(config).eval())


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMES)
@torch.no_grad()
def test_same_numbers_as_transformers(name):
    theirs = their_model(SCHEMES[name])
    ours = Classifier(variant(name, mlp_ratio=4.0), classes=7).eval()
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


@pytest.mark.parametrize("name", FULL_SIZE)
def test_parameters_are_counted_as_published(name):
    row = full_size("TimeSformer")[FULL_SIZE[name]]
    with torch.device("meta"):
        model = Classifier(variant(name), classes=row["num_classes"])
    assert sum(parameter.numel() for parameter in model.parameters()) == row["params"]
    assert len(model.state_dict()) == row["state_dict_tensors"]


def test_published_rows_are_of_variants():
    assert {row.variant for row in SCORES} == {"b", "hr", "l"}


# ----------------------------------------------------------------------------------------------------------- contract


@torch.no_grad()
@pytest.mark.parametrize("name", NANOS)
@pytest.mark.parametrize(("frames", "size"), [(3, (32, 32)), (1, (33, 50)), (5, (8, 7))])
def test_features_are_as_declared(name, frames, size):
    backbone = variant(name, in_channels=2).eval()
    randomise(backbone)
    clips = torch.randn(2, frames, 2, *size, generator=torch.Generator().manual_seed(0))
    features = backbone(clips)
    rows, columns = -(-size[0] // 8), -(-size[1] // 8)
    assert features.maps[0].shape == (2, *backbone.channels, rows, columns)
    assert features.tokens.shape == (2, frames * rows * columns, backbone.width)
    assert features.summary.shape == (2, backbone.width)
    if name == "nano_space":
        assert features.frames.shape == (2, frames, backbone.width)
    else:
        assert features.frames is None
    one = backbone(clips[1:])
    torch.testing.assert_close(one.summary[0], features.summary[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.maps[0][0], features.maps[0][1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NANOS)
@torch.no_grad()
def test_tokens_are_frame_by_frame(name):
    backbone = variant(name).eval()
    randomise(backbone)
    clips = torch.randn(1, 3, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    if backbone.time is not None:
        nn.init.zeros_(backbone.time)
    backwards = backbone(clips.flip(1)).tokens.unflatten(1, (3, 20))
    torch.testing.assert_close(backbone(clips).tokens.unflatten(1, (3, 20)).flip(1), backwards, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_space_only_sees_every_frame_by_itself():
    backbone = randomise(variant("nano_space").eval())
    clips = torch.randn(2, 4, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    whole, one = backbone(clips), backbone(clips[:, 2:3])
    torch.testing.assert_close(whole.frames[:, 2:3], one.frames, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.summary, one.frames[:, 0])
    torch.testing.assert_close(whole.tokens.unflatten(1, (4, 20))[:, 2], one.tokens, atol=1e-5, rtol=1e-4)
    other = randomise(variant("nano_joint").eval())  # control
    seen = other(clips).tokens.unflatten(1, (4, 20))[:, 2]
    assert not torch.allclose(seen, other(clips[:, 2:3]).tokens, atol=1e-2)


@pytest.mark.parametrize("name", NANOS)
@torch.no_grad()
def test_what_lies_on_padding_changes_nothing(name):
    backbone = variant(name).eval()
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


@pytest.mark.parametrize("name", NANOS)
def test_every_parameter_learns_and_blocks_start_without_time(name):
    torch.manual_seed(0)
    backbone = variant(name, drop_path=0.5)
    for block in backbone.layers():
        assert not (name == "nano" and block.temporal_proj.weight.any())
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
@pytest.mark.parametrize("name", NANOS)
@torch.no_grad()
def test_traces_whole(name):
    backbone = variant(name).eval()
    clips, padding = torch.randn(2, 3, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.bool)
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    for given in (None, padding):
        torch.testing.assert_close(compiled(clips, padding=given).summary, backbone(clips, padding=given).summary)
