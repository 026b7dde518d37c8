"""What is wrong with a data set and what to do about it; and pictures of it. Nothing is ever written into one.

A diagnosis runs the steps of a training: the same listing, the same decoder, the same check. Where a training stops, it
goes on, so that all is found at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from patchform import drawing, lookup
from patchform.data.checks import amounts
from patchform.data.checks.base import look
from patchform.data.checks.copies import overlap
from patchform.data.checks.examination import examine
from patchform.data.dataset import open_evaluation, open_training, serves, split_listing, unknown
from patchform.data.faults import KINDS, Fault, Faults
from patchform.data.images import decode
from patchform.data.listing import Listing
from patchform.descriptions import Preprocessing
from patchform.errors import DataError, UsageError
from patchform.records import Sample
from patchform.settings import DataSettings
from patchform.tasks.base import Task, find_task

SHOWN = 5
"""Faults of a kind that are listed and drawn."""
CELL, MARGIN = 480, 8
"""Pixels of a picture's side in a sheet, and between two."""
_RED, _WHITE, _GREY = (230, 20, 20), (255, 255, 255), (150, 150, 150)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is learnt from, or validated on."""

    name: str
    """ "train" or "validation"."""
    listing: Listing | None
    """With the pictures that cannot be used; None where it cannot be listed."""
    faults: Faults
    """Hints among them."""
    notes: tuple[str, ...]
    """Things that are no faults, a sentence each."""
    summary: tuple[str, ...] = ()
    """How much there is, a line each: sizes, balance, whether it is little."""
    numbers: tuple[int, ...] = ()
    """Of each class: pictures, objects or pixels."""
    usable: Listing | None = None
    """Without the pictures that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All that was found."""

    path: Path
    task: str
    parts: tuple[Part, ...]
    preprocessing: Preprocessing
    """How pictures were decoded; they were left in their own size."""

    @property
    def fatal(self) -> int:
        """Faults that keep the data from being used."""
        return sum(part.faults.fatal for part in self.parts)

    @property
    def hints(self) -> int:
        """Things that may be meant so."""
        return sum(part.faults.counts[kind] for part in self.parts for kind, about in KINDS.items() if about.hint)

    def by_kind(self) -> list[tuple[str, int, list[tuple[str, Fault]]]]:
        """Of each kind that occurs: how many, and the first few with their parts; the worst first."""
        rows = []
        for kind in sorted(KINDS, key=lambda kind: (KINDS[kind].hint, not KINDS[kind].fatal)):
            if number := sum(part.faults.counts[kind] for part in self.parts):
                first = [(part.name, fault) for part in self.parts for fault in part.faults if fault.kind == kind]
                rows.append((kind, number, first[:SHOWN]))
        return rows

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "data": str(self.path),
            "task": self.task,
            "faults": self.fatal,
            "parts": {
                part.name: {
                    "pictures": len(part.listing or ()),
                    "classes": dict(zip(part.listing.classes, part.numbers)) if part.listing else {},
                    "summary": part.summary,
                    "notes": part.notes,
                }
                for part in self.parts
            },
            "found": [
                {
                    "kind": kind,
                    "count": number,
                    **KINDS[kind]._asdict(),
                    "first": [{"part": part, "where": fault.where, "what": fault.what} for part, fault in first],
                }
                for kind, number, first in self.by_kind()
            ],
        }


# ---------------------------------------------------------------------------------------------------------- diagnosis


def task_of(path: str | Path) -> str:
    """The task that data are for, as their layout says, before anything is read.

    Raises:
        DataError: nothing there, or nothing that is known.
        UsageError: a layout that serves several.
    """
    tasks = [find_task(name) for name in lookup.names("tasks")]
    for certainty in ("by layout", "last"):
        names = [task.name for task in tasks if task.recognised == certainty and serves(path, task.name, sure=True)]
        if names:
            break
    if len(names) > 1:
        raise UsageError(f"the layout of {path} serves {' and '.join(names)}", remedy="name the task: --task")
    if not names:
        raise unknown(Path(path).expanduser())
    return names[0]


def diagnose(
    settings: DataSettings,
    *,
    task: str | None = None,
    preprocessing: Preprocessing | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Find all that is wrong with a data set.

    Args:
        settings: `path`, and how it is read.
        task: what it is for; default: as its layout says (`task_of`), and what is in it (`Task.refined`).
        preprocessing: channels, bits and frames count.
        progress: called with (part, done, all) after each picture.

    Raises:
        DataError: nothing there, or nothing that is known.
        UsageError: a layout that serves several tasks, or settings that do not go with the data.
    """
    if settings.path is None:
        raise UsageError("no data given", remedy="name a folder")
    path, faults = Path(settings.path).expanduser(), Faults()
    chosen = task or task_of(path)
    kind = find_task(chosen)
    if not serves(path, chosen):
        open_training(settings, task=chosen)  # says what was looked for
    preprocessing = whole(preprocessing or Preprocessing(), chosen)
    listing, validation = _opened(settings, chosen, faults)
    if task is None and listing is not None:
        kind = find_task(chosen := kind.refined(listing))
    if listing is not None and validation is None:
        _hold_out(listing, settings, faults)
    parts = [_examined("train", kind, listing, faults, preprocessing, progress)]
    if listing is not None and validation is not None:
        faults, held_out = Faults(), None
        try:
            held_out = open_evaluation(validation, settings, listing.classes, chosen, faults=faults)
        except DataError as error:
            _note(error, faults)
        parts.append(_examined("validation", kind, held_out, faults, preprocessing, progress))
        if parts[0].usable is not None and parts[1].usable is not None:
            for name, other in overlap(parts[0].usable, parts[1].usable):
                faults.add("picture-shared", other, f"as {name} of train")
    return Diagnosis(path=path, task=chosen, parts=tuple(parts), preprocessing=preprocessing)


