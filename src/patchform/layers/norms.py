"""Norms that torch does not have, and a projection with one behind it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (Touvron et al. 2021, CaiT, section 2.1).

    Args:
        width: D.
        initial: value of all factors at the start.
    """

    def __init__(self, width: int, initial: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x * self.gamma


class Norm(nn.BatchNorm1d):
    """Batch normalisation of the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return super().forward(x.flatten(0, -2)).view(x.shape)


class Projection(nn.Module):
    """A 1x1 convolution without bias and its batch norm, of the last axis; in evaluation one product.

    Args:
        in_channels: D.
        out_channels: D'.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(in_channels, out_channels, bias=False), Norm(out_channels)
        nn.init.normal_(self.linear.weight, std=(2 / out_channels) ** 0.5)  # He et al. 2015, "fan out"

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D')."""
        x = x.contiguous()  # for other views the product would copy the weights, row by row of the map
        if self.norm.training:
            return self.norm(self.linear(x))
        factor, shift = affine(self.norm)
        return F.linear(x, self.linear.weight * factor[:, None], shift)


def affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies by and adds in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return factor, norm.bias - norm.running_mean * factor
