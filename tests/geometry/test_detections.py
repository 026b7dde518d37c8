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


@pytest.mark.parametrize("count", [0, 1, 40, 1500])
def test_the_best_are_far_apart_within_their_class(count):
    found, classes = boxes(count), torch.arange(count) % 3
    scores = torch.rand(count, generator=torch.Generator().manual_seed(1))
    kept = detections.nms(found, scores, classes, overlap=0.4, most=30)
    assert len(kept) == min(30, len(kept))
    assert (scores[kept].diff() <= 0).all()
    every = detections.nms(found, scores, classes, overlap=0.4, most=count)
    rivals = (box_iou(found[every], found[every]) > 0.4) & (classes[every][:, None] == classes[every])
    assert rivals.sum() == len(every)  # each of itself alone
    gone = torch.ones(count, dtype=torch.bool)
    gone[every] = False
    near = (box_iou(found[gone], found[every]) > 0.4) & (classes[gone][:, None] == classes[every])
    assert (near & (scores[every] >= scores[gone][:, None])).any(1).all()
