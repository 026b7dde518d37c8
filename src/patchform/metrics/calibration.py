"""Whether a model that says "90 %" is right nine times in ten.

Guo et al., "On Calibration of Modern Neural Networks" (2017): equation 3 (expected calibration error) and section 4.2
(temperature scaling: logits are divided by one number, which changes the confidence and never the decision).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor

from patchform.metrics.accuracy import scores_and_classes
from patchform.metrics.base import Metric, Scores, Table, finite, same_number, share
from patchform.records import IGNORED, Regions, Target

BINS = 15
"""Equal widths over 0..1, as in the paper's tables."""
BESIDE = 1e-5
"""How far edges of bins lie above m / bins: a model that knows nothing gives each of three classes a third, which is
such a number, and rounding would deal its images out to two bins."""
COLDEST, HOTTEST = 0.05, 20.0
"""Temperatures that are looked at."""
SAMPLE = 200
"""Pixels of each image that are judged; a place may be drawn twice."""


def reliability(confidence: Tensor, correct: Tensor, bins: int = BINS) -> tuple[Tensor, Tensor, Tensor]:
    """Count by bin: images, correct ones, and the sum of their confidence.

    Args:
        confidence: (N,) floating point in 0..1.
        correct: (N,) bool.
        bins: number of equal widths; bin m holds (m / bins, (m + 1) / bins], `BESIDE` higher, the first one 0 too.

    Returns:
        Three (bins,) float64.
    """
    edges = torch.arange(1, bins, dtype=torch.float64) / bins + BESIDE
    bin_of = torch.bucketize(confidence.double(), edges)
    rows = (torch.ones_like(confidence), correct, confidence)
    images, right, total = (torch.bincount(bin_of, weights=row.double(), minlength=bins) for row in rows)
    return images, right, total


def reliability_table(confidence: Tensor, correct: Tensor, columns: tuple[str, str, str]) -> Table:
    """A row a bin: mean confidence, share of correct ones, how many there are."""
    bins = zip(*(counts.tolist() for counts in reliability(confidence, correct)))
    values = [[share(total, number), share(right, number), number] for number, right, total in bins]
    return Table(columns, tuple(f"{edge / BINS:.3f}-{(edge + 1) / BINS:.3f}" for edge in range(BINS)), values)


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float | None:
    """Mean over the images of |accuracy - mean confidence| of their bin, in 0..1; None without images.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) bool, whether the predicted class is the true one.
        bins: number of equal widths.
    """
    _, right, total = reliability(confidence, correct, bins)
    return share(float((right - total).abs().sum()), len(confidence))


def best_temperature(log_probabilities: Tensor, truth: Tensor) -> float | None:
    """The temperature with the least log loss, in 0.05..20; None without images.

    The loss is convex in the inverse temperature, so the sign of its slope says on which side the minimum lies.

    Args:
        log_probabilities: (N, C) logits, or log p, which differ from them by a constant an image.
        truth: (N,) int64 classes.
    """
    if not len(truth):
        return None
    true_logits = log_probabilities.gather(1, truth[:, None]).sum(dtype=torch.float64)

    def slope(inverse: float) -> float:
        """Derivative of the summed log loss in the inverse temperature: expected logits less the true class's."""
        parts = log_probabilities.split(8192)  # bounds the memory
        return float(sum(((part * inverse).softmax(1) * part).sum(dtype=torch.float64) for part in parts) - true_logits)

    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(30):  # halves log T from 6 to 6e-9
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(-middle)) > 0 else (low, middle)
    return math.exp((low + high) / 2)


class Calibration(Metric):
    """Expected calibration error, before and after the best temperature.

    The temperature is fitted to the very images it is judged on. It is one number, so hardly optimistic, but these
    must not be training images. All probabilities are kept until the end: 4 bytes an image and class.

    Numbers: `ece`, `temperature`, `ece_after`. Table: `reliability`, one row a bin.
    """

    of: ClassVar[str] = "images"
    """What is counted."""

    def __init__(self) -> None:
        self._scores: list[Tensor] = []
        self._truth: list[Tensor] = []

    def update(self, predictions: Sequence[Target], targets: Sequence[Target]) -> None:
        """Take in a batch of `Label`; predictions with scores (C,), targets with exactly one class."""
        if not len(targets):
            return same_number(predictions, targets)
        scores, truth = scores_and_classes(predictions, targets)
        self._scores.append(scores)
        self._truth.append(truth)

    def compute(self) -> Scores:
        """The scores of all that was taken in."""
        scores = torch.cat(self._scores) if self._scores else torch.zeros(0, 1)
        truth = torch.cat(self._truth) if self._truth else torch.zeros(0, dtype=torch.int64)
        logits = scores.clamp(min=torch.finfo(torch.float32).tiny).log()
        confidence, correct = scores.amax(1), scores.argmax(1) == truth
        temperature = best_temperature(logits, truth)
        after = confidence if temperature is None else (logits / temperature).softmax(1).amax(1)
        numbers = {
            "ece": expected_calibration_error(confidence, correct),
            "temperature": temperature,
            "ece_after": expected_calibration_error(after, correct),
        }
        table = reliability_table(confidence, correct, ("confidence", "accuracy", self.of))
        return Scores(len(truth), None, numbers, {"reliability": table})


class PixelCalibration(Calibration):
    """The same of pixels: of those of each image that are not ignored, `SAMPLE` at random places are judged.

    The places depend on the number of such pixels alone, so that they are the same for every model and order.
    """

    of: ClassVar[str] = "pixels"

    def update(self, predictions: Sequence[Target], targets: Sequence[Target]) -> None:
        """Take in a batch of `Regions`; a prediction without scores (C, H, W) does not count."""
        same_number(predictions, targets)
        for prediction, target in zip(cast("Sequence[Regions]", predictions), cast("Sequence[Regions]", targets)):
            classes = target.classes.flatten()
            counted = (classes != IGNORED).nonzero()[:, 0]
            if prediction.scores is None or not len(counted):
                continue
            chosen = torch.randint(len(counted), (SAMPLE,), generator=torch.Generator().manual_seed(len(counted)))
            pixels = counted.cpu()[chosen]
            scores = prediction.scores.flatten(1)[:, pixels.to(prediction.scores.device)].T
            self._scores.append(finite(scores.float().cpu()))
            self._truth.append(classes[pixels.to(classes.device)].cpu().long())
