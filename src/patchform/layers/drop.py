"""Stochastic depth that spares the work of what it drops."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Residual connection whose branch is left out at random, sample by sample (Huang et al. 2016).

    In training each sample keeps its branch with probability 1 - rate, scaled by 1 / (1 - rate); only the samples that
    keep it go through the branch. In evaluation, and at rate 0, it is x + branch(x).

    Args:
        rate: probability of leaving the branch out, in [0, 1).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, branch: Callable[..., Tensor], *extras: Tensor | None) -> Tensor:
        """X + branch(x, *extras).

        Args:
            x: (B, ...).
            branch: maps (b, ...) to the same shape, for any b >= 1, each sample by itself.
            extras: what else the branch takes; tensors have B in front and are chosen from alike.
        """
        if not self.training or self.rate == 0:
            return x + branch(x, *extras)
        kept = torch.rand(x.shape[0], device=x.device) >= self.rate
        scale = 1 / (1 - self.rate)
        if torch.compiler.is_compiling():  # a number of samples that depends on chance does not trace
            return x + branch(x, *extras) * (kept * scale).to(x.dtype).view(-1, *(1,) * (x.dim() - 1))
        index = kept.nonzero()[:, 0]
        if len(index) == 0:  # one sample at weight 0: every parameter still gets its gradient, zero
            index, scale = index.new_zeros(1), 0.0
        update = branch(x[index], *(None if extra is None else extra[index] for extra in extras))
        return x.index_add(0, index, update.to(x.dtype), alpha=scale)

    def add(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """Shortcut + branch, both (B, ...), where the branch is computed for all samples; it may be overwritten.

        For branches with batch norms, which need the statistics of the batch.
        """
        if self.training and self.rate > 0:
            return self(shortcut, lambda _, update: update, branch)
        return branch.add_(shortcut) if branch.dtype == shortcut.dtype else shortcut + branch

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"rate={self.rate:g}"


def linear_rates(highest: float, depth: int) -> list[float]:
    """Rates from 0 at the first block to `highest` at the last, linear (Huang et al. 2016, section 3)."""
    return [highest * i / max(depth - 1, 1) for i in range(depth)]
