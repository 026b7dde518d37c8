"""Detection: which objects a picture shows, and a box around each."""

from __future__ import annotations

from typing import ClassVar

from patchform.metrics.overlap import Kind
from patchform.tasks.base import ObjectTask


class Detection(ObjectTask):
    """Boxes in pixels of the picture as it was before resizing; crowds in a truth count for nothing."""

    name: ClassVar[str] = "detection"
    head: ClassVar[str] = "retinanet"
    kinds: ClassVar[tuple[Kind, ...]] = ("boxes",)
