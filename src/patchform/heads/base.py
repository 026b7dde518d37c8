"""The contract of a head: `Features` in, raw numbers out, which it can turn into losses and into predictions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from patchform.records import Features, Target


class Head(nn.Module):
    """The numbers of a task. `forward`, `loss` and `decode` of one head live in one file.

    The constructor takes `channels`, `strides` and `width` of the backbone and the number of `classes`, keyword-only,
    then its own options. `Raw` is whatever NamedTuple (or tensor) suits the head; nothing outside the head reads it.
    """

    tasks: ClassVar[tuple[str, ...]]
    """Names of the tasks whose targets this head learns from and predicts."""

    @abstractmethod
    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> Any:
        """Compute the raw output. `targets` only for heads that need them on the way (proposals, denoising)."""

    @abstractmethod
    def loss(self, raw: Any, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Named scalar losses, already weighted; their sum is minimised. Each is a mean over `count(targets)`."""

    @abstractmethod
    def decode(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> list[Target]:
        """Predictions, one an image, in pixels of `sizes` (height, width)."""

    def count(self, targets: Sequence[Target]) -> Tensor:
        """() float: over how many things (images, pixels, boxes) `loss` averages. Micro-batches are weighted by it."""
        return torch.tensor(float(len(targets)))