def whole(preprocessing: Preprocessing, task: str) -> Preprocessing:
    """How pictures, or clips, are looked at in their own size."""
    frames = preprocessing.frames or find_task(task).frames
    return replace(preprocessing, resize="native", frames=frames)


def _opened(settings: DataSettings, task: str, faults: Faults) -> tuple[Listing | None, Path | None]:
    """What is learnt from, if it can be listed, and where the pictures to validate on lie."""
    try:
        return open_training(settings, task=task, faults=faults)
    except DataError as error:
        _note(error, faults)
    try:  # what is behind an empty class
        return open_training(replace(settings, allow_empty_class=True), task=task, faults=Faults())
    except DataError:
        return None, None


def _hold_out(listing: Listing, settings: DataSettings, faults: Faults) -> None:
    """Where there is no part to validate on, one must be made of what there is."""
    if listing.items and 0 < settings.validation_share < 1:
        try:
            split_listing(listing, settings.validation_share, 0)
        except DataError:
            faults.add("nothing-to-hold-out", str(listing.root), "no class has two")


def _note(error: DataError, faults: Faults) -> None:
    faults.add("layout", str(error.where or "the data"), "; ".join(part for part in (error.what, error.remedy) if part))


def _examined(
    name: str,
    task: Task,
    listing: Listing | None,
    faults: Faults,
    preprocessing: Preprocessing,
    progress: Progress | None,
) -> Part:
    """Every picture decoded, and hints on what is annotated."""
    if listing is None or not listing.items:
        if listing is not None and not faults.fatal:
            faults.add("layout", str(listing.root), f"no {listing.thing}")
        return Part(name=name, listing=None, faults=faults, notes=())
    training = name == "train"
    look(task.checks, task.subject(listing, training=training), faults, "listed")
    report = examine(
        listing, preprocessing, progress=None if progress is None else lambda done, every: progress(name, done, every)
    )
    faults.extend((*report.faults, *report.hints))
    subject = task.subject(listing, training=training, report=report)
    look(task.checks, subject, faults, "opened", "searched")
    return Part(
        name=name,
        listing=listing,
        faults=faults,
        notes=listing.notes + report.notes,
        summary=tuple(amounts.summary(subject, task.unit)),
        numbers=subject.numbers,
        usable=subject.usable,
    )


