"""Faster R-CNN against torchvision's, with the same weights; and what is its own."""

import pytest
import torch
import torchvision
from detectors import (
    EVERYTHING,
    FEATURES,
    features,
    objects,
    ours,
    pictures,
    same_predictions,
    spread,
    their_targets,
    theirs,
)
from losses import means
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import box_iou, roi_align

from patchform.backbones import resnet
from patchform.errors import UsageError
from patchform.geometry import boxes
from patchform.geometry.anchors import BACKGROUND
from patchform.heads.faster_rcnn import SCALES, FasterRCNN
from patchform.heads.mask_rcnn import MaskRCNN
from patchform.loading import export_weights, load_weights
from patchform.model import Model, build_model
from patchform.records import Batch, Instances, Preprocessing

LOSSES = {
    "objectness": "loss_objectness",
    "proposal": "loss_rpn_box_reg",
    "classification": "loss_classifier",
    "box": "loss_box_reg",
}


def each_of(raw, values):
    """Of each image those of its proposals."""
    return [own[real] for own, real in zip(values, raw.real)]


# ------------------------------------------------------------------------------------------------------ torchvision's


@torch.no_grad()
def test_same_boxes_as_torchvision():
    other = theirs().eval()
    head, (images, batch, padding) = ours(other), pictures((128, 192), (101, 137))
    proposals, _ = other.rpn(other.transform(images)[0], other.backbone(batch))
    raw = head(features(batch, padding))
    for mine, their in zip(each_of(raw, raw.proposals), proposals, strict=True):
        torch.testing.assert_close(mine, their, rtol=0, atol=1e-3)
    found = head.decode(raw, [(128, 192), (101, 137)])
    assert min(len(each.boxes) for each in found) > 20
    same_predictions(found, other(images), 1e-5)
    unaware = head.decode(head(features(batch)), [(128, 192), (101, 137)])  # control: padding is picture
    with pytest.raises(AssertionError):
        same_predictions(unaware, other(images), 1e-5)
    aligned = ours(other, boxes={"aligned": True, "most": 60}).decode(raw, [(128, 192)] * 2)
    with pytest.raises(AssertionError):  # control: half a cell away
        same_predictions(aligned, other(images), 1e-5)


@pytest.mark.parametrize("counts", [(3, 5), (1, 0)])
def test_same_losses_as_torchvision(counts):
    other, size = theirs().train(), (128, 192)
    head, (images, batch, _) = ours(other), pictures(size, size)
    targets = [objects(size, count, seed=count) for count in counts]
    found = means(head.loss(head(features(batch), targets), targets))
    each = [other([image], their_targets([target])) for image, target in zip(images, targets)]
    for mine, their in LOSSES.items():
        wanted = sum(losses[their] for losses in each) / 2
        torch.testing.assert_close(found[mine], wanted, rtol=1e-4, atol=1e-6)
    assert found["box"] > 1e-3
    sum(found.values()).backward()
    sum(sum(losses.values()) for losses in each).backward()
    for mine, their in (
        (head.rpn.conv, other.rpn.head.conv[0][0]),
        (head.box_head.layers[0], other.roi_heads.box_head.fc6),
        (head.neck.pyramid.laterals[0], other.backbone.fpn.inner_blocks[0][0]),
    ):
        wanted = their.weight.grad / 2
        assert (mine.weight.grad - wanted).norm() < 2e-3 * wanted.norm()  # some ReLU is at its corner
    wrong = [target._replace(classes=(target.classes + 1) % 3) for target in targets]  # control
    assert (
        means(head.loss(head(features(batch), wrong), wrong))["classification"] - found["classification"]
    ).abs() > 1e-3


