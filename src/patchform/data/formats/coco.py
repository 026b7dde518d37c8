"""COCO's json: boxes and outlines of all pictures of a part in one file.

    annotations/instances_train.json   annotations/instances_val.json   train/   val/
    annotations/instances_train2017.json                                 train2017/  (or images/train2017/)
    train/_annotations.coco.json                                         train/                      (Roboflow)
    result.json                                                          images/

Boxes are x, y, width, height in pixels of the upright picture, counted from its upper left corner. Outlines are
polygons or run lengths, compressed or not. `iscrowd` regions count for nothing. Ids of pictures, objects and classes
are any whole numbers or texts, in any order; classes are taken in the order of the list.
(https://cocodataset.org/#format-data)
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from patchform.data.annotations import (
    Annotations,
    Picture,
    annotate,
    class_table,
    is_inside,
    notes_on,
    polygon_area,
    present,
    runs_of,
)
from patchform.data.faults import Faults
from patchform.data.formats.base import Parts, WritableFormat
from patchform.data.json_lists import elements
from patchform.data.listing import RLE, TRAIN, VALIDATION, Listing, Objects, Segmentation, is_hidden, quoted
from patchform.data.writing import Copies, check_target, place_pictures, write_new
from patchform.errors import DataError
from patchform.settings import DataSettings

_OTHER = ("captions", "person_keypoints", "panoptic", "image_info", "stuff")
"""How the names of other lists of annotations begin."""
_LISTS = re.compile(rb'"(?:images|annotations|categories)"\s*:\s*\[')
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
        lists = _Lists(file, faults)
        order, table, notes = class_table(tuple(lists.categories), settings, classes, file)
        folder = _folder(file, [name for name, _, _ in lists.images])
        pictures = present(lists.pictures(folder), settings, faults)
        items = annotate(pictures, lists.rows(table), faults)
        new_ids = count(1 + max([id_ for id_ in lists.categories.values() if isinstance(id_, int)], default=0))
        ids = tuple(lists.categories[name] if name in lists.categories else next(new_ids) for name in order)
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
    try:
        with file.open("rb") as stream:
            return _LISTS.search(stream.read(_SNIFFED)) is not None
    except OSError:
        return False


def _lists(folder: Path) -> list[Path]:
    """Lists of objects in a folder or in its annotations/, by name."""
    for directory in (folder, folder / "annotations"):
        if directory.is_dir():
            files = [file for file in sorted(directory.iterdir()) if not is_hidden(file.name) and _is_list(file)]
            files = [file for file in files if not file.name.lower().startswith(_OTHER)]
            instances = [file for file in files if "instances" in file.name.lower()]
            if files:
                return instances or files
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


def _folder(file: Path, names: Sequence[str]) -> Path:
    """Where the pictures lie: the first of the usual places that has most of some of them."""
    home = file.parent.parent if file.parent.name.lower().startswith("annotations") else file.parent
    part = re.sub(r"^_?(instances|annotations)[_.-]?|[_.-]?(annotations|coco)$", "", file.stem)
    words = [word for word in dict.fromkeys((part, part.rstrip("0123456789"))) if word and is_inside(word)]
    candidates = [file.parent, home]
    for word in words:
        candidates += [home / word, home / word / "images", *(home / kind / word for kind in _PICTURES)]
    candidates += [home / kind for kind in _PICTURES]
    sample = [name for name in names[:: max(1, len(names) // 20)] if is_inside(name)]
    best = max(candidates, key=lambda candidate: sum((candidate / name).is_file() for name in sample))
    if any((best / name).is_file() for name in sample):
        return best
    return next((candidate for candidate in candidates[2:] if candidate.is_dir()), home)


# ------------------------------------------------------------------------------------------------------------ reading


class _Lists:
    """The three lists of a file, in columns: a record is forgotten as soon as it is read.

    Args:
        file: the json.
        faults: for records that are no such.
    """

    def __init__(self, file: Path, faults: Faults) -> None:
        self.file, self.faults = file, faults
        self.images: list[tuple[str, tuple[int, int] | None, int | str]] = []  # no name: it was refused
        self.categories: dict[str, int | str] = {}
        self._names: set[str] = set()
        self._image_ids: dict[int | str, int] = {}
        self._category_ids: dict[int | str, str] = {}
        self._ids: list[int | str] = []
        self._boxes, self._areas, self._crowd = array("d"), array("d"), bytearray()
        self._of_image: list[int | str] = []
        self._of_category: list[int | str] = []
        self._outlines: list[Segmentation | None] = []
        self._any_outline = False
        readers = {"images": self._image, "categories": self._category, "annotations": self._annotation}
        seen: dict[str, int] = {}
        with np.errstate(over="ignore"):
            for key, record in elements(file):
                if key not in readers:
                    continue
                number = seen[key] = seen.get(key, -1) + 1
                if record is None and number == 0:
                    continue
                try:
                    if not isinstance(record, dict):
                        raise TypeError("no record")
                    readers[key](record)
                except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
                    what = f"no {error}" if isinstance(error, KeyError) else f"{error}"[:80]
                    faults.add("record-bad", f"{file.name}, {key}[{number}]", what)
        for key in readers:
            if key not in seen:
                raise DataError(f'no list "{key}"', where=file, remedy="is it COCO's json of objects?")
        if not self.categories:
            raise DataError("no categories", where=file)
        ids: set[int | str] = set()
        for index, id_ in enumerate(self._ids):
            if id_ in ids:
                faults.add("id-twice", self._location(index), "annotation id")
            ids.add(id_)

    def _image(self, record: Mapping[str, Any]) -> None:
        id_, name = _id(record["id"]), record["file_name"]
        if not isinstance(name, str):
            raise TypeError("file_name is no text")
        name = name.replace("\\", "/")
        size = None
        if record.get("height") and record.get("width"):
            size = (_whole(record["height"]), _whole(record["width"]))
        if id_ in self._image_ids:
            self.faults.add("id-twice", name, f"image id {id_!r}")
            return
        if not is_inside(name):
            self.faults.add("picture-outside", f"{self.file.name}, image {id_}", name[:80])
            name = ""
        elif name in self._names:
            self.faults.add("picture-twice", name, f"image {id_}")
            name = ""
        self._names.add(name)
        self._image_ids[id_] = len(self.images)
        self.images.append((name, size, id_))

    def _category(self, record: Mapping[str, Any]) -> None:
        id_, name = _id(record["id"]), record["name"]
        if not isinstance(name, str) or not name:
            raise TypeError("name is no text")
        if id_ in self._category_ids or name in self.categories:
            self.faults.add("id-twice", f"{self.file.name}, categories", f'{id_!r} "{name}"')
            return
        self._category_ids[id_] = name
        self.categories[name] = id_

    def _annotation(self, record: Mapping[str, Any]) -> None:
        id_ = _id(record.get("id", f"#{len(self._ids)}"))
        image, category = _id(record["image_id"]), _id(record["category_id"])
        x, y, width, height = record["bbox"]
        crowd = record.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise ValueError("iscrowd is not 0 or 1")
        outline = _outline(record.get("segmentation"))
        box = array("d", (x, y, x + width, y + height))  # refuses what is no number
        area = float("nan") if record.get("area") is None else float(record["area"])
        self._boxes.extend(box)
        self._areas.append(area)
        self._crowd.append(int(crowd))
        self._of_image.append(image)
        self._of_category.append(category)
        self._outlines.append(outline)
        self._any_outline |= outline is not None
        self._ids.append(id_)

    def _location(self, index: int) -> str:
        image = self._image_ids.get(self._of_image[index])
        name = self.images[image][0] if image is not None else f"image {self._of_image[index]}"
        return f"{name}, annotation {self._ids[index]}"

    def pictures(self, folder: Path) -> list[Picture | None]:
        """All listed pictures, None where the name was refused."""
        return [Picture(folder / name, name, size, id_) if name else None for name, size, id_ in self.images]

    def rows(self, table: Mapping[str, int]) -> Annotations:
        """All objects, given the index of each class. Those of unknown pictures and classes are fatal faults."""
        image, category = self._image_ids.get, self._category_ids.get
        pictures = np.array([image(id_, -1) for id_ in self._of_image], np.int64)
        indices = {id_: table[name] for id_, name in self._category_ids.items()}
        classes = np.array([indices.get(id_, -1) for id_ in self._of_category], np.int64)
        for index in np.flatnonzero(pictures < 0).tolist():
            self.faults.add("picture-unknown", self._location(index), f"image_id {self._of_image[index]!r}")
        for index in np.flatnonzero(classes < 0).tolist():
            if category(self._of_category[index]) is None:
                self.faults.add("class-unknown", self._location(index), f"category_id {self._of_category[index]!r}")
        classes[pictures < 0] = -1
        boxes = np.array(self._boxes, np.float64).reshape(-1, 4)
        if not self.images:
            pictures, classes, boxes = pictures[:0], classes[:0], boxes[:0]
        return Annotations(
            boxes=boxes,
            classes=classes,
            pictures=pictures.clip(min=0),
            location=self._location,
            crowd=np.frombuffer(bytes(self._crowd), np.uint8)[: len(boxes)].astype(bool),
            areas=np.array(self._areas, np.float64)[: len(boxes)],
            segmentations=self._outlines[: len(boxes)] if self._any_outline else None,
            alternative=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1),
            notation="x1, y1, x2, y2",
        )


def _id(value: object) -> int | str:
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    raise TypeError(f"{str(value)[:40]!r} is no id")


def _whole(value: object) -> int:
    if isinstance(value, int | float) and value == int(value) and 0 < value < 1 << 31:
        return int(value)
    raise ValueError(f"{str(value)[:40]!r} is no size")


def _outline(value: Any) -> Segmentation | None:
    """Raises TypeError, ValueError or KeyError for what is none; polygons of no area are left to `annotate`."""
    if not value:
        return None
    if isinstance(value, dict):
        counts, (height, width) = value["counts"], value["size"]
        if isinstance(counts, str):
            return RLE(counts.encode("ascii"), (_whole(height), _whole(width)))
        if not all(type(count) is int for count in counts):
            raise TypeError("counts are no whole numbers")
        return RLE(tuple(counts), (_whole(height), _whole(width)))
    if not isinstance(value, list):
        raise TypeError("segmentation is neither polygons nor run lengths")
    polygons = value if isinstance(value[0], list) else [value]
    return tuple(np.array(polygon if len(polygon) % 2 == 0 else [], np.float32).reshape(-1, 2) for polygon in polygons)


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
