"""Masks as a whole: classes that never occur because their numbers mean something else."""

from __future__ import annotations

from patchform.data.checks.base import Check, Subject
from patchform.data.faults import Faults
from patchform.data.listing import quoted
from patchform.records import IGNORED


def labelled(subject: Subject, faults: Faults) -> None:
    """No labelled pixel, one class alone, a class for which 255 may have been written, and numbers from 1."""
    codes, report = subject.listing.mask_codes, subject.report
    if codes is None or report is None or report.pixels is None or not report.used:
        return
    used = [name for name, number in zip(subject.listing.classes, report.pixels) if number]
    absent = [name for name, number in zip(subject.listing.classes, report.pixels) if not number]
    masks = f"all {report.used} masks"
    if not used:
        kind = "nothing-to-learn" if subject.training else "nothing-to-judge"
        faults.add(kind, masks, "every pixel is ignored")
        return
    if not subject.training:
        return
    zero = dict(codes.ids).get(0, IGNORED)
    ignored = [number for number, class_ in codes.ids if class_ == IGNORED]
    if report.ignored and ignored == [255] and len(used) == 1 and zero != IGNORED and report.pixels[zero]:
        kinds = f'all {sum(report.pixels)} pixels that count are of class "{used[0]}"'
        faults.add("mask-255", masks, f"{kinds}, {report.ignored} are 255, and {quoted(absent) or 'no other'} never is")
    elif len(used) == 1:
        faults.add("class-single", f'class "{used[0]}"', "in every labelled pixel")
    if zero != IGNORED and not report.pixels[zero]:
        faults.add("mask-from-one", masks, f'0 is class "{subject.listing.classes[zero]}"')


def absent(subject: Subject, faults: Faults) -> None:
    """Classes without a pixel."""
    pixels = None if subject.report is None else subject.report.pixels
    for name, number in zip(subject.listing.classes, pixels or ()):
        if not number and any(pixels or ()):
            faults.add("class-unused", f'class "{name}"', "no mask has a pixel of it")


LABELLED, ABSENT = Check(labelled, "opened"), Check(absent, "opened", training=True)
