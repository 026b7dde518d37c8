"""Anchors and what they stand for, against torchvision's."""

import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from patchform.geometry.anchors import BACKGROUND, NEITHER, cell_anchors, grid_anchors, match_boxes, share_inside

SIZES, RATIOS = ((32, 40, 50), (7, 8, 9)), (0.5, 1.0, 2.0)


def theirs(size, grids):
    generator = AnchorGenerator(SIZES, (RATIOS,) * len(SIZES))
    images = ImageList(torch.zeros(1, 3, *size), [size])
    return generator(images, [torch.zeros(1, 1, *grid) for grid in grids])[0]


@pytest.mark.parametrize("size", [(64, 96), (61, 45)])
def test_same_anchors_as_torchvision(size):
    grids = ((8, 12), (3, 4))
    ours = [
        grid_anchors(cell_anchors(sizes, RATIOS), grid, (size[0] // grid[0], size[1] // grid[1]))
        for sizes, grid in zip(SIZES, grids)
    ]
    wanted = theirs(size, grids)
    assert torch.equal(torch.cat(ours), wanted)
    assert not torch.equal(torch.cat(ours[::-1]), wanted)  # control: levels
    other = [grid_anchors(cell_anchors(sizes, RATIOS[::-1]), grid, (8, 8)) for sizes, grid in zip(SIZES, grids)]
    assert not torch.equal(torch.cat(other), wanted)  # control: ratios


def some(number, draw, side=60.0):
    start = side * torch.rand(number, 2, generator=draw)
    return torch.cat([start, start + 3 + 30 * torch.rand(number, 2, generator=draw)], 1)


@pytest.mark.parametrize("rescue", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_same_objects_as_torchvision(seed, rescue):
    draw = torch.Generator().manual_seed(seed)
    anchors, boxes = some(300, draw), some(8, draw)
    anchors[50:60] = anchors[40:50]  # ties
    wanted = Matcher(0.5, 0.4, allow_low_quality_matches=rescue)(box_iou(boxes, anchors))
    assert torch.equal(match_boxes(anchors, boxes, foreground=0.5, background=0.4, rescue=rescue), wanted)
    assert {BACKGROUND, NEITHER} <= set(wanted.tolist())
    for control in ({"foreground": 0.6}, {"background": 0.3}, {"rescue": not rescue}):
        other = {"foreground": 0.5, "background": 0.4, "rescue": rescue} | control
        assert not torch.equal(match_boxes(anchors, boxes, **other), wanted)


def test_no_objects_are_background():
    found = match_boxes(some(5, torch.Generator()), torch.zeros(0, 4), foreground=0.5, background=0.4)
    assert found.tolist() == [BACKGROUND] * 5


def test_an_object_that_no_anchor_touches_has_none():
    anchors = some(5, torch.Generator().manual_seed(0))
    boxes = torch.tensor([[500.0, 500, 510, 510], [3.0, 3, 3, 9]])
    assert match_boxes(anchors, boxes, foreground=0.5, background=0.4).tolist() == [BACKGROUND] * 5
    theirs = Matcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(boxes, anchors))
    assert theirs.tolist() == [0] * 5  # torchvision: the best overlap is 0, and all anchors have it


def test_what_lies_in_a_crowd_is_neither():
    anchors = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [6, 0, 16, 10], [0, 0, 5, 5], [0, 0, 90, 90]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 5, 5], [50, 50, 60, 60]])
    crowd = torch.tensor([True, False, False])
    options = {"foreground": 0.5, "background": 0.4}
    assert share_inside(anchors, boxes[:1])[:, 0].tolist() == pytest.approx([1, 0.8, 0.4, 1, 100 / 8100])
    found = match_boxes(anchors, boxes, crowd=crowd, **options)
    assert found.tolist() == [NEITHER, NEITHER, BACKGROUND, 1, 2]
    assert match_boxes(anchors, boxes, crowd=torch.zeros(3, dtype=torch.bool), **options).tolist()[:2] == [
        0,
        0,
    ]  # control
    alone = match_boxes(anchors, boxes[:1], crowd=crowd[:1], **options)
    assert alone.tolist() == [NEITHER, NEITHER, BACKGROUND, NEITHER, BACKGROUND]
