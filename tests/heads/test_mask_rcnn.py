"""Mask R-CNN against torchvision's, with the same weights; and what is its own."""

import pytest
import torch
from detectors import FEATURES, features, objects, ours, pictures, same_predictions, their_targets, theirs
from losses import means, total_loss
from torchvision.models.detection import MaskRCNN as Theirs

from patchform.errors import DataError
from patchform.geometry import masks
from patchform.heads.mask_rcnn import MaskRCNN
from patchform.model import build_model
from patchform.records import Batch


def discs(size, count, seed=0):
    """Ellipses in the boxes of objects."""
    target = objects(size, count, seed)
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    left, top, right, bottom = (side[:, None, None] for side in target.boxes.unbind(1))
    dense = ((2 * x - left - right) / (right - left)) ** 2 + ((2 * y - top - bottom) / (bottom - top)) ** 2 < 1
    return target._replace(masks=masks.from_dense(dense))


def their_masks(targets):
    return [
        {**plain, "masks": masks.to_dense(target.masks).byte()}
        for plain, target in zip(their_targets(targets), targets)
    ]


# ------------------------------------------------------------------------------------------------------ torchvision's


@torch.no_grad()
def test_same_masks_as_torchvision():
    sizes = [(128, 192), (101, 137)]
    other = theirs(Theirs).eval()
    head, (images, batch, padding) = ours(other, MaskRCNN), pictures(*sizes)
    found, wanted = head.decode(head(features(batch, padding)), sizes), other(images)
    same_predictions(found, wanted, 1e-5)
    for mine, their in zip(found, wanted, strict=True):
        dense, soft = masks.to_dense(mine.masks), their["masks"][:, 0]
        doubtful = (soft - 0.5).abs() < 1e-3
        assert dense.shape == soft.shape
        assert ((dense == (soft > 0.5)) | doubtful).all()
        assert 0.005 < dense.float().mean() < 0.9
        assert (dense.roll(1, 2) != (soft > 0.5)).float().mean() > 1e-3  # control


def test_same_losses_as_torchvision():
    other, size = theirs(Theirs).train(), (128, 192)
    head, (images, batch, _) = ours(other, MaskRCNN, masks={"samples": 1000}), pictures(size, size)
    targets = [discs(size, count, seed=count) for count in (3, 5)]
    found = means(head.loss(head(features(batch), targets), targets))
    each = [other([image], their_masks([target])) for image, target in zip(images, targets)]
    wanted = sum(losses["loss_mask"] for losses in each) / 2
    torch.testing.assert_close(found["mask"], wanted, rtol=1e-4, atol=1e-6)
    found["mask"].backward()
    wanted.backward()
    pair = head.mask.convs[0].weight.grad, other.roi_heads.mask_head[0][0].weight.grad
    assert (pair[0] - pair[1]).norm() < 2e-3 * pair[1].norm()  # some ReLU of a hundred thousand is at its corner
    head.box_options = type(head.box_options)(aligned=True)  # control: masks half a pixel away
    assert (means(head.loss(head(features(batch), targets), targets))["mask"] - wanted).abs() > 1e-4


# -------------------------------------------------------------------------------------------------------------- its own


def small(**options):
    torch.manual_seed(0)
    options = {"boxes": {"width": 16}, "masks": {"channels": 8, "convolutions": 1, "size": 7}, **options}
    return MaskRCNN(FEATURES, classes=3, channels_inside=8, **options)


def test_every_parameter_learns_and_nothing_there_is_no_harm():
    head, size = small(), (64, 96)
    batch = pictures(size, size)[1]
    for counts in ((2, 3), (2, 0), (0, 0)):
        targets = [discs(size, count) for count in counts]
        head.zero_grad()
        losses = means(head.loss(head(features(batch), targets), targets))
        assert (losses["mask"] > 0) == (sum(counts) > 0)
        sum(losses.values()).backward()
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    nothing = small(score_threshold=0.99)
    for found in nothing.decode(nothing(features(batch)), [size] * 2):
        assert found.boxes.shape == found.masks.boxes.shape == (0, 4)


def test_fewer_masks_are_the_first_of_the_sample():
    head, size = small(masks={"samples": 2}), (64, 96)
    targets = [discs(size, 4), discs(size, 0)]
    raw = head(features(pictures(size, size)[1]), targets)
    assert (raw.matches[0][:4] >= 0).all()
    assert len(raw.masks) == 2
    assert means(head.loss(raw, targets))["mask"].isfinite()


def test_perfect_masks_decode_to_the_target():
    head, size = small(masks={"size": 28}), (64, 96)
    target = discs(size, 3)
    raw = head(features(pictures(size)[1]))
    logits = torch.full((3, 4), -20.0)
    logits[range(3), target.classes + 1] = 20.0 - torch.arange(3)  # in this order
    raw = raw._replace(
        proposals=target.boxes[None], real=torch.ones(1, 3) > 0, logits=logits[None], deltas=torch.zeros(1, 3, 4, 4)
    )
    cut = masks.sample(target.masks, target.boxes, torch.arange(3), 56)
    head.mask.forward = lambda x: (40 * (cut - 0.5))[:, None].expand(-1, 4, -1, -1)
    for scale in (1, 3):
        (found,) = head.decode(raw, [(scale * size[0], scale * size[1])])
        seen, wanted = masks.to_dense(found.masks), masks.to_dense(target.masks)
        wanted = wanted.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        overlap = (seen & wanted).flatten(1).sum(1) / (seen | wanted).flatten(1).sum(1)
        assert overlap.min() > 0.85


def test_objects_need_masks():
    head, size = small(), (64, 96)
    targets = [objects(size, 2)]
    raw = head(features(pictures(size)[1]), targets)
    with pytest.raises(DataError, match="objects without masks"):
        head.loss(raw, targets)


@pytest.mark.slow
def test_learns_one_batch():
    torch.manual_seed(0)
    model = build_model(
        "instance_segmentation",
        backbone="resnet/nano",
        head="mask_rcnn",
        classes=["a", "b", "c"],
        head_options={
            "channels_inside": 16,
            "anchor_sizes": (16, 24, 32, 48, 64),
            "proposals": {"samples": 64, "kept": (100, 50)},
            "boxes": {"width": 64, "samples": 64},
            "masks": {"channels": 16, "convolutions": 2},
        },
    )
    size = (64, 96)
    targets = tuple(discs(size, 2, seed) for seed in (0, 3))
    images = torch.zeros(2, 3, *size, dtype=torch.uint8)
    for image, target in zip(images, targets):
        for mask, label in zip(masks.to_dense(target.masks), target.classes):
            image[label][mask] = 255
    batch = Batch(images, targets, ("",) * 2, (size,) * 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        total_loss(model(batch)).backward()
        optimizer.step()
    for found, target in zip(model.predict(batch), targets):
        seen, wanted = masks.to_dense(found.masks), masks.to_dense(target.masks)
        both = (seen[:, None] & wanted).flatten(2).sum(2) / (seen[:, None] | wanted).flatten(2).sum(2)
        assert both.amax(0).min() > 0.7
