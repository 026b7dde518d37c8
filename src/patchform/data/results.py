"""Predicted objects as other tools expect them: rows of COCO's results, lines of YOLO's text."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, TypeAlias, cast

import yaml

from patchform.drawing import save
from patchform.errors import UsageError, printable
from patchform.geometry.masks import to_runs
from patchform.records import Instances, Target

Save: TypeAlias = Callable[[bytes, Path], None]
"""Writes a file of this content, and the folders above it. Raises ResourceError."""


class Writer(ABC):
    """Predictions in the format of another tool, as files of a folder.

    Args:
        folder: where they go.
        classes: names.
        ids: of the classes in the data that the model learnt from, or in a file that the user named.
        pictures: ids of the pictures by name, of those that are in such a file; None: there is none.
        save: how a file is written.
    """

    takes_ids: ClassVar[bool] = False
    """Whether ids of pictures are written."""

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        ids: Sequence[int | str] | None = None,
        *,
        pictures: Mapping[str, int | str] | None = None,
        save: Save = save,
    ) -> None:
        self.folder, self.classes, self.ids, self.pictures = folder, tuple(classes), ids, pictures
        self.save = save

    @abstractmethod
    def files(self, names: Sequence[str]) -> list[Path]:
        """The files to be written for pictures of these names, which differ and have forward slashes.

        Called once, before `add`. Raises UsageError if two come to one file.
        """

    @abstractmethod
    def add(self, name: str, target: Target, size: tuple[int, int]) -> None:
        """Take in a prediction on a picture of (height, width) pixels. Raises ResourceError."""

    def finish(self) -> None:
        """Called when all are taken in. Raises ResourceError."""
        return


class CocoResults(Writer):
    """results.json: categories have the ids of the data, or else count from 1.

    A picture has the id of the user's own file; one that is not in it is left out. Without such a file it has the
    number that is its name, as COCO's have, where all these numbers differ, or else its name, folders included.
    """

    takes_ids: ClassVar[bool] = True

    def __init__(
        self, folder: Path, classes: Sequence[str], ids: Sequence[int | str] | None = None, **options: Any
    ) -> None:
        super().__init__(folder, classes, ids or range(1, len(classes) + 1), **options)
        self.file = folder / "results.json"
        self.rows: list[dict[str, Any]] = []
        self._ids: dict[str, int | str] = {}

    def files(self, names: Sequence[str]) -> list[Path]:
        """One."""
        self._ids = dict(self.pictures) if self.pictures is not None else picture_ids(names)
        return [self.file]

    def add(self, name: str, target: Target, size: tuple[int, int]) -> None:
        """Rows of its objects."""
        if name in self._ids:
            self.rows += coco_results(cast("Instances", target), self._ids[name], self.ids or ())

    def finish(self) -> None:
        """Write the file."""
        self.save(json.dumps(self.rows, allow_nan=False).encode(), self.file)


class YoloLines(Writer):
    """labels/x/a.txt for the picture x/a.jpg: lines "class x y width height score".

    The names of the classes stand in labels/ too: in classes.txt, as labelling tools have it, or, where there are
    folders and it would be beside none of the lines, in data.yaml.
    """

    _names: Path | None = None
    """The file of names, until it is written."""

    def files(self, names: Sequence[str]) -> list[Path]:
        """One a picture, and the names of the classes."""
        flat = not any("/" in name for name in names)
        self._names = self.folder / "labels" / ("classes.txt" if flat else "data.yaml")
        owners: dict[str, str] = {self._names.name: "the list of the classes"}
        for name in names:
            label = PurePosixPath(name).with_suffix(".txt")
            other = owners.setdefault(str(label).casefold(), name)
            if other != name:
                what = f"{name} and {other} would have one file, labels/{label}"
                raise UsageError(what, remedy="rename one, or predict them into folders of their own")
        return [self._names, *map(self._file, names)]

    def add(self, name: str, target: Target, size: tuple[int, int]) -> None:
        """Write its file, and before the first one the names."""
        self._write_names()
        lines = yolo_lines(cast("Instances", target), size)
        self.save("".join(f"{line}\n" for line in lines).encode(), self._file(name))

    def finish(self) -> None:
        """Write the names where there was no picture."""
        self._write_names()

    def _write_names(self) -> None:
        """In the order of their numbers, each on one line."""
        if self._names is not None:
            names = [printable(name) for name in self.classes]
            text = "".join(f"{name}\n" for name in names)
            if self._names.suffix == ".yaml":
                text = yaml.safe_dump({"names": dict(enumerate(names))}, sort_keys=False, allow_unicode=True)
            self.save(text.encode(), self._names)
            self._names = None

    def _file(self, name: str) -> Path:
        return self.folder / "labels" / PurePosixPath(name).with_suffix(".txt")


def picture_ids(names: Sequence[str]) -> dict[str, int | str]:
    """Ids of pictures without a list: the number that a name is, where all such numbers differ; else the name."""
    stems = {name: PurePosixPath(name).stem for name in names}
    numbers = {name: int(stem) for name, stem in stems.items() if stem.isascii() and stem.isdigit() and len(stem) < 19}
    if len(set(numbers.values())) < len(numbers):
        numbers = {}
    return {name: numbers.get(name, name) for name in names}


def coco_results(instances: Instances, image_id: int | str, ids: Sequence[int | str]) -> list[dict[str, Any]]:
    """Rows of a results file, one an object: ready for `json.dump`, and for pycocotools' `loadRes`.

    Args:
        instances: a prediction, in pixels of the picture; with masks, rows have compressed run lengths.
        image_id: the picture's in the annotation file.
        ids: of the classes, in their order.
    """
    assert instances.scores is not None
    runs = [] if instances.masks is None else to_runs(instances.masks)
    boxes, scores = instances.boxes.tolist(), instances.scores.tolist()
    rows: list[dict[str, Any]] = []
    for index, class_ in enumerate(instances.classes.tolist()):
        left, top, right, bottom = boxes[index]
        row = {
            "image_id": image_id,
            "category_id": ids[class_],
            "bbox": [left, top, right - left, bottom - top],
            "score": scores[index],
        }
        if instances.masks is not None:
            row["segmentation"] = {"size": list(instances.masks.size), "counts": runs[index].decode("ascii")}
        rows.append(row)
    return rows


def yolo_lines(instances: Instances, size: tuple[int, int]) -> list[str]:
    """Lines "class x y width height score" of the boxes, shares of the picture's (height, width), without line ends."""
    assert instances.scores is not None
    rows = zip(instances.classes.tolist(), instances.boxes.tolist(), instances.scores.tolist(), strict=True)
    return [
        " ".join(f"{value:.9g}" for value in (class_, *box_shares(box, size), score)) for class_, box, score in rows
    ]


def box_shares(box: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Middle, width and height of an xyxy box as shares of (height, width)."""
    (left, top, right, bottom), (height, width) = box, size
    return [(left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height]
