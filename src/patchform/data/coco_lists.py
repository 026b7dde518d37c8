"""The three lists of COCO's json, images, annotations and categories, from records as they are written to columns."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchform.data.annotations import Alternative, Annotations, Picture
from patchform.data.faults import Faults
from patchform.data.json_lists import elements
from patchform.data.listed_names import NearNames, inside, with_offer
from patchform.data.listing import RLE, Segmentation, shortened
from patchform.data.outlines import outline_box
from patchform.errors import DataError

Id = int | str


class Image(NamedTuple):
    """A record of the list of images."""

    name: str
    """Relative, with forward slashes; "" where it was refused."""
    size: tuple[int, int] | None
    """(height, width)."""
    id: Id


class CocoLists:
    """The lists of a file, in columns: a record is forgotten as soon as it is read.

    Args:
        file: the json.
        home: folder of the data set: names of pictures may not lead out of it.
        near: to offer names from, where they do.
        faults: for records that are no such.

    Raises:
        DataError: no JSON, a list that is not there, no categories.
    """

    def __init__(self, file: Path, home: Path, near: NearNames, faults: Faults) -> None:
        self.file, self.home, self.near, self.faults = file, home, near, faults
        self.images: list[Image] = []
        self.categories: dict[str, Id] = {}
        self.drawn = 0
        """Boxes that are those of their outlines."""
        self._names: set[str] = set()
        self._image_ids: dict[Id, int] = {}
        self._category_ids: dict[Id, str] = {}
        self._ids: list[Id] = []
        self._boxes, self._areas, self._crowd = array("d"), array("d"), bytearray()
        self._of_image: list[Id] = []
        self._of_category: list[Id] = []
        self._outlines: list[Segmentation | None] = []
        self._bad_outlines: dict[int, str] = {}
        seen = self._read()
        for key in ("images", "annotations", "categories"):
            if key not in seen:
                raise DataError(f'no list "{key}"', where=file, remedy="is it COCO's json of objects?")
        if not self.categories:
            raise DataError("no categories", where=file)
        ids: set[Id] = set()
        for index, id_ in enumerate(self._ids):
            if id_ in ids:
                faults.add("id-twice", self._location(index), "annotation id")
            ids.add(id_)
        self._match("image_id", self._of_image, self._image_ids)
        self._match("category_id", self._of_category, self._category_ids)
        for index, what in self._bad_outlines.items():
            faults.add("outline-bad", self._location(index), what)

    def _read(self) -> set[str]:
        """The keys that there are."""
        readers = {"images": self._image, "categories": self._category, "annotations": self._annotation}
        seen: dict[str, int] = {}
        with np.errstate(over="ignore"):
            for key, record in elements(self.file):
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
                    self.faults.add("record-bad", f"{self.file.name}, {key}[{number}]", what)
        return set(seen)

    def _image(self, record: Mapping[str, Any]) -> None:
        id_, listed = _id(record["id"]), record["file_name"]
        if not isinstance(listed, str):
            raise TypeError("file_name is no text")
        size = None
        if record.get("height") and record.get("width"):
            size = (_whole(record["height"]), _whole(record["width"]))
        if id_ in self._image_ids:
            self.faults.add("id-twice", shortened(listed), f"image id {id_!r}")
            return
        name = inside(listed, self.home, self.file.parent) or ""
        if not name:
            what = with_offer(listed[:80], self.near.offer(listed))
            self.faults.add("picture-outside", f"{self.file.name}, image {id_}", what)
        elif name in self._names:
            self.faults.add("picture-twice", shortened(name), f"image {id_}")
            name = ""
        self._names.add(name)
        self._image_ids[id_] = len(self.images)
        self.images.append(Image(name, size, id_))

    def _category(self, record: Mapping[str, Any]) -> None:
        id_, name = _id(record["id"]), record["name"]
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)  # as it is written
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
        crowd = record.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise ValueError("iscrowd is not 0 or 1")
        try:
            outline, bad = _outline(record.get("segmentation")), ""
        except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
            outline, bad = None, f"no {error}" if isinstance(error, KeyError) else f"{error}"[:80]
        if record.get("bbox") in (None, []) or (record["bbox"] == [0, 0, 0, 0] and outline):
            around = None if outline is None else outline_box(outline)
            if around is None:
                raise ValueError("neither a bbox nor an outline" + f" that can be read ({bad})" * bool(bad))
            box = around
            self.drawn += 1
        else:
            x, y, width, height = _four(record["bbox"])
            box = (x, y, x + width, y + height)
        area = float("nan") if record.get("area") is None else float(record["area"])
        self._boxes.extend(box)
        if bad:
            self._bad_outlines[len(self._ids)] = bad
        self._areas.append(area)
        self._crowd.append(int(crowd))
        self._of_image.append(image)
        self._of_category.append(category)
        self._outlines.append(outline)
        self._ids.append(id_)

    def _match(self, key: str, used: list[Id], listed: Iterable[Id]) -> None:
        """Put listed ids in place of used ones of the other type, where one and only one reads alike."""
        listed = set(listed)
        alike: dict[str, list[Id]] = {}
        for id_ in listed:
            alike.setdefault(str(id_), []).append(id_)
        for index, id_ in enumerate(used):
            if id_ not in listed and len(others := alike.get(str(id_), [])) == 1:
                self.faults.add("id-type", self._location(index), f"{key} {_typed(id_)}, listed is {_typed(others[0])}")
                used[index] = others[0]

    def _location(self, index: int) -> str:
        image = self._image_ids.get(self._of_image[index])
        name = self.images[image].name if image is not None else f"image {self._of_image[index]}"
        return f"{shortened(name)}, annotation {self._ids[index]}"

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
            what = f"image_id {_unlisted(self._of_image[index], self._image_ids)}"
            self.faults.add("picture-unknown", self._location(index), what)
        for index in np.flatnonzero(classes < 0).tolist():
            if category(self._of_category[index]) is None:
                what = f"category_id {_unlisted(self._of_category[index], self._category_ids)}"
                self.faults.add("class-unknown", self._location(index), what)
        classes[pictures < 0] = -1
        boxes = np.array(self._boxes, np.float64).reshape(-1, 4)
        if not self.images:
            pictures, classes, boxes = pictures[:0], classes[:0], boxes[:0]
        outlines = self._outlines[: len(boxes)]
        corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
        return Annotations(
            boxes=boxes,
            classes=classes,
            pictures=pictures.clip(min=0),
            location=self._location,
            crowd=np.frombuffer(bytes(self._crowd), np.uint8)[: len(boxes)].astype(bool),
            areas=np.array(self._areas, np.float64)[: len(boxes)],
            segmentations=outlines if any(outline is not None for outline in outlines) else None,
            alternatives=(Alternative("x1, y1, x2, y2", corners),),
        )


def _id(value: object) -> Id:
    """A whole number, which JSON may write as 1.0, or a text."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    raise TypeError(f"{str(value)[:40]!r} is no id")


