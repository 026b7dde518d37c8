"""What graphs for any size cannot be, and why: the one place."""

from __future__ import annotations

from torch import nn

from patchform.model import Model

FIXED: dict[str, str] = {}
"""By the name of a layer's class: why a model with such a layer is exported for stated sizes only."""


def tied(model: nn.Module) -> str:
    """Why a model cannot take any size; "" where it can."""
    for module in model.modules():
        if reason := FIXED.get(type(module).__name__):
            return reason
    return ""


def least(model: Model) -> int:
    """Shortest side of input that a file for any size is made and checked for: one cell of the coarsest map."""
    return max(model.backbone.feature_info.strides)
