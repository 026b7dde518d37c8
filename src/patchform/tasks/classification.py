"""Classification: which class, or which classes, an image shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

from PIL import Image
from torch import Tensor

from patchform import drawing
from patchform.heads.base import Head
from patchform.metrics.accuracy import Accuracy
from patchform.metrics.average_precision import AveragePrecision
from patchform.metrics.base import Metric, Together
from patchform.metrics.calibration import Calibration
from patchform.records import Label, Target
from patchform.tasks.base import Task

TOP = 5
"""How many of the best classes are written and drawn."""
DIGITS = 6
"""Of written scores; float32 has no more."""


class Classification(Task):
    """Labels of whole images.

    Args:
        labels: "single": one class an image, judged by accuracy; "multi": any number, judged by average precision.
    """

    name: ClassVar[str] = "classification"
    target: ClassVar[type] = Label
    head: ClassVar[str] = "linear"

    def __init__(self, labels: Literal["single", "multi"] = "single") -> None:
        self.labels = labels
        self.better = "top1" if labels == "single" else "map"

    @classmethod
    def of(cls, head: Head) -> Task:
        """The task with the kind of labels that the head was made for."""
        return cls("multi" if getattr(head, "labels", "single") == "multi" else "single")

    def metric(self, classes: Sequence[str]) -> Metric:
        """Accuracy for single labels, mean average precision for multiple ones."""
        return Accuracy(classes) if self.labels == "single" else AveragePrecision(classes)

    def full_metric(self, classes: Sequence[str], *, thresholds: Sequence[float] | None = None) -> Metric:
        """The same, and for single labels the calibration."""
        return Together(self.metric(classes), Calibration()) if self.labels == "single" else self.metric(classes)

    def draw(self, image: Tensor, target: Target, classes: Sequence[str]) -> Image.Image:
        """The image above the best classes with bars, or above the names of the true ones."""
        label = cast("Label", target)
        if label.scores is None:
            names = ", ".join(classes[index] for index in label.classes.tolist())
            return drawing.caption(image, [drawing.Line(names or "no class")])
        return drawing.caption(image, [drawing.Line(classes[index], score) for index, score in _best(label)])

    def record(self, target: Target, classes: Sequence[str]) -> dict[str, Any]:
        """Names and scores.

        Returns:
            Single labels: `label`, and `score` of a prediction; multiple ones: `labels`, the best first. Predictions
            also have `top`: the five best as {"label", "score"}, whether decided for or not.
        """
        label = cast("Label", target)
        chosen = label.classes
        if label.scores is not None:
            chosen = chosen[label.scores[chosen].argsort(descending=True, stable=True)]
        names = [classes[index] for index in chosen.tolist()]
        if self.labels == "multi":
            record: dict[str, Any] = {"labels": names}
        else:
            record = {"label": names[0]} | (
                {} if label.scores is None else {"score": round(float(label.scores[chosen[0]]), DIGITS)}
            )
        if label.scores is not None:
            record["top"] = [{"label": classes[index], "score": round(score, DIGITS)} for index, score in _best(label)]
        return record


def _best(label: Label) -> list[tuple[int, float]]:
    """Index and score of the best classes; equal scores in the order of the classes."""
    assert label.scores is not None
    scores, order = label.scores.float().cpu().sort(descending=True, stable=True)
    return list(zip(order[:TOP].tolist(), scores[:TOP].tolist()))