@pytest.mark.parametrize("kind", [FasterRCNN, MaskRCNN])
@torch.no_grad()
def test_layouts_go_round(kind):
    """Backbone and all, on sides that 64 does not divide."""
    backbone = _resnet_fpn_extractor(ResNet(BasicBlock, [1, 1, 1, 1]), 5)
    build = torchvision.models.detection.MaskRCNN if kind is MaskRCNN else torchvision.models.detection.FasterRCNN
    other = spread(build(backbone, 4, image_mean=(0, 0, 0), image_std=(1, 1, 1))).eval()
    other.transform.resize = lambda image, target: (image, target)
    for norm in (each for each in other.modules() if isinstance(each, nn.BatchNorm2d)):
        norm.weight.fill_(0.7)
    below = resnet.ResNet(depths=(1, 1, 1, 1))
    options = {"boxes": {"aligned": False}, "proposals": {"spacing": "input"}}
    head = kind(below.feature_info, classes=3, **options)
    model = Model(below, head, classes=("a", "b", "c"), preprocessing=Preprocessing(size=(96, 160)))
    state = other.state_dict()
    assert load_weights(model, state).layout == "torchvision_rcnn"
    written = export_weights(model, "torchvision_rcnn")
    assert set(written) == set(state)
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())
    images, batch, padding = pictures((96, 160), (90, 150))
    found = model.head.decode(
        head(model.eval().backbone(batch)._replace(pixel_padding=padding)), [(96, 160), (90, 150)]
    )
    same_predictions(found, other(images), 1e-4)
    assert min(len(each.boxes) for each in found) > 20

    first = {name: tensor.clone() for name, tensor in export_weights(model, "torchvision_rcnn_first").items()}
    assert {"rpn.head.conv.weight", "backbone.fpn.inner_blocks.2.weight"} < set(first)
    again = spread(build(backbone, 4), seed=1)
    again.load_state_dict(first)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in state.items())
    spread(model, seed=1)
    assert load_weights(model, first).layout == "torchvision_rcnn_first"
    assert all(torch.equal(tensor, state[name]) for name, tensor in export_weights(model, "torchvision_rcnn").items())


# -------------------------------------------------------------------------------------------------------------- its own


def small(**options):
    torch.manual_seed(0)
    options = {"boxes": {"width": 16}, **options}
    return FasterRCNN(FEATURES, classes=3, channels_inside=8, **options)


