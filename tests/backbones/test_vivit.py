import pytest
import torch
from reference import Classifier, full_size, golden, randomise, rounding_of
from torch import nn

from patchform.backbones.vivit import VARIANTS, FactorisedEncoder
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers.attention import recording
from patchform.layers.fitting import TransferContext
from patchform.layers.positions import Learned1D
from patchform.layers.tubelet_positions import TubeletPosition
from patchform.published.vivit import LAYOUTS, SCORES
from patchform.settings import Transfer

NANOS = ("nano", "nano_fe", "nano_fsa", "nano_fdp")
VECTORS = {
    "vivit_spacetime": ("nano", "scenic"),
    "vivit_factorized_encoder": ("nano_fe", "scenic_fe"),
    "vivit_factorized_self_attention": ("nano_fsa", "scenic_fsa"),
    "vivit_factorized_dot_product": ("nano_fdp", "scenic"),
}


def variant(name, **options):
    row = VARIANTS[name]
    return row.build(**{"image_size": row.image_size, **row.options, **options})


def clips_of(frames=4, size=(32, 32), batch=2, channels=3):
    return torch.randn(batch, frames, channels, *size, generator=torch.Generator().manual_seed(1))


def still(model):
    """Positions that do not differ with the size of the grid or the length of the clip."""
    for name, parameter in model.named_parameters():
        if name.endswith("position.table"):
            nn.init.constant_(parameter, 0.3)
    return model


# ------------------------------------------------------------------------------------------------------ golden vectors


@torch.no_grad()
def errors(name, spoil=None):
    """Largest error of the output, and of every block that is on record, over ten times our own rounding."""
    _, data, state, _ = golden(name)
    row, layout = VECTORS[name]
    if spoil:
        state = spoil(state)
    ours, seen = Classifier(variant(row, heads=4)).eval(), {}
    ours.load_state_dict(LAYOUTS[layout].load(state, ours.state_dict())[0])
    clips = data["input"].permute(0, 1, 4, 2, 3)
    allowed = 10 * rounding_of(ours, clips)
    for number, block in enumerate(ours.backbone.blocks):
        key = f"inter.Transformer/encoderblock_{number}"
        block.register_forward_hook(lambda block, inputs, out, key=key: seen.update({key: out.flatten(1, -2)}))
    seen["output"] = ours(clips)
    theirs = {key: data[key].flatten(1, -2) if key != "output" else data[key] for key in seen if key in data}
    scale = data["output"].abs().max() / allowed  # blocks are larger than the output: the same share of them
    return {key: ((seen[key] - theirs[key]).abs().max() / theirs[key].abs().max() * scale).item() for key in theirs}


@pytest.mark.parametrize("name", VECTORS)
def test_same_numbers_as_the_authors_code(name):
    found = errors(name)
    assert found["output"] <= 1
    assert max(found.values()) <= 10


def swapped(one, other):
    def spoil(state):
        pairs = {key: key.replace(one, other) for key in state if one in key}
        assert pairs
        return state | {b: state[a] for a, b in pairs.items()} | {a: state[b] for a, b in pairs.items()}

    return spoil


def halves(state):
    """Heads over time and heads over space exchanged."""

    def turned(key, tensor):
        if key.endswith("out/kernel"):
            return tensor.roll(2, 0)
        return tensor.roll(2, -2) if "MultiHead" in key and not key.endswith("out/bias") else tensor

    return {key: turned(key, tensor) for key, tensor in state.items()}


def moments(name):
    """Positions of the two moments exchanged."""

    def spoil(state):
        table = state[name]
        return state | {name: torch.cat([table[:, : len(table[0]) % 2], table[:, len(table[0]) % 2 :].roll(16, 1)], 1)}

    return spoil


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("vivit_spacetime", swapped("LayerNorm_0", "LayerNorm_1")),
        ("vivit_spacetime", moments("Transformer/posembed_input/pos_embedding")),
        ("vivit_factorized_encoder", swapped("cls_SpatialTransformer", "cls_TemporalTransformer")),
        ("vivit_factorized_self_attention", swapped("Attention_time", "Attention_space")),
        ("vivit_factorized_dot_product", halves),
    ],
)
def test_control_exchanged_parts_give_other_numbers(name, spoil):
    assert errors(name, spoil)["output"] > 1000


# -------------------------------------------------------------------------------------------------------------- sizes

