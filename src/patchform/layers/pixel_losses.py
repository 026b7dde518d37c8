"""How wrong the classes of pixels are: cross-entropy, focal loss, hard examples and dice, in any weighted mixture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.errors import UsageError
from patchform.lookup import no_such
from patchform.records import IGNORED, Loss

GAMMA = 2
"""Power of the focal loss (Lin et al. 2017, section 3.2)."""
HARD = 0.25
"""Share of an image's pixels that are hard."""


class _Pixels(NamedTuple):
    """Input of the losses. Each gives (B,): the loss of each image times `counts`, so that a batch is their sum."""

    logits: Tensor
    """(B, C, H, W) float32."""
    classes: Tensor
    """(B, H, W) int64; 0 where ignored."""
    weights: Tensor
    """(B, H, W) of each pixel's class; 0 where ignored."""
    entropy: Tensor
    """(B, H, W) weighted cross-entropy; 0 where ignored."""
    class_weights: Tensor
    """(C,)."""

    @property
    def counts(self) -> Tensor:
        """(B,) weight of each image."""
        return self.weights.sum((1, 2))

    @property
    def probability(self) -> Tensor:
        """(B, H, W) probability of each pixel's class."""
        return self.logits.log_softmax(1).gather(1, self.classes[:, None])[:, 0].exp()


def _cross_entropy(pixels: _Pixels) -> Tensor:
    return pixels.entropy.sum((1, 2))


def _focal(pixels: _Pixels) -> Tensor:
    return ((1 - pixels.probability) ** GAMMA * pixels.entropy).sum((1, 2))


def _hard(pixels: _Pixels) -> Tensor:
    entropy, weights = pixels.entropy.flatten(1), pixels.weights.flatten(1)
    order = entropy.detach().masked_fill(weights == 0, -1).argsort(dim=1, descending=True, stable=True)
    number = (HARD * (weights > 0).sum(1, keepdim=True)).ceil()
    hardest = torch.arange(entropy.shape[1], device=entropy.device) < number  # (B, H*W), in that order
    total = (entropy.gather(1, order) * hardest).sum(1)
    return pixels.counts * total / (weights.gather(1, order) * hardest).sum(1).clamp(min=1e-6)


def _dice(pixels: _Pixels) -> Tensor:
    classes, valid = pixels.classes.flatten(1), (pixels.weights > 0).flatten(1).float()
    zeros = pixels.logits.new_zeros(pixels.logits.shape[:2])  # (B, C)
    overlap = zeros.scatter_add(1, classes, pixels.probability.flatten(1) * valid)
    truth = zeros.scatter_add(1, classes, valid)
    predicted = torch.einsum("bcn,bn->bc", pixels.logits.softmax(1).flatten(2).square(), valid)
    weights = (truth > 0) * pixels.class_weights
    losses = 1 - 2 * overlap / (truth + predicted).clamp(min=1e-6)  # (B, C)
    return pixels.counts * (losses * weights).sum(1) / weights.sum(1).clamp(min=1e-6)


LOSSES = {"cross_entropy": _cross_entropy, "focal": _focal, "ohem": _hard, "dice": _dice}


class PixelLosses(nn.Module):
    """Weighted losses of the logits of every pixel, each over the pixels that are not ignored.

    * cross_entropy: softmax and cross-entropy.
    * focal: the same times (1 - p)**2, p the probability of the true class (Lin et al. 2017, equation 4).
    * ohem: of each image only the quarter of its pixels with the highest cross-entropy (online hard example mining,
      Shrivastava et al. 2016, section 4, by rank).
    * dice: 1 - 2 sum(p g) / (sum(p p) + sum(g g)) over the pixels of an image, mean over the classes that it shows
      (Milletari et al. 2016, section 3); an image weighs as much as it has pixels.

    So each is a sum over images, and parts of a batch make the whole.

    Args:
        classes: number of classes C, at most 255.
        losses: factor of each loss by name; default: cross_entropy alone, at 1.
        class_weights: C positive numbers; None weighs all alike.
        smoothing: share of the target that is spread evenly over the classes, in [0, 1); dice has none.

    Raises:
        UsageError: no such loss, or a number out of its range.
    """

    def __init__(
        self,
        classes: int,
        *,
        losses: Mapping[str, float] | None = None,
        class_weights: Sequence[float] | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.losses = {"cross_entropy": 1.0} if losses is None else dict(losses)
        for name, factor in self.losses.items():
            if name not in LOSSES:
                raise no_such("loss", name, LOSSES)
            if not 0 < factor < math.inf:
                raise UsageError(f"{name} has the factor {factor}", remedy="it is a positive number")
        if not self.losses:
            raise UsageError("losses is empty", remedy=f"name one or more of {', '.join(LOSSES)}")
        if not 0 < classes <= IGNORED:
            raise UsageError(f"{classes} classes of pixels", remedy=f"there are 1 to {IGNORED}: {IGNORED} is ignored")
        if not 0 <= smoothing < 1:
            raise UsageError(f"smoothing is {smoothing}", remedy="it lies in [0, 1)")
        weights = [1.0] * classes if class_weights is None else [float(weight) for weight in class_weights]
        if len(weights) != classes or not all(0 < weight < math.inf for weight in weights):
            raise UsageError(f"class_weights are {weights}", remedy=f"give {classes} positive numbers, one a class")
        self.smoothing = smoothing
        self.register_buffer("class_weights", torch.tensor(weights), persistent=False)

    class_weights: Tensor

    def forward(self, logits: Tensor, classes: Tensor) -> dict[str, Loss]:
        """(B, C, H, W) and (B, H, W) int64, 255 ignored -> losses by name; 0 where all is ignored."""
        logits = logits.float()  # bfloat16 has 3 digits
        entropy = F.cross_entropy(
            logits,
            classes,
            self.class_weights.to(logits),
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=self.smoothing,
        )
        weights = self.weigh(classes)
        pixels = _Pixels(logits, classes.where(classes != IGNORED, 0), weights, entropy, self.class_weights)
        count = weights.sum()
        return {name: Loss(factor * LOSSES[name](pixels).sum(), count) for name, factor in self.losses.items()}

    def weigh(self, classes: Tensor) -> Tensor:
        """(B, H, W) int64 -> float: the weight of each pixel's class, 0 where ignored."""
        ignored = classes == IGNORED
        return self.class_weights[classes.masked_fill(ignored, 0)].masked_fill(ignored, 0)
