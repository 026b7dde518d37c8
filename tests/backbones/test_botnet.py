import pytest
import torch
from reference import Classifier, full_size, golden, load, randomise, rounding_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from patchform.backbones.botnet import VARIANTS, Absolute2D, BoTBlock, BoTNet, SelfAttention
from patchform.errors import UsageError
from patchform.layers.positions import Relative2D
from patchform.published.botnet import LAYOUTS
from patchform.weights.rules import recognise

LAYOUT = LAYOUTS["lucidrains"]
ROWS = {
    "50": "BoTNet-50 @224 (stride-2 c5)",
    "s1_50": "BoTNet-S1-50 @224",
    "s1_59": "BoTNet-S1-59 @224",
    "s1_77": "BoTNet-S1-77 @320",
    "s1_110": "BoTNet-S1-110 @224",
    "s1_128": "BoTNet-S1-128 @256",
    "s1_128_384": "BoTNet-S1-128 @384",
}


def variant(name, **options):
    row = VARIANTS[name]
    return BoTNet(**{"image_size": row.image_size, **row.options, **options})


# ------------------------------------------------------------------------------------------------------ golden vectors


class Stack(nn.Module):
    """The attending blocks alone, by the names that the layout uses."""

    def __init__(self, config, kind):
        super().__init__()
        width = config["dim_out"] // config["proj_factor"]
        blocks, channels, (rows, columns), stride = [], config["dim"], config["fmap_size"], 2
        for _ in range(config["num_layers"]):
            position = kind(config["dim_head"], (rows, columns))
            blocks.append(BoTBlock(channels, width, config["heads"], position=position, stride=stride))
            channels, rows, columns, stride = 4 * width, rows // stride, columns // stride, 1
        self.backbone = nn.ModuleDict({"blocks": nn.Sequential(*blocks)})

    def forward(self, x):
        return self.backbone["blocks"](x)


@torch.no_grad()
def errors(name, spoil=None):
    """Largest error of every output over what is allowed."""
    config, tensors, parameters, rounding = golden(name)
    model = Stack(config, Relative2D if config["rel_pos_emb"] else Absolute2D).eval()
    first = model.backbone["blocks"][0]
    kernel = parameters["net.0.shortcut.0.weight"].shape[-1]
    if kernel == 3:  # the port's own projection; the authors' is 1x1, as in botnet_gist
        first.shortcut.conv = nn.Conv2d(config["dim"], config["dim_out"], 3, stride=2, padding=1, bias=False)
    own = {"height": "rel_height", "width": "rel_width"}  # the layout knows the tables of the relative kind
    source = {}
    for key, tensor in parameters.items():
        start, _, last = key.rpartition(".")
        source[f"layer4.{start}.{own.get(last, last)}"] = tensor
    load(model, LAYOUT, source)
    written = LAYOUT.dump(model.state_dict())
    assert all(torch.equal(written[key], tensor) for key, tensor in source.items())
    assert written.keys() == source.keys()
    if spoil:
        spoil(first)
    seen = {}
    first.attention.register_forward_hook(lambda m, x, y: seen.update({"block0.attention": y.clone()}))
    first.register_forward_hook(lambda m, x, y: seen.update(block0=y.clone()))
    seen["output"] = model(tensors["input"])
    assert seen.keys() == rounding.keys()
    return {key: ((seen[key] - tensors[key]).abs().max() / (10 * error)).item() for key, error in rounding.items()}


@pytest.mark.parametrize("name", ["botnet_rel", "botnet_abs", "botnet_gist"])
def test_same_numbers_as_the_reference(name):
    assert max(errors(name).values()) <= 1


def query_not_scaled(block):
    block.attention.position.rows.mul_(2)  # d ** 0.5 of these heads
    block.attention.position.columns.mul_(2)


def offsets_turned(block):
    for table in (block.attention.position.rows, block.attention.position.columns):
        table.copy_(table.flip(0))


def highest_in_place_of_mean(block):
    block.pool = nn.MaxPool2d(2)


def no_relu_on_the_projection(block):
    block.shortcut[2] = nn.Identity()


def swap_norms(block):
    block.norm, block.reduce.norm = block.reduce.norm, block.norm


@pytest.mark.parametrize(
    "spoil", [query_not_scaled, offsets_turned, highest_in_place_of_mean, no_relu_on_the_projection, swap_norms]
)
def test_control_a_fault_is_seen(spoil):
    assert errors("botnet_gist", spoil)["output"] > 10


# --------------------------------------------------------------------------------------------------------------- timm


