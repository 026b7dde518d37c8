import pytest
import torch
from reference import randomise, rounding_of
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from patchform.layers.necks import NECKS, Pyramid, SimplePyramid

CHANNELS, STRIDES, WIDTH = (4, 6, 8, 12), (4, 8, 16, 32), 5


def maps(size=(64, 96), channels=CHANNELS, strides=STRIDES):
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(2, c, -(-size[0] // s), -(-size[1] // s), generator=draw) for c, s in zip(channels, strides)]


@pytest.mark.parametrize("neck", list(NECKS))
@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize(
    ("channels", "strides"), [(CHANNELS, STRIDES), ((8, 8), (16, 16)), ((8,), (8,)), ((8,), (14,)), ((8, 12), (8, 16))]
)
@pytest.mark.parametrize("size", [(64, 96), (45, 90)])
def test_levels_have_the_cells_that_their_strides_promise(neck, norm, channels, strides, size):
    torch.manual_seed(0)
    made = NECKS[neck](channels, strides, WIDTH, norm)
    found = made(maps(size, channels, strides))
    assert len(found) == len(made.strides)
    assert 1 <= made.read <= len(found)
    for x, stride in zip(found, made.strides):
        assert x.shape[:2] == (2, WIDTH)
        for cells, side in zip(x.shape[2:], size):
            assert -(-side // stride) <= cells < side / stride + max(1, strides[-1] / stride)
    sum(x.square().sum() for x in found).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name


@torch.no_grad()
def test_the_pyramid_is_torchvisions():
    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = FeaturePyramidNetwork(list(CHANNELS), WIDTH, LastLevelMaxPool())

        def forward(self, *maps):
            return torch.cat([x.flatten() for x in self.network(dict(enumerate(maps))).values()])

    theirs, ours = randomise(Theirs()), Pyramid(CHANNELS, STRIDES, WIDTH, "none")
    for mine, their in ((ours.pyramid.laterals, "inner_blocks"), (ours.pyramid.outputs, "layer_blocks")):
        for conv, block in zip(mine, getattr(theirs.network, their)):
            conv.load_state_dict(block[0].state_dict())
    wanted = theirs(*maps())
    error = rounding_of(theirs, *maps())
    assert (torch.cat([x.flatten() for x in ours(maps())]) - wanted).abs().max() <= 10 * error
    turned = [x.flip(3) for x in maps()]  # control
    assert (torch.cat([x.flatten() for x in ours(turned)]) - wanted).abs().max() > 1000 * error


@torch.no_grad()
def test_the_simple_pyramid_is_that_of_vitdet():
    """Section 3 and the text under it, written out for patches of 16 pixels."""
    made, x = randomise(SimplePyramid((8,), (16,), WIDTH, "none")), maps((64, 96), (8,), (16,))[0]

    def norm(x, layer):
        mean, spread = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        plain = (x - mean) / (spread + 1e-6).sqrt()
        return plain * layer.weight[:, None, None] + layer.bias[:, None, None]

    def wanted(level, x):
        layers = list(made.levels[level])
        if level == 0:
            x = nn.functional.conv_transpose2d(x, layers[0].weight, layers[0].bias, stride=2)
            x = nn.functional.gelu(norm(x, layers[1]))
            x = nn.functional.conv_transpose2d(x, layers[3].weight, layers[3].bias, stride=2)
        elif level == 1:
            x = nn.functional.conv_transpose2d(x, layers[0].weight, layers[0].bias, stride=2)
        elif level == 3:
            x = nn.functional.max_pool2d(x, 2)
        x = norm(nn.functional.conv2d(x, layers[-4].weight), layers[-3])
        return norm(nn.functional.conv2d(x, layers[-2].weight, padding=1), layers[-1])

    found = made([x])
    assert made.strides == (4, 8, 16, 32, 64)
    for level in range(4):
        torch.testing.assert_close(found[level], wanted(level, x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[4], nn.functional.max_pool2d(found[3], 1, stride=2))
    assert [layer.weight.shape[1] for layer in (made.levels[0][0], made.levels[0][3])] == [4, 2]
    assert not torch.allclose(found[2], wanted(2, x.flip(3)), atol=1e-1)  # control
