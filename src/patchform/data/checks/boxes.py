"""Objects without an outline; boxes that are no faults, but worth a look: repeated ones, rivals, tiny ones."""

from __future__ import annotations

import numpy as np
import torch

from patchform.data.checks import notation
from patchform.data.checks.base import Check, Subject
from patchform.data.faults import Faults

RIVAL = 0.9
"""Overlap (intersection over union) from which two boxes of different classes are about one object."""
TINY = 3.0
"""Pixels of a side."""


def close(subject: Subject, faults: Faults) -> None:
    """Note boxes that repeat another, that another class has too, and tiny ones. Crowd regions are not looked at."""
    from torchvision.ops import box_iou  # a second and a half to import

    listing = subject.listing
    for index, item in enumerate(() if _misread(faults) else listing.items):
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


def _misread(faults: Faults) -> bool:
    """Whether it is known already that the numbers mean something else."""
    return any(faults.counts[kind] for kind in ("box-corners", "box-notation", "box-shares"))


def _sides(boxes: np.ndarray) -> np.ndarray:
    """(N,) the shorter side of each."""
    return (boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf)


def outlined(subject: Subject, faults: Faults) -> None:
    """Note the objects without an outline."""
    for index, item in enumerate(subject.listing.items):
        if item.objects is not None and len(item.objects.boxes):
            outlines = item.objects.segmentations or (None,) * len(item.objects.boxes)
            for number, outline in enumerate(outlines, 1):
                if outline is None:
                    faults.add("outline-missing", subject.listing.name(index), f"object {number} of {len(outlines)}")


def around(subject: Subject, faults: Faults) -> None:
    """Note boxes that are not around their outlines."""
    for index, item in enumerate(() if _misread(faults) else subject.listing.items):
        objects = item.objects
        if objects is None or not objects.segmentations:
            continue
        height, width = objects.size
        outlined = notation.around(objects.segmentations, np.array([width, height, width, height]))
        apart = notation.are_apart(objects.boxes, outlined)
        apart &= True if objects.crowd is None else ~objects.crowd
        for number in np.flatnonzero(apart).tolist():
            location = f"{subject.listing.name(index)}, object {number + 1} of {len(objects.boxes)}"
            what = "x1 {:g}, y1 {:g}, x2 {:g}, y2 {:g}, the outline {:g}, {:g}, {:g}, {:g}"
            corners = objects.boxes[number].tolist()
            faults.add("box-outline", location, what.format(*corners, *outlined[number].tolist()), tuple(corners))


def percent(subject: Subject, faults: Faults) -> None:
    """Note a set of boxes that may be percent of width and height."""
    rows = [item.objects for item in subject.listing.items if item.objects is not None and len(item.objects.boxes)]
    if rows and notation.are_percent(np.concatenate([row.boxes for row in rows]), np.array([row.size for row in rows])):
        faults.add("box-percent", str(subject.listing.root), f"{sum(len(row.boxes) for row in rows)} boxes")


OUTLINED, PERCENT, AROUND = Check(outlined), Check(percent, training=True), Check(around, "searched")
CLOSE = Check(close, "searched")
