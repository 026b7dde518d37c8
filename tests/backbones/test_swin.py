import pytest
import torch
import torchvision
from reference import Classifier, full_size, golden, load, randomise, rounding_of

from patchform.backbones.swin import VARIANTS, Swin
from patchform.published.swin import LAYOUTS
from patchform.weights.rules import recognise

timm = pytest.importorskip("timm")
DEPTHS, HEADS = (2, 2, 2), (1, 2, 4)


def small(**options):
    return Swin(image_size=64, width=16, depths=DEPTHS, heads=HEADS, window=4, **options)


def difference(reference, ours, images):
    with torch.no_grad():
        return (reference(images) - ours(images)).abs().max().item()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def timm_small():
    return randomise(
        timm.models.SwinTransformer(
            img_size=64, patch_size=4, embed_dim=16, depths=DEPTHS, num_heads=HEADS, window_size=4, num_classes=10
        ).eval()
    )


def test_equals_timm(timm_small, images):
    ours = Classifier(small()).eval()
    load(ours, LAYOUTS["timm"], timm_small.state_dict())
    assert difference(timm_small, ours, images) <= 10 * rounding_of(timm_small, images)


@pytest.mark.parametrize("width", [128, 256])
def test_equals_torchvision(width):
    reference = torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], window_size=[4, 4], num_classes=10
    ).eval()
    randomise(reference)
    # torchvision keeps the window's size everywhere, as a native input large enough does here
    ours = Classifier(Swin(image_size=128, width=16, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=4)).eval()
    load(ours, LAYOUTS["torchvision"], reference.state_dict())
    images = torch.randn(2, 3, 128, width, generator=torch.Generator().manual_seed(1))
    assert difference(reference, ours, images) <= 10 * rounding_of(reference, images)


@pytest.mark.parametrize("fault", ["norms", "merge", "shift"])
def test_control_a_fault_is_seen(fault, timm_small, images):
    ours = Classifier(small()).eval()
    source = dict(timm_small.state_dict())
    if fault == "norms":
        one, two = "layers.1.blocks.1.norm1.weight", "layers.1.blocks.1.norm2.weight"
        source[one], source[two] = source[two], source[one]
    elif fault == "merge":
        weight = source["layers.1.downsample.reduction.weight"]
        source["layers.1.downsample.reduction.weight"] = torch.cat(
            [weight[:, 16:32], weight[:, :16], weight[:, 32:]], 1
        )
    load(ours, LAYOUTS["timm"], source)
    if fault == "shift":
        ours.backbone.stages[0][1].pattern = ours.backbone.stages[0][0].pattern
    assert difference(timm_small, ours, images) > 100 * rounding_of(timm_small, images)


def test_equals_the_authors_code():
    config, tensors, parameters, rounding = golden("swin_v1")
    backbone = Swin(
        image_size=config["img_size"],
        width=config["embed_dim"],
        depths=config["depths"],
        heads=config["num_heads"],
        window=config["window_size"],
    )
    ours = Classifier(backbone).eval()
    load(ours, LAYOUTS["microsoft"], parameters)
    seen = {}
    watched = {
        "patch_embed": backbone.patches_norm,
        "layer0.block0": backbone.stages[0][0],
        "layer0.block1": backbone.stages[0][1],
        **{f"layer{s}": merge for s, merge in enumerate(backbone.merges)},
        "layer3": backbone.stages[3][1],
    }
    for name, module in watched.items():
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output.flatten(1, 2)}))
    with torch.no_grad():
        seen["output"] = ours(tensors["input"])
    assert set(rounding) == set(seen)
    for name, error in rounding.items():
        assert (seen[name] - tensors[name]).abs().max().item() <= 10 * error, name


@pytest.mark.parametrize("layout", ["microsoft", "timm", "torchvision"])
def test_written_back_and_recognised(layout):
    ours = randomise(Classifier(small()))
    written = LAYOUTS[layout].dump(ours.state_dict(), sizes={"patch": 4, "channels": 3})
    assert recognise(LAYOUTS, written, ours.state_dict()) == layout
    filled, _ = LAYOUTS[layout].load(written, ours.state_dict())
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in filled.items())


def test_parameters_equal_the_published_counts():
    published = full_size("Swin v1")
    rows = {"tiny": "t", "small": "s", "base": "b", "large": "l"}
    for name, row in published.items():
        _, size, _, window, side = name.split("_")
        variant = VARIANTS[rows[size] + ("384" if side == "384" else "")]
        with torch.device("meta"):
            ours = Classifier(Swin(image_size=variant.image_size, **variant.options), classes=row["num_classes"])
        assert f"window{variant.options['window']}" == window
        assert sum(p.numel() for p in ours.parameters()) == row["params"], name
