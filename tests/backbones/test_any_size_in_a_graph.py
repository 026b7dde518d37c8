"""Backbones traced once for any batch, height and width: pyramids, branches and clips, small, with their options."""

from __future__ import annotations

import pytest
import torch
from reference import randomise
from torch import nn
from torch.export import Dim
from torch.fx.experimental import _config as config

from patchform.backbones.base import over_frames
from patchform.backbones.cross_vit import _ratio, _scaled
from patchform.backbones.region_vit import _published_mask
from patchform.export.contiguous import Contiguous
from patchform.layers.pooling import adaptive_means, square_means
from patchform.layers.reduction import Reduction
from patchform.layers.tubelet_positions import TubeletPosition
from patchform.model import build_backbone

SIZES = [(1, 1), (3, 50), (33, 20), (40, 64), (67, 31), (64, 64)]


class Whole(nn.Module):
    """All that features hold, as a tuple."""

    def __init__(self, backbone, *, frames=False):
        super().__init__()
        self.backbone, self.frames = backbone, frames

    def forward(self, images):
        features = over_frames(self.backbone, images) if self.frames else self.backbone(images)
        rest = (features.tokens, features.summary, features.frames)
        return *features.maps, *(value for value in rest if value is not None)


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def free(module, x, axes):
    """The module as a program whose `axes` are free."""
    shapes = dict.fromkeys(axes, Dim.DYNAMIC)
    with torch.no_grad(), config.patch(backed_size_oblivious=True), Contiguous():
        return torch.export.export(module, (x,), dynamic_shapes=(shapes,), strict=False).module()


def agree(graph, module, x):
    """Both say the same of x. Where a picture is resized (CrossViT), torch has the places of pixels in float32."""
    with torch.no_grad():
        torch.testing.assert_close(graph(x), module(x), rtol=1e-4, atol=1e-4)


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


TWO = {"widths": (8, 8), "depths": (1, 1), "heads": (1, 2), "mlp_ratios": (1, 1), "reductions": (3, 1)}
CLIPS = {"depth": 1, "width": 8, "heads": 2}
SMALL = [
    ("pvt/nano", {**TWO, "attention": "linear"}),
    ("region_vit/nano", {"widths": (8,), "depths": (1,), "heads": (1,), "window": 3, "stem": "1conv", "peg": False}),
    ("cross_vit/nano", {"depths": ((1, 1),), "scales": (1.0, 14 / 15), "widths": (8, 16)}),
    ("timesformer/nano", CLIPS),
    ("vivit/nano_fdp", CLIPS),
    ("vit/nano", {"depth": 1, "summary": "attention", "mlp": "swiglu", "class_tokens": 2}),
    ("vit/nano", {"depth": 1, "summary": "class_and_mean", "registers": 2, "position": "learned_1d_antialiased"}),
]
MORE = [
    ("pvt/nano", TWO),
    ("pvt/nano_v1", {"depths": (1, 1, 1, 1)}),
    ("twins/nano_pcpvt", TWO),
    ("region_vit/nano", {"widths": (8, 16), "depths": (1, 1), "norm_maps": True}),
    ("volo/nano", {"depths": (1, 1), "stem": 4}),
    ("dual_vit/nano", {"widths": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "summary": "mean"}),
    ("timesformer/nano_joint", CLIPS),
    ("timesformer/nano_space", CLIPS),
    ("vivit/nano", CLIPS),
    ("vivit/nano_fe", CLIPS),
    ("vivit/nano_fsa", CLIPS),
]


@pytest.mark.parametrize(("name", "options"), [*SMALL, *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE)])
def test_any_batch_size_and_length(name, options):
    backbone = randomise(build_backbone(name, **options), scale=0.1).eval()
    clips = backbone.frames is not None
    module = Whole(backbone)
    graph = free(module, images(2, *(3,) * clips, 3, 40, 56), [axis for axis in range(4 + clips) if axis != 1 + clips])
    for number, size in enumerate(SIZES):
        agree(graph, module, images(1 + number % 5, *(1 + number,) * clips, 3, *size))


