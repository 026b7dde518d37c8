import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from reference import FOLDER, Classifier, full_size, golden, load, randomise, rounding_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from patchform.backbones.hybrid import VARIANTS, Hybrid, StandardisedConv
from patchform.published.hybrid import LAYOUTS, SCORES
from patchform.weights.rules import recognise

TIMM = {
    "r_ti16": "vit_tiny_r_s16_p8_224",
    "r26_s32": "vit_small_r26_s32_224",
    "r26_b32": "vit_base_r26_s32_224",
    "r50_b16": "vit_base_r50_s16_224",
    "r50_l32": "vit_large_r50_s32_224",
}
GOOGLE = {
    "r_ti16": "R+ViT-Ti_16",
    "r26_s32": "R26+ViT-S_32",
    "r26_b32": "R26+ViT-B_32",
    "r50_b16": "R50+ViT-B_16",
    "r50_l32": "R50+ViT-L_32",
}


def variant(name, **options):
    row = VARIANTS[name]
    return Hybrid(**{"image_size": row.image_size, **row.options, **options})


# ------------------------------------------------------------------------------------------------------ golden vectors


def built(name):
    """Our model of a golden vector with its parameters, the images, and what the reference gave."""
    config, tensors, parameters, _ = golden(name)
    backbone = Hybrid(
        image_size=64,
        stages=tuple(config["resnet"]["num_layers"]),
        local_width=int(64 * config["resnet"]["width_factor"]),
        patch=config["patches"]["size"][0],
        width=config["hidden_size"],
        depth=config["transformer"]["num_layers"],
        heads=config["transformer"]["num_heads"],
        mlp_ratio=config["transformer"]["mlp_dim"] / config["hidden_size"],
    )
    ours = Classifier(backbone).eval()
    assert recognise(LAYOUTS, parameters, ours.state_dict()) == "google"
    load(ours, LAYOUTS["google"], parameters)
    theirs = {key.removeprefix("inter."): tensor for key, tensor in tensors.items() if key != "input"}
    return ours, tensors["input"].permute(0, 3, 1, 2), theirs


@torch.no_grad()
def seen_in(model, images):
    """Every output that the vectors hold, by their names and in their order of axes."""
    seen, backbone, local = {}, model.backbone, model.backbone.local
    watched = {"conv_root": local.stem.conv, "gn_root": local.stem.norm, "embedding": backbone.patches}
    watched |= {f"block{number + 1}": stage for number, stage in enumerate(local.stages)}
    watched |= {f"Transformer/encoderblock_{number}": block for number, block in enumerate(backbone.blocks)}
    watched |= {"Transformer": backbone.norm}
    handles = [
        module.register_forward_hook(lambda m, x, y, name=name: seen.update({name: y.clone()}))
        for name, module in watched.items()
    ]
    seen["output"] = model(images)
    for handle in handles:
        handle.remove()
    seen["pre_logits"] = seen["Transformer"][:, 0]
    maps = {"conv_root", "gn_root", *(name for name in seen if name.startswith("block"))}
    return {name: value.permute(0, 2, 3, 1) if name in maps else value for name, value in seen.items()}


def errors(name, spoil=None):
    """Largest error of every output over what is allowed: ten times our own rounding (JAX's is not on record)."""
    ours, images, theirs = built(name)
    found = seen_in(ours, images)
    exact = seen_in(ours.double(), images.double())
    allowed = {key: 10 * (value - exact[key]).abs().max().item() for key, value in found.items()}
    if spoil:
        spoil(ours.float().backbone)
        found = seen_in(ours, images)
    assert found.keys() == theirs.keys()
    return {key: (value - theirs[key]).abs().max().item() / allowed[key] for key, value in found.items()}


@pytest.mark.parametrize("name", ["google_vit_hybrid", "google_vit_r_stem"])
def test_same_numbers_as_the_authors_code(name):
    assert max(errors(name).values()) <= 1


def padded_evenly(backbone):
    """As a ResNet of torch pads: one cell on each side, where "SAME" has none and one."""
    for module in backbone.modules():
        if isinstance(module, StandardisedConv) and module.stride != (1, 1):
            module._padded = lambda x, side=module.kernel_size[0] // 2: F.pad(x, (side,) * 4)


def kernels_as_they_are(backbone):
    for module in backbone.modules():
        if isinstance(module, StandardisedConv):
            module.forward = lambda x, conv=module: conv._conv_forward(conv._padded(x), conv.weight, None)


