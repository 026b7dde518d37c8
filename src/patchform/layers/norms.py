"""Norms that torch does not have, and a projection with one behind it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (Touvron et al. 2021, CaiT, section 2.1).

    Args:
        width: D.
        initial: value of all factors at the start.
    """

    def __init__(self, width: int, initial: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), float(initial)))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x * self.gamma


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu and He 2018) that takes a single value of each group too: what is left of it is the bias.

    torch refuses it, though it is what a head of few channels sees in the last level of one small picture.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class _AnyBatch(_BatchNorm):
    """Batch normalisation (Ioffe and Szegedy 2015) of (B, C, ...), for a batch of any size and shared by any number.

    Where there is a single value of each channel, as in the last map of a single small picture, it has no spread: then
    the running statistics serve, and stay. torch refuses it.

    Attributes:
        add_up: a sum over all processes whose batches are normalised together; None where this batch is all.
    """

    add_up: Callable[[Tensor], Tensor] | None = None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same."""
        if not self.training or (self.add_up is None and x.numel() > x.shape[1]):
            return super().forward(x)
        if self.add_up is None:
            return self._normalise(x, self.running_mean, self.running_var)
        axes, exact = [axis for axis in range(x.dim()) if axis != 1], x.float()
        total = self.add_up(torch.cat([exact.sum(axes), exact.new_tensor([x.numel() / x.shape[1]])]))
        count, mean = total[-1], total[:-1] / total[-1]
        if count <= 1:
            return self._normalise(x, self.running_mean, self.running_var)
        variance = self.add_up((exact - mean.view(-1, *(1,) * (x.dim() - 2))).square().sum(axes)) / count
        with torch.no_grad():
            for running, new in ((self.running_mean, mean), (self.running_var, variance * count / (count - 1))):
                running.lerp_(new, self.momentum)
            self.num_batches_tracked += 1
        return self._normalise(x, mean, variance)

    def _normalise(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        factor = self.weight * (variance + self.eps).rsqrt()
        shape = (-1, *(1,) * (x.dim() - 2))
        return (x * factor.view(shape) + (self.bias - mean * factor).view(shape)).to(x.dtype)


class BatchNorm1d(_AnyBatch, nn.BatchNorm1d):
    """Of (B, C) or (B, C, L)."""


class BatchNorm2d(_AnyBatch, nn.BatchNorm2d):
    """Of (B, C, H, W)."""


class Norm(BatchNorm1d):
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
