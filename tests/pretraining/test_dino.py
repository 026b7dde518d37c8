"""DINO: loss, centre, teacher and temperatures against a plain definition; parts of a batch; the masked-patch term."""

import math

import pytest
import torch
from losses import gradients, means
from reference import randomise
from torch import nn

from patchform.errors import UsageError
from patchform.layers.drop import DropPath
from patchform.model import build_model
from patchform.pretraining.base import random_mask
from patchform.records import Batch, Label, Preprocessing

ROUNDING = 2e-7
"""Losses are float32 whatever the model: 10 times what the definition in float64 differed by."""
NONE = torch.empty(0, dtype=torch.int64)


def method(backbone="vit/nano", *, backbone_options=None, **options):
    torch.manual_seed(0)
    model = build_model(
        "pretraining",
        backbone=backbone,
        head="dino",
        classes=(),
        preprocessing=Preprocessing(size=(32, 32)),
        backbone_options=backbone_options,
        head_options={"outputs": 24, "hidden": 16, "bottleneck": 8, "frozen_epochs": 0} | options,
    )
    return randomise(model).double()


def batch_of(count=3, local=2):
    draw = torch.Generator().manual_seed(1)
    images = torch.rand(count, 2, 3, 32, 32, generator=draw, dtype=torch.float64)
    views = torch.rand(count, local, 3, 16, 16, generator=draw, dtype=torch.float64) if local else None
    return Batch(images, (Label(NONE),) * count, ("",) * count, ((32, 32),) * count, views=views)


def projected(projection, x):
    """The projection, line by line."""
    for layer in projection.mlp:
        x = nn.functional.gelu(x) if isinstance(layer, nn.GELU) else x @ layer.weight.T + layer.bias
    x = x / x.square().sum(1, keepdim=True).sqrt()
    directions = projection.directions.weight
    return x @ (directions / directions.square().sum(1, keepdim=True).sqrt()).T


def defined(model, batch, temperature=0.04):
    """The loss of section 3.1, picture by picture and pair by pair."""
    total, pairs = 0.0, 0
    for number in range(len(batch.images)):
        large = [model.normalise(crop[None]) for crop in batch.images[number]]
        small = [] if batch.views is None else [model.normalise(crop[None]) for crop in batch.views[number]]
        teacher_probs = [projected(model.head.teacher, model.backbone(crop).summary) for crop in large]
        teacher_probs = [((goal - model.head.centre) / temperature).softmax(1) for goal in teacher_probs]
        teacher_logits = [
            projected(model.head.projection, model.head.student(crop).summary) for crop in (*large, *small)
        ]
        for i, goal in enumerate(teacher_probs):
            for j, say in enumerate(teacher_logits):
                if i != j:
                    total, pairs = total - (goal * (say / 0.1).log_softmax(1)).sum(), pairs + 1
    return total / pairs


@pytest.mark.parametrize("local", [0, 2])
def test_the_loss_is_that_of_the_definition(local):
    model, batch = method(), batch_of(local=local)
    torch.testing.assert_close(means(model(batch))["summary"], defined(model, batch), rtol=ROUNDING, atol=0)
    model.head.centre.zero_()  # control: it matters
    assert not torch.allclose(means(model(batch))["summary"], defined(method(), batch), rtol=1e-6)


def test_no_gradient_reaches_the_teacher():
    model = method()
    gradients(model, batch_of(), part=0)
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(name.startswith(("head.student.", "head.projection.")) for name in reached)
    assert reached == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("part", [1, 2])
def test_parts_give_the_gradient_and_the_centre_of_the_whole_batch(part):
    found = []
    for size in (0, part):
        model = method()
        loss, _ = gradients(model, batch_of(5), part=size)
        model.after_step(0)
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found.append((loss, torch.cat([grad.flatten() for grad in grads]), model.head.centre))
    (loss, whole, centre), (other, parted, again) = found
    assert other == pytest.approx(loss, rel=ROUNDING)
    torch.testing.assert_close(parted, whole, rtol=0, atol=10 * ROUNDING * whole.abs().max().item())
    torch.testing.assert_close(again, centre, rtol=0, atol=ROUNDING)


