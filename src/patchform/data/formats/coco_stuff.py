"""COCO-Stuff's json: regions of all pictures of a part in one file, drawn into masks when they are needed.

    annotations/stuff_train2017.json   annotations/stuff_val2017.json   train2017/  val2017/   (or images/train2017/)

Regions are run lengths, compressed or not, or polygons; in the order of the file, each covers those before it. Pixels
of no region, and of classes that `data.classes` does not name, are ignored. The category "other" is what COCO calls
things: a class, unless it is left out (Caesar et al. 2018, "COCO-Stuff"; https://cocodataset.org/#format-data).
Instances and panoptic segments are not read as masks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from patchform.data.annotations import class_table
from patchform.data.faults import Faults
from patchform.data.formats.base import Format, Parts
from patchform.data.json_lists import elements
from patchform.data.listed_names import NearNames, inside, is_file
from patchform.data.listing import (
    RLE,
    TRAIN,
    VALIDATION,
    Item,
    Listing,
    MaskCodes,
    PolygonMask,
    Segmentation,
    quoted,
    shortened,
)
from patchform.errors import DataError, UsageError
from patchform.records import IGNORED
from patchform.settings import DataSettings

_PREFIX = "stuff_"


class CocoStuff(Format):
    """COCO-Stuff's json: regions of all pictures of a part in one file, drawn into masks when they are needed."""

    tasks = ("semantic_segmentation",)
    layout = "COCO-Stuff's annotations/stuff_*.json beside its pictures"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is such a file, or a folder with one in its annotations/."""
        return _is_list(path) or bool(_lists(path))

    def parts(self, path: Path) -> Parts | None:
        """The lists of a folder whose names say that they are for training and for validation."""
        files = _lists(path)
        train, validation = (_named(files, names) for names in (TRAIN, VALIDATION))
        return (train, validation) if train else None

    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """List the pictures with their regions. `settings.classes` says which count, in their order.

        Raises:
            DataError: no JSON, several files, a picture that is not there, regions that are not what the format says.
            UsageError: settings for masks that are pictures.
        """
        for name in ("zero", "colors", "ignore", "balanced"):
            if getattr(settings, name) != getattr(DataSettings(), name):
                raise UsageError(f"data.{name} is for other data", where=path, remedy="leave it out for COCO-Stuff")
        files = [path] if path.is_file() else _lists(path)
        if len(files) != 1:
            names = quoted([file.name for file in files])
            raise DataError(
                f"{len(files)} lists: {names}", where=path, remedy="set data.path and data.validation to files"
            )
        file = files[0]
        pictures: dict[Any, Mapping[str, Any]] = {}
        regions: dict[Any, list[tuple[Any, Segmentation]]] = {}
        categories: dict[Any, str] = {}
        for key, record in elements(file):
            if key not in ("images", "annotations", "categories") or record is None:
                continue
            try:
                if key == "images":
                    pictures[record["id"]] = record
                elif key == "categories":
                    categories[record["id"]] = str(record["name"])
                else:
                    outline = _outline(record["segmentation"])
                    regions.setdefault(record["image_id"], []).append((record["category_id"], outline))
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"not what the format says: {str(record)[:80]} ({error})", where=f"{file}, {key}"
                ) from None
        if not categories or not pictures:
            raise DataError("no categories or no images", where=file, remedy="see cocodataset.org/#format-data")
        if unknown := [id_ for id_ in regions if id_ not in pictures]:
            raise DataError(f"regions of pictures that are not listed: {quoted(unknown)}", where=file)
        order, table, notes = class_table(tuple(categories.values()), settings, classes, file)
        if len(order) > IGNORED:
            raise DataError(f"{len(order)} classes, masks can have {IGNORED}", where=file)
        indices = {id_: IGNORED if table[name] < 0 else table[name] for id_, name in categories.items()}
        folder, items = _folder(file), []
        near = NearNames(folder)
        for id_, record in pictures.items():
            listed = str(record.get("file_name", ""))
            name = inside(listed, folder) or ""
            if not name or not is_file(folder / name):
                what = f"no picture {shortened(listed) or id_}"
                raise DataError(what, where=folder, remedy=near.offer(listed) or "put the pictures there")
            segments = regions.get(id_, [])
            if unlisted := [category for category, _ in segments if category not in indices]:
                raise DataError(f"regions of an unknown category: {quoted(unlisted)}", where=f"{file}, picture {name}")
            size = (int(record["height"]), int(record["width"]))
            numbers = tuple(indices[category] for category, _ in segments)
            mask = PolygonMask(tuple(outline for _, outline in segments), numbers, size)
            items.append(Item(folder / name, (), mask))
        notes += ("pixels of no region are ignored",)
        return Listing(classes=order, items=tuple(items), root=folder, notes=notes, mask_codes=MaskCodes())


def _is_list(path: Path) -> bool:
    return path.suffix.lower() == ".json" and path.name.lower().startswith(_PREFIX) and path.is_file()


def _lists(path: Path) -> list[Path]:
    folder = path / "annotations"
    return [file for file in sorted(folder.iterdir()) if _is_list(file)] if folder.is_dir() else []


def _named(files: list[Path], names: tuple[str, ...]) -> Path | None:
    """The file with the first of these words in its name."""
    matches = (file for name in names for file in files if name in re.split("[^a-z]+", file.stem.lower()))
    return next(matches, None)


def _folder(file: Path) -> Path:
    """Where the pictures of stuff_train2017.json lie: in train2017/, or in images/train2017/."""
    home, part = file.parent.parent, file.stem[len(_PREFIX) :]
    for folder in (home / part, home / "images" / part):
        if folder.is_dir():
            return folder
    raise DataError("no folder of pictures", where=file, remedy=f"make {home / part}")


def _outline(segmentation: Any) -> Segmentation:
    """Raises KeyError, TypeError or ValueError when it is none."""
    if isinstance(segmentation, list):
        polygons = tuple(np.array(polygon, np.float32).reshape(-1, 2) for polygon in segmentation)
        if not polygons or any(len(polygon) < 3 or not np.isfinite(polygon).all() for polygon in polygons):
            raise ValueError("polygons of fewer than 3 points")
        return polygons
    counts, (height, width) = segmentation["counts"], segmentation["size"]
    lengths = counts.encode("ascii") if isinstance(counts, str) else tuple(int(count) for count in counts)
    return RLE(lengths, (int(height), int(width)))