def test_frames_of_a_backbone_of_images():
    module = Whole(randomise(build_backbone("vit/nano", depth=1), scale=0.1).eval(), frames=True)
    graph = free(module, images(2, 3, 3, 40, 56), (0, 1, 3, 4))
    for batch, length, size in ((1, 1, (64, 64)), (5, 2, (33, 20)), (2, 7, (8, 70))):
        agree(graph, module, images(batch, length, 3, *size))


@pytest.mark.parametrize("means", [lambda x: adaptive_means(x, 7), lambda x: square_means(x, 3)], ids=["all", "whole"])
def test_means_of_rectangles(means):
    graph = free(Called(means), images(2, 4, 13, 9), (0, 2, 3))
    for shape in ((1, 4, 1, 1), (3, 4, 2, 30), (2, 4, 7, 8), (2, 4, 20, 15)):
        agree(graph, means, images(*shape))


def test_squares_of_keys_that_a_map_does_not_fill():
    module = Called(lambda x: reduction(x, None)[0])
    reduction = randomise(Reduction(4, 3))
    graph = free(module, images(2, 13, 9, 4), (0, 1, 2))
    for shape in ((1, 1, 1, 4), (3, 2, 30, 4), (2, 7, 8, 4), (2, 9, 3, 4)):
        agree(graph, module, images(*shape))


def test_positions_of_clips():
    position = randomise(TubeletPosition(4, (3, 2), 2, prefix=1))
    for moments, grid in ((1, (1, 1)), (2, (3, 2)), (5, (4, 7))):
        tokens = torch.zeros(2, 1 + moments * grid[0] * grid[1], 4)
        assert position(tokens, grid).shape == tokens.shape
    module = Called(lambda x: position(nn.functional.pad(x.flatten(1, 3), (0, 0, 1, 0)), tuple(x.shape[2:4])))
    graph = free(module, images(2, 3, 4, 6, 4), (0, 1, 2, 3))
    for shape in ((1, 1, 1, 1, 4), (3, 2, 3, 2, 4), (2, 7, 5, 4, 4)):
        agree(graph, module, images(*shape))


@pytest.mark.parametrize("scale", [1.0, 224 / 240, 384 / 408, 240 / 224, 0.5, 0.7, 0.3141592653])
def test_a_scaled_length_is_the_nearest_whole_number(scale):
    lengths, ratio = range(1, 3000), _ratio(scale)
    scaled = [_scaled(length, ratio) for length in lengths]
    assert scaled == [max(1, round(length * ratio)) for length in lengths]
    if ratio.denominator % 2:  # no length lies in the middle: fractions in floating point are as good
        assert scaled == [max(1, round(length * scale)) for length in lengths]
    assert scaled != [max(1, int(length * scale)) for length in lengths] or scale == 1  # control


@pytest.mark.parametrize("missing", [(0, 0), (1, 0), (0, 2), (2, 1)])
def test_windows_at_the_border_see_what_the_authors_let_them_see(missing):
    (rows, columns), side = (3, 2), 3
    allowed = _published_mask((rows, columns), missing, side, torch.device("cpu"))[0, :, 0].unflatten(
        0, (rows, columns)
    )
    cell = torch.arange(side * side)
    row, column = (
        torch.cat([torch.tensor([True]), real])
        for real in (cell // side < side - missing[0], cell % side < side - missing[1])
    )
    bottom, right = row[:, None] & row, column[:, None] & column
    assert allowed[:-1, :-1].all()
    assert all(torch.equal(window, bottom) for window in allowed[-1, :-1])
    assert all(torch.equal(window, right) for window in allowed[:-1, -1])
    assert torch.equal(allowed[-1, -1], bottom | right)
