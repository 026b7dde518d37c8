from itertools import pairwise

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
    return timm_swin()


def timm_swin(side=64, window=4):
    return randomise(
        timm.models.SwinTransformer(
            img_size=side,
            patch_size=4,
            embed_dim=16,
            depths=DEPTHS,
            num_heads=HEADS,
            window_size=window,
            num_classes=10,
        ).eval()
    )


def test_equals_timm(timm_small, images):
    ours = Classifier(small()).eval()
    load(ours, LAYOUTS["timm"], timm_small.state_dict())
    assert difference(timm_small, ours, images) <= 10 * rounding_of(timm_small, images)


def test_equals_timm_with_an_odd_window(images):
    reference, images = timm_swin(side=48, window=3), images[..., :48, :48]
    ours = Classifier(Swin(image_size=48, width=16, depths=DEPTHS, heads=HEADS, window=3)).eval()
    load(ours, LAYOUTS["timm"], reference.state_dict())
    assert difference(reference, ours, images) <= 10 * rounding_of(reference, images)


def within_tiles(block, x, edges, side):
    """A block whose cells see their own tile, with tiles that end at `edges` along both axes: (B, H, W, D)."""
    normed, mixed = block.norm1(x), torch.empty_like(x)
    for top, bottom in pairwise(edges):
        for left, right in pairwise(edges):
            cells = normed[:, top:bottom, left:right].flatten(1, 2)
            parts = block.attention.qkv(cells).chunk(3, -1)
            q, k, v = (part.unflatten(-1, (block.attention.heads, -1)).transpose(1, 2) for part in parts)
            row = torch.arange(top, bottom).repeat_interleave(right - left)
            column = torch.arange(left, right).repeat(bottom - top)
            down, across = row[:, None] - row + side - 1, column[:, None] - column + side - 1
            bias = block.attention.position.table.unflatten(0, (2 * side - 1, 2 * side - 1))[down, across]
            scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + bias.permute(2, 0, 1)
            tile = block.attention.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
            mixed[:, top:bottom, left:right] = tile.unflatten(1, (bottom - top, right - left))
    x = x + mixed
    return x + block.mlp(block.norm2(x))


@pytest.mark.parametrize(
    ("side", "edges", "one_further"),
    [
        (4, (0, 2, 6, 10), (0, 3, 7, 10)),
        (3, (0, 1, 4, 7, 8), (0, 2, 5, 8)),
        (5, (0, 2, 7, 12), (0, 3, 8, 12)),
        (7, (0, 3, 10, 16), (0, 4, 11, 16)),
    ],
)
@torch.no_grad()
def test_every_second_block_has_its_tiles_half_a_window_further_rounded_down(side, edges, one_further):
    """As the authors' `shift_size=window_size // 2`; the published weights of version 1 have windows of 7 or 12."""
    cells = edges[-1]
    backbone = randomise(Swin(image_size=4 * cells, width=8, depths=(2,), heads=(2,), window=side)).eval().double()
    x = torch.randn(1, cells, cells, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain, shifted = backbone.stages[0]
    torch.testing.assert_close(plain(x), within_tiles(plain, x, (*range(0, cells, side), cells), side))
    torch.testing.assert_close(shifted(x), within_tiles(shifted, x, edges, side))
    assert (shifted(x) - within_tiles(shifted, x, one_further, side)).abs().max() > 0.1  # control


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
