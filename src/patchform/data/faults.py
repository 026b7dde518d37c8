"""What is wrong with a data set, collected instead of stopping at the first, counted and explained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from patchform.errors import DataError

KEPT = 1000
"""Faults of one kind that are kept as examples; the others are only counted."""


class Kind(NamedTuple):
    """What faults of one kind have in common."""

    what: str
    """What it is, after a number: "boxes without a width or height"."""
    remedy: str
    """What to do about it; for those that are mended while reading, what was done."""
    fatal: bool = True
    """Whether the data cannot be used as they are; else the thing is dropped or clipped, and counted."""
    hint: bool = False
    """Whether it may well be meant so: the data are used as they are."""
    whole: bool = False
    """Whether it is about a part as a whole: it is told without a number."""

    def counted(self, number: int) -> str:
        """What it is, with how many there are."""
        return self.what if self.whole else f"{number} {self.what}"


class Fault(NamedTuple):
    """One thing that is wrong."""

    kind: str
    """A key of `KINDS`."""
    where: str
    """The picture, or the file and the place in it."""
    what: str
    """The values."""
    fatal: bool = True
    box: tuple[float, ...] | None = None
    """x1, y1, x2, y2 as annotated, where it is about a box."""


_DROPPED, _CLIPPED = "left out", "cut off at the edge"
_BOX_KEPT = "left out, their boxes are kept"


def _hint(what: str, remedy: str, *, whole: bool = False) -> Kind:
    return Kind(what, remedy, fatal=False, hint=True, whole=whole)


KINDS: dict[str, Kind] = {
    "layout": Kind("things that keep the data from being listed", "mend this first: what it hides was not looked at"),
    "nothing-to-learn": Kind("nothing to learn from", "annotate some, or see that it is this part", whole=True),
    # classes
    "class-part": Kind(
        "classes that are named like parts of a data set or kinds of files",
        "call parts train/ and val/, or set data.path and data.validation, with a folder for each class in both;"
        " pictures without labels are for pretraining",
        whole=True,
    ),
    "class-nested": Kind("a single class, which holds folders alone", "set data.path to that folder", whole=True),
    "name-bytes": Kind("names that are not UTF-8", "rename them: no list or model can hold these"),
    # pictures
    "picture-bad": Kind("pictures that cannot be used", "mend or remove them, or set data.skip_bad"),
    "picture-missing": Kind("listed pictures that are not there", "add or unlist them, or set data.skip_bad"),
    "picture-skipped": Kind("pictures that are not there or cannot be read", _DROPPED, fatal=False),
    "picture-outside": Kind("paths that lead out of the data set", "list pictures by paths inside its folder"),
    "picture-twice": Kind("pictures listed twice", "list each once, with all its objects"),
    "size-differs": Kind("pictures of another size than annotated", "annotate the files as they are"),
    "size-turned": Kind(
        "pictures annotated as they lie, not as their orientation tag turns them",
        "turn the pixels and remove the tag, or annotate the upright pictures",
    ),
    "video-bad": Kind("videos that cannot be used", "mend or remove them, or set data.skip_bad"),
    "mask-bad": Kind("masks that cannot be used", "mend or remove them, or set data.skip_bad"),
    # annotation files
    "labels-missing": Kind("pictures without a file of annotations", "add it, or unlist them"),
    "labels-alone": Kind("files of annotations without a picture", "add the picture, or remove them"),
    "labels-bad": Kind("files of annotations that cannot be read", "mend or remove them"),
    "record-bad": Kind("records that are not what the format says", "mend them"),
    "id-twice": Kind("ids given twice", "number pictures, objects and classes each once"),
    "picture-unknown": Kind("objects of a picture that is not listed", "list the picture, or remove them"),
    "class-unknown": Kind("objects of an unknown class", "add the class to the list, or remove them"),
    # boxes
    "box-bad": Kind("boxes with a negative side or a number that is none", "mend or remove them"),
    "box-empty": Kind("boxes without a width or height", _DROPPED, fatal=False),
    "box-outside": Kind("boxes wholly outside their picture", _DROPPED, fatal=False),
    "box-clipped": Kind("boxes partly outside their picture", _CLIPPED, fatal=False),
    "box-notation": Kind(
        "boxes that fit their outlines, or areas, only if they are read in another way, more than a fifth of all",
        "see how they are written",
    ),
    "box-shares": Kind("boxes written as shares of width and height, 0 to 1", "write them in pixels"),
    "box-corners": Kind("boxes that leave their picture, more than a fifth of all", "see how they are written"),
    "box-twice": Kind("objects written twice", "counted once", fatal=False),
    # outlines
    "outline-missing": Kind("objects with a box but no outline", "outline them, or set task to detection"),
    "outline-bad": Kind("outlines that cannot be read or do not fit their picture", _BOX_KEPT, fatal=False),
    "outline-degenerate": Kind("outlines that hold no pixel", _BOX_KEPT, fatal=False),
    "part-degenerate": Kind("polygons of less than three points, or without an area", _DROPPED, fatal=False),
    "outline-clipped": Kind("outlines that reach far outside their picture", _CLIPPED, fatal=False),
    # masks
    "mask-255": Kind(
        "a class that 255 seems to stand for in the masks, which is ignored",
        "write 0, 1, ... in masks, or give the colours of classes in data.colors, or set data.ignore to another number",
        whole=True,
    ),
    # hints
    "id-type": _hint("ids that are text where those listed are numbers, or the other way", "matched; write them alike"),
    "names-count": _hint("files whose nc is not the number of their names", "the names count; mend one of the two"),
    "score-ignored": _hint("lines with a sixth number, as of predictions", "taken for a score and left out"),
    "box-oriented": _hint("lines of four corners, as of oriented boxes (OBB)", "detection has the upright box around"),
    "box-order": _hint("parts all of whose boxes could be corners x1, y1, x2, y2", "look at some: patchform data show"),
    "points-likely": _hint("lines that may be a box and key points", "if so, give kpt_shape in data.yaml"),
    "nothing-to-hold-out": _hint("too little to hold some out to validate on", "set data.validation", whole=True),
    "nothing-to-judge": _hint("nothing to judge by", "annotate some", whole=True),
    "orientation-untold": _hint(
        "annotated pictures with an orientation tag that their sizes cannot check",
        "the tag is followed: see with `data show` whether the annotations are of the upright pictures",
    ),
    "box-outline": _hint("boxes that are not around their outlines", "see which of the two is right"),
    "box-percent": _hint(
        "boxes that all lie in the first 100 pixels",
        "if they are percent of width and height, write pixels",
        whole=True,
    ),
    "mask-from-one": _hint("masks without any 0", "if their numbers begin at 1, set data.zero to ignore", whole=True),
    "class-single": _hint(
        "a single class, which is the answer to everything", "add what else there may be", whole=True
    ),
    "class-repeats": _hint("classes that hold folders of the same names", "if those are the classes, move them up"),
    "class-alike": _hint("names of classes that may mean one", "if so, give them one name"),
    "class-several": _hint(
        "names of classes that look like several", "if they are, separate them by | and set data.labels to multi"
    ),
    "name-blanks": _hint("names of classes with blanks around them", "remove the blanks"),
    "name-odd": _hint("names of files that are not UTF-8", "they are spelt with \\udc.. in what is written"),
    "name-control": _hint("names with characters that are not seen", "rename them"),
    "picture-shared": _hint("pictures of training that validation has too", "remove them from one of the two"),
    "picture-repeated": _hint("pictures that are there a second time", "remove the copies"),
    "class-conflict": _hint("pictures that are there a second time, with other classes", "see which is right"),
    "class-unused": _hint("classes that nothing to learn from has", "remove them from the list, or annotate some"),
    "class-first": _hint(
        "lists whose class number 0 is never used, the last one is", "if numbers begin at 1, mend them"
    ),
    "class-rare": _hint("classes with less than a fiftieth of the most frequent", "add some, or weigh the classes"),
    "box-same": _hint("boxes of the class and the place of another", "remove them if they are one object"),
    "box-rival": _hint("boxes that one of another class covers almost exactly", "see which class is right"),
    "box-tiny": _hint("boxes with a side of less than 3 pixels", "see whether they are slips of the hand"),
}
"""All that can be wrong, in the order of reports."""


class Faults:
    """A collection of faults: all are counted, and of each kind the first `KEPT` are kept."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.file: Path | None = None
        """In which they are, where that is one of several in a folder."""
        self._examples: dict[str, list[Fault]] = {}

    def add(self, kind: str, where: str, what: str = "", box: tuple[float, ...] | None = None) -> None:
        """Note one fault."""
        self.counts[kind] += 1
        examples = self._examples.setdefault(kind, [])
        if len(examples) < KEPT:
            examples.append(Fault(kind, where, what, KINDS[kind].fatal, box))

    def extend(self, faults: Iterable[Fault]) -> None:
        """Note many."""
        for fault in faults:
            self.add(fault.kind, fault.where, fault.what, fault.box)

    def __iter__(self) -> Iterator[Fault]:
        """Those that were kept, kind by kind in the order of `KINDS`."""
        for kind in KINDS:
            yield from self._examples.get(kind, ())

    @property
    def fatal(self) -> int:
        """How many make the data unusable."""
        return sum(number for kind, number in self.counts.items() if KINDS[kind].fatal)

    def notes(self, *, hints: bool = False) -> tuple[str, ...]:
        """A sentence for each kind of what was dropped or clipped, and where `hints` are asked for of those."""
        return tuple(
            f"{about.counted(self.counts[kind])}, {about.remedy}: {_listed(self._examples[kind], 3)}"
            for kind, about in KINDS.items()
            if not about.fatal and (hints or not about.hint) and self.counts[kind]
        )

    def hints(self) -> tuple[str, ...]:
        """A sentence for each kind of what may be meant so."""
        return tuple(
            f"hint: {about.counted(self.counts[kind])}: {_listed(self._examples[kind], 3)}; {about.remedy}"
            for kind, about in KINDS.items()
            if about.hint and self.counts[kind]
        )

    def refuse(self, where: object) -> None:
        """Raise DataError if there is a fatal fault: how many of each kind, the first five, and what to do."""
        kinds = {kind: about for kind, about in KINDS.items() if about.fatal and self.counts[kind]}
        if not kinds:
            return
        what = ", ".join(about.counted(self.counts[kind]) for kind, about in kinds.items())
        remedy = "; ".join(about.remedy for about in kinds.values())
        if len(kinds) > 1:
            what = f"{self.fatal} faults ({what})"
        first = [fault for fault in self if fault.fatal]
        raise DataError(f"{what}: {_listed(first, 5, self.fatal)}", where=where, remedy=remedy)


def _listed(faults: list[Fault], limit: int, number: int | None = None) -> str:
    shown = "; ".join(f"{fault.where} ({fault.what})" if fault.what else fault.where for fault in faults[:limit])
    return shown + "; ..." * ((number or len(faults)) > limit)