FULL_SIZE = {
    "ViViT-B/16x2 spacetime K400": ("b16x2", {}),
    "ViViT-B/16x2 factorised encoder K400": ("b16x2_fe", {}),
    "ViViT-L/16x2 factorised encoder K400 (24+24 as in the released config)": ("l16x2_fe", {}),
    "ViViT-L/16x2 factorised encoder K400 (24+4 as in the paper)": ("l16x2_fe", {"temporal_depth": 4}),
    "ViViT-L/16x2 factorised encoder K600 (24+24)": ("l16x2_fe", {}),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_parameters_are_counted_as_published(name):
    row, (size, options) = full_size("ViViT")[name], FULL_SIZE[name]
    with torch.device("meta"):
        model = Classifier(variant(size, **options), classes=row["num_classes"])
        written = LAYOUTS["scenic_fe" if "_fe" in size else "scenic"].dump(
            model.state_dict(), sizes={"heads": 4, "patch": 16, "frames": 2}
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == row["params"]
    assert len(written) == row["tensors"]


def test_published_rows_are_of_variants():
    assert {row.variant for row in SCORES} == {"b16x2", "b16x2_fe", "l16x2_fe"}
    assert all(row.image_size == VARIANTS[row.variant].image_size for row in SCORES)


# ----------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("name", NANOS)
@pytest.mark.parametrize(("frames", "size"), [(4, (32, 32)), (1, (33, 50)), (7, (8, 7))])
@torch.no_grad()
def test_features_are_as_declared(name, frames, size):
    backbone = randomise(variant(name, in_channels=2).eval())
    clips = clips_of(frames, size, channels=2)
    features = backbone(clips)
    (rows, columns), moments = grids.cells(size, 8), -(-frames // 2)
    assert features.size == size
    assert features.maps[0].shape == (2, *backbone.channels, rows, columns)
    assert features.tokens.shape == (2, moments * rows * columns, backbone.width)
    assert features.summary.shape == (2, backbone.width)
    if name == "nano_fe":
        assert features.frames.shape == (2, moments, backbone.width)
    else:
        assert features.frames is None
    one = backbone(clips[1:])
    torch.testing.assert_close(one.summary[0], features.summary[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.tokens[0], features.tokens[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NANOS)
@torch.no_grad()
def test_an_odd_clip_ends_with_its_last_frame_twice(name):
    backbone = randomise(variant(name).eval())
    clips = clips_of(3)
    whole = torch.cat([clips, clips[:, -1:]], 1)
    torch.testing.assert_close(backbone(clips).summary, backbone(whole).summary)
    assert not torch.allclose(backbone(clips).summary, backbone(torch.cat([clips, clips[:, :1]], 1)).summary, atol=1e-3)


@pytest.mark.parametrize("name", NANOS)
@torch.no_grad()
def test_tokens_are_moment_by_moment(name):
    backbone = still(randomise(variant(name, tube=1).eval()))
    clips = clips_of(3, (32, 40), batch=1)
    forwards, backwards = backbone(clips), backbone(clips.flip(1))
    tokens = backwards.tokens.unflatten(1, (3, 20)).flip(1).flatten(1, 2)
    torch.testing.assert_close(forwards.tokens, tokens, atol=1e-4, rtol=1e-4)
    other = randomise(variant(name, tube=1).eval())  # control: with positions the order counts
    assert not torch.allclose(other(clips).summary, other(clips.flip(1)).summary, atol=1e-4)


@pytest.mark.parametrize("name", NANOS)
@torch.no_grad()
def test_what_lies_on_padding_changes_nothing(name):
    backbone = still(randomise(variant(name).eval()))
    clips = clips_of(4, (33, 40))
    padding = torch.zeros(2, 33, 40, dtype=torch.bool)
    padding[0, :, 20:], padding[1, 16:] = True, True
    clean = backbone(clips, padding=padding)
    dirty = backbone(clips.masked_fill(padding[:, None, None], float("nan")), padding=padding)
    assert torch.equal(clean.summary, dirty.summary)
    assert clean.padding[0].sum() == 5 * 2  # of 5 columns the third is half real
    assert clean.padding[1].sum() == 3 * 5
    alone = backbone(clips[1:, :, :, :16])  # the second clip without its padding
    torch.testing.assert_close(clean.summary[1:], alone.summary, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(clean.maps[0][1:, :, :2], alone.maps[0], atol=1e-5, rtol=1e-4)
    if clean.frames is not None:
        torch.testing.assert_close(clean.frames[1:], alone.frames, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(backbone(clips).summary[1:], alone.summary, atol=1e-3)  # control


@pytest.mark.parametrize("name", NANOS)
def test_every_parameter_learns(name):
    torch.manual_seed(0)
    backbone = randomise(variant(name, drop_path=0.5))
    features = backbone(clips_of(batch=8))
    (features.summary.square().sum() + features.tokens.square().sum()).backward()
    missing = [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []
    rates = [block.residual.rate for block in backbone.layers()]
    assert rates == ([0, 0.5, 0] if name == "nano_fe" else [0, 0.5])


@pytest.mark.parametrize("name", NANOS[1:])
@torch.no_grad()
def test_attention_is_no_larger_than_the_paper_says(name):
    """Weights, by block: over time (a group a place), over space (a group a moment)."""
    with recording() as weights:
        variant(name).eval()(clips_of(6, (32, 40)))
    seen = [tuple(w.shape[1:]) for w in weights]
    time, space, encoder = (20, 3, 3, 3), (3, 3, 20, 20), [(3, 3, 21, 21), (3, 3, 21, 21), (1, 3, 4, 4)]
    heads = {"nano_fsa": [time, space] * 2, "nano_fdp": [(20, 2, 3, 3), (3, 2, 20, 20)] * 2, "nano_fe": encoder}
    assert seen == heads[name]


def test_attention_over_time_adds_nothing_at_the_start():
    block = variant("nano_fsa").blocks[0]
    x = torch.randn(1, 3, 5, 24)
    assert not block.attend_time(x).any()
    assert not block.temporal_attention.proj.weight.any()
    block.attend_time(x).sum().backward()
    assert block.temporal_attention.proj.weight.grad.any()  # and yet it learns


def test_dot_products_need_an_even_number_of_heads():
    with pytest.raises(UsageError, match="not 3"):
        variant("nano_fdp", heads=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NANOS)
@torch.no_grad()
def test_traces_whole(name):
    backbone = variant(name).eval()
    clips, padding = clips_of(), torch.zeros(2, 32, 32, dtype=torch.bool)
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    for given in (None, padding):
        torch.testing.assert_close(compiled(clips, padding=given).summary, backbone(clips, padding=given).summary)


# ----------------------------------------------------------------------------------------------------------- positions


@torch.no_grad()
def test_positions_are_resized_in_space_and_in_time():
    position = randomise(TubeletPosition(6, (4, 4), 3, prefix=1))
    zero = torch.zeros(2, 1 + 5 * 6 * 7, 6)
    added = position(zero, (6, 7))
    assert torch.equal(added[:, :1], position.table[:, :1].expand(2, -1, -1))
    boxes = position.table[0, 1:].view(3, 4, 4, 6)
    bicubic = torch.stack([grids.resize(box, (6, 7)) for box in boxes]).permute(1, 3, 2, 0).flatten(0, 1)  # in space
    wanted = nn.functional.interpolate(bicubic.flatten(0, 1)[None], size=5, mode="linear").view(6, 6, 7, 5)
    torch.testing.assert_close(added[0, 1:].view(5, 6, 7, 6), wanted.permute(3, 0, 2, 1), atol=1e-5, rtol=1e-5)
    native = position(torch.zeros(1, 49, 6), (4, 4))
    assert torch.equal(native, position.table)


def test_tables_of_other_clips_and_of_pictures():
    def fitted(own, source, *, from_images=False, grid=None):
        return own.fit("table", source.table.detach(), TransferContext(Transfer(grid=grid), from_images=from_images))

    own = randomise(TubeletPosition(6, (4, 4), 3, prefix=1), seed=1)
    table, said = fitted(own, longer := randomise(TubeletPosition(6, (4, 4), 5, prefix=1)))
    assert said == "grid 4 x 4 to 4 x 4 (grid assumed square), 5 in time to 3"
    torch.testing.assert_close(table, longer(torch.zeros(1, 49, 6), (4, 4)))
    table, said = fitted(own, larger := randomise(TubeletPosition(6, (6, 6), 3, prefix=1)))
    assert said == "grid 6 x 6 to 4 x 4 (grid assumed square), 3 in time to 3"
    torch.testing.assert_close(table, larger(torch.zeros(1, 49, 6), (4, 4)))
    with pytest.raises(ValueError, match="name the grid of the source"):
        fitted(own, wide := randomise(TubeletPosition(6, (2, 5), 3, prefix=1)))
    table, _ = fitted(own, wide, grid=(2, 5))
    torch.testing.assert_close(table, wide(torch.zeros(1, 49, 6), (4, 4)))
    with pytest.raises(ValueError, match="no multiple of 3 x 7"):
        fitted(own, wide, grid=(3, 7))
    with pytest.raises(ValueError, match="2 grids"):  # 12 moments of 4 x 4 or 3 of 8 x 8
        fitted(own, randomise(TubeletPosition(6, (8, 8), 3, prefix=1)))
    picture = randomise(Learned1D(6, (5, 5), prefix=1))
    table, said = fitted(own, picture, from_images=True)
    assert said == "grid 5 x 5 to 4 x 4 (grid assumed square), 1 in time to 3"
    same = picture(torch.zeros(1, 17, 6), (4, 4))
    torch.testing.assert_close(table, torch.cat([same[:, :1], same[:, 1:].repeat(1, 3, 1)], 1))
    without = TubeletPosition(6, (4, 4), 3)
    table, _ = fitted(without, picture, from_images=True)  # the row of the class token is left out
    torch.testing.assert_close(table, same[:, 1:].repeat(1, 3, 1))
    with pytest.raises(ValueError, match="no table of this width"):
        fitted(own, Learned1D(7, (4, 4)))
    line = TubeletPosition(6, (1, 1), 4, prefix=1)
    table, said = fitted(line, longer := randomise(TubeletPosition(6, (1, 1), 16, prefix=1)), grid=(2, 2))
    assert said == "grid 1 x 1 to 1 x 1, 16 in time to 4"
    torch.testing.assert_close(table, longer(torch.zeros(1, 5, 6), (1, 1)))


def test_the_temporal_transformer_reads_the_frames():
    backbone = randomise(variant("nano_fe").eval())
    assert isinstance(backbone, FactorisedEncoder)
    with torch.no_grad():
        features = backbone(clips_of())
        assert torch.equal(backbone.temporal(features.frames), features.summary)