FORMS = {
    "fpn": {},
    "fpn, norm": {"norm": "layer"},
    "single": {"neck": "single"},
    "simple": {"neck": "simple", "norm": "layer"},
    "conv_fc": {"boxes": {"layers": "conv_fc", "width": 16}},
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("size", [(64, 96), (51, 77)])
def test_every_parameter_learns_and_nothing_there_is_no_harm(form, size):
    head, (_, batch, padding) = small(**FORMS[form]), pictures(size, (size[0] - 20, size[1]))
    for padded, counts in ((None, (2, 3)), (padding, (2, 0)), (padding, (0, 0))):
        targets = [objects((40, 60), count) for count in counts]
        head.zero_grad()
        seen = features(F.pad(batch, (0, -size[1] % 32, 0, -size[0] % 32)))  # as many cells as a backbone has
        seen = seen._replace(size=size, pixel_padding=padded)
        losses = means(head.loss(head(seen, targets), targets))
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        if not sum(counts):
            assert losses["box"] == losses["proposal"] == 0
            assert losses["classification"] > 0


def test_a_perfect_output_decodes_to_the_target():
    head, size = small(), (64, 96)
    target = objects(size, 4)._replace(
        boxes=torch.tensor([[2.0, 3, 20, 30], [40, 5, 90, 20], [50, 30, 61, 60], [5, 40, 30, 60]])
    )
    raw = head(features(pictures(size)[1]))
    region = target.boxes + torch.tensor([1.0, -2, 2, 1])
    logits, shifts = torch.full((4, 4), -20.0), torch.zeros(4, 4, 4)
    logits[range(4), target.classes + 1] = 20.0
    shifts[range(4), target.classes + 1] = boxes.encode(target.boxes, region, SCALES)
    raw = raw._replace(proposals=region[None], real=torch.ones(1, 4) > 0, logits=logits[None], deltas=shifts[None])
    (found,) = head.decode(raw, [(128, 96)])
    order = found.classes.argsort(stable=True)
    wanted = target.classes.argsort(stable=True)
    assert torch.equal(found.classes[order], target.classes[wanted])
    twice = found.boxes / torch.tensor([1.0, 2, 1, 2])
    assert (twice[:, None] - target.boxes).abs().amax(2).amin(1).max() < 1e-3
    assert found.scores.min() > 0.999


def test_crowds_count_for_nothing():
    head, size = small(boxes={"width": 16, "samples": 5000}, proposals={"samples": 50_000}), (64, 96)
    seen, target = features(pictures(size)[1]), objects(size, 3)
    crowd = Instances(
        torch.cat([target.boxes, torch.tensor([[0.0, 0, 96, 64]])]),
        torch.cat([target.classes, torch.tensor([0])]),
        crowd=torch.tensor([False, False, False, True]),
    )
    raw = head(seen, [crowd])
    assert (raw.matches[0] < 3).all()
    inside = raw.matches[0] == BACKGROUND
    assert not inside.any()  # every region lies in the crowd: none is background
    losses = means(head.loss(raw, [crowd]))
    assert all(loss.isfinite() for loss in losses.values())
    plain = head(seen, [target])
    assert (plain.matches[0] == BACKGROUND).any()  # control
    alone = crowd._replace(crowd=torch.tensor([True] * 4))
    assert means(head.loss(head(seen, [alone]), [alone]))["box"] == 0


@pytest.mark.parametrize("aligned", [True, False])
@torch.no_grad()
def test_proposals_are_pooled_where_they_are_unless_asked_otherwise(aligned):
    """torchvision's operator on its `aligned` form, which is Detectron2's; half a cell further is the control."""
    head, size = small(neck="single", anchor_sizes=(16, 32, 64)), (64, 96)
    raw = head(features(pictures(size, size)[1]))
    cells = roi_align(raw.levels[0], each_of(raw, raw.proposals), 7, 1 / 32, sampling_ratio=2, aligned=aligned)
    logits, shifts = head.box_head(cells)
    assert len(logits) > 50
    if aligned:
        torch.testing.assert_close(raw.logits[raw.real], logits)
        torch.testing.assert_close(raw.deltas[raw.real], shifts)
    else:
        assert (raw.logits[raw.real] - logits).abs().max() > 0.01 * logits.abs().max()


@pytest.mark.parametrize("from_iou", [0.5, 0.6])
@torch.no_grad()
def test_a_region_stands_for_an_object_from_half_of_it_on(from_iou):
    """As torchvision's own default does; where it asks for more, in the control, some are background."""
    head, size = small(boxes={"width": 16, "samples": EVERYTHING, "share": 1.0}), (128, 192)
    targets = [objects(size, count, seed=count) for count in (8, 6)]
    raw = head(features(pictures(size, size)[1]), targets)
    other = theirs(**({} if from_iou == 0.5 else {"box_fg_iou_thresh": from_iou, "box_bg_iou_thresh": from_iou}))
    owners, labels = other.roi_heads.assign_targets_to_proposals(
        each_of(raw, raw.proposals),
        [target.boxes for target in targets],
        [target.classes + 1 for target in targets],
    )
    wanted = [owner.where(label > 0, BACKGROUND) for owner, label in zip(owners, labels, strict=True)]
    matches = torch.cat(each_of(raw, raw.matches))
    assert torch.equal(matches, torch.cat(wanted)) == (from_iou == 0.5)
    if from_iou == 0.5:
        regions = each_of(raw, raw.proposals)
        best = torch.cat([box_iou(region, target.boxes).amax(1) for region, target in zip(regions, targets)])
        assert torch.equal(matches >= 0, best >= 0.5)
        assert ((best >= 0.5) & (best < 0.6)).sum() > 20
        assert ((best >= 0.4) & (best < 0.5)).sum() > 20


def test_predictions_stay_inside_the_picture_and_fall():
    head, (_, batch, padding) = small(score_threshold=0.0), pictures((64, 96), (40, 50))
    found = head.decode(head(features(batch, padding)), [(640, 960), (20, 25)])
    for each, (height, width) in zip(found, [(640, 960), (20, 25)]):
        assert len(each.boxes) == 100
        assert (each.boxes >= 0).all()
        assert (each.boxes <= torch.tensor([width, height, width, height])).all()
        assert (each.scores.diff() <= 0).all()
    assert found[0].boxes[:, 2].max() > 600
    none = small(score_threshold=0.99).decode(head(features(batch, padding)), [(64, 96)] * 2)
    assert [each.boxes.shape for each in none] == [(0, 4)] * 2


def test_parts_of_a_batch_make_the_whole_where_nothing_is_drawn():
    head, size = small(boxes={"width": 16, "samples": 5000}, proposals={"samples": 50_000}), (64, 96)
    batch, targets = pictures(size, size, size)[1], [objects(size, count) for count in (2, 5, 0)]
    whole = means(head.loss(head(features(batch), targets), targets))
    parts = [means(head.loss(head(features(batch[i : i + 1]), [targets[i]]), [targets[i]])) for i in range(3)]
    for name, loss in whole.items():
        torch.testing.assert_close(loss, sum(part[name] for part in parts) / 3)
    assert head.counts(targets) == dict.fromkeys(whole, 3)


def test_samples_follow_the_global_generator():
    head, size = small(boxes={"width": 16, "samples": 20}, proposals={"samples": 20}), (64, 96)
    seen, targets = features(pictures(size)[1]), [objects(size, 4)]

    def once(seed):
        torch.manual_seed(seed)
        raw = head(seen, targets)
        assert len(raw.proposals[0]) == 20
        assert 0 < (raw.matches[0] >= 0).sum() <= 5
        return torch.stack(list(means(head.loss(raw, targets)).values()))

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))


