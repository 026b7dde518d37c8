"""COCO's json: boxes and outlines of all pictures of a part in one file.

    annotations/instances_train.json   annotations/instances_val.json   train/   val/
    annotations/instances_train2017.json                                 train2017/  (or images/train2017/)
    train/_annotations.coco.json                                         train/                      (Roboflow)
    result.json                                                          images/

Boxes are x, y, width, height in pixels of the upright picture, counted from its upper left corner. Outlines are
polygons or run lengths, compressed or not. `iscrowd` regions count for nothing. Ids of pictures, objects and classes
are any whole numbers or texts, in any order; classes are taken in the order of the list. An object without a box has
that of its outline.
(https://cocodataset.org/#format-data)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from patchform.data.annotations import annotate, class_table, notes_on, present
from patchform.data.coco_lists import CocoLists
from patchform.data.faults import Faults
from patchform.data.formats.base import Parts, WritableFormat
from patchform.data.listed_names import NearNames, is_file, is_inside
from patchform.data.listing import RLE, TRAIN, VALIDATION, Listing, Objects, Segmentation, is_hidden, quoted
from patchform.data.outlines import polygon_area, runs_of
from patchform.data.text_files import beginning
from patchform.data.writing import Copies, check_target, place_pictures, write_new
from patchform.errors import DataError
from patchform.settings import DataSettings

_OTHER, _KEYPOINTS = ("captions", "panoptic", "image_info", "stuff"), "person_keypoints"
"""How the names of other lists of annotations begin, and of one that is read where there is no other."""
_LISTS = re.compile(r'"(?:images|annotations|categories)"\s*:\s*\[')
_OTHERS = re.compile(r'"segments_info"\s*:\s*\[|"caption"\s*:(?!.*"category_id")', re.DOTALL)
"""Of lists that look alike: panoptic segments, and captions."""
_SNIFFED = 1 << 16
_PICTURES = ("images", "data", "JPEGImages")


class Coco(WritableFormat):
    """COCO's json: boxes and outlines of all pictures of a part in one file."""

    tasks = ("detection", "instance_segmentation")
    layout = "COCO's json beside its pictures"
    keeps = frozenset({"outlines", "runs", "crowd", "areas", "ids"})

    def recognises(self, path: Path) -> bool:
        """Whether `path` is such a file, or a folder with one in it or in annotations/."""
        return _is_list(path) if path.is_file() else bool(_lists(path))

    def parts(self, path: Path) -> Parts | None:
        """The lists of a folder whose names say that they are for training and for validation.

        Raises:
            DataError: several for one part.
        """
        files = _lists(path) if path.is_dir() else []
        train, validation = _named(files, TRAIN), _named(files, VALIDATION)
        return (train, validation) if train else None

    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """List the pictures with their objects, without opening those that are listed with their size.

        `settings.classes` and `skip_bad` are used. A class that the file does not have gets a raw id above all others.

        Raises:
            DataError: no JSON, no such lists in it, or unknown classes.
            UsageError: a class in `settings.classes` that is not there.
        """
        file = faults.file = path if path.is_file() else _only(_lists(path), path)
        near = NearNames(_home(file))
        lists = CocoLists(file, _home(file), near, faults)
        order, table, notes = class_table(tuple(lists.categories), settings, classes, file)
        folder = _folder(file, [image.name for image in lists.images])
        pictures = present(lists.pictures(folder), settings, faults, near)
        items = annotate(pictures, lists.rows(table), faults)
        new_ids = count(1 + max([id_ for id_ in lists.categories.values() if isinstance(id_, int)], default=0))
        ids = tuple(lists.categories[name] if name in lists.categories else next(new_ids) for name in order)
        notes += (f"{lists.drawn} boxes are those of their outlines, none was given",) if lists.drawn else ()
        notes += notes_on(items, "crowd regions")
        return Listing(classes=order, items=items, root=folder, notes=notes, ids=ids)

    def write(
        self, listing: Listing, folder: Path, *, part: str = "train", pictures: Copies = "none"
    ) -> tuple[str, ...]:
        """Write annotations/instances_<part>.json, and pictures into <part>/.

        Numbers are as exact as float32. Areas that are not known are those of the outlines, or of the boxes.
        """
        check_target(folder, listing.root)
        write_new(folder / "annotations" / f"instances_{part}.json", _document(listing))
        place_pictures(listing, folder / part, pictures)
        return ()


# ------------------------------------------------------------------------------------------------------------- files


def _is_list(file: Path) -> bool:
    if file.suffix.lower() != ".json" or not file.is_file():
        return False
    text = beginning(file, _SNIFFED)
    return text.lstrip().startswith("{") and _LISTS.search(text) is not None and _OTHERS.search(text) is None


