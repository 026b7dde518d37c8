"""The contract of a task: what its targets mean to a person, a file and a metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from patchform import lookup
from patchform.errors import UsageError
from patchform.heads.base import Head
from patchform.metrics.base import Metric
from patchform.records import Architecture, Target


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

    def full_metric(self, classes: Sequence[str]) -> Metric:
        """What is measured when a trained model is judged: `metric`, and more."""
        return self.metric(classes)

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


def task_of(architecture: Architecture | None, head: Head) -> Task:
    """The task that a model of this architecture and head was made for.

    Raises:
        UsageError: a model that was put together by hand names no task.
    """
    if architecture is None:
        raise UsageError("this model was put together by hand and has no task", remedy="name one")
    kind: type[Task] = lookup.the_class("tasks", architecture.task, Task)
    return kind.of(head)
