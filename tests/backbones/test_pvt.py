import pytest
import torch
from reference import Classifier, full_size, golden, load, randomise, rounding_of
from torch.utils.flop_counter import FlopCounterMode

from patchform.backbones.pvt import PVT, VARIANTS, Means, PVTv2, Reduction
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers.drop import linear_rates
from patchform.published.pvt import LAYOUTS, SCORES
from patchform.weights.rules import recognise

SMALL = {"widths": (8, 16, 20, 32), "depths": (1, 2, 1, 2), "heads": (1, 2, 5, 8)}
"""The size of the golden vectors."""
GOLDEN = {
    "pvt_v1": lambda: PVT(image_size=64, **SMALL),
    "pvt_v1_resized": lambda: PVT(image_size=64, **SMALL),
    "pvt_v2": lambda: PVTv2(**SMALL),
    "pvt_v2_li": lambda: PVTv2(**SMALL, attention="linear"),
}
ROWS = {
    **{f"v1_{ours}": ("PVT v1", f"pvt_{theirs}") for ours, theirs in zip("tsml", ("tiny", "small", "medium", "large"))},
    "v1_h": ("PVT v1", "pvt_huge_v2"),
    **{f"v2_{size}": ("PVT v2", f"pvt_v2_{size}") for size in ("b0", "b1", "b2", "b2_li", "b3", "b4", "b5")},
}
ROWS["v1_ti"] = ROWS.pop("v1_t")


def variant(name, **options):
    row = VARIANTS[name]
    size = {"image_size": row.image_size} if row.build is PVT else {}
    return row.build(**{**size, **row.options, **options})


