"""How well regions overlap: intersection over union by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from patchform.errors import DataError
from patchform.metrics.base import Metric, Scores, Table, mean, same_number, share
from patchform.records import Regions, Target


class Intersection(Metric):
    """Mean intersection over union and pixel accuracy, from pixel counts over the whole data set.

    A class without a true pixel in the data is None and not in the mean; pixels wrongly given to it still count
    against the class they belong to.

    Numbers: `mean_iou`, `pixel_accuracy`. Tables: `classes` and `confusion`.

    Args:
        classes: names in the order of the ids.
        ignore: id of true pixels that do not count.
    """

    def __init__(self, classes: Sequence[str], *, ignore: int = 255) -> None:
        self.classes, self.ignore = tuple(classes), ignore
        self._confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)  # (truth, prediction)
        self._samples = 0

    def update(self, predictions: Sequence[Target], targets: Sequence[Target]) -> None:
        """Take in a batch of `Regions`; prediction and target of an image are of one size.

        Raises:
            DataError: sizes differ, or an id is not that of a class.
        """
        same_number(predictions, targets)
        number = len(self.classes)
        for guess, truth in zip(cast("Sequence[Regions]", predictions), cast("Sequence[Regions]", targets)):
            if guess.classes.shape != truth.classes.shape:
                raise DataError(
                    f"a prediction of {tuple(guess.classes.shape)} pixels for a mask of {tuple(truth.classes.shape)}"
                )
            counted = truth.classes != self.ignore
            rows, columns = truth.classes[counted], guess.classes[counted]
            if ((rows < 0) | (rows >= number) | (columns < 0) | (columns >= number)).any():
                raise DataError(f"a mask with ids beyond the {number} classes", remedy="check the class list")
            pairs = torch.bincount(rows * number + columns, minlength=number * number)
            self._confusion += pairs.view(number, number).cpu()
        self._samples += len(targets)

    def compute(self) -> Scores:
        """The scores of all that was taken in."""
        right, pixels, predicted = (
            counts.tolist() for counts in (self._confusion.diagonal(), self._confusion.sum(1), self._confusion.sum(0))
        )
        overlaps = [
            share(hit, true + guessed - hit) if true else None for hit, true, guessed in zip(right, pixels, predicted)
        ]
        accuracies = [share(hit, true) for hit, true in zip(right, pixels)]
        numbers = {"mean_iou": mean(overlaps), "pixel_accuracy": share(sum(right), sum(pixels))}
        rows = [list(row) for row in zip(overlaps, accuracies, pixels)]
        tables = {
            "classes": Table(("iou", "accuracy", "pixels"), self.classes, rows),
            "confusion": Table(self.classes, self.classes, self._confusion.tolist()),
        }
        return Scores(self._samples, "mean_iou", numbers, tables)