def test_centre_and_teacher_move_as_defined():
    model, batch = method(momentum=0.9), batch_of()
    model.begin(step=3, steps=10, epoch=5)
    centre, before = model.head.centre.clone(), {k: v.clone() for k, v in model.backbone.named_parameters()}
    large = batch.images.transpose(0, 1).flatten(0, 1)
    teacher_logits = projected(model.head.teacher, model.backbone(model.normalise(large)).summary)
    model(batch)
    model.after_step(3)
    torch.testing.assert_close(model.head.centre, 0.9 * centre + 0.1 * teacher_logits.mean(0))
    stays = 1 - 0.1 * (math.cos(math.pi * 3 / 10) + 1) / 2
    student = dict(model.head.student.named_parameters())
    for name, tensor in model.backbone.named_parameters():
        torch.testing.assert_close(tensor, stays * before[name] + (1 - stays) * student[name])
    assert model.step == 4
    again = model.head.centre.clone()
    model.after_step(4)  # nothing was said since
    assert torch.equal(model.head.centre, again)


def test_the_teacher_warms_up():
    model, batch = method(teacher_temperature=(0.04, 0.08), warm_epochs=4), batch_of()
    for step, temperature in ((0, 0.04), (9, 0.04), (10, 0.05), (35, 0.07), (40, 0.08), (90, 0.08)):
        model.begin(step=step or 1, steps=100, epoch=10)
        torch.testing.assert_close(
            means(model(batch))["summary"], defined(model, batch, temperature), rtol=ROUNDING, atol=0
        )


def test_the_last_layer_is_frozen_at_first():
    model = method(frozen_epochs=1)
    for step, moves in ((1, False), (9, False), (10, True)):
        model.begin(step=step, steps=100, epoch=10)
        model.zero_grad(set_to_none=True)
        gradients(model, batch_of(), part=0)
        assert (model.head.projection.directions.weight.grad is not None) == moves


def test_student_and_teacher_begin_alike_and_only_the_student_is_random():
    model = method(backbone_options={"drop_path": 0.5})
    model.begin(step=0, steps=10, epoch=5)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, model.head.student.state_dict()[name])
    rates = [
        [m.rate for m in backbone.modules() if isinstance(m, DropPath)] for backbone in (model.backbone, model.trained)
    ]
    assert (max(rates[0]), max(rates[1])) == (0.0, 0.5)


def test_a_summary_of_two_tokens_has_no_projection_in_common_with_patches():
    options = {"backbone": "vit/nano", "head": "dino", "classes": (), "backbone_options": {"class_tokens": 2}}
    assert build_model("pretraining", **options).backbone.width == 96
    with pytest.raises(UsageError, match="no projection in common"):
        build_model("pretraining", **options, head_options={"masked": 0.5})


def test_the_masked_term_is_that_of_its_definition():
    model, batch = method(masked=0.5), batch_of(local=0)
    torch.manual_seed(3)
    losses = means(model(batch))
    torch.manual_seed(3)
    draws = torch.rand(3, 2, 17).transpose(0, 1).flatten(0, 1)  # crop by crop
    half = draws[:, 16:] < 0.5
    mask = random_mask(draws[:, :16], 0.3).mask & half
    assert 0 < int(half.sum()) < 6
    large = model.normalise(batch.images.transpose(0, 1).flatten(0, 1))
    cells = model.head.student.patches(large).flatten(1, 2)
    spoilt = torch.where(mask[..., None], model.head.mask_token, cells).unflatten(1, (4, 4))
    learnt = model.head.student.through(spoilt, (32, 32)).tokens
    taught, total = model.backbone(large).tokens, 0.0
    for crop in range(6):
        for patch in mask[crop].nonzero().flatten().tolist():
            goal = projected(model.head.teacher, taught[crop, patch][None])
            goal = ((goal - model.head.patch_centre) / 0.04).softmax(1)
            say = (projected(model.head.projection, learnt[crop, patch][None]) / 0.1).log_softmax(1)
            total = total - (goal * say).sum() / mask[crop].sum()
    torch.testing.assert_close(losses["patches"], 0.5 * total / 6)
    assert losses["summary"].isfinite()


@pytest.mark.parametrize(
    ("backbone", "options", "words"),
    [
        ("vit/nano", {"momentum": 1.5}, "momentum is 1.5"),
        ("vit/nano", {"student_temperature": 0.0}, "temperature"),
        ("swin/nano", {"masked": 1.0}, "masked is 1.0"),
    ],
)
def test_options_out_of_range(backbone, options, words):
    with pytest.raises(UsageError, match=words):
        method(backbone, **options)