def error_function(backbone):
    for block in backbone.blocks:
        block.mlp.act = nn.GELU()


def swap_group_norms(backbone):
    one, two, _ = backbone.local.stages[1][0].branch
    one.norm, two.norm = two.norm, one.norm


def relu_on_the_projection(backbone):
    backbone.local.stages[0][0].shortcut.append(nn.ReLU())


@pytest.mark.parametrize(
    "spoil", [padded_evenly, kernels_as_they_are, error_function, swap_group_norms, relu_on_the_projection]
)
def test_control_a_fault_is_seen(spoil):
    assert errors("google_vit_hybrid", spoil)["output"] > 10


# --------------------------------------------------------------------------------------------------------------- timm


SMALL = {"stages": (1, 2), "local_width": 32, "image_size": 64, "width": 48, "depth": 2, "heads": 3, "gelu": "none"}


def timm_small(stages, local_width, image_size, width, depth, heads, gelu):
    """A model of that size out of timm's parts, put together as its published hybrids are."""
    timm = pytest.importorskip("timm")
    local = timm.models.resnetv2.ResNetV2(
        layers=stages,
        channels=tuple(4 * local_width << stage for stage in range(len(stages))),
        stem_chs=local_width,
        num_classes=0,
        global_pool="",
        preact=False,
        stem_type="same",
        conv_layer=partial(timm.layers.StdConv2dSame, eps=1e-8),
    )
    return timm.models.VisionTransformer(
        img_size=image_size,
        patch_size=1,
        num_classes=10,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        embed_layer=partial(timm.layers.HybridEmbed, backbone=local),
    )


@torch.no_grad()
def with_the_original_constants(reference):
    """Random weights for timm's model, so that its two small constants are the original's."""
    randomise(reference.eval())
    for module in reference.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-6  # 1e-5 there
        if type(module).__name__ == "StdConv2dSame":
            module.weight *= 1e3  # divided there by (variance + 1e-8) ** 0.5, by deviation + 1e-5 in the original
    return reference


def difference(reference, backbone, spoil=None):
    """The largest difference over ten times timm's own rounding."""
    ours = Classifier(backbone).eval()
    source = with_the_original_constants(reference).state_dict()
    if spoil:
        source[spoil[0]], source[spoil[1]] = source[spoil[1]], source[spoil[0]]
    assert not load(ours, LAYOUTS[recognise(LAYOUTS, source, ours.state_dict())], source).dropped
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = (ours(images) - reference(images)).abs().max().item()
    return found / (10 * rounding_of(reference, images))


def test_equals_timm():
    assert difference(timm_small(**SMALL), Hybrid(**SMALL)) <= 1


_NORM = "patch_embed.backbone.stages.1.blocks.0.norm{}.weight"


@pytest.mark.parametrize(
    "spoil",
    [(_NORM.format(1), _NORM.format(2)), ("blocks.0.norm1.weight", "blocks.0.norm2.weight")],
    ids=["local", "transformer"],
)
def test_control_timm_sees_swapped_norms(spoil):
    assert difference(timm_small(**SMALL), Hybrid(**SMALL), spoil) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_equals_what_timm_has_by_name(name):
    """The whole local network of the published model at 64 pixels, below a small transformer."""
    timm = pytest.importorskip("timm")
    reference = timm.create_model(TIMM[name], img_size=64, num_classes=10, depth=2, embed_dim=48, num_heads=3)
    backbone = variant(name, image_size=64, depth=2, width=48, heads=3, gelu="none")
    assert difference(reference, backbone) <= 1


