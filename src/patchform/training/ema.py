"""The moving average of a model's weights (Polyak and Juditsky 1992), which is what is evaluated and kept.

It begins short: with a long memory from the start, a run of few steps would end with what its weights began as.
"""

from __future__ import annotations

import copy

import torch

from patchform.model import Model


def average_of(model: Model) -> Model:
    """A copy of the model to average into: in evaluation mode, without gradients."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def decay_at(step: int, decay: float) -> float:
    """The decay after a step, counted from 0: min(decay, (1 + step) / (10 + step)).

    The rule of TensorFlow's `tf.train.ExponentialMovingAverage` with `num_updates`. The average then holds about the
    last ninth of the steps, until `decay` holds less. A function of the step alone, so that a resumed run goes on.
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update(average: Model, model: Model, decay: float) -> None:
    """Set average to decay * average + (1 - decay) * model for parameters; buffers (running statistics) are copied.

    Args:
        average: from `average_of`; changed in place.
        model: after its optimizer step.
        decay: in [0, 1), of this step (`decay_at`).
    """
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for averaged, current in zip(average.buffers(), model.buffers()):
        averaged.copy_(current)
