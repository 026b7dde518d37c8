"""Instance segmentation: which objects a picture shows, and the pixels of each."""

from __future__ import annotations

from typing import ClassVar

from patchform.data.checks import boxes
from patchform.data.checks.base import Check
from patchform.metrics.overlap import Kind
from patchform.tasks.detection import Detection


class InstanceSegmentation(Detection):
    """Masks and boxes; models are compared by their masks, numbers of the boxes begin with `box_`."""

    name: ClassVar[str] = "instance_segmentation"
    head: ClassVar[str] = "mask_rcnn"
    recognised = "named"
    meaning = "average precision of masks at overlaps of 0.5 to 0.95 (COCO's), mean over the classes"
    checks: ClassVar[tuple[Check, ...]] = (boxes.OUTLINED, *Detection.checks)
    kinds: ClassVar[tuple[Kind, ...]] = ("masks", "boxes")
