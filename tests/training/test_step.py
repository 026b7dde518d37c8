"""One optimizer step against a plain loop, and the gradient of parts and of shares against that of the whole batch."""

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from patchform import lookup
from patchform.data.collate import split
from patchform.data.transforms import Mixing
from patchform.geometry import masks
from patchform.model import build_backbone, build_model
from patchform.records import Batch, Instances, Label, Preprocessing, Regions
from patchform.settings import AugmentationSettings
from patchform.training import freezing, step

SIDE, COUNT = 64, 5
BACKBONES = [name for name in lookup.names("backbones") if build_backbone(f"{name}/nano").frames is None]


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(targets, *crops, views=None):
    shape = (len(targets), *crops, 3, SIDE, SIDE)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=draw())
    return Batch(images, tuple(targets), ("",) * len(targets), ((SIDE, SIDE),) * len(targets), views=views)


def labels(kinds=(0, 1, 2, 1, 1)):
    return [Label(torch.tensor([kind])) for kind in kinds]


def pixels():
    found = []
    for number in range(COUNT):
        classes = torch.randint(3, (SIDE, SIDE), generator=draw(number))
        classes[: 12 * number] = 255  # each image has its own number that count
        found.append(Regions(classes))
    return found


def objects(counts=(1, 5, 0, 2, 7)):
    numbers, found = draw(), []
    for count in counts:
        truth = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
        for one in truth:
            left, top = torch.randint(30, (2,), generator=numbers).tolist()
            width, height = torch.randint(8, 30, (2,), generator=numbers).tolist()
            one[top : top + height, left : left + width] = True
        bitmaps = masks.from_dense(truth) if count else masks.none((SIDE, SIDE))
        classes = torch.randint(3, (count,), generator=numbers)
        found.append(Instances(bitmaps.boxes.float(), classes, masks=bitmaps))
    return found


def model_of(task, head, *, backbone="vit/nano", options=None, **head_options):
    torch.manual_seed(0)
    built = build_model(
        task,
        backbone=backbone,
        head=head,
        classes="abc" if task != "pretraining" else (),
        preprocessing=Preprocessing(size=(SIDE, SIDE), frames=3 * (task == "video_classification")),
        backbone_options=options or {},
        head_options=head_options,
    ).train()
    for layer in built.modules():  # chance, and what a batch makes of itself, are not what is measured
        if isinstance(layer, nn.Dropout | nn.Dropout2d):
            layer.p = 0.0
    for norm in freezing.batch_norms(built):
        norm.eval()
    return built


def flat(model):
    return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])


def gradient(model, parts, **options):
    """The loss and the gradient, of freshly seeded random numbers."""
    torch.manual_seed(1)
    model.zero_grad()
    loss, norm = step.gradients(model, parts, **options)
    assert norm == pytest.approx(flat(model).double().norm().item(), rel=1e-5)
    return loss, flat(model)


# --------------------------------------------------------------------------------------------------- a plain loop


@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_steps_in_parts_are_those_of_a_plain_loop(clip):
    weights = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    ours, plain = (model_of("classification", "linear", class_weights=weights.tolist()).double() for _ in range(2))
    mover, theirs = (torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in (ours, plain))
    for number in range(4):
        batch = batch_of(labels(torch.randint(3, (COUNT,), generator=draw(number)).tolist()))
        result = step.step(ours, list(split(batch, 2)), optimizer=mover, clip=clip)

        logits = plain.head(plain.features(batch))
        wanted = torch.cat([target.classes for target in batch.targets])
        loss = nn.functional.cross_entropy(logits, wanted, weights)
        theirs.zero_grad()
        loss.backward()
        norm = clip_grad_norm_(plain.parameters(), clip or float("inf"))
        theirs.step()

        assert result == (pytest.approx(loss.item(), rel=1e-6), pytest.approx(norm.item(), rel=1e-6))
        assert norm > 0.3  # so that clipping matters
        assert all(parameter.grad is None for parameter in ours.parameters())
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


