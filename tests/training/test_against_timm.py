"""The training step is the reference's: loss, gradient, parameter groups, optimizer, schedule, step by step."""

import pytest
import torch
from losses import gradients

from patchform import lookup
from patchform.model import build_model
from patchform.records import Batch, Label, Preprocessing
from patchform.settings import OptimizerSettings, ScheduleSettings
from patchform.training import optimizer, schedule

timm = pytest.importorskip("timm")
losses, optimizers, schedules = (pytest.importorskip(f"timm.{room}") for room in ("loss", "optim", "scheduler"))
EPOCH, STEPS, RATE, DECAY, SMOOTHING = 10, 60, 1e-3, 0.05, 0.1


def trained(*, decay=DECAY, steps=30):
    """Weights of both sides after the same batches, and the largest difference of their losses."""
    torch.manual_seed(0)
    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5
    ).train()
    ours = build_model(
        "classification",
        backbone="vit/nano",
        head="linear",
        classes=tuple("abcde"),
        preprocessing=Preprocessing(size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3),
        head_options={"smoothing": SMOOTHING},
    ).train()
    layout = lookup.published("vit").layouts["timm"]
    ours.load_state_dict(layout.load(theirs.state_dict(), ours.state_dict())[0])
    our_mover = optimizer.build(ours, OptimizerSettings(lr=RATE, weight_decay=decay))
    our_schedule = ScheduleSettings(warmup_epochs=2, warmup_start=1e-3)
    their_mover = optimizers.create_optimizer_v2(theirs, opt="adamw", lr=RATE, weight_decay=DECAY)
    warmup = 2 * EPOCH
    their_schedule = schedules.CosineLRScheduler(
        their_mover,
        t_initial=STEPS - 1 - warmup,
        warmup_t=warmup,
        warmup_lr_init=RATE * 1e-3,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    their_loss = losses.LabelSmoothingCrossEntropy(SMOOTHING)
    gap = 0.0
    for step in range(steps):
        images, labels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.randint(5, (8,))
        their_schedule.step_update(step)
        expected = their_loss(theirs((images / 255 - 0.5) / 0.25), labels)
        expected.backward()
        their_mover.step()
        their_mover.zero_grad()
        batch = Batch(images, tuple(Label(label[None]) for label in labels), ("",) * 8, ((32, 32),) * 8)
        loss, _ = gradients(ours, batch, part=3)
        rate = RATE * schedule.multiplier(our_schedule, step, schedule.RunLength(EPOCH, STEPS))
        assert rate == pytest.approx(their_mover.param_groups[0]["lr"], rel=1e-9)
        optimizer.set_rate(our_mover, rate)
        our_mover.step()
        our_mover.zero_grad(set_to_none=True)
        gap = max(gap, abs(loss - expected.item()))
    ours_now = layout.dump(ours.state_dict(), sizes={"patch": 8, "channels": 3})
    # a bias of the keys changes no softmax: its gradient is rounding, which Adam blows up to whole steps
    names = [name for name in ours_now if not name.endswith("qkv.bias")]
    return max((theirs.state_dict()[name] - ours_now[name]).abs().max().item() for name in names), gap


def test_thirty_steps_are_the_references():
    weights, gap = trained()
    assert weights < 1e-4
    assert gap < 1e-5


def test_control_another_decay_is_seen():
    weights, _ = trained(decay=10 * DECAY)
    assert weights > 3e-4
