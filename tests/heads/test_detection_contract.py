"""What every head for detection and for masks of objects promises, above every backbone. A new file is tested by being
there."""

import pytest
import torch
from losses import means, total_loss
from reference import randomise

from patchform import lookup
from patchform.geometry import masks
from patchform.heads.base import Head
from patchform.model import build_backbone, build_model, load, save
from patchform.records import Batch, Bitmaps, Instances, Preprocessing

TASKS, CLASSES = ("detection", "instance_segmentation"), 3
BACKBONES = [name for name in lookup.names("backbones") if build_backbone(f"{name}/nano").frames is None]
HEADS = {
    name: task
    for name in lookup.names("heads")
    for task in TASKS
    if task in lookup.the_class("heads", name, Head).tasks
}
SMALL = {"channels_inside": 32, "norm": "layer"}
TRANSFORMER = {"depths": (1, 2), "heads": 4, "hidden": 32}
REGIONS = {"proposals": {"kept": (200, 100)}, "boxes": {"width": 32, "samples": 32}}
FORMS = {
    **{name: (name, {}) for name in HEADS},
    "detr": ("detr", {**SMALL, "queries": 10, "transformer": TRANSFORMER}),
    "detr pre": (
        "detr",
        {**SMALL, "queries": 10, "transformer": {**TRANSFORMER, "norms": "pre", "positions": "learned"}},
    ),
    "detr_masks": ("detr_masks", {**SMALL, "queries": 10, "transformer": TRANSFORMER}),
    "retinanet": ("retinanet", {**SMALL, "form": {"convolutions": 1}}),
    "faster_rcnn": ("faster_rcnn", {**SMALL, **REGIONS}),
    "faster_rcnn single": ("faster_rcnn", {**SMALL, **REGIONS, "neck": "single"}),
    "faster_rcnn simple": ("faster_rcnn", {**SMALL, **REGIONS, "neck": "simple"}),
    "mask_rcnn": ("mask_rcnn", {**SMALL, **REGIONS, "masks": {"convolutions": 1, "channels": 16}}),
}
FORMS = {form: row for form, row in FORMS.items() if row[0] in HEADS}


def whole(form, backbone, **options):
    torch.manual_seed(0)
    head, own = FORMS[form]
    return build_model(
        HEADS[head],
        backbone=f"{backbone}/nano",
        head=head,
        classes=[f"class {number}" for number in range(CLASSES)],
        preprocessing=Preprocessing(size=(64, 64)),
        head_options={**own, **options},
    )


