import pytest
import torch
import torchvision
from reference import Classifier, full_size, golden, load, randomise, rounding_of

from patchform.backbones.vit import VARIANTS, ViT
from patchform.errors import UsageError
from patchform.published.vit import LAYOUTS
from patchform.weights.rules import recognise

timm = pytest.importorskip("timm")
from timm.layers import SwiGLUPacked  # noqa: E402

SIZES = {"patch": 8, "channels": 3, "heads": 4}


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def small(**options):
    return ViT(image_size=32, patch=8, width=48, depth=3, heads=4, **options)


def timm_small(**options):
    return timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, num_classes=10, **options
    ).eval()


def difference(reference, ours, images):
    with torch.no_grad():
        return (reference(images) - ours(images)).abs().max().item()


@pytest.mark.parametrize(
    ("theirs", "own"),
    [
        ({}, {}),
        ({"reg_tokens": 2, "no_embed_class": False}, {"registers": 2}),
        ({"init_values": 1e-3}, {"layer_scale": 1e-3}),
        ({"global_pool": "avg", "class_token": False, "fc_norm": False}, {"summary": "mean"}),
        ({"mlp_layer": SwiGLUPacked, "mlp_ratio": 2 * 2.66667, "act_layer": torch.nn.SiLU}, {"mlp": "swiglu"}),
    ],
    ids=["plain", "registers", "layer_scale", "mean", "swiglu"],
)
def test_equals_timm(theirs, own, images):
    reference, ours = randomise(timm_small(**theirs)), Classifier(small(**own)).eval()
    source = reference.state_dict()
    if own.get("registers"):  # timm's table has rows for registers too: they are part of those tokens
        table = source["pos_embed"]
        source["reg_token"] = source["reg_token"] + table[:, 1:3]
        source["pos_embed"] = torch.cat([table[:, :1], table[:, 3:]], 1)
    load(ours, LAYOUTS["timm"], source)
    assert difference(reference, ours, images) <= 10 * rounding_of(reference, images)


SUMMARIES = [
    {},
    {"class_tokens": 2},
    {"summary": "mean"},
    {"summary": "mean", "class_tokens": 1, "registers": 2},
    {"summary": "class_and_mean", "registers": 2},
    {"summary": "mean_then_norm", "class_tokens": 1},
    {"summary": "attention", "registers": 2},
]


@pytest.mark.parametrize("options", SUMMARIES, ids=lambda options: " ".join(map(str, options.values())) or "plain")
def test_summaries_do_not_see_padding_and_teach_all(options, images):
    backbone = randomise(small(**options)).eval()
    padding = torch.zeros(2, 32, 32, dtype=torch.bool)
    padding[0, 16:], padding[0, :, 24:] = True, True
    spoilt = torch.where(padding[:, None], torch.full_like(images, 7.0), images)
    whole = small(**options, maps_from=(1, 3))
    with torch.no_grad():
        one, other = (backbone(pixels, padding=padding) for pixels in (images, spoilt))
        assert torch.equal(one.summary, other.summary)
        assert (backbone(spoilt).summary - one.summary)[0].abs().max() > 1e-2  # control
    assert one.summary.shape == (2, backbone.width)
    assert one.tokens.shape == (2, 16, 48)
    assert backbone.width == 48 * (2 if options.get("class_tokens") == 2 or "and" in options.get("summary", "") else 1)
    features = whole(images)
    (features.summary.square().sum() + features.tokens.sum()).backward()
    assert all(parameter.grad is not None for parameter in whole.parameters())
    beyond = {id(parameter) for parameter in whole.parameters_beyond_maps()}
    whole.zero_grad()
    sum(map_.square().sum() for map_ in whole(images).maps).backward()
    assert {id(p) for p in whole.parameters() if p.grad is None} == beyond


@pytest.mark.parametrize("options", SUMMARIES[2:], ids=lambda options: " ".join(map(str, options.values())))
def test_control_another_summary_gives_other_numbers(options, images):
    own = randomise(small(**options)).eval()
    table = {name: tensor for name, tensor in own.state_dict().items() if not name.startswith(("pool.", "norm."))}
    others = [other for other in SUMMARIES if other.get("summary") != options["summary"]]
    for other in others:
        backbone = randomise(small(**{**options, **other, "summary": other.get("summary", "class")})).eval()
        if backbone.width == own.width and backbone.prefix == own.prefix:
            backbone.load_state_dict(table, strict=False)
            with torch.no_grad():
                assert (backbone(images).summary - own(images).summary).abs().max() > 1e-2


def test_an_unknown_summary_is_named(images):
    with pytest.raises(UsageError, match='no summary "man"'):
        small(summary="man")


