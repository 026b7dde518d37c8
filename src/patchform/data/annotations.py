"""Annotated objects of a whole part at once: from columns as they are written to checked records of each picture.

Formats read rows; what may be wrong with a box or an outline is found here, in one place, column by column.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from patchform.data.checks import notation
from patchform.data.faults import KEPT, Faults
from patchform.data.images import upright_size
from patchform.data.known_classes import with_unknown
from patchform.data.listed_names import NearNames, with_offer
from patchform.data.listing import (
    RLE,
    Item,
    Objects,
    Segmentation,
    by_name,
    check_names,
    chosen_names,
    quoted,
    shortened,
)
from patchform.data.outlines import runs_of
from patchform.errors import DataError, UsageError
from patchform.settings import DataSettings

TOLERANCE = 1.0
"""A box that leaves its picture by no more pixels was rounded; it is cut off all the same."""
SUSPECT_SHARE = 0.2
"""When more of the boxes leave their pictures, their numbers mean something else."""
_AT_ONCE = 1 << 15
"""Outlines that are looked at together."""
_SAMPLE = 2000
"""Boxes that are compared with their outlines, evenly picked."""
_NOTABLE = 0.01
"""Pixels cut off that are counted."""
_LEAST_SIDE = 0.5
"""Pixels: nobody draws a smaller box."""


class Picture(NamedTuple):
    """A listed picture."""

    path: Path
    name: str
    """As it is listed, for messages."""
    size: tuple[int, int] | None
    """(height, width) as annotated; None: that of the file."""
    id: int | str | None = None


class Alternative(NamedTuple):
    """Another notation that boxes may be written in."""

    notation: str
    """In words: "x1, y1, x2, y2"."""
    boxes: np.ndarray
    """(N, 4) float64 xyxy pixels: what they would be."""


class Annotations(NamedTuple):
    """All objects of a part, N of them, as annotated."""

    boxes: np.ndarray
    """(N, 4) float64 xyxy pixels; NaN where it is a fault of its own."""
    classes: np.ndarray
    """(N,) int64."""
    pictures: np.ndarray
    """(N,) int64 indices into the pictures."""
    location: Callable[[int], str]
    """Where a row is, in words."""
    crowd: np.ndarray | None = None
    """(N,) bool."""
    areas: np.ndarray | None = None
    """(N,) float64, NaN where there is none."""
    segmentations: Sequence[Segmentation | None] | None = None
    alternatives: tuple[Alternative, ...] = ()
    """In what they may be written instead, the most particular first."""


# ------------------------------------------------------------------------------------------------------------ classes


def class_table(
    names: Sequence[str], settings: DataSettings, classes: tuple[str, ...] | None, where: Path
) -> tuple[tuple[str, ...], dict[str, int], tuple[str, ...]]:
    """Order of the classes, index of each name of the data (-1: left out), and notes.

    Args:
        names: those of the data, in its order.
        settings: `classes` chooses some of them, in its order.
        classes: names that give the indices (training's, or the model's); others come after them.
        where: the data, for messages.

    Raises:
        UsageError: a chosen class that the data do not have.
        DataError: names that differ by case or spaces only.
    """
    check_names(names, where)
    chosen: Sequence[str] = names
    if settings.classes is not None:
        chosen = chosen_names(settings.classes)
        for name in chosen:
            if name not in names and (classes is None or name not in classes):
                near = difflib.get_close_matches(name, names, 1)
                what = f'data.classes: no class "{name}" in {where}'
                raise UsageError(what, remedy=f'is it "{near[0]}"?' if near else f"there are {quoted(names)}")
    left_out = [name for name in names if name not in chosen]
    own = [name for name in names if name in chosen]
    order = tuple(chosen) if classes is None else with_unknown(own, classes)
    indices = by_name(own, order, where)
    notes = (f"classes left out, as data.classes says: {quoted(left_out)}",) if left_out else ()
    return order, {name: indices[name] if name in chosen else -1 for name in names}, notes


# ----------------------------------------------------------------------------------------------------------- pictures


def present(
    pictures: Sequence[Picture | None], settings: DataSettings, faults: Faults, near: NearNames
) -> list[Picture | None]:
    """The same pictures with their sizes, None for those that are not there or, if its size is needed, unreadable.

    They are fatal faults unless `settings.skip_bad` allows for so many. Of what is not there, names from `near` are
    offered.
    """
    folders: dict[str, set[str]] = {}
    sized: list[Picture | None] = [None] * len(pictures)
    lost: list[tuple[str, str, str]] = []
    for index, picture in enumerate(pictures):
        if picture is None:
            continue
        folder, name = os.path.split(picture.path)
        if folder not in folders:
            folders[folder] = _entries(folder)
        try:
            if name not in folders[folder]:
                raise FileNotFoundError
            sized[index] = picture if picture.size else picture._replace(size=upright_size(picture.path))
        except FileNotFoundError:
            offer = near.offer(picture.name) if len(lost) < KEPT else ""
            what = with_offer(f"looked in {shortened(folder)}", offer)
            lost.append(("picture-missing", shortened(picture.name), what))
        except DataError as error:
            lost.append(("picture-bad", picture.name, error.what))
    allowed = len(lost) <= settings.skip_bad * len(pictures)
    for kind, name, what in lost:
        faults.add("picture-skipped" if allowed else kind, name, what)
    return sized


def _entries(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


# ------------------------------------------------------------------------------------------------------------ objects


def annotate(pictures: Sequence[Picture | None], rows: Annotations, faults: Faults) -> tuple[Item, ...]:
    """The items of all pictures that are there, with their objects in the order of the rows.

    Boxes with a negative side are fatal faults; empty ones and those wholly outside are dropped, those partly outside
    clipped, and either counted. An outline that cannot be used is dropped and counted, and its box is kept. Objects of
    class -1 and of pictures that are None are dropped without a word.
    """
    sizes = np.array([picture.size if picture and picture.size else (0, 0) for picture in pictures], np.int64)
    sizes = sizes.reshape(-1, 2)
    limits = np.tile(sizes[rows.pictures][:, ::-1], 2)  # (N, 4): width, height, width, height
    listed = np.array([picture is not None for picture in pictures], bool)[rows.pictures]
    relevant = (rows.classes >= 0) & listed
    boxes, keep = _checked_boxes(rows, limits, relevant, faults)
    outlines = None if rows.segmentations is None else list(rows.segmentations)
    if outlines is not None:
        outlined = [index for index in np.flatnonzero(keep).tolist() if outlines[index] is not None]
        row_sizes = sizes[rows.pictures]
        for start in range(0, len(outlined), _AT_ONCE):
            _check_outlines(outlines, outlined[start : start + _AT_ONCE], row_sizes, rows.location, faults)
    _check_notation(rows, outlines, limits, keep, faults)
    order = np.flatnonzero(keep)
    order = order[np.argsort(rows.pictures[order], kind="stable")]
    ends = np.bincount(rows.pictures[order], minlength=len(pictures)).cumsum().tolist()
    boxes, classes = boxes[order], rows.classes[order]
    crowd = None if rows.crowd is None else rows.crowd[order]
    areas = None if rows.areas is None else rows.areas[order].astype(np.float32)
    indices = order.tolist()
    items, start = [], 0
    for picture, end in zip(pictures, ends, strict=True):
        part = slice(start, end)
        start = end
        if picture is None or picture.size is None:
            continue
        segmentations = () if outlines is None else tuple(outlines[index] for index in indices[part])
        objects = Objects(
            boxes=boxes[part],
            classes=classes[part],
            size=picture.size,
            crowd=crowd[part] if crowd is not None and crowd[part].any() else None,
            areas=areas[part] if areas is not None and not np.isnan(areas[part]).any() else None,
            segmentations=segmentations if any(outline is not None for outline in segmentations) else None,
            id=picture.id,
        )
        items.append(Item(picture.path, tuple(sorted(set(classes[part].tolist()))), objects=objects))
    return tuple(items)


def notes_on(items: Sequence[Item], crowds: str) -> tuple[str, ...]:
    """How many pictures have no objects, and how many objects count for nothing; `crowds` says what those are."""
    empty = sum(item.objects is not None and not len(item.objects.boxes) for item in items)
    ignored = sum(
        int(item.objects.crowd.sum()) for item in items if item.objects is not None and item.objects.crowd is not None
    )
    notes = (f"{empty} of {len(items)} pictures have no object; they are kept",) if empty else ()
    return notes + ((f"{ignored} {crowds} count for nothing: neither right nor wrong",) if ignored else ())


def _checked_boxes(
    rows: Annotations, limits: np.ndarray, relevant: np.ndarray, faults: Faults
) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) float32 clipped boxes, and (N,) which are kept."""
    boxes = rows.boxes

    def note(kind: str, which: np.ndarray, why: str = "") -> None:
        for index in np.flatnonzero(which).tolist():
            faults.add(kind, rows.location(index), _numbers(boxes[index]) + why, tuple(boxes[index].tolist()))

    with np.errstate(invalid="ignore"):
        bad = relevant & (~np.isfinite(boxes).all(1) | (boxes[:, 2:] < boxes[:, :2]).any(1))
        good = relevant & ~bad
        empty = good & (boxes[:, 2:] == boxes[:, :2]).any(1)
        full = good & ~empty
        leaving = full & ((boxes < -TOLERANCE) | (boxes > limits + TOLERANCE)).any(1)
        outside = full & ((boxes[:, 2:] <= 0) | (boxes[:, :2] >= limits[:, :2])).any(1)
        clipped = np.clip(boxes, 0, limits)
        cut = full & ~outside & (np.abs(clipped - boxes) > _NOTABLE).any(1)
    note("box-bad", bad)
    if leaving.sum() > SUSPECT_SHARE * relevant.sum():
        note("box-corners", leaving, _suspicion(rows, limits, leaving))
    note("box-empty", empty)
    note("box-outside", outside)
    note("box-clipped", cut)
    rounded = np.where(full[:, None], clipped, 0).astype(np.float32)
    return rounded, full & ~outside & (rounded[:, 2:] > rounded[:, :2]).all(1)


