"""Predicted objects as other tools expect them: rows of COCO's results, lines of YOLO's text."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from patchform.drawing import save
from patchform.errors import UsageError
from patchform.geometry.masks import to_runs
from patchform.records import Instances, Target


class Writer(ABC):
    """Predictions in the format of another tool, as files of a folder.

    Args:
        folder: where they go.
        classes: names.
        ids: of the classes in the data that the model learnt from, if they have some.
    """

    def __init__(self, folder: Path, classes: Sequence[str], ids: Sequence[int | str] | None = None) -> None:
        self.folder, self.classes, self.ids = folder, tuple(classes), ids

    @abstractmethod
    def files(self, names: Sequence[str]) -> list[Path]:
        """The files to be written for pictures of these names, in folders that are made before `add`.

        Raises UsageError if two come to one file.
        """

    @abstractmethod
    def add(self, name: str, target: Target, size: tuple[int, int]) -> None:
        """Take in a prediction on a picture of (height, width) pixels. Raises ResourceError."""

    def finish(self) -> None:
        """Called when all are taken in. Raises ResourceError."""
        return


class CocoResults(Writer):
    """results.json: a picture has the number that is its name, as COCO's have, or else its name; categories have the
    ids of the data, or else count from 1.
    """

    def __init__(self, folder: Path, classes: Sequence[str], ids: Sequence[int | str] | None = None) -> None:
        super().__init__(folder, classes, ids or range(1, len(classes) + 1))
        self.file = folder / "results.json"
        self.rows: list[dict[str, Any]] = []

    def files(self, names: Sequence[str]) -> list[Path]:
        """One."""
        return [self.file]

    def add(self, name: str, target: Target, size: tuple[int, int]) -> None:
        """Rows of its objects."""
        stem = Path(name).stem
        number = int(stem) if stem.isascii() and stem.isdigit() else name
        self.rows += coco_results(cast("Instances", target), number, self.ids or ())

    def finish(self) -> None:
        """Write the file."""
        save(json.dumps(self.rows, allow_nan=False).encode(), self.file)


class YoloLines(Writer):
    """labels/a.txt for the picture a.jpg: lines "class x y width height score"."""

    def files(self, names: Sequence[str]) -> list[Path]:
        """One a picture."""
        files = [self._file(name) for name in names]
        if len({str(file).casefold() for file in files}) < len(files):
            raise UsageError("two pictures have one name but for the suffix", remedy="predict them apart")
        return files

    def add(self, name: str, target: Target, size: tuple[int, int]) -> None:
        """Write its file."""
        save("".join(f"{line}\n" for line in yolo_lines(cast("Instances", target), size)).encode(), self._file(name))

    def _file(self, name: str) -> Path:
        return self.folder / "labels" / f"{Path(name).stem}.txt"


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
