"""Folders that were taken for classes and are none: parts of a data set, kinds of files, or a folder in between."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from patchform.data.checks.base import Check, Subject
from patchform.data.dataset import tasks_of
from patchform.data.faults import Faults
from patchform.data.listing import Listing, quoted

_PARTS = {
    *("train", "training", "trainset", "trainval", "val", "valid", "validation", "validate", "dev", "devel", "eval"),
    *("evaluation", "test", "testing", "testset", "holdout", "heldout", "fold", "split", "subset", "minival"),
}
_KINDS = {
    *("images", "imgs", "img", "image", "jpegimages", "leftimg", "pictures", "photos", "masks", "labels", "labeltxt"),
    *("annotations", "annotation", "annots", "gt", "gtfine", "groundtruth", "segmentationclass", "segmentationobject"),
    *("imagesets", "bboxes", "json", "jsons", "xml", "xmls", "videos", "clips", "rawframes", "frames"),
}
_BESIDE = {"set", "sets", "data", "dataset", "part", "new", "final", "all", "raw", "orig", "original", "hold", "held"}
_BESIDE |= {"out", "bit", "rgb", "coco", "voc", "yolo"}
"""Words that stand beside those above, and may be classes on their own."""


def parts(subject: Subject, faults: Faults) -> None:
    """Classes that are all called like parts of a data set or kinds of files."""
    words = [set(re.findall("[a-z]+", name.lower())) for name in subject.listing.classes]
    if words and all(own & (_PARTS | _KINDS) and own <= _PARTS | _KINDS | _BESIDE for own in words):
        tasks = tasks_of(subject.listing.root, None, "its layout")
        what = f"these are data for {tasks}" if tasks else _below(subject.listing)
        faults.add("class-part", quoted(subject.listing.classes), what)


def _below(listing: Listing) -> str:
    """What would be the classes, if these are parts."""
    names = Counter(name for folders in _folders(listing)[0].values() for name in folders)
    return f"below them are {quoted(sorted(names))}" if names else ""


def nested(subject: Subject, faults: Faults) -> None:
    """A single class that holds folders and no picture: they are the classes."""
    folders, direct = _folders(subject.listing)
    if len(subject.listing.classes) == 1 and not direct:
        for name, inside in folders.items():
            if len(inside) > 1:
                faults.add("class-nested", f'class "{name}"', f"it holds the folders {quoted(sorted(inside))}")


def repeated(subject: Subject, faults: Faults) -> None:
    """Classes whose folders hold folders of the same names, and no picture beside these."""
    if faults.counts["class-part"]:  # which says more
        return
    folders, direct = _folders(subject.listing)
    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    for name, inside in folders.items():
        if name not in direct and len(inside) > 1:
            groups[frozenset(inside)].append(name)
    for shared, names in groups.items():
        if len(names) > 1:
            faults.add("class-repeats", f"classes {quoted(names)}", f"each holds the folders {quoted(sorted(shared))}")


def _folders(listing: Listing) -> tuple[dict[str, set[str]], set[str]]:
    """Of each class folder the folders in it, and those that hold items themselves. Both are empty without such."""
    folders: dict[str, set[str]] = defaultdict(set)
    direct: set[str] = set()
    root = f"{listing.root}/"
    for item in listing.items:
        path = str(item.path).removeprefix(root).split("/")
        if len(item.classes) != 1 or path[0] != listing.classes[item.classes[0]]:
            return {}, set()
        if len(path) > 2:
            folders[path[0]].add(path[1])
        else:
            direct.add(path[0])
    return folders, direct


ALL = tuple(Check(function, training=True) for function in (parts, nested, repeated))
