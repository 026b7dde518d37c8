"""Instance segmentation: which objects a picture shows, and the pixels of each."""

from __future__ import annotations

from typing import ClassVar

from patchform.metrics.overlap import Kind
from patchform.tasks.base import ObjectTask


class InstanceSegmentation(ObjectTask):
    """Masks and boxes; models are compared by their masks, numbers of the boxes begin with `box_`."""

    name: ClassVar[str] = "instance_segmentation"
    head: ClassVar[str] = "mask_rcnn"
    kinds: ClassVar[tuple[Kind, ...]] = ("masks", "boxes")
