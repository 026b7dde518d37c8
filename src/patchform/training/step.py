"""One optimizer step: the gradient of a batch, whose parts go through the model one after the other, and the move.

A batch's loss is the sum, over the names of `model(batch)`, of a mean: what is summed and what is counted are added up
over the parts of the batch and over processes, then divided. What is counted is known from the targets, so each part is
divided by the count of the whole batch at once and its graph is freed before the next one comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from patchform.device import autocast
from patchform.model import Model
from patchform.records import LEAST, Batch, Target
from patchform.training.distillation import Distilled
from patchform.training.own_loss import OwnLoss
from patchform.training.scaling import LEAST_SCALE, OFF, LossScaling

Objective = Model | Distilled | OwnLoss
"""What gives losses and their counts: a model, a model with its teacher, or under a loss of the user's own."""
Reduce = Callable[[Sequence[Tensor]], None]
"""Puts into each tensor its sum over all processes that share the batch."""


def alone(tensors: Sequence[Tensor]) -> None:
    """The `Reduce` of a process that has the whole batch: it leaves tensors as they are."""


class StepResult(NamedTuple):
    """What a step found, before it moved."""

    loss: float
    """Of the batch, all parts and processes."""
    norm: float
    """Of the gradient of all that moves, before it is clipped."""

    @property
    def finite(self) -> bool:
        """Whether there was a direction to move in."""
        return math.isfinite(self.loss + self.norm)


def step(
    model: Objective,
    parts: Sequence[Batch],
    *,
    optimizer: Optimizer,
    reduce: Reduce = alone,
    precision: str = "float32",
    scaler: LossScaling = OFF,
    clip: float = 0.0,
    counted: bool = True,
) -> StepResult:
    """Take one optimizer step; where the loss or the gradient is not finite, nothing moves.

    Where that is because the gradient is beyond float16, `scaler` counts the step as skipped and scales less.

    Args:
        model: in training mode, without gradients.
        parts: of the batch, or of this process's share of it, on the model's device; see `data.collate.split`.
        optimizer: of the model's parameters, its learning rates set.
        reduce: adds up over processes.
        precision: "float32", or "bfloat16" or "float16" for autocast in the forward and backward pass.
        scaler: of float16; the same in all processes.
        clip: highest norm of the gradient; 0 does not clip.
        counted: False where the parts are another process's too, so that they must not count here.
    """
    result = gradients(model, parts, reduce=reduce, precision=precision, scaler=scaler, counted=counted)
    skipped = scaler.is_enabled() and math.isfinite(result.loss) and not result.finite
    if result.finite or (skipped and scaler.get_scale() > LEAST_SCALE):
        scaler.unscale_(optimizer)
        move(model, result.norm, optimizer=optimizer, scaler=scaler, clip=clip if result.finite else 0.0)
        scaler.update()
        scaler.skipped += skipped
        optimizer.zero_grad(set_to_none=True)
    return result


def move(model: nn.Module, norm: float, *, optimizer: Optimizer, scaler: LossScaling = OFF, clip: float = 0.0) -> None:
    """Move by the gradient, whose norm is given; shortened to `clip` if it is longer and that is above 0."""
    if clip:
        clip_grads_with_norm_(moving(model), clip, torch.tensor(norm))
    scaler.step(optimizer)


def gradients(
    model: Objective,
    parts: Sequence[Batch],
    *,
    reduce: Reduce = alone,
    precision: str = "float32",
    scaler: LossScaling = OFF,
    counted: bool = True,
) -> StepResult:
    """Add to the model's gradients those of the batch's loss, times the scaler's factor; arguments as of `step`."""
    share = float(counted)
    counts = batch_counts(model, [target for part in parts for target in part.targets], share, reduce)
    losses = []
    for part in parts:
        with autocast(part.images.device, precision):
            sums = {name: loss.sum for name, loss in model(part).items()}
        loss = torch.stack([share * total / counts[name] for name, total in sums.items()]).sum()
        scaler.scale(loss).backward()
        losses.append(loss.detach())
    total = torch.stack(losses).sum()
    _add_up(model, total, reduce)
    norm = get_total_norm([parameter.grad for parameter in moving(model) if parameter.grad is not None])
    loss_value, scaled = torch.stack([total, norm.to(total)]).tolist()  # one wait for the device a step
    return StepResult(loss_value, scaled / scaler.get_scale())


def batch_counts(model: Objective, targets: Sequence[Target], share: float, reduce: Reduce) -> dict[str, Tensor]:
    """() by name of loss: what to divide the sums of a batch by, of all processes."""
    counts = model.counts(targets)
    together = share * torch.stack(list(counts.values()))
    reduce([together])
    return dict(zip(counts, together.clamp(min=LEAST).unbind()))  # 0 where there is nothing to learn


def moving(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are learnt."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _add_up(model: nn.Module, loss: Tensor, reduce: Reduce) -> None:
    """Put the sums over all processes into the gradients and the loss; what was used in one process was used in all."""
    parameters = moving(model)
    used = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
    reduce([used])
    for parameter, times in zip(parameters, used.tolist()):
        if times and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    reduce([loss, *(parameter.grad for parameter in parameters if parameter.grad is not None)])
