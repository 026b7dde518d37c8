"""Video classification: which class, or which classes, a clip shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from PIL import Image
from torch import Tensor

from patchform import drawing
from patchform.records import Target
from patchform.tasks.classification import Classification


class VideoClassification(Classification):
    """Labels of whole clips: all that `Classification` is, and pictures that show frames."""

    name: ClassVar[str] = "video_classification"

    def draw(self, image: Tensor, target: Target, classes: Sequence[str]) -> Image.Image:
        """Some frames of the clip (T, C, H, W), above the best classes with bars, or the names of the true ones."""
        return super().draw(drawing.contact_sheet(image), target, classes)