@pytest.mark.parametrize("clip", [0.01, 0.02])
def test_a_clipped_step_is_as_long_as_the_clip(clip):
    model = model_of("classification", "linear")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step.step(model, [batch_of(labels())], optimizer=torch.optim.SGD(model.parameters(), lr=1.0), clip=clip)
    moved = torch.cat([(one - other).flatten() for one, other in zip(model.parameters(), before)])
    assert moved.norm().item() == pytest.approx(clip, rel=1e-3)


def test_bfloat16_is_what_the_model_computes_in():
    model, seen = model_of("classification", "linear"), []
    model.head.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    exact, rough = (gradient(model, [batch_of(labels())], precision=name)[1] for name in ("float32", "bfloat16"))
    assert seen == [False, True]
    assert 1e-4 < (exact - rough).norm() / exact.norm() < 0.1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_moves_where_the_gradient_is_not_finite(value):
    model = model_of("classification", "linear")
    next(model.parameters()).register_hook(lambda gradient: gradient * value)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mover = torch.optim.AdamW(model.parameters())
    assert not step.step(model, [batch_of(labels())], optimizer=mover, clip=1.0).finite
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not mover.state


# ------------------------------------------------------------------------------------------------ parts and shares


def mixed():
    many = Mixing(AugmentationSettings(mixup=0.4, cutmix=1.0), 3)
    return many.mix(batch_of(labels()), draw(3))


def films():
    return batch_of(labels(), 3)


def crops():
    views = torch.randint(256, (COUNT, 2, 3, 32, 32), dtype=torch.uint8, generator=draw(5))
    return batch_of(labels(), 2, views=views)


MIXTURE = {"losses": {"cross_entropy": 1.0, "focal": 0.5, "ohem": 2.0, "dice": 1.0}, "class_weights": (1, 2.0, 0.5)}
SMALL = {"channels_inside": 16, **MIXTURE}
TRANSFORMER = {"depths": (1, 2), "heads": 2, "hidden": 32, "dropout": 0.0}
REGIONS = {"channels_inside": 16, "boxes": {"width": 32, "samples": 32}}
CASES = {
    "linear": ("classification", "linear", {}, lambda: batch_of(labels())),
    "linear weighted": ("classification", "linear", {"class_weights": (1, 2.0, 9), "smoothing": 0.1}, mixed),
    "linear multi": ("classification", "linear", {"labels": "multi", "class_weights": (1, 2.0, 9)}, mixed),
    "linear mixed": ("classification", "linear", {}, mixed),
    "token_label": ("classification", "token_label", {"smoothing": 0.1}, mixed),
    "temporal_encoder": (
        "video_classification",
        "temporal_encoder",
        {"inner": 24, "class_weights": (1, 2.0, 9)},
        films,
    ),
    "setr": ("semantic_segmentation", "setr", SMALL, lambda: batch_of(pixels())),
    "upernet": ("semantic_segmentation", "upernet", SMALL, lambda: batch_of(pixels())),
    "semantic_fpn": ("semantic_segmentation", "semantic_fpn", {**MIXTURE}, lambda: batch_of(pixels())),
    "segmenter": ("semantic_segmentation", "segmenter", {**MIXTURE}, lambda: batch_of(pixels())),
    "retinanet": ("detection", "retinanet", {"channels_inside": 16}, lambda: batch_of(objects())),
    "detr": (
        "detection",
        "detr",
        {"channels_inside": 32, "transformer": TRANSFORMER, "queries": 6},
        lambda: batch_of(objects()),
    ),
    "detr_masks": (
        "instance_segmentation",
        "detr_masks",
        {"channels_inside": 32, "transformer": TRANSFORMER, "queries": 10},
        lambda: batch_of(objects()),
    ),
    "faster_rcnn": ("detection", "faster_rcnn", REGIONS, lambda: batch_of(objects())),
    "mask_rcnn": ("instance_segmentation", "mask_rcnn", REGIONS, lambda: batch_of(objects())),
    "mae": ("pretraining", "mae", {"width": 16, "depth": 1, "heads": 4}, lambda: batch_of(labels())),
    **{
        f"masked_patches {target}": ("pretraining", "masked_patches", {"target": target}, lambda: batch_of(labels()))
        for target in ("mean_colour", "pixels")
    },
    "dino": ("pretraining", "dino", {"outputs": 32, "hidden": 16, "bottleneck": 8, "masked": 0.5}, crops),
}


