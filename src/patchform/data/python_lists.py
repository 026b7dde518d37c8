"""Python objects as listings: what the target of an item means, for each kind of target.

* a class: a whole number or a name; several classes, where `data.labels` is multi: a list of them;
* a mask: whole numbers (H, W), `data.ignore` (255) counting for nothing, or a picture or path of such;
* objects: a dict as torchvision's detectors take it: `boxes` (N, 4) x1, y1, x2, y2 in pixels and `labels` (N,), with
  `masks` (N, H, W) where there are outlines and `iscrowd` (N,) where regions count for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from patchform.data import python_sets
from patchform.data.annotations import Annotations, Picture, annotate, notes_on
from patchform.data.faults import Faults
from patchform.data.images import upright_size
from patchform.data.known_classes import with_unknown
from patchform.data.listing import (
    RLE,
    Item,
    Listing,
    MaskCodes,
    Medium,
    by_name,
    check_names,
    chosen_names,
    mapping_note,
    ordered,
)
from patchform.data.python_sets import Held, class_names
from patchform.errors import DataError, UsageError
from patchform.geometry.masks import from_dense, to_runs
from patchform.records import IGNORED
from patchform.settings import DataSettings


def labelled(path: Path, settings: DataSettings, classes: tuple[str, ...] | None, medium: Medium) -> Listing:
    """Items with their classes, which are the names of the object, else all that occur.

    Args:
        path: of the object.
        settings: `labels` is used.
        classes: names that give the indices (training's, or the model's).
        medium: what items are.

    Raises:
        DataError: a target that is no class, with its index; several where there is to be one.
    """
    one = python_sets.held(path)
    rows = [class_names(one.target(index), one, index) for index in range(len(one.sums))]
    if settings.labels == "single" and (other := [index for index, names in enumerate(rows) if len(names) != 1]):
        what = f"item {other[0]} of the data set has {len(rows[other[0]])} classes"
        raise DataError(what, where=path, remedy="give one, or set data.labels to multi")
    order, indices = _order(path, one, (name for names in rows for name in names), classes)
    items = (
        Item(_place(path, one, index), tuple(sorted({indices[name] for name in names})))
        for index, names in enumerate(rows)
    )
    notes = one.notes() + (mapping_note(order) if one.names is None else ())
    return Listing(classes=order, items=tuple(items), root=path, notes=notes, medium=medium, content=_content(path))


def unlabelled(path: Path) -> Listing:
    """Items without classes."""
    one = python_sets.held(path)
    items = tuple(Item(_place(path, one, index), ()) for index in range(len(one.sums)))
    return Listing(classes=(), items=items, root=path, notes=one.notes(), content=_content(path))


def masked(path: Path, settings: DataSettings, classes: tuple[str, ...] | None) -> Listing:
    """Items with masks, whose numbers stand for the names of the object, of `data.classes`, or of the model.

    Raises:
        DataError: no names, or too many.
    """
    one = python_sets.held(path)
    names = one.names or (chosen_names(settings.classes) if settings.classes else classes)
    if not names or len(names) > IGNORED:
        what = f"{len(names)} classes, masks can have {IGNORED}" if names else "no names of classes"
        raise DataError(what, where=path, remedy='give them in the order of the numbers: classes=["sky", "road"]')
    if settings.ignore < len(names):
        raise UsageError(f'data.ignore {settings.ignore} is the number of class "{names[settings.ignore]}"')
    check_names(names, path)
    order = with_unknown(names, classes) if classes else names
    indices = by_name(names, order, path)
    ids = (*((number, indices[name]) for number, name in enumerate(names)), (settings.ignore, IGNORED))
    items = []
    for index in range(len(one.sums)):
        place = _place(path, one, index)
        items.append(Item(place, (), place.with_name(f"{place.name}{python_sets.MASK}")))
    return Listing(
        classes=order,
        items=tuple(items),
        root=path,
        notes=one.notes(),
        mask_codes=MaskCodes(ids=ids),
        content=_content(path),
    )


def annotated(path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
    """Items with their objects.

    Raises:
        DataError: a target that is none of objects, with its index.
    """
    one = python_sets.held(path)
    targets = [_objects(one.target(index), one, index) for index in range(len(one.sums))]
    order, indices = _order(path, one, (name for target in targets for name in target.names), classes)
    pictures = []
    for index in range(len(one.sums)):
        place = _place(path, one, index)
        pictures.append(Picture(place, place.name, upright_size(place)))
    counts = [len(target.names) for target in targets]
    owner = np.repeat(np.arange(len(targets)), counts)
    outlines = [outline for target in targets for outline in target.outlines]
    rows = Annotations(
        boxes=np.concatenate([target.boxes for target in targets]),
        classes=np.array([indices[name] for target in targets for name in target.names], np.int64),
        pictures=owner,
        location=lambda row: f"item {owner[row]}",
        crowd=np.concatenate([target.crowd for target in targets]),
        segmentations=outlines if any(outline is not None for outline in outlines) else None,
    )
    items = annotate(pictures, rows, faults)
    notes = one.notes() + notes_on(items, "crowds")
    return Listing(classes=order, items=items, root=path, notes=notes, content=_content(path), sizes_annotated=False)


class _Objects(NamedTuple):
    """A target of N objects."""

    boxes: np.ndarray
    """(N, 4) float64 xyxy pixels."""
    names: list[str]
    crowd: np.ndarray
    """(N,) bool."""
    outlines: Sequence[RLE | None]


def _objects(target: Any, one: Held, index: int) -> _Objects:
    """The objects of a target, a dict or a record. Raises DataError."""
    values = target._asdict() if hasattr(target, "_asdict") else target
    known = values if isinstance(values, Mapping) else {}
    labels = known.get("labels", known.get("classes"))
    if labels is None or "boxes" not in known:
        what = f"item {index} of the data set: its target is a {type(target).__name__} without boxes and labels"
        raise DataError(what, remedy='give {"boxes": (N, 4) x1 y1 x2 y2 in pixels, "labels": (N,)}')
    names = class_names(labels, one, index) if len(labels) else []
    boxes = np.asarray(known["boxes"], np.float64)
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    crowd, masks = known.get("iscrowd", known.get("crowd")), known.get("masks")
    crowds = np.zeros(len(names), bool) if crowd is None else np.asarray(crowd, bool)
    outlines = [None] * len(names) if masks is None else _outlines(masks, index)
    if boxes.shape != (len(names), 4) or len(crowds) != len(names) or len(outlines) != len(names):
        what = f"item {index} of the data set: boxes {boxes.shape} and {len(outlines)} masks for {len(names)} labels"
        raise DataError(what, remedy="give one box, and one mask if any, for each label")
    return _Objects(boxes, names, crowds, outlines)


def _outlines(masks: Any, index: int) -> list[RLE]:
    """Run lengths of dense masks (N, H, W). Raises DataError."""
    dense = torch.as_tensor(masks)
    if dense.dim() != 3:
        what = f"item {index} of the data set: masks of shape {tuple(dense.shape)}"
        raise DataError(what, remedy="give (N, H, W)")
    size = (dense.shape[1], dense.shape[2])
    return [RLE(runs, size) for runs in to_runs(from_dense(dense))]


def _order(
    path: Path, one: Held, found: Any, classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes, and the index of each name."""
    names: Sequence[str] = one.names if one.names is not None else ordered(found)
    if one.names is not None and (unknown := sorted(set(found) - set(names))):
        raise DataError(f'a class "{unknown[0]}" that is none of the names given', where=path)
    check_names(names, path)
    numbers = one.names is None and all(name.isdecimal() for name in names)
    if numbers and names and classes and not set(names) & set(classes):
        what = "the classes of the data set are numbers, and those known have names"
        raise DataError(what, where=path, remedy=f"say what they stand for: classes={[*classes[:5]]}")
    order = tuple(names) if not classes else with_unknown(names, classes)
    return order, by_name(names, order, path)


def _place(path: Path, one: Held, index: int) -> Path:
    return path / python_sets.name(index, len(one.sums))


def _content(path: Path) -> str:
    """The digest in its name."""
    return path.name.rpartition("-")[2]
