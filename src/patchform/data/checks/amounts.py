"""How much there is to learn from: nothing, one class, few of a class; and what there is, in a line each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from patchform.data.checks.base import Check, Subject
from patchform.data.faults import Faults
from patchform.data.listing import Listing

RARE = 50
"""How many times as often the most frequent class occurs."""
FEW = 20
"""Items a class, below which a set is called small."""


def nothing(subject: Subject, faults: Faults) -> None:
    """No class, object or pixel that is learnt, or judged by."""
    if subject.listing.items and not any(subject.numbers):
        where = f"all {len(subject.listing)} {subject.listing.thing}s"
        faults.add(
            "nothing-to-learn" if subject.training else "nothing-to-judge", where, "no label or object that counts"
        )


def single(subject: Subject, faults: Faults) -> None:
    """One class alone: whatever is shown, it is the answer."""
    used = [name for name, number in zip(subject.listing.classes, subject.numbers) if number]
    if len(used) == 1 and all(len(item.classes) == 1 for item in subject.listing.items):
        faults.add("class-single", f'class "{used[0]}"')


def uneven(subject: Subject, faults: Faults) -> None:
    """Classes that hardly occur."""
    most = max(subject.numbers, default=0)
    if not most:
        return
    for name, number in zip(subject.listing.classes, subject.numbers, strict=True):
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


def summary(subject: Subject, unit: str) -> Iterator[str]:
    """Lines on how much there is.

    Args:
        subject: after it was opened.
        unit: what `numbers` count, such as "objects".
    """
    listing, numbers = subject.usable, subject.numbers
    if subject.report is not None and (sizes := subject.report.sizes):
        low, (height, width), high = sizes
        spread = f"{low[1]} to {high[1]} pixels wide, {low[0]} to {high[0]} high, median {width} x {height}"
        yield f"sizes: all {width} x {height} pixels" if low == high else f"sizes: {spread}"
    total = sum(numbers)
    if len(numbers) > 1 and total:
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        least, most = ((listing.classes[i], numbers[i], numbers[i] / total) for i in (order[0], order[-1]))
        few, many = (f'"{name}" {number} {unit} ({share:.1%})' for name, number, share in (least, most))
        yield f"balance: from {few} to {many}"
    if subject.training and 0 < len(listing) < FEW * max(1, len(numbers)):
        classes = f" for {len(numbers)} classes" if len(numbers) > 1 else ""
        yield f"small: {len(listing)} {listing.thing}s{classes}; start from published weights (train --from NAME)"


NOTHING, SINGLE = Check(nothing), Check(single, training=True)
UNEVEN = Check(uneven, "opened", training=True)
