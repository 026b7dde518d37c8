from collections import OrderedDict

import pytest
import torch
from reference import golden, randomise, rounding_of
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from patchform.geometry import grids
from patchform.layers.pyramids import FPN, Coarser, Levels, top_down

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


@pytest.mark.parametrize("size", [(8, 12), (7, 5), (1, 1)])
@torch.no_grad()
def test_coarser_levels_are_torchvisions(size):
    theirs, ours = randomise(LastLevelP6P7(8, 5)), Coarser(8, 5, 2)
    for mine, name in zip(ours.outputs, ("p6", "p7")):
        mine.load_state_dict(getattr(theirs, name).state_dict())
    x = torch.randn(2, 8, *size, generator=torch.Generator().manual_seed(1))
    wanted = theirs([x[:, :5]], [x], [])[0][1:]
    assert all(torch.equal(found, due) for found, due in zip(ours(x), wanted, strict=True))
    ours.between = nn.Identity()  # control
    assert not torch.equal(ours(x)[1], wanted[1])
    assert Coarser(8, 5, 0)(x) == []


@torch.no_grad()
def test_retinanets_pyramid_is_that_of_mmdetection():
    _, data, state, rounding = golden("neck_fpn_retinanet")
    maps, width = [data[f"input{number}"] for number in range(4)][1:], 16
    pyramid, coarser = FPN([x.shape[1] for x in maps], width), Coarser(20, width, 2, between=nn.Identity())
    for number, conv in enumerate(pyramid.laterals):
        conv.load_state_dict({part: state[f"neck.lateral_convs.{number}.conv.{part}"] for part in ("weight", "bias")})
    for number, conv in enumerate((*pyramid.outputs, *coarser.outputs)):
        conv.load_state_dict({part: state[f"neck.fpn_convs.{number}.conv.{part}"] for part in ("weight", "bias")})
    levels = [*pyramid(maps), *coarser(maps[-1])]
    for number, level in enumerate(levels):
        assert (level - data[f"output{number}"]).abs().max() <= 10 * rounding[f"output{number}"]
    assert len(state) == 2 * (3 + 5)
    coarser.between = nn.ReLU()  # control
    assert (coarser(maps[-1])[1] - data["output4"]).abs().max() > 1000 * rounding["output4"]


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


@pytest.mark.parametrize(
    ("strides", "finest", "kept"),
    [
        ((4, 8, 16, 32), 8, (8, 16, 32)),
        ((4, 8, 16, 32), 4, (4, 8, 16, 32)),
        ((2, 4), 8, (4,)),
        ((12, 17), 8, (12, 17)),
        ((6, 8), 8, (6, 8)),  # 6 is nearer to 8 than to 4
        ((16, 16), 8, (8, 16, 32)),
        ((14,), 8, (7, 14, 28)),
        ((8,), 64, (32,)),
    ],
)
def test_fine_levels_are_left_out(strides, finest, kept):
    levels = Levels(range(3, 3 + len(strides)), strides, finest=finest)
    assert levels.strides == kept
    maps = [torch.randn(1, 3 + number, 336 // each, 336 // each) for number, each in enumerate(strides)]
    found = levels(maps)
    assert [(x.shape[1], x.shape[2]) for x in found] == [
        (channels, -(-maps[number].shape[2] * strides[number] // each))
        for number, channels, each in zip(levels.chosen, levels.channels, kept)
    ]
    used = [step for step in levels.steps if list(step.parameters())]
    assert len(used) == sum(len(set(strides)) == 1 and each < strides[0] for each in kept)  # none is made in vain


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
