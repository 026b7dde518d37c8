import pytest
import torch
from torchvision.ops import box_iou, clip_boxes_to_image

from patchform.geometry import detections
from patchform.records import Features


def features(size, padding=None):
    return Features((torch.zeros(2, 1, 1, 1),), (32,), size, pixel_padding=padding)


def boxes(count, extent=100, seed=0):
    draw = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=draw).sort(1).values * extent
    return corners.flatten(1)


def test_the_part_that_is_picture():
    assert detections.picture_sizes(features((30, 41))).tolist() == [[30, 41], [30, 41]]
    padding = torch.zeros(2, 30, 41, dtype=torch.bool)
    padding[1, 20:], padding[1, :, 33:] = True, True
    assert detections.picture_sizes(features((30, 41), padding)).tolist() == [[30, 41], [20, 33]]


def test_boxes_are_cut_off_as_torchvision_does():
    found = detections.clip(boxes(50, 100) - 20, torch.tensor([40.0, 60.0]))
    assert torch.equal(found, clip_boxes_to_image(boxes(50, 100) - 20, (40, 60)))
    assert not torch.equal(found, clip_boxes_to_image(boxes(50, 100) - 20, (60, 40)))  # control


def test_boxes_of_the_picture():
    seen, real = torch.tensor([[0.0, 0, 10, 20], [5, 5, 99, 99]]), torch.tensor([20.0, 10.0])
    assert detections.to_pictures(seen, real, (60, 5)).tolist() == [[0, 0, 5, 60], [2.5, 15, 5, 60]]
    assert detections.to_pictures(seen[:0], real, (60, 5)).shape == (0, 4)
    both = detections.to_pictures(seen.expand(2, 2, 4), torch.stack([real, real * 2]), torch.tensor([[60, 5], [60, 5]]))
    assert torch.equal(both[0], detections.to_pictures(seen, real, (60, 5)))
    assert torch.equal(both[1], detections.to_pictures(seen, real * 2, (60, 5)))


def rivals(count, *, images=2, groups=3, seed=0):
    """Boxes, scores and groups of a batch; every fifth is none."""
    draw = torch.Generator().manual_seed(seed)
    found = boxes(images * count, seed=seed).unflatten(0, (images, count))
    scores = torch.randn(images, count, generator=draw)
    scores[:, 4::5] = -torch.inf
    return found, scores, torch.randint(groups, (images, count), generator=draw)


@pytest.mark.parametrize("count", [0, 1, 40, 1500])
def test_the_best_are_far_apart_within_their_group(count):
    batch = rivals(count)
    few, all_left = (detections.nms(*batch, 3, 0.4, most) for most in (30, count))
    assert few.shape == (2, 30)
    for found, scores, groups, kept, every in zip(*batch, few, all_left):
        every = every[every >= 0]
        assert torch.equal(kept, torch.cat([every, every.new_full((30,), -1)])[:30])
        assert (scores[every].diff() <= 0).all()
        assert (scores[every] > -torch.inf).all()
        near = (box_iou(found[every], found[every]) > 0.4) & (groups[every][:, None] == groups[every])
        assert near.sum() == len(every)  # each of itself alone
        gone = scores > -torch.inf
        gone[every] = False
        near = (box_iou(found[gone], found[every]) > 0.4) & (groups[gone][:, None] == groups[every])
        assert (near & (scores[every] >= scores[gone][:, None])).any(1).all()


def test_values_of_those_that_are_left():
    values, index = torch.arange(24).view(2, 3, 4), torch.tensor([[2, 0, -1], [1, -1, -1]])
    left = detections.pick(values, index)
    assert torch.equal(left[0, :2], values[0, [2, 0]])
    assert torch.equal(left[1, 0], values[1, 1])
    assert torch.equal(detections.pick(values[..., 0], index), left[..., 0])
