"""What is no fault, but worth a look: repeated pictures and boxes, rivals, tiny boxes, classes that hardly occur."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torchvision.ops import box_iou

from patchform.data.checks import copies
from patchform.data.faults import Faults
from patchform.data.listing import Listing

RIVAL = 0.9
"""Overlap (intersection over union) from which two boxes of different classes are about one object."""
TINY = 3.0
"""Pixels of a side."""
RARE = 50
"""How many times as often the most frequent class occurs."""


def on_boxes(listing: Listing, faults: Faults) -> None:
    """Note boxes that repeat another, that another class has too, and tiny ones. Crowd regions are not looked at."""
    for index, item in enumerate(listing.items):
        if item.objects is None or not len(item.objects.boxes):
            continue
        crowd = item.objects.crowd
        own = np.arange(len(item.objects.boxes)) if crowd is None else np.flatnonzero(~crowd)
        boxes, classes = item.objects.boxes[own], item.objects.classes[own]
        hints = [("box-tiny", number, -1) for number in np.flatnonzero(_sides(boxes) < TINY).tolist()]
        close = np.triu(box_iou(*[torch.from_numpy(boxes)] * 2).numpy() >= RIVAL, 1)
        for first, second in np.argwhere(close).tolist():
            if classes[first] != classes[second]:
                hints.append(("box-rival", second, first))
            elif (boxes[first] == boxes[second]).all():
                hints.append(("box-same", second, first))
        for kind, number, other in hints:
            what = listing.classes[classes[number]]
            if other < 0:
                what += " of {:g} x {:g} pixels".format(*(boxes[number, 2:] - boxes[number, :2]).tolist())
            else:
                what += f" over {listing.classes[classes[other]]}, object {own[other] + 1}"
            location = f"{listing.name(index)}, object {own[number] + 1} of {len(item.objects.boxes)}"
            faults.add(kind, location, what, tuple(boxes[number].tolist()))


def _sides(boxes: np.ndarray) -> np.ndarray:
    """(N,) the shorter side of each."""
    return (boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf)


def on_classes(listing: Listing, numbers: Sequence[int], faults: Faults) -> None:
    """Note classes that hardly occur in what is learnt from.

    Args:
        listing: of the training part.
        numbers: of each class, the pictures, objects or pixels.
        faults: where to note.
    """
    most = max(numbers, default=0)
    if not most:
        return
    for name, number in zip(listing.classes, numbers, strict=True):
        if not number:
            faults.add("class-unused", f'class "{name}"')
        elif number * RARE < most:
            faults.add("class-rare", f'class "{name}"', f"{number}, the most frequent {most}")


def objects_of(listing: Listing) -> tuple[int, ...]:
    """Number of objects of each class, crowd regions left out."""
    counts = np.zeros(len(listing.classes), np.int64)
    for item in listing.items:
        if item.objects is not None:
            own = item.objects.classes if item.objects.crowd is None else item.objects.classes[~item.objects.crowd]
            counts += np.bincount(own, minlength=len(counts))
    return tuple(counts.tolist())


def on_copies(listing: Listing, faults: Faults) -> None:
    """Note pictures whose content is there a second time, apart from those that then have other classes."""
    for first, other in copies(listing):
        item, copy = listing.items[first], listing.items[other]
        conflict = item.mask is None and item.objects is None and item.classes != copy.classes
        faults.add("class-conflict" if conflict else "picture-repeated", listing.name(other), listing.name(first))
