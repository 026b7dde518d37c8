"""How often the class is right, when an image has exactly one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from patchform.errors import DataError
from patchform.metrics.base import Metric, Scores, Table, class_scores, mean, same_number, share
from patchform.records import Label, Target


def scores_and_classes(predictions: Sequence[Target], targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
    """(B, C) float32 probabilities and (B,) int64 true classes, on the CPU.

    Raises:
        DataError: not one prediction an image, a prediction without scores, or an image without exactly one class.
        DivergedError: a score that is not finite.
    """
    same_number(predictions, targets)
    predicted, true = cast("Sequence[Label]", predictions), cast("Sequence[Label]", targets)
    scores = class_scores(predicted)
    if any(len(label.classes) != 1 for label in true):
        raise DataError("an image without exactly one class", remedy='set labels to "multi"')
    return scores, torch.cat([label.classes for label in true]).cpu()


class Accuracy(Metric):
    """Top-1, top-5, the mean accuracy of the classes, the log loss and the confusion matrix.

    Equal scores rank in the order of the classes, as argmax does: a model that gives all classes the same score is
    right as often as the first class occurs, not always.

    Numbers: `top1` and `top5` (share of images whose class is among the best k; top5 is None below 6 classes),
    `mean_class_accuracy` (mean of the classes' accuracies, "balanced accuracy"), `log_loss` (mean of -log p of the true
    class, with p no less than the smallest float32). Tables: `classes` and `confusion`.

    Args:
        classes: names in the order of the scores.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)  # (truth, prediction)
        self._top5, self._log_loss = 0, 0.0

    def update(self, predictions: Sequence[Target], targets: Sequence[Target]) -> None:
        """Take in a batch of `Label`; predictions with scores (C,), targets with exactly one class."""
        if not len(targets):
            return same_number(predictions, targets)
        scores, truth = scores_and_classes(predictions, targets)
        number = len(self.classes)
        true_score = scores.gather(1, truth[:, None])  # (B, 1)
        earlier = torch.arange(number) < truth[:, None]
        rank = ((scores > true_score) | ((scores == true_score) & earlier)).sum(1)  # (B,) 0 is best
        pairs = truth * number + scores.argmax(1)
        self._confusion += torch.bincount(pairs, minlength=number * number).view(number, number)
        self._top5 += int((rank < 5).sum())
        self._log_loss -= float(true_score.double().clamp(min=torch.finfo(torch.float32).tiny).log().sum())

    def compute(self) -> Scores:
        """The scores of all that was taken in."""
        right, images, predicted = (
            counts.tolist() for counts in (self._confusion.diagonal(), self._confusion.sum(1), self._confusion.sum(0))
        )
        accuracies = [share(hits, of) for hits, of in zip(right, images)]
        samples = sum(images)
        numbers = {
            "top1": share(sum(right), samples),
            "top5": share(self._top5, samples) if len(self.classes) > 5 else None,
            "mean_class_accuracy": mean(accuracies),
            "log_loss": share(self._log_loss, samples),
        }
        rows = [list(row) for row in zip(accuracies, images, predicted)]
        tables = {
            "classes": Table(("accuracy", "images", "predicted"), self.classes, rows),
            "confusion": Table(self.classes, self.classes, self._confusion.tolist()),
        }
        return Scores(samples, "top1", numbers, tables)
