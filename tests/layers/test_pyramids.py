from collections import OrderedDict

import pytest
import torch
from reference import randomise, rounding_of
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from patchform.geometry import grids
from patchform.layers.pyramids import FPN, Levels, top_down

CHANNELS, WIDTH = (4, 6, 8), 5


class Torchvision(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = FeaturePyramidNetwork(list(CHANNELS), WIDTH)

    def forward(self, *maps):
        found = self.network(OrderedDict((str(i), x) for i, x in enumerate(maps)))
        return torch.cat([x.flatten() for x in found.values()])


@pytest.mark.parametrize("size", [(16, 24), (13, 19)])
@torch.no_grad()
def test_fpn_is_torchvisions(size):
    theirs, ours = randomise(Torchvision()), FPN(CHANNELS, WIDTH)
    for name in ("laterals", "outputs"):
        blocks = theirs.network.inner_blocks if name == "laterals" else theirs.network.layer_blocks
        for mine, block in zip(getattr(ours, name), blocks):
            mine.load_state_dict(block[0].state_dict())
    draw = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, c, *grids.cells(size, 2**i), generator=draw) for i, c in enumerate(CHANNELS)]
    found, wanted = torch.cat([x.flatten() for x in ours(maps)]), theirs(*maps)
    error = rounding_of(theirs, *maps)
    assert (found - wanted).abs().max() <= 10 * error
    swapped = torch.cat([x.flatten() for x in ours([maps[0], maps[1], maps[2].flip(3)])])
    assert (swapped - wanted).abs().max() > 1000 * error  # control


def test_sums_go_from_coarse_to_fine():
    maps = [torch.full((1, 1, 4, 4), 1.0), torch.full((1, 1, 2, 2), 10.0), torch.full((1, 1, 1, 1), 100.0)]
    assert [x.unique().tolist() for x in top_down(maps, "bilinear")] == [[111.0], [110.0], [100.0]]


def test_a_backbone_of_several_strides_is_left_alone():
    levels = Levels(CHANNELS, (8, 16, 16))
    maps = [torch.randn(1, c, 4, 4) for c in CHANNELS]
    assert all(a is b for a, b in zip(levels(maps), maps, strict=True))
    assert (levels.channels, levels.strides) == (CHANNELS, (8, 16, 16))
    assert list(levels.parameters()) == []
    assert levels.covered(maps[0], 0) == (32, 32)


@pytest.mark.parametrize(
    ("stride", "made"),
    [
        (4, (4, 8, 16, 32)),
        (8, (4, 8, 16, 32)),
        (16, (4, 8, 16, 32)),
        (32, (4, 8, 16, 32)),
        (14, (3.5, 7, 14, 28)),
        (12, (3, 6, 12, 24)),
    ],
)
@pytest.mark.parametrize("maps", [1, 2, 4, 7])
def test_levels_of_one_stride(stride, made, maps):
    torch.manual_seed(0)
    levels = Levels(range(3, 3 + maps), (stride,) * maps)
    assert levels.strides == made
    size = (5 * stride, 7 * stride)
    found = levels([torch.randn(2, c, 5, 7) for c in range(3, 3 + maps)])
    for x, channels, each in zip(found, levels.channels, made, strict=True):
        assert x.shape == (2, channels, -(-size[0] // each), -(-size[1] // each))
    assert levels.covered(found[0], 0) == size
    chosen = {1: [3, 3, 3, 3], 2: [3, 3, 4, 4], 4: [3, 4, 5, 6], 7: [3, 5, 7, 9]}
    assert list(levels.channels) == chosen[maps]


@torch.no_grad()
def test_levels_for_patches_of_16_are_those_of_beit():
    torch.manual_seed(0)
    levels, x = Levels((6,), (16,)).eval(), torch.randn(2, 6, 4, 6)
    kinds = [[type(layer).__name__ for layer in step] for step in levels.steps]
    twice = "ConvTranspose2d"
    assert kinds == [[twice, "BatchNorm2d", "GELU", twice], [twice], [], ["MaxPool2d"]]
    four, two, same, half = levels([x])
    assert same is x
    torch.testing.assert_close(half, x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)))
    kernel, bias = levels.steps[1][0].weight, levels.steps[1][0].bias
    wanted = torch.einsum("bchw,cdij->bdhiwj", x, kernel).reshape(2, 6, 8, 12) + bias[:, None, None]
    torch.testing.assert_close(two, wanted)
    assert four.shape == (2, 6, 16, 24)