# -------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", TIMM)
def test_names_are_those_of_timm(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs, ours = (
            timm.create_model(TIMM[name], num_classes=1000).state_dict(),
            Classifier(variant(name), classes=1000),
        )
    layout = LAYOUTS["timm" if VARIANTS[name].options["stages"] else "timm_stem"]
    filled, _ = layout.load(theirs, ours.state_dict())
    written = layout.dump(filled, sizes={"patch": VARIANTS[name].options["patch"]})
    assert {key: tensor.shape for key, tensor in written.items()} == {key: t.shape for key, t in theirs.items()}


@pytest.mark.parametrize("name", GOOGLE)
def test_names_are_those_of_the_published_files(name):
    path = FOLDER / "golden" / "google_vit_npz_names.json"
    if not path.exists():
        pytest.skip("no list of published names (set PATCHFORM_REFERENCE)")
    theirs = json.loads(path.read_text())["models"][GOOGLE[name]]["params"]
    with torch.device("meta"):
        ours = Classifier(variant(name), classes=1000)
    options = VARIANTS[name].options
    written = LAYOUTS["google"].dump(ours.state_dict(), sizes={"patch": options["patch"], "heads": options["heads"]})
    shapes = {key: shape["in_published_npz"] if isinstance(shape, dict) else shape for key, shape in theirs.items()}
    assert {key: list(tensor.shape) for key, tensor in written.items()} == shapes


@pytest.mark.parametrize(("name", "side"), [(name, 224) for name in TIMM] + [(name, 384) for name in TIMM])
def test_parameters_and_multiplications_are_counted_as_published(name, side):
    original = full_size("ViT / R+ViT (google-research JAX)")[f"{GOOGLE[name]}@{side}"]
    with torch.device("meta"), torch.no_grad():
        model = Classifier(variant(name, image_size=side), classes=1000).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, side, side))
    assert sum(parameter.numel() for parameter in model.parameters()) == original["params"]
    counted = full_size("R+ViT hybrids (timm counterpart)").get(TIMM[name].replace("224", str(side)))
    if counted:
        assert counter.get_total_flops() == counted["flops"][f"{side}x{side}"]["flops"]


def test_every_row_is_of_the_tables():
    assert {"nano", *TIMM} == set(VARIANTS)
    assert {row.variant for row in SCORES} <= set(TIMM)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stages", [(), (1, 2)])
def test_written_back(layout, stages):
    ours = randomise(Classifier(variant("nano", stages=stages, patch=2)))
    written = LAYOUTS[layout].dump(ours.state_dict(), sizes={"patch": 2, "heads": 3})
    filled, _ = LAYOUTS[layout].load(written, ours.state_dict())
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in filled.items())
    if stages or layout != "timm":  # "timm" would call the stem's tensors as no published file does
        assert recognise(LAYOUTS, written, ours.state_dict()) == layout


# ----------------------------------------------------------------------------------------------------------- contract


@torch.no_grad()
@pytest.mark.parametrize(
    ("stages", "patch", "strides"),
    [((), 4, (4, 16)), ((1,), 2, (4, 8)), ((1, 1), 1, (4, 8, 8)), ((1, 1, 2), 2, (4, 8, 16, 32))],
)
@pytest.mark.parametrize("size", [(64, 64), (33, 70), (1, 47)])
def test_any_stage_gives_the_tokens(stages, patch, strides, size):
    backbone = randomise(variant("nano", stages=stages, patch=patch, image_size=64)).eval()
    features = backbone(torch.randn(2, 3, *size))
    assert backbone.strides == features.strides == strides
    assert features.size == size
    for map_, channels, cell in zip(features.maps, backbone.channels, strides, strict=True):
        assert map_.shape == (2, channels, -(-size[0] // cell), -(-size[1] // cell))
    torch.testing.assert_close(backbone.norm(features.maps[-1].flatten(2).mT), features.tokens)


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [1, 2, 8, 9])
def test_padding_is_same(kernel, stride, side):
    """Against the definition: as little as covers ceil(side / stride) steps, the odd cell below and beside."""
    conv = StandardisedConv(1, 1, kernel, stride)
    rows = -(-side // stride)
    total = max((rows - 1) * stride + kernel - side, 0)
    x = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    std, mean = torch.std_mean(conv.weight, correction=0)
    around = F.pad(x, (total // 2, total - total // 2) * 2)
    expected = F.conv2d(around, (conv.weight - mean) / (std + 1e-5), stride=stride)[..., :rows, :rows]
    torch.testing.assert_close(conv(x), expected)
    assert conv(x).shape == (1, 1, rows, rows)


@pytest.mark.parametrize("graded", [True, False])
def test_kernels_are_standardised_as_defined_and_so_is_their_gradient(graded):
    conv = StandardisedConv(3, 5, 3).double()
    conv.weight.data[4] = 0.25  # equal numbers: no deviation
    std, mean = torch.std_mean(conv.weight, (1, 2, 3), correction=0, keepdim=True)
    with torch.set_grad_enabled(graded):
        expected, found = (conv.weight - mean) / (std + 1e-5), conv.standardised()
    torch.testing.assert_close(found, expected)
    if graded:
        weights = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        slopes = [torch.autograd.grad((value[:4] * weights).sum(), conv.weight)[0][:4] for value in (expected, found)]
        torch.testing.assert_close(*slopes)