# ----------------------------------------------------------------------------------------------------------- pictures


def draw_sample(task: Task, sample: Sample, classes: Sequence[str]) -> Image.Image:
    """A sample of training or validation with its truth on it."""
    assert sample.target is not None
    return task.draw(sample.image, sample.target, classes)


def draw_faults(diagnosis: Diagnosis) -> list[tuple[str, Fault, Image.Image]]:
    """The first few of each kind that can be shown, as (part, fault, picture): its truth, or the box in question."""
    drawn = []
    task = find_task(diagnosis.task)
    for part in diagnosis.parts:
        if part.listing is None:
            continue
        indices = {part.listing.name(index): index for index in range(len(part.listing))}
        pictures = task.evaluation_samples(part.listing, diagnosis.preprocessing)
        for kind in KINDS:
            for fault in [fault for fault in part.faults if fault.kind == kind][:SHOWN]:
                index = indices.get(fault.where, indices.get(fault.where.rpartition(", ")[0]))
                if index is None:
                    continue
                try:
                    picture = _drawn(fault, task, part.listing, pictures, index, diagnosis.preprocessing)
                except DataError:
                    continue  # it cannot be read, which is its fault
                lines = [drawing.Line(f"{part.name}: {fault.where}"), drawing.Line(f"{kind}: {fault.what}")]
                pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
                drawn.append((part.name, fault, drawing.caption(pixels, lines)))
    return drawn


def _drawn(
    fault: Fault, task: Task, listing: Listing, pictures: Any, index: int, preprocessing: Preprocessing
) -> Image.Image:
    if fault.box is not None:
        return _boxed(drawing.to_picture(decode(listing.items[index].path, preprocessing)), fault.box)
    try:
        return draw_sample(task, pictures[0, index], listing.classes)
    except DataError:  # of the truth
        return drawing.to_picture(decode(listing.items[index].path, preprocessing))


def _boxed(picture: Image.Image, box: Sequence[float]) -> Image.Image:
    """A box on its picture, on a page that is as large as it takes, but no more than half a picture larger."""
    if not all(math.isfinite(corner) for corner in box):
        return picture
    width, height = picture.size
    spare = max(width, height) / 2
    left, right = (min(max(corner, -spare), width + spare) for corner in sorted(box[0::2]))
    top, bottom = (min(max(corner, -spare), height + spare) for corner in sorted(box[1::2]))
    line = max(2, max(width, height) // 200)
    x, y = math.ceil(max(0, line - left)), math.ceil(max(0, line - top))
    size = (x + math.ceil(max(width, right + line)), y + math.ceil(max(height, bottom + line)))
    page = Image.new("RGB", size, _GREY)
    page.paste(picture, (x, y))
    pen, corners = ImageDraw.Draw(page), (left + x, top + y, right + x, bottom + y)
    pen.rectangle((corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1), outline=_WHITE, width=line + 2)
    pen.rectangle(corners, outline=_RED, width=line)
    return page


def sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in rows, each made smaller to fit a square of `CELL` pixels."""
    columns = math.ceil(math.sqrt(len(pictures)))
    small = [picture.copy() for picture in pictures]
    for picture in small:
        picture.thumbnail((CELL, CELL))
    rows = [small[start : start + columns] for start in range(0, len(small), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    step = max(picture.width for picture in small) + MARGIN
    page = Image.new("RGB", (MARGIN + step * columns, MARGIN + sum(heights) + MARGIN * len(rows)), _WHITE)
    top = MARGIN
    for row, height in zip(rows, heights):
        for column, picture in enumerate(row):
            page.paste(picture, (MARGIN + column * step, top))
        top += height + MARGIN
    return page