def scene(size, padded=False, seed=0):
    """Two pictures of coloured rectangles, objects of their colour's class: three in the first, one in the second."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(60, (2, 3, *size), generator=draw)
    padding = None
    if padded:
        padding = torch.zeros(2, *size, dtype=torch.bool)
        padding[1, size[0] * 2 // 3 :], padding[1, :, size[1] * 3 // 4 :] = True, True
    targets = []
    for image, kinds in enumerate([(0, 1, 2), (2,)]):
        truth = torch.zeros(len(kinds), *size, dtype=torch.bool)
        for number, kind in enumerate(kinds):
            left, top = 2 + number * size[1] // 3, 3 + 5 * number
            truth[number, top : top + size[0] // 2, left : left + size[1] // 4] = True
            pixels[image, kind, truth[number]] = 220
        bitmaps = masks.from_dense(truth)
        targets.append(Instances(bitmaps.boxes.float(), torch.tensor(kinds), masks=bitmaps))
    return Batch(pixels.byte(), tuple(targets), ("",) * 2, ((90, 70), (10, 13)), padding)


def nothing(batch):
    """The same pictures, and no object in them."""
    size = batch.images.shape[-2:]
    empty = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), masks=masks.none(tuple(size)))
    return batch._replace(targets=(empty,) * len(batch.targets))


def together(model, batch):
    """What is predicted of pictures that go through the model with their padding, as in training."""
    with torch.no_grad():
        return model.head.decode(model.head(model.features(batch)), batch.sizes)


def is_a_prediction(found, size, with_masks):
    height, width = size
    assert isinstance(found, Instances)
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert found.classes.dtype == torch.int64
    assert len(found.boxes) == len(found.classes) == len(found.scores) <= 100
    assert (found.scores.diff() <= 0).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert ((found.classes >= 0) & (found.classes < CLASSES)).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= torch.tensor([width, height, width, height])).all()
    assert (found.boxes[:, 2:] >= found.boxes[:, :2]).all()
    if with_masks:
        assert isinstance(found.masks, Bitmaps)
        assert found.masks.size == size
        assert len(found.masks.boxes) == len(found.boxes)
    else:
        assert found.masks is None


def one_step_one_prediction(form, backbone, size, padded):
    model, batch = whole(form, backbone, score_threshold=0.0), scene(size, padded=padded)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    losses = means(model(batch))
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert max(p.grad.abs().max() for p in model.backbone.parameters() if p.grad is not None) > 0
    optimizer.step()

    optimizer.zero_grad()
    losses = means(model(nothing(batch)))
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.head.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert max(p.grad.abs().max() for p in model.head.parameters() if p.grad is not None) > 0

    for found in (model.eval().predict(batch), together(model, batch)):
        assert len(found) == 2
        for one, wanted in zip(found, batch.sizes):
            is_a_prediction(one, wanted, HEADS[FORMS[form][0]] == "instance_segmentation")
        assert len(found[0].boxes) > 0


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("backbone", BACKBONES)
def test_one_step_one_prediction(form, backbone):
    one_step_one_prediction(form, backbone, (64, 64), padded=False)
    one_step_one_prediction(form, backbone, (50, 75), padded=True)


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("backbone", ["vit", pytest.param("pvt", marks=pytest.mark.slow)])
def test_learns_one_batch(form, backbone):
    model, batch = whole(form, backbone), scene((48, 64))
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=2e-3), []
    for _ in range(25):
        loss = total_loss(model(batch))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])


@pytest.mark.parametrize("form", list(FORMS))
def test_state_goes_round(form, tmp_path):
    model, batch = randomise(whole(form, "pvt", score_threshold=0.0)).eval(), scene((64, 64))
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    for one, two in zip(model.predict(batch), again.predict(batch), strict=True):
        assert torch.equal(one.boxes, two.boxes)
        assert torch.equal(one.scores, two.scores)
        assert len(one.boxes) > 0


@pytest.mark.parametrize("form", list(FORMS))
def test_what_is_padded_on_says_nothing(form):
    model, batch = randomise(whole(form, "resnet", score_threshold=0.0), scale=0.1).eval(), scene((64, 64), padded=True)
    found = together(model, batch)
    other = batch._replace(images=torch.where(batch.padding[:, None], 255 - batch.images, batch.images))
    for one, two in zip(found, together(model, other), strict=True):
        torch.testing.assert_close(one.boxes, two.boxes)
        torch.testing.assert_close(one.scores, two.scores)
    visible = batch._replace(images=torch.where(batch.padding[:, None], batch.images, 255 - batch.images))
    assert not torch.equal(together(model, visible)[1].scores, found[1].scores)  # control


@pytest.mark.parametrize("form", list(FORMS))
def test_crowds_alone_are_as_good_as_nothing(form):
    model, batch = whole(form, "pvt").train(), scene((64, 64))
    crowds = tuple(one._replace(crowd=torch.ones_like(one.classes, dtype=torch.bool)) for one in batch.targets)
    losses = means(model(batch._replace(targets=crowds)))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()


@pytest.mark.parametrize("form", list(FORMS))
def test_mixed_precision_is_close(form):
    model, batch = whole(form, "pvt").eval(), scene((64, 64))
    totals = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = means(model(batch))
            found = model.predict(batch)
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        assert all(one.boxes.dtype == one.scores.dtype == torch.float32 for one in found)
        totals.append(sum(losses.values()))
    torch.testing.assert_close(totals[1], totals[0], rtol=0.1, atol=0.1)