def test_every_head_and_method_is_a_case():
    found = {head for _, head, _, _ in CASES.values()}
    assert found == {*lookup.names("heads"), *lookup.names("pretraining")}


def apart(one, other):
    return ((one - other).double().norm() / one.double().norm()).item()


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_parts_make_the_whole_under_every_head(name, double):
    task, head, options, batch = CASES[name]
    model, batch = model_of(task, head, **options), batch()
    loss, whole = gradient(model, [batch])
    exact_loss, exact = gradient(model.double(), [batch])
    tolerance = min(max(1e-6, 10 * apart(exact, whole)), 1e-5)  # of rounding, which is the processor's
    if double:
        loss, whole, tolerance = exact_loss, exact, 1e-7
    else:
        model.float()
    for part in (1, 2):
        other, parted = gradient(model, list(split(batch, part)))
        assert other == pytest.approx(loss, rel=1e-6)
        assert apart(whole, parted) < tolerance


class Counts:
    """What one of several processes hears of the others: the counts, which come first."""

    def __init__(self, counts):
        self.counts = counts

    def __call__(self, tensors):
        if self.counts is not None:
            tensors[0].copy_(self.counts)
        self.counts = None


@pytest.mark.parametrize("name", CASES)
def test_shares_make_the_whole_under_every_head(name):
    task, head, options, batch = CASES[name]
    model, batch = model_of(task, head, **options), batch()
    _, whole = gradient(model, [batch])
    shares = list(split(batch, 3))
    counts = [torch.stack(list(model.counts(share.targets).values())) for share in shares]
    torch.manual_seed(1)
    total = torch.zeros_like(whole)
    for share in shares:
        model.zero_grad()
        step.gradients(model, [share], reduce=Counts(sum(counts)))
        total += flat(model)
    assert apart(whole, total) < 1e-6


@pytest.mark.parametrize("backbone", BACKBONES)
def test_parts_make_the_whole_above_every_backbone(backbone):
    model, batch = model_of("classification", "linear", backbone=f"{backbone}/nano").double(), batch_of(labels())
    _, whole = gradient(model, [batch])
    _, parted = gradient(model, list(split(batch, 2)))
    assert apart(whole, parted) < 1e-6


def test_a_mean_of_the_means_of_parts_is_another_gradient():
    task, head, options, batch = CASES["detr"]
    model, batch = model_of(task, head, **options), batch()
    _, whole = gradient(model, [batch])
    model.zero_grad()
    parts = list(split(batch, 2))
    for part in parts:
        (sum(loss.mean for loss in model(part).values()) / len(parts)).backward()
    assert apart(whole, flat(model)) > 1e-2


def test_a_share_that_another_process_has_as_well_does_not_count():
    model, batch = model_of("classification", "linear"), batch_of(labels())
    assert step.gradients(model, [batch], counted=False) == (0.0, 0.0)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_of_one_trains_under_every_head(name):
    task, head, options, batch = CASES[name]
    backbone = {"pretraining": "vit/nano", "video_classification": "vit/nano"}.get(task, "resnet/nano")
    model = model_of(task, head, backbone=backbone, **options).train()  # batch normalisation sees one picture
    result = step.gradients(model, [next(split(batch(), 1))])
    assert result.finite
    assert result.norm > 0