def _typed(id_: Id) -> str:
    return f'the text "{id_}"' if isinstance(id_, str) else f"the number {id_}"


def _unlisted(id_: Id, listed: Iterable[Id]) -> str:
    """An id that is not listed, and whether those that are have the other type."""
    others = "number" if isinstance(id_, str) else "text"
    other = bool(listed) and all(isinstance(one, str) != isinstance(id_, str) for one in listed)
    return f"{id_!r}" + f" is {'text' if others == 'number' else 'a number'}, those listed are {others}s" * other


def _four(value: object) -> tuple[float, float, float, float]:
    """The numbers of a bbox."""
    if isinstance(value, list) and len(value) == 4 and all(type(number) in (int, float) for number in value):
        x, y, width, height = map(float, value)
        return x, y, width, height
    raise TypeError(f"bbox {str(value)[:50]} is not four numbers")


def _whole(value: object) -> int:
    """A number of pixels, which may be written as text."""
    value = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if isinstance(value, int | float) and value == int(value) and 0 < value < 1 << 31:
        return int(value)
    raise ValueError(f"{str(value)[:40]!r} is no size")


def _outline(value: Any) -> Segmentation | None:
    """Raises TypeError, ValueError or KeyError for what is none; polygons of no area are left to `annotate`."""
    if not value:
        return None
    if isinstance(value, dict):
        counts, size = value["counts"], value["size"]
        if not isinstance(size, list) or len(size) != 2:
            raise TypeError(f"size {str(size)[:40]} is not height and width")
        height, width = size
        if isinstance(counts, str):
            return RLE(counts.encode("ascii"), (_whole(height), _whole(width)))
        if not all(type(count) is int for count in counts):
            raise TypeError("counts are no whole numbers")
        return RLE(tuple(counts), (_whole(height), _whole(width)))
    if not isinstance(value, list):
        raise TypeError("segmentation is neither polygons nor run lengths")
    polygons = value if isinstance(value[0], list) else [value]
    return tuple(np.array(polygon if len(polygon) % 2 == 0 else [], np.float32).reshape(-1, 2) for polygon in polygons)