def _lists(folder: Path) -> list[Path]:
    """Lists of objects in a folder or in its annotations/, by name."""
    for directory in (folder, folder / "annotations"):
        if directory.is_dir():
            files = [file for file in sorted(directory.iterdir()) if not is_hidden(file.name) and _is_list(file)]
            files = [file for file in files if not file.name.lower().startswith(_OTHER)]
            others = [file for file in files if not file.name.lower().startswith(_KEYPOINTS)]
            instances = [file for file in files if "instances" in file.name.lower()]
            if files:
                return instances or others or files
    return []


def _named(files: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The file with the first of these words in its name."""
    for name in names:
        matches = [file for file in files if name in re.split("[^a-z]+", file.stem.lower())]
        if matches:
            return _only(matches, matches[0].parent)
    return None


def _only(files: Sequence[Path], where: Path) -> Path:
    if len(files) != 1:
        names = quoted([file.name for file in files])
        what = f"{len(files)} lists of annotations: {names}" if files else "no list of annotations"
        raise DataError(what, where=where, remedy="set data.path, and data.validation, to one file each")
    return files[0]


def _home(file: Path) -> Path:
    """The folder of the data set."""
    return file.parent.parent if file.parent.name.lower().startswith("annotations") else file.parent


def _folder(file: Path, names: Sequence[str]) -> Path:
    """Where the pictures lie: the first of the usual places that has most of some of them."""
    home = _home(file)
    part = re.sub(r"^_?(instances|annotations|person_keypoints)[_.-]?|[_.-]?(annotations|coco)$", "", file.stem)
    words = [word for word in dict.fromkeys((part, part.rstrip("0123456789"))) if word and is_inside(word)]
    candidates = [file.parent, home]
    for word in words:
        candidates += [home / word, home / word / "images", *(home / kind / word for kind in _PICTURES)]
    candidates += [home / kind for kind in _PICTURES]
    sample = [name for name in names[:: max(1, len(names) // 20)] if is_inside(name)]
    best = max(candidates, key=lambda candidate: sum(is_file(candidate / name) for name in sample))
    if any(is_file(best / name) for name in sample):
        return best
    return next((candidate for candidate in candidates[2:] if candidate.is_dir()), home)


# ------------------------------------------------------------------------------------------------------------ writing


def _document(listing: Listing) -> Iterator[str]:
    ids = listing.ids or tuple(range(1, len(listing.classes) + 1))
    image_ids = [item.objects.id if item.objects else None for item in listing.items]
    if None in image_ids or len(set(image_ids)) < len(image_ids):
        image_ids = list(range(1, len(image_ids) + 1))
    yield '{"images": ['
    for index, item in enumerate(listing.items):
        assert item.objects is not None
        height, width = item.objects.size
        yield "," * (index > 0) + "\n"
        yield json.dumps({"id": image_ids[index], "file_name": listing.name(index), "width": width, "height": height})
    yield '],\n"annotations": ['
    number = 0
    for id_, item in zip(image_ids, listing.items, strict=True):
        assert item.objects is not None
        for record in _records(item.objects, ids):
            number += 1
            yield "," * (number > 1) + "\n" + json.dumps({"id": number, "image_id": id_, **record})
    yield '],\n"categories": '
    yield json.dumps([{"id": id_, "name": name} for id_, name in zip(ids, listing.classes, strict=True)])
    yield "}\n"


def _records(objects: Objects, ids: Sequence[int | str]) -> Iterator[dict[str, Any]]:
    for index, class_ in enumerate(objects.classes.tolist()):
        left, top, right, bottom = _shortest(objects.boxes[index])
        width, height = right - left, bottom - top
        outline = objects.segmentations[index] if objects.segmentations else None
        area = _shortest(objects.areas[index : index + 1])[0] if objects.areas is not None else _area(outline)
        yield {
            "category_id": ids[class_],
            "bbox": [left, top, width, height],
            "area": width * height if area is None else area,
            "iscrowd": int(objects.crowd is not None and bool(objects.crowd[index])),
            **({} if outline is None else {"segmentation": _segmentation(outline)}),
        }


def _segmentation(outline: Segmentation) -> Any:
    if isinstance(outline, RLE):
        counts = outline.counts.decode() if isinstance(outline.counts, bytes) else list(outline.counts)
        return {"size": list(outline.size), "counts": counts}
    return [_shortest(polygon.ravel()) for polygon in outline]


def _area(outline: Segmentation | None) -> float | None:
    if outline is None:
        return None
    if not isinstance(outline, RLE):
        return polygon_area(outline)
    lengths = runs_of(outline.counts)
    return None if lengths is None else float(lengths[1::2].sum())


def _shortest(values: np.ndarray) -> list[float]:
    """The shortest decimals that give the same float32 numbers."""
    return [float(text) for text in values.astype(str)]
