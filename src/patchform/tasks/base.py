"""The contract of a task: what its targets mean to a person, a file and a metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from PIL import Image
from torch import Tensor

from patchform import drawing, lookup
from patchform.descriptions import Architecture
from patchform.errors import UsageError
from patchform.geometry import masks
from patchform.heads.base import Head
from patchform.metrics.base import Metric, Scores
from patchform.metrics.objects import ObjectPrecision
from patchform.metrics.overlap import Kind
from patchform.records import Instances, Target

DIGITS, BOX_DIGITS = 6, 2
"""Of written scores, and of pixels."""


class Task(ABC):
    """The meaning of one type of target. A file of this folder holds one; its name is the name of the task.

    As a prediction has the type of a target, one `draw`, one `record` and one metric serve both.
    """

    name: ClassVar[str]
    target: ClassVar[type]
    """Type of targets and predictions."""
    head: ClassVar[str]
    """The head that is taken when none is named."""

    better: str
    """Name of the number, higher is better, that selects the best checkpoint."""

    @classmethod
    def of(cls, head: Head) -> Task:
        """The task as a head understands it. The default has no variants."""
        return cls()

    @abstractmethod
    def metric(self, classes: Sequence[str]) -> Metric:
        """What is measured at each validation: quick, and `better` among its numbers."""

    def full_metric(self, classes: Sequence[str], *, thresholds: Sequence[float] | None = None) -> Metric:
        """What is measured when a trained model is judged: `metric`, and more.

        Args:
            classes: names.
            thresholds: `Model.thresholds`, where a task has such: numbers at a threshold are then at these.
        """
        return self.metric(classes)

    def thresholds(self, scores: Scores) -> tuple[float, ...] | None:
        """What `metric` chose as `Model.thresholds`, one a class; None where the task has none."""
        return None

    @abstractmethod
    def draw(self, image: Tensor, target: Target, classes: Sequence[str]) -> Image.Image:
        """A picture of a target or a prediction on its image, (C, H, W) uint8 in 0..255 or floating point in 0..1."""

    @abstractmethod
    def record(self, target: Target, classes: Sequence[str]) -> dict[str, Any]:
        """A target or a prediction as plain JSON values, with names instead of numbers."""

    def files(self, target: Target, *, scores: bool = False) -> dict[str, bytes]:
        """What of a target or a prediction is too large for a record: endings of file names, and contents.

        Args:
            target: what to write.
            scores: with the probabilities of a prediction, which are larger still.
        """
        return {}


class ObjectTask(Task):
    """Objects of a picture, of which boxes, or masks and boxes, are judged: a task of this kind states its `kinds`."""

    target: ClassVar[type] = Instances
    better = "ap"
    kinds: ClassVar[tuple[Kind, ...]]

    def metric(self, classes: Sequence[str]) -> Metric:
        """Average precision as COCO defines it, and the thresholds with the best F1."""
        return ObjectPrecision(classes, kinds=self.kinds)

    def full_metric(self, classes: Sequence[str], *, thresholds: Sequence[float] | None = None) -> Metric:
        """The same; F1 and confusion at thresholds that were chosen before."""
        return ObjectPrecision(classes, kinds=self.kinds, thresholds=thresholds)

    def thresholds(self, scores: Scores) -> tuple[float, ...] | None:
        """The score of each class from which its predictions have the best F1."""
        return tuple(float(row[0] or 0) for row in scores.tables["operating_points"].values)

    def draw(self, image: Tensor, target: Target, classes: Sequence[str]) -> Image.Image:
        """The image with its objects, above their names and how many there are."""
        return drawing.objects(image, self._shown(target), classes)

    def record(self, target: Target, classes: Sequence[str]) -> dict[str, Any]:
        """{"objects": [{"name", "class_id", "box": [x, y, width, height], "score"}, ...]}, boxes in pixels.

        A truth has no score. With masks each also has "segmentation", run lengths as COCO writes them.
        """
        found = self._shown(target)
        boxes = found.boxes.float().cpu()
        corners = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
        objects: list[dict[str, Any]] = [
            {"name": classes[index], "class_id": index, "box": [round(number, BOX_DIGITS) for number in box]}
            for index, box in zip(found.classes.tolist(), corners)
        ]
        if found.scores is not None:
            for one, score in zip(objects, found.scores.tolist()):
                one["score"] = round(score, DIGITS)
        if found.masks is not None:
            for one, counts in zip(objects, masks.to_runs(found.masks)):
                one["segmentation"] = {"size": list(found.masks.size), "counts": counts.decode()}
        return {"objects": objects}

    def _shown(self, target: Target) -> Instances:
        """Without what the task does not speak of."""
        found = cast("Instances", target)
        return found if "masks" in self.kinds else found._replace(masks=None)


def task_of(architecture: Architecture | None, head: Head) -> Task:
    """The task that a model of this architecture and head was made for.

    Raises:
        UsageError: a model that was put together by hand names no task.
    """
    if architecture is None:
        raise UsageError("this model was put together by hand and has no task", remedy="name one")
    kind: type[Task] = lookup.the_class("tasks", architecture.task, Task)
    return kind.of(head)
