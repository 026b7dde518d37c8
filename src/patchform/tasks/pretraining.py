"""Pre-training: nothing is known of the pictures, and what is learnt is a representation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

from PIL import Image
from torch import Tensor

from patchform import drawing
from patchform.metrics.base import Metric
from patchform.metrics.representation import Representation
from patchform.records import Embedding, Target
from patchform.tasks.base import DIGITS, Task


class Pretraining(Task):
    """Embeddings of whole images. No number of theirs selects a model: a run keeps the last one."""

    name: ClassVar[str] = "pretraining"
    target: ClassVar[type] = Embedding
    head: ClassVar[str] = "mae"

    better = "knn"

    def metric(self, classes: Sequence[str]) -> Metric:
        """Neighbours' agreement where classes are known, effective rank and spread."""
        return Representation()

    def draw(self, image: Tensor, target: Target, classes: Sequence[str]) -> Image.Image:
        """The image above the size of its embedding."""
        scores = cast("Embedding", target).scores
        return drawing.caption(image, [drawing.Line(f"{len(scores)} numbers, length {float(scores.norm()):.3g}")])

    def record(self, target: Target, classes: Sequence[str]) -> dict[str, Any]:
        """{"embedding": [...]}."""
        scores = cast("Embedding", target).scores
        return {"embedding": [round(value, DIGITS) for value in scores.float().tolist()]}