@torch.no_grad()
@pytest.mark.parametrize("scaled", [True, False])
def test_attention_of_timm_agrees_if_its_query_is_scaled(scaled):
    bottleneck = pytest.importorskip("timm.layers.bottleneck_attn")
    theirs = randomise(bottleneck.BottleneckAttn(24, feat_size=(5, 7), num_heads=3, scale_pos_embed=scaled).eval())
    ours = SelfAttention(24, 3, position=Relative2D(8, (5, 7))).eval()
    source = theirs.state_dict()
    ours.load_state_dict(
        {
            "qkv.weight": source["qkv.weight"][:, :, 0, 0],
            "position.rows": source["pos_embed.height_rel"],
            "position.columns": source["pos_embed.width_rel"],
        }
    )
    x = torch.randn(2, 24, 5, 7, generator=torch.Generator().manual_seed(1))
    error, allowed = (ours(x) - theirs(x)).abs().max().item(), 10 * rounding_of(theirs, x)
    assert error <= allowed if scaled else error > 100 * allowed


# -------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", ROWS)
def test_parameters_and_multiplications_are_counted_as_in_the_reference(name):
    row = full_size("BoTNet")[ROWS[name]]
    side = row["input"][1]
    with torch.device("meta"), torch.no_grad():
        model = Classifier(variant(name), classes=1000).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, side, side))
    assert VARIANTS[name].image_size == side
    assert sum(parameter.numel() for parameter in model.parameters()) == row["params"]
    assert len(LAYOUT.dump(model.state_dict())) == row["state_dict_tensors"]
    # the reference multiplies with the whole tables, here the pairs of the map: a little less
    assert counter.get_total_flops() / 2e9 == pytest.approx(row["flops"][f"{side}x{side}"]["gmacs"], rel=0.02)


def test_every_row_is_of_the_table():
    assert {"nano", *ROWS} == set(VARIANTS)
    assert set(full_size("BoTNet")) == set(ROWS.values())


def test_written_back_and_recognised():
    ours = randomise(Classifier(variant("nano")))
    written = LAYOUT.dump(ours.state_dict())
    assert recognise(LAYOUTS, written, ours.state_dict()) == "lucidrains"
    filled, report = LAYOUT.load(written, ours.state_dict())
    assert not report.dropped
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in filled.items())


# ----------------------------------------------------------------------------------------------------------- contract


@torch.no_grad()
@pytest.mark.parametrize(("stride", "strides"), [(1, (4, 8, 16, 16)), (2, (4, 8, 16, 32))])
@pytest.mark.parametrize("position", ["relative", "absolute", "none"])
def test_ends_at_either_stride_for_any_size(stride, strides, position):
    backbone = randomise(variant("nano", stem="imagenet", stride=stride, position=position, image_size=64)).eval()
    assert backbone.strides == strides
    for size in ((64, 64), (33, 100), (1, 70)):
        features = backbone(torch.randn(2, 3, *size))
        for map_, channels, cell in zip(features.maps, backbone.channels, strides, strict=True):
            assert map_.shape == (2, channels, -(-size[0] // cell), -(-size[1] // cell))
        assert torch.isfinite(features.summary).all()
        torch.testing.assert_close(features.summary, features.maps[-1].mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("position", ["relative", "absolute", "none"])
def test_positions_tell_places_apart(position):
    """A map that is turned over gives the turned answer, unless positions say where a cell is."""
    backbone = variant("nano", position=position)
    attention = randomise(backbone.blocks[1].attention)
    x = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    turned = attention(x.flip(2)).flip(2)
    assert torch.allclose(attention(x), turned, atol=1e-5) == (position == "none")


@torch.no_grad()
def test_nobody_attends_to_padding():
    attention = randomise(SelfAttention(16, 2, position=Relative2D(8, (4, 6)))).eval()
    x = torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(2, 4, 6, dtype=torch.bool)
    padding[:, :, 4:] = True
    other = torch.where(padding[:, None], 5.0, x)
    real = (slice(None), slice(None), slice(None), slice(4))
    torch.testing.assert_close(attention(x, padding=padding)[real], attention(other, padding=padding)[real])
    assert (attention(x) - attention(other))[real].abs().max() > 0.1  # control
    rows, columns = attention.position.rows, attention.position.columns  # the same offsets on a map without padding
    small = SelfAttention(16, 2, position=Relative2D(8, (4, 4)))
    small.qkv = attention.qkv
    small.position.rows, small.position.columns = rows, nn.Parameter(columns[2:-2])
    torch.testing.assert_close(attention(x, padding=padding)[real], small(x[real]))


def test_drop_path_rises_through_both_parts():
    backbone = variant("nano", drop_path=0.8)
    assert [block.drop_path.rate for block in backbone.layers()] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def test_other_strides_are_refused():
    with pytest.raises(UsageError, match="1 or 2"):
        BoTNet(stride=4)