def test_equals_torchvision(images):
    reference = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=4, hidden_dim=48, mlp_dim=192, num_classes=10
    ).eval()
    randomise(reference)
    ours = Classifier(small()).eval()
    load(ours, LAYOUTS["torchvision"], reference.state_dict())
    assert difference(reference, ours, images) <= 10 * rounding_of(reference, images)


@pytest.mark.parametrize("fault", ["norms", "projection", "tanh"])
def test_control_a_fault_is_seen(fault, images):
    reference, ours = randomise(timm_small()), Classifier(small(gelu="tanh" if fault == "tanh" else "none")).eval()
    source = dict(reference.state_dict())
    if fault == "norms":
        one, two = "blocks.1.norm1.weight", "blocks.1.norm2.weight"
        source[one], source[two] = source[two], source[one]
    elif fault == "projection":
        source["blocks.0.attn.proj.bias"] = torch.zeros_like(source["blocks.0.attn.proj.bias"])
    load(ours, LAYOUTS["timm"], source)
    assert difference(reference, ours, images) > 100 * rounding_of(reference, images)


@pytest.mark.parametrize("name", ["google_vit_token", "google_vit_prelogits", "google_vit_gap"])
def test_equals_the_authors_code(name):
    config, tensors, parameters, _ = golden(name)
    backbone = ViT(
        image_size=32,
        patch=8,
        width=24,
        depth=2,
        heads=4,
        mlp_ratio=2,
        gelu="tanh",
        summary="class" if config["classifier"] == "token" else "mean",
        maps_from=(1, 2),
    )
    ours = Classifier(backbone, hidden=config["representation_size"]).eval()
    load(ours, LAYOUTS["google"], parameters)
    images = tensors["input"].permute(0, 3, 1, 2)
    tolerance = 10 * rounding_of(ours, images)
    with torch.no_grad():
        features = ours.backbone(images)
        assert (ours(images) - tensors["output"]).abs().max() <= tolerance
    for number, map_ in enumerate(features.maps):
        theirs = tensors[f"inter.Transformer/encoderblock_{number}"][:, -16:]
        torch.testing.assert_close(map_.flatten(2).mT, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.tokens, tensors["inter.Transformer"][:, -16:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["timm", "torchvision", "google"])
def test_written_back_and_recognised(layout):
    ours = randomise(Classifier(small()))
    written = LAYOUTS[layout].dump(ours.state_dict(), sizes=SIZES)
    assert recognise(LAYOUTS, written, ours.state_dict()) == layout
    filled, _ = LAYOUTS[layout].load(written, ours.state_dict())
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in filled.items())


def test_parameters_equal_the_published_counts():
    published = full_size("ViT (timm counterpart)")
    checked = 0
    for name, row in published.items():
        size, side = name.removeprefix("ViT-").replace("/", "").lower().split("@")
        if size not in VARIANTS:
            continue
        with torch.device("meta"):
            backbone = ViT(**(VARIANTS[size].options | {"image_size": int(side)}))
            ours = Classifier(backbone, classes=row["num_classes"])
        assert sum(p.numel() for p in ours.parameters()) == row["params"], name
        checked += 1
    assert checked == len(published) == 30


def test_maps_from_chosen_depths():
    backbone = small(maps_from=(1, 3)).eval()
    features = backbone(torch.randn(1, 3, 32, 32))
    assert [tuple(m.shape) for m in features.maps] == [(1, 48, 4, 4)] * 2
    assert backbone.channels == (48, 48)
    torch.testing.assert_close(backbone.norm(features.maps[1].flatten(2).mT), features.tokens)


@pytest.mark.parametrize("position", ["learned_1d", "learned_2d"])
def test_learned_positions_take_any_grid(position):
    backbone = randomise(small(position=position)).eval()
    for height in range(1, 41):
        for width in (1, height, 41 - height, 40):
            x = torch.zeros(1, 1 + height * width, 48)
            placed = backbone.position(x, (height, width))
            assert placed.shape == x.shape
            turned = backbone.position(torch.zeros(1, 1 + width * height, 48), (width, height))
            assert torch.isfinite(placed).all()
            if position == "learned_1d":  # a transposed table gives the transposed result
                cells = placed[0, 1:].unflatten(0, (height, width))
                table = backbone.position.table
                other = table[:, 1:].unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
                backbone.position.table = torch.nn.Parameter(torch.cat([table[:, :1], other], 1))
                turned = backbone.position(torch.zeros(1, 1 + width * height, 48), (width, height))
                backbone.position.table = table
                torch.testing.assert_close(turned[0, 1:].unflatten(0, (width, height)).transpose(0, 1), cells)


def test_native_grid_is_the_table_itself():
    backbone = randomise(small())
    x = torch.zeros(1, 17, 48)
    assert torch.equal(backbone.position(x, (4, 4)), backbone.position.table)
