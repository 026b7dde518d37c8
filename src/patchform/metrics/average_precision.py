"""How well scores rank, when an image has any number of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from patchform.metrics.base import Metric, Scores, Table, class_scores, mean, same_number, share
from patchform.records import Label, Target


def average_precision(scores: Tensor, present: Tensor) -> Tensor:
    """Mean, over the images that have a class, of the precision among the images that score no less.

    This is the sum over recall steps of precision times the step, with no interpolation and equal scores as one step,
    so that it does not depend on the order of the images.

    Args:
        scores: (N, C) floating point.
        present: (N, C) bool.

    Returns:
        (C,) float64 in 0..1; NaN for a class that no image has.
    """
    ranked, order = scores.T.contiguous().sort()  # (C, N) ascending
    hits = present.T.gather(1, order).double()
    below = torch.searchsorted(ranked, ranked)  # (C, N) how many score less
    hits_below = torch.cat((torch.zeros_like(hits[:, :1]), hits.cumsum(1)), 1).gather(1, below)
    total = hits.sum(1, keepdim=True)
    precision = (total - hits_below) / (scores.shape[0] - below)
    return (precision * hits).sum(1) / total[:, 0]


class AveragePrecision(Metric):
    """Mean average precision over the classes, and the share of images whose classes are all and only the true ones.

    Numbers: `map`, `exact`. Table: `classes`. All scores are kept until the end: 5 bytes an image and class.

    Args:
        classes: names in the order of the scores.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._scores: list[Tensor] = []
        self._present: list[Tensor] = []
        self._exact = 0

    def update(self, predictions: Sequence[Target], targets: Sequence[Target]) -> None:
        """Take in a batch of `Label`; predictions with scores (C,)."""
        same_number(predictions, targets)
        if not len(targets):
            return
        predicted, true = cast("Sequence[Label]", predictions), cast("Sequence[Label]", targets)
        present = self._dense(true)
        self._scores.append(class_scores(predicted))
        self._present.append(present)
        self._exact += int((self._dense(predicted) == present).all(1).sum())

    def compute(self) -> Scores:
        """The scores of all that was taken in."""
        scores = torch.cat(self._scores) if self._scores else torch.zeros(0, len(self.classes))
        present = torch.cat(self._present) if self._present else torch.zeros(0, len(self.classes), dtype=torch.bool)
        images = present.sum(0).tolist()
        precisions = [
            value if number else None for value, number in zip(average_precision(scores, present).tolist(), images)
        ]
        numbers = {"map": mean(precisions), "exact": share(self._exact, len(scores))}
        rows = [list(row) for row in zip(precisions, images)]
        table = Table(("average_precision", "images"), self.classes, rows)
        return Scores(len(scores), "map", numbers, {"classes": table})

    def _dense(self, labels: Sequence[Label]) -> Tensor:
        """(B, C) bool: which image has which class."""
        number = len(self.classes)  # of a column beyond the last, cut off below
        classes = pad_sequence([label.classes for label in labels], batch_first=True, padding_value=number).cpu()
        return torch.zeros(len(labels), number + 1, dtype=torch.bool).scatter_(1, classes, True)[:, :-1]