def pictures(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def difference(reference, ours, images):
    with torch.no_grad():
        return (reference(images) - ours(images)).abs().max().item()


# ------------------------------------------------------------------------------------------------------ golden vectors


@torch.no_grad()
def errors(name, change=lambda backbone: None):
    """Largest error of patches, stages and output over ten times that of rounding."""
    config, tensors, parameters, rounding = golden(name)
    backbone = GOLDEN[name]()
    assert tuple(config["embed_dims"]) == backbone.channels
    ours = Classifier(backbone).eval()
    assert recognise(LAYOUTS, parameters, ours.state_dict()) == "authors"
    assert not load(ours, LAYOUTS["authors"], parameters).dropped
    change(backbone)
    seen = {}

    def watch(module, key):
        module.register_forward_hook(lambda _m, _i, found: seen.update({key: found.flatten(1, -2)}))

    for number, stage in enumerate(backbone.stages):
        watch(backbone.patches_norms[number], f"patch_embed{number + 1}")
        watch(stage[-1], f"stage{number + 1}")
    seen["output"] = ours(tensors["input"])
    assert seen.keys() == rounding.keys()
    return {key: ((seen[key] - tensors[key]).abs().max() / (10 * error)).item() for key, error in rounding.items()}


@pytest.mark.parametrize("name", GOLDEN)
def test_equals_the_authors_code(name):
    assert max(errors(name).values()) <= 1


def swap_norms(backbone):
    block = backbone.stages[1][1]
    block.norm1, block.norm2 = block.norm2, block.norm1


def transpose_squares(backbone):
    squares = backbone.stages[1][0].attention.reduction.squares
    p = squares.side
    kernel = squares.proj.weight.unflatten(1, (p, p, -1)).transpose(1, 2).flatten(1)
    squares.proj.weight = torch.nn.Parameter(kernel)


def swap_keys_and_values(backbone):
    for tensor in backbone.stages[0][0].attention.kv.parameters():
        tensor.copy_(tensor.roll(len(tensor) // 2, 0))


def forget_the_norm_between(backbone):
    backbone.norms[1] = torch.nn.Identity()


def forget_relu(backbone):
    backbone.stages[2][0].mlp.before = torch.nn.Identity()


def resize_bicubic(backbone):
    for position in backbone.positions:
        position.mode = "bicubic"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pvt_v1", swap_norms),
        ("pvt_v1", transpose_squares),
        ("pvt_v1_resized", swap_keys_and_values),
        ("pvt_v1_resized", resize_bicubic),
        ("pvt_v2", forget_the_norm_between),
        ("pvt_v2", transpose_squares),
        ("pvt_v2_li", forget_relu),
    ],
)
def test_control_a_fault_is_seen(name, change):
    assert errors(name, change)["output"] > 10  # a hundred times the rounding


# ----------------------------------------------------------------------------------------------- timm and transformers


def timm_small(**options):
    pvt_v2 = pytest.importorskip("timm.models.pvt_v2")
    theirs = pvt_v2.PyramidVisionTransformerV2(
        num_classes=10, embed_dims=SMALL["widths"], depths=SMALL["depths"], num_heads=SMALL["heads"], **options
    )
    return randomise(theirs.eval())


@pytest.mark.parametrize("attention", ["reduced", "linear"])
@pytest.mark.parametrize("size", [(64, 64), (75, 110)])
def test_equals_timm(attention, size):
    theirs = timm_small(linear=attention == "linear")
    ours = Classifier(PVTv2(**SMALL, attention=attention)).eval()
    assert recognise(LAYOUTS, theirs.state_dict(), ours.state_dict()) == "timm"
    assert not load(ours, LAYOUTS["timm"], theirs.state_dict()).dropped
    images = pictures(2, 3, *size)
    assert difference(theirs, ours, images) <= 10 * rounding_of(theirs, images)


def test_control_timm_with_swapped_norms():
    theirs = timm_small()
    ours, images, source = Classifier(PVTv2(**SMALL)).eval(), pictures(2, 3, 64, 64), dict(theirs.state_dict())
    one, two = "stages.1.blocks.1.norm1.weight", "stages.1.blocks.1.norm2.weight"
    source[one], source[two] = source[two], source[one]
    load(ours, LAYOUTS["timm"], source)
    assert difference(theirs, ours, images) > 100 * rounding_of(theirs, images)


class Logits(torch.nn.Module):
    """A model of transformers that answers with a tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).logits


def transformers_small(version, **options):
    transformers = pytest.importorskip("transformers")
    config, build = {
        1: (transformers.PvtConfig, transformers.PvtForImageClassification),
        2: (transformers.PvtV2Config, transformers.PvtV2ForImageClassification),
    }[version]
    theirs = build(
        config(
            hidden_sizes=list(SMALL["widths"]),
            depths=list(SMALL["depths"]),
            num_attention_heads=list(SMALL["heads"]),
            num_labels=10,
            layer_norm_eps=1e-6,
            **options,
        )
    ).eval()
    for name, module in theirs.named_modules():  # one eps for all norms there; two in the authors' code
        if name.endswith(".layer_norm") and ("embedding" in name or ".attention" in name):
            module.eps = 1e-5
    return Logits(randomise(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["v1", "v2", "v2_linear"])
def test_equals_transformers(kind):
    version = int(kind[1])
    if version == 1:
        theirs, backbone = transformers_small(1, image_size=64), PVT(image_size=64, **SMALL)
    else:
        linear = kind.endswith("linear")
        theirs = transformers_small(2, image_size=64, linear_attention=linear, mlp_ratios=[8, 8, 4, 4])
        backbone = PVTv2(**SMALL, attention="linear" if linear else "reduced")
    source, ours, images = theirs.model.state_dict(), Classifier(backbone).eval(), pictures(2, 3, 64, 64)
    assert recognise(LAYOUTS, source, ours.state_dict()) == f"transformers{'_v1' * (version == 1)}"
    assert not load(ours, LAYOUTS[recognise(LAYOUTS, source, ours.state_dict())], source).dropped
    assert difference(theirs, ours, images) <= 10 * rounding_of(theirs, images)
    one, two = ours.backbone.stages[0][0].norm1, ours.backbone.stages[0][0].norm2
    ours.backbone.stages[0][0].norm1, ours.backbone.stages[0][0].norm2 = two, one  # control
    assert difference(theirs, ours, images) > 100 * rounding_of(theirs, images)


# --------------------------------------------------------------------------------------------------- layouts and sizes


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("authors", "nano"),
        ("authors", "nano_v1"),
        ("timm", "nano"),
        ("transformers_v1", "nano_v1"),
        ("transformers", "nano"),
    ],
)
def test_written_back_and_recognised(layout, name):
    ours = randomise(Classifier(variant(name)))
    written = LAYOUTS[layout].dump(ours.state_dict())
    assert recognise(LAYOUTS, written, ours.state_dict()) == layout
    filled, report = LAYOUTS[layout].load(written, ours.state_dict())
    assert not report.dropped
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in filled.items())


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("v2")])
def test_layout_knows_all_tensors_of_timm(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs, ours = timm.create_model(f"pvt_{name}"), Classifier(variant(name), classes=1000)
    loaded, _ = LAYOUTS["timm"].load(theirs.state_dict(), ours.state_dict())
    written = LAYOUTS["timm"].dump(loaded)
    shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in written.items()} == shapes


@pytest.mark.parametrize("name", ROWS)
def test_parameters_and_multiplications_are_counted_as_published(name):
    family, theirs = ROWS[name]
    row = full_size(family)[theirs]
    with torch.device("meta"):
        ours = Classifier(variant(name), classes=row["num_classes"]).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            ours(torch.empty(1, 3, 224, 224))
    assert sum(p.numel() for p in ours.parameters()) == row["params"]
    assert counter.get_total_flops() == row["flops"]["224x224"]["flops"]


def test_every_published_model_has_a_row():
    assert set(ROWS) == {name for name in VARIANTS if not name.startswith("nano")}
    assert {row.variant for row in SCORES} == set(ROWS) - {"v1_h"}  # whose weights are not published
    for family in ("PVT v1", "PVT v2"):
        assert {theirs for of, theirs in ROWS.values() if of == family} == set(full_size(family))


# ----------------------------------------------------------------------------------------------------------- behaviour


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (37, 50), (7, 90), (3, 3)])
@pytest.mark.parametrize("build", [PVT, PVTv2])
def test_any_size(build, size):
    backbone = randomise(build(**SMALL), scale=0.1).eval()
    features = backbone(pictures(2, 3, *size))
    assert backbone.strides == features.strides == (4, 8, 16, 32)
    for map_, channels, stride in zip(features.maps, SMALL["widths"], features.strides, strict=True):
        assert map_.shape == (2, channels, *grids.cells(size, stride))
    assert features.tokens.shape == (2, features.maps[-1][0, 0].numel(), 32)
    assert features.summary.shape == (2, 32)
    assert torch.isfinite(features.summary).all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["nano", "nano_li", "nano_v1"])
def test_what_lies_on_padding_changes_nothing(name):
    options = {"attention": "linear"} if name == "nano_li" else {}
    backbone = randomise(variant(name.removesuffix("_li"), **options), scale=0.1).eval()
    if name == "nano_v1":
        for position in backbone.positions:
            torch.nn.init.constant_(position.table, 0.3)  # or it would differ with the size of the grid
    images = pictures(2, 3, 64, 96)
    padding = torch.zeros(2, 64, 96, dtype=torch.bool)
    padding[0, :, 70:], padding[1, 32:] = True, True
    clean = backbone(images, padding=padding)
    dirty = backbone(images.masked_fill(padding[:, None], float("nan")), padding=padding)
    assert torch.equal(clean.summary, dirty.summary)
    assert clean.padding.shape[1:] == clean.maps[-1].shape[2:]
    bare, none = backbone(images), backbone(images, padding=torch.zeros_like(padding))
    torch.testing.assert_close(bare.summary, none.summary)
    if name != "nano_li":  # whose bins follow the whole map
        alone = backbone(images[1:, :, :32])  # without its padding: whole squares in all stages
        torch.testing.assert_close(clean.summary[1:], alone.summary, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(bare.summary[1:], alone.summary, atol=1e-3)  # control
    nothing = backbone(images, padding=torch.ones_like(padding))
    assert all(torch.isfinite(value).all() for value in (nothing.summary, *nothing.maps))


def test_means_are_over_what_is_real():
    means, x = Means(4), pictures(1, 14, 14, 4)
    padding = torch.zeros(1, 14, 14, dtype=torch.bool)
    padding[:, 5:] = True
    seen = []
    means.squares.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    _, hidden = means(x, padding)
    assert hidden[0, :, 0].tolist() == [False] * 3 + [True] * 4
    torch.testing.assert_close(seen[0][0, 1, 2], x[0, 2:4, 4:6].mean((0, 1)))
    torch.testing.assert_close(seen[0][0, 2, 2], x[0, 4, 4:6].mean(0))  # its lower row is padding


@pytest.mark.parametrize("size", [(8, 8), (11, 13), (4, 9), (3, 2)])
def test_reduction_is_a_convolution_with_kernel_equal_to_stride(size):
    reduction, x = randomise(Reduction(6, 4)), pictures(2, *size, 6)
    found, hidden = reduction(x, None)
    assert hidden is None
    kernel = reduction.squares.proj.weight.unflatten(1, (4, 4, 6)).permute(0, 3, 1, 2)
    grown = torch.nn.functional.pad(x.permute(0, 3, 1, 2), (0, max(0, 4 - size[1]), 0, max(0, 4 - size[0])))
    expected = torch.nn.functional.conv2d(grown, kernel, reduction.squares.proj.bias, stride=4)
    torch.testing.assert_close(found, reduction.norm(expected.permute(0, 2, 3, 1)))


def test_cost_of_linear_attention_grows_with_the_map():
    def cost(side, attention):
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            variant("v2_b0", attention=attention).eval()(torch.empty(1, 3, side, side))
        return counter.get_total_flops()

    assert cost(896, "linear") / cost(448, "linear") == pytest.approx(4, rel=0.02)
    assert cost(896, "reduced") / cost(448, "reduced") > 4.5  # control


def test_a_class_token_is_not_reduced():
    with pytest.raises(UsageError, match="2 x 2"):
        PVT(reductions=(8, 4, 2, 2))


@pytest.mark.parametrize("name", ["nano", "nano_v1"])
def test_stochastic_depth_rises_to_the_last_block(name):
    rates = [block.residual.rate for block in variant(name, drop_path=0.4).layers()]
    assert rates == linear_rates(0.4, len(rates))
    assert rates[-1] == pytest.approx(0.4)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["nano", "nano_li", "nano_v1"])
def test_traces_whole(name):
    options = {"attention": "linear"} if name == "nano_li" else {}
    backbone = randomise(variant(name.removesuffix("_li"), **options), scale=0.1).eval()
    images, padding = pictures(2, 3, 40, 32), torch.zeros(2, 40, 32, dtype=torch.bool)
    padding[1, 20:] = True
    torch.compiler.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    for given in (None, padding):
        torch.testing.assert_close(compiled(images, padding=given).summary, backbone(images, padding=given).summary)