def test_mixed_precision_is_close():
    head, size = small(boxes={"width": 16, "samples": 5000}, proposals={"samples": 50_000}), (64, 96)
    seen, targets = features(pictures(size, size)[1]), [objects(size, 3), objects(size, 0)]
    exact = means(head.loss(head(seen, targets), targets))
    with torch.autocast("cpu", torch.bfloat16):
        rough = means(head.loss(head(seen, targets), targets))
        found = head.decode(head(seen), [size, size])
    assert found[0].boxes.dtype == found[0].scores.dtype == torch.float32
    for name, loss in rough.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.1, atol=0.05)


@pytest.mark.parametrize("neck", ["fpn", "single", "simple"])
def test_learns_one_batch(neck):
    torch.manual_seed(0)
    model = build_model(
        "detection",
        backbone="vit/nano",
        head="faster_rcnn",
        classes=["a", "b", "c"],
        head_options={
            "neck": neck,
            "norm": "layer",
            "channels_inside": 16,
            "anchor_sizes": (16, 24, 32, 48, 64),
            "proposals": {"samples": 64, "kept": (100, 50)},
            "boxes": {"width": 64, "samples": 64},
        },
    )
    size = (64, 96)
    targets = tuple(objects(size, 3, seed) for seed in (0, 1))
    images = torch.zeros(2, 3, *size, dtype=torch.uint8)
    for image, target in zip(images, targets):
        for box, label in zip(target.boxes.long().tolist(), target.classes.tolist()):
            image[label, box[1] : box[3], box[0] : box[2]] = 255
    batch = Batch(images, targets, ("",) * 2, (size,) * 2)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(25):
        parts = means(model(batch))
        losses.append(sum(parts.values()).item())
        optimizer.zero_grad()
        sum(parts.values()).backward()
        optimizer.step()
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize("neck", ["fpn", "single"])
def test_anchors_are_so_many_cells(neck):
    def of(**options):
        return [level.tolist() for level in small(neck=neck, **options).rpn.cell_anchors]

    assert of(proposals={"cells": 4}) == of(anchor_sizes=(16, 32, 64, 128, 256))
    assert of(proposals={"cells": 8}) == of() == of(anchor_sizes=(32, 64, 128, 256, 512))
    for wrong in (0, -1, float("nan")):
        with pytest.raises(UsageError, match="cells"):
            small(proposals={"cells": wrong})


def test_what_it_refuses():
    with pytest.raises(UsageError, match='did you mean "simple"'):
        small(neck="simpel")
    with pytest.raises(UsageError, match='norm is "batch"'):
        small(norm="batch")
    with pytest.raises(UsageError, match=r"score_threshold is 1\.5"):
        small(score_threshold=1.5)
    with pytest.raises(UsageError, match='did you mean "samples"'):
        small(proposals={"sample": 3})
    with pytest.raises(UsageError, match="3 anchor_sizes for 5 levels; give one a level"):
        small(anchor_sizes=(8, 16, 32))
    with pytest.raises(UsageError, match="one of two_fc, conv_fc"):
        small(boxes={"layers": "one"})