def _check_notation(
    rows: Annotations,
    outlines: Sequence[Segmentation | None] | None,
    limits: np.ndarray,
    keep: np.ndarray,
    faults: Faults,
) -> None:
    """Note boxes whose numbers mean something else than they are read as, as they, outlines and areas show.

    `limits` (N, 4) are width, height, width, height of the pictures, `keep` (N,) which boxes are used.
    """
    boxes = rows.boxes
    counted = np.flatnonzero(keep if rows.crowd is None else keep & ~rows.crowd)
    if not len(counted) or faults.counts["box-corners"]:
        return

    def note(kind: str, wrong: np.ndarray, looked_at: np.ndarray, why: str = "") -> bool:
        many = len(wrong) > SUSPECT_SHARE * len(looked_at)
        for index in wrong.tolist() if many else ():
            faults.add(kind, rows.location(index), _numbers(boxes[index]) + why, tuple(boxes[index].tolist()))
        return many

    raw = rows.alternatives[0].boxes if rows.alternatives else boxes
    if note("box-shares", counted[notation.are_shares(boxes[counted], raw[counted], limits[counted])], counted):
        return
    sample = counted[:: -(-len(counted) // _SAMPLE)]
    shown = None if outlines is None else [outlines[index] for index in sample.tolist()]
    areas = None if rows.areas is None else rows.areas[sample]
    for other in rows.alternatives:
        fitting = notation.fit_otherwise(boxes[sample], other.boxes[sample], limits[sample], shown, areas)
        if note("box-notation", sample[fitting], sample, f", looks like {other.notation}"):
            return


def _suspicion(rows: Annotations, limits: np.ndarray, leaving: np.ndarray) -> str:
    """What the numbers look like, when most boxes that leave their picture would then be good ones."""
    limits = limits[leaving]
    for alternative in rows.alternatives:
        boxes = alternative.boxes[leaving]
        fits = (boxes >= -TOLERANCE).all(1) & (boxes <= limits + TOLERANCE).all(1)
        fits &= (boxes[:, 2:] - boxes[:, :2] >= _LEAST_SIDE).all(1)
        if fits.mean() > 0.9:
            return f", looks like {alternative.notation}"
    return ""


def _numbers(values: Iterable[float]) -> str:
    return "x1 {:g}, y1 {:g}, x2 {:g}, y2 {:g}".format(*values)


# ----------------------------------------------------------------------------------------------------------- outlines


def _check_outlines(
    outlines: list[Segmentation | None],
    which: Sequence[int],
    sizes: np.ndarray,
    location: Callable[[int], str],
    faults: Faults,
) -> None:
    """Put None in place of those that hold nothing or cannot be read, and bring in those that reach far out.

    `outlines` and `sizes` (N, 2), height and width of the pictures, are of all rows, and `which` of these are looked
    at: they all have an outline.
    """
    for index in which:
        outline = outlines[index]
        if not isinstance(outline, RLE):
            continue
        what, lengths, (height, width) = "", runs_of(outline.counts), sizes[index].tolist()
        if tuple(outline.size) != (height, width):
            what = f"for {outline.size[1]} x {outline.size[0]} pixels, the picture has {width} x {height}"
        elif lengths is None:
            what = "damaged counts"
        elif lengths.sum() != height * width:
            what = f"they add up to {lengths.sum()}, the picture has {height * width} pixels"
        elif lengths[1::2].any():
            continue
        faults.add("outline-bad" if what else "outline-degenerate", location(index), what)
        outlines[index] = None
    polygons = {index: parts for index in which if not isinstance(parts := outlines[index], RLE | None)}
    reaches = sizes.max(1)
    for index in _bad_polygons(polygons, reaches):
        reach = int(reaches[index])
        valid = [p for p in polygons[index] if len(p) >= 3 and np.isfinite(p).all() and np.ptp(p, axis=0).all()]
        if len(valid) < len(polygons[index]):
            faults.add("part-degenerate" if valid else "outline-degenerate", location(index))
        if any((polygon < -reach).any() or (polygon > 2 * reach).any() for polygon in valid):
            faults.add("outline-clipped", location(index))
            valid = [polygon.clip(-reach, 2 * reach) for polygon in valid]  # what rasterises them must stay small
        outlines[index] = tuple(valid) or None


def _bad_polygons(outlines: Mapping[int, tuple[np.ndarray, ...]], reaches: np.ndarray) -> list[int]:
    """Which rows have a polygon that holds nothing, or reaches further out of its picture than that is long."""
    polygons = [polygon for outline in outlines.values() for polygon in outline]
    owners = np.repeat(list(outlines), [len(outline) for outline in outlines.values()])
    lengths = np.array([len(polygon) for polygon in polygons])
    bad = lengths < 3
    if not bad.all():
        points = np.concatenate([polygon for polygon in polygons if len(polygon) >= 3])
        starts = np.cumsum(lengths[~bad]) - lengths[~bad]
        low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
        reach = reaches[owners[~bad], None]
        bad[~bad] = ~((low < high) & (low >= -reach) & (high <= 2 * reach)).all(1)  # True for NaN
    return sorted(set(owners[bad].tolist()))
