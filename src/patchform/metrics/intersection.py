"""How well regions overlap: intersection over union by class, of whole regions and of their boundaries.

Counts of pixels are summed over the whole data set before anything is divided. Pixels whose truth is ignored count
nowhere. A class without a true pixel in the data is None and in no mean; pixels wrongly given to it still count against
the class they belong to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from patchform.errors import DataError
from patchform.metrics.base import Metric, Scores, Table, mean, same_number, share
from patchform.records import IGNORED, Regions, Target


class Intersection(Metric):
    """Mean intersection over union and pixel accuracy.

    Numbers: `mean_iou`; `pixel_accuracy` (share of pixels); `class_accuracy` (mean of the classes' accuracies);
    `frequency_iou` (mean of the classes' overlaps, weighted by their true pixels). Tables: `classes` and `confusion`.

    Args:
        classes: names in the order of the ids.
        ignore: id of true pixels that do not count.
    """

    def __init__(self, classes: Sequence[str], *, ignore: int = IGNORED) -> None:
        self.classes, self.ignore = tuple(classes), ignore
        self._confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)  # (truth, prediction)
        self._samples = 0

    def update(self, predictions: Sequence[Target], targets: Sequence[Target]) -> None:
        """Take in a batch of `Regions` of any integer type; prediction and target of an image are of one size.

        Raises:
            DataError: sizes differ, or an id is not that of a class.
        """
        same_number(predictions, targets)
        number = len(self.classes)
        for prediction, target in zip(predictions, targets):
            predicted, true = _pair(prediction, target)
            counted = true != self.ignore
            rows, columns = true[counted], predicted[counted]
            if ((rows < 0) | (rows >= number) | (columns < 0) | (columns >= number)).any():
                raise DataError(f"a mask with ids beyond the {number} classes", remedy="check the class list")
            pairs = torch.bincount(rows * number + columns, minlength=number * number)
            self._confusion += pairs.view(number, number).cpu()
        self._samples += len(targets)

    def compute(self) -> Scores:
        """The scores of all that was taken in."""
        hits, pixels, predictions = (
            counts.tolist() for counts in (self._confusion.diagonal(), self._confusion.sum(1), self._confusion.sum(0))
        )
        overlaps = [
            share(hit, true + predicted - hit) if true else None
            for hit, true, predicted in zip(hits, pixels, predictions)
        ]
        accuracies = [share(hit, true) for hit, true in zip(hits, pixels)]
        numbers = {
            "mean_iou": mean(overlaps),
            "pixel_accuracy": share(sum(hits), sum(pixels)),
            "class_accuracy": mean(accuracies),
            "frequency_iou": share(sum(true * (iou or 0) for true, iou in zip(pixels, overlaps)), sum(pixels)),
        }
        rows = [list(row) for row in zip(overlaps, accuracies, pixels)]
        tables = {
            "classes": Table(("iou", "accuracy", "pixels"), self.classes, rows),
            "confusion": Table(self.classes, self.classes, self._confusion.tolist()),
        }
        return Scores(self._samples, "mean_iou", numbers, tables)


class BoundaryIntersection(Metric):
    """Intersection over union of the parts of regions that are near their boundaries.

    Cheng et al., "Boundary IoU: improving object-centric image segmentation evaluation" (2021), equation 4, with their
    distance of 2 % of the image's diagonal. As in their code, a pixel is near when the square that reaches so many
    pixels to each side holds another class or the outside of the image. Where the truth is ignored the prediction is
    too, so the edge of an ignored area is a boundary of both.

    Number: `boundary_iou`, the mean over the classes. Table: `boundary`, a row a class.

    Args:
        classes: names in the order of the ids.
        share_of_diagonal: the distance; it is rounded to whole pixels, at least one.
    """

    def __init__(self, classes: Sequence[str], *, share_of_diagonal: float = 0.02) -> None:
        self.classes, self.share_of_diagonal = tuple(classes), share_of_diagonal
        self._counts = torch.zeros(3, len(classes), dtype=torch.int64)  # in both, in the truth, in the prediction
        self._samples = 0

    def update(self, predictions: Sequence[Target], targets: Sequence[Target]) -> None:
        """Take in a batch of `Regions`; prediction and target of an image are of one size."""
        same_number(predictions, targets)
        number = len(self.classes)
        for prediction, target in zip(predictions, targets):
            predicted, true = _pair(prediction, target)
            predicted = predicted.where(true != IGNORED, IGNORED)
            distance = max(1, round(self.share_of_diagonal * math.hypot(*true.shape)))
            near_true, near_predicted = near_boundary(true, distance), near_boundary(predicted, distance)
            both = near_true & near_predicted & (true == predicted)
            for row, (classes, counted) in enumerate(((true, both), (true, near_true), (predicted, near_predicted))):
                pixels = torch.bincount(classes[counted], minlength=IGNORED + 1)[:IGNORED]
                if pixels[number:].any():
                    raise DataError(f"a mask with ids beyond the {number} classes", remedy="check the class list")
                self._counts[row] += pixels[:number].cpu()
        self._samples += len(targets)

    def compute(self) -> Scores:
        """The scores of all that was taken in."""
        overlaps = [
            share(both, true + predicted - both) if true else None for both, true, predicted in self._counts.T.tolist()
        ]
        rows = [list(row) for row in zip(overlaps, self._counts[1].tolist())]
        table = Table(("boundary_iou", "pixels"), self.classes, rows)
        return Scores(self._samples, None, {"boundary_iou": mean(overlaps)}, {"boundary": table})


def near_boundary(classes: Tensor, distance: int) -> Tensor:
    """(H, W) integers -> (H, W) bool: another class, or the outside, lies within `distance` rows and columns.

    True where the largest and the smallest number of the square around a pixel differ. Its sides are covered by windows
    that double in length, so the cost grows with the logarithm of the distance, and not with the number of classes.
    """
    padded = F.pad(classes.to(torch.int16), (distance,) * 4, value=-1)
    largest, smallest = (_extreme(padded, 2 * distance + 1, choose) for choose in (torch.maximum, torch.minimum))
    return largest != smallest


def _extreme(values: Tensor, length: int, choose: Any) -> Tensor:
    """The largest or smallest of each square window: (H + length - 1, W + length - 1) -> (H, W)."""
    for axis in (0, 1):
        covered = 1
        while covered < length:
            step = min(covered, length - covered)
            rest = values.shape[axis] - step
            values = choose(values.narrow(axis, 0, rest), values.narrow(axis, step, rest))
            covered += step
    return values


def _pair(prediction: Target, target: Target) -> tuple[Tensor, Tensor]:
    """Predicted and true classes, (H, W) int64 on the prediction's device. Raises DataError when sizes differ."""
    predicted, true = cast("Regions", prediction).classes, cast("Regions", target).classes
    if predicted.shape != true.shape:
        raise DataError(f"a prediction of {tuple(predicted.shape)} pixels for a mask of {tuple(true.shape)}")
    return predicted.long(), true.to(predicted.device).long()
