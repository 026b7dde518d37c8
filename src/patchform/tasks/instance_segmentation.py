"""Instance segmentation: which objects a picture shows, and the pixels of each."""

from __future__ import annotations

from typing import ClassVar

from patchform.data.annotations import missing_outlines
from patchform.data.faults import Faults
from patchform.data.listing import Listing
from patchform.metrics.overlap import Kind
from patchform.tasks.detection import Detection


class InstanceSegmentation(Detection):
    """Masks and boxes; models are compared by their masks, numbers of the boxes begin with `box_`."""

    name: ClassVar[str] = "instance_segmentation"
    head: ClassVar[str] = "mask_rcnn"
    recognised = "named"
    kinds: ClassVar[tuple[Kind, ...]] = ("masks", "boxes")

    def faults(self, listing: Listing, faults: Faults) -> None:
        """Objects without an outline."""
        missing_outlines(listing, faults)
