"""The moving average of a model's weights (Polyak and Juditsky 1992), which is what is evaluated and kept."""

from __future__ import annotations

import copy

import torch

from patchform.model import Model


def average_of(model: Model) -> Model:
    """A copy of the model to average into: in evaluation mode, without gradients."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def update(average: Model, model: Model, decay: float) -> None:
    """Set average to decay * average + (1 - decay) * model for parameters; buffers (running statistics) are copied.

    Args:
        average: from `average_of`; changed in place.
        model: after its optimizer step.
        decay: in [0, 1).
    """
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for averaged, current in zip(average.buffers(), model.buffers()):
        averaged.copy_(current)
