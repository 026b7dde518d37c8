"""Lines of YOLO's text: "class x y width height", or the points of an outline, as shares of a picture's sides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from patchform.data.annotations import Alternative, Annotations
from patchform.data.data_yaml import Keypoints
from patchform.data.faults import Faults
from patchform.data.listing import Segmentation
from patchform.data.text_files import read_text
from patchform.errors import DataError

_BOX = 4
"""Numbers of a box."""
_FIRST_POINTS = _BOX + 2 * 3
"""Least numbers of a box and key points: with fewer, an outline may look like them by chance."""
_SEVERAL = 3
"""Boxes that tell something together."""
_SKEW = 0.02
"""Of its diagonal, by how much a rectangle that was rounded may miss."""
_NAN = (float("nan"),) * 4


class _Line(NamedTuple):
    """A line that was understood."""

    class_: int
    values: tuple[float, ...]
    """Shares: x, y of the middle, width, height; or x, y of points."""
    picture: int
    """Index."""
    size: tuple[int, int]
    """(height, width) in pixels."""
    where: str
    outline: np.ndarray | None
    """(K, 2) float32 x, y in pixels."""


class LabelLines:
    """The lines of all files of labels.

    Args:
        names: of the classes, by number.
        keypoints: what follows the boxes, if key points do.
        faults: for lines that are none.
    """

    def __init__(self, names: Sequence[str], keypoints: Keypoints | None, faults: Faults) -> None:
        self.names, self.keypoints, self.faults = names, keypoints, faults
        self.with_points = 0
        """Lines whose key points were left out."""
        self._lines: list[_Line] = []
        self._odd = ""
        self._tracked = False

    def read(self, file: Path, picture: int, name: str, size: tuple[int, int]) -> None:
        """Take the objects of a picture in, given its index and (height, width)."""
        try:
            text = read_text(file)
        except DataError as error:
            self.faults.add("labels-bad", name, error.what)
            return
        seen: set[str] = set()
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words:
                continue
            where = f"{name}, line {number}"
            if line in seen:
                self.faults.add("box-twice", where)
                continue
            seen.add(line)
            try:
                class_, values = self._numbers(words, where)
            except (ValueError, OverflowError) as error:
                self.faults.add("record-bad", where, str(error)[:120])
                continue
            if not 0 <= class_ < len(self.names):
                what = f"number {class_}, there are {len(self.names)} classes, numbered from 0"
                self.faults.add("class-unknown", where, what)
                continue
            outline = None if len(values) == _BOX else (np.array(values).reshape(-1, 2) * size[::-1]).astype(np.float32)
            self._lines.append(_Line(class_, tuple(values), picture, size, where, outline))

    def _numbers(self, words: Sequence[str], where: str) -> tuple[int, list[float]]:
        """The class and the shares of a line. Raises ValueError, OverflowError."""
        if len(words) >= 9 and not is_number(words[8]) and all(map(is_number, words[:8])):
            raise ValueError(
                f'four corners and the name "{words[8][:30]}", as of DOTA: write its number first, and shares'
            )
        class_, *values = map(float, words)
        if class_ != int(class_):
            raise ValueError(f"{words[0]} is no class")
        points = self.keypoints.total if self.keypoints else 0
        if points and len(values) in (_BOX + points, _BOX + points + 1):
            self.with_points += 1
            values = values[:_BOX] + values[_BOX + points :]
        if len(values) == _BOX + 2 and words[-1].isdigit() and int(words[-1]) > 1:  # no share of an outline
            values.pop()
            self._tracked = True
        if len(values) == _BOX + 1:
            score = values.pop()
            if not 0 <= score <= 1:
                raise ValueError(f"6 numbers, and {score:g} is no score: boxes are upright, with 5 numbers")
            self.faults.add("score-ignored", where, f"{score:g}")
        elif points and len(values) != _BOX:
            raise ValueError(f"{len(words)} numbers, kpt_shape makes them {1 + _BOX + points}")
        if len(values) != _BOX and (len(values) < 6 or len(values) % 2):
            points_too = "; key points need kpt_shape in data.yaml" if len(values) > _BOX else ""
            raise ValueError(f"{len(words)} numbers, a box has 5, an outline an odd number from 7 on{points_too}")
        return int(class_), values

    def hint(self, *, learnt_from: bool) -> None:
        """Note what the lines together look like.

        Args:
            learnt_from: a part to validate on may lack any class.
        """
        self._settle()
        used = {line.class_ for line in self._lines}
        if learnt_from and len(self.names) > 1 and 0 not in used and len(self.names) - 1 in used:
            self.faults.add("class-first", f'class "{self.names[0]}"')
        boxes = np.array([line.values for line in self._lines if line.outline is None]).reshape(-1, _BOX)
        if len(boxes) >= _SEVERAL and (boxes[:, 2:] > boxes[:, :2]).all():  # large in the middle, or no sizes at all
            self.faults.add("box-order", self._lines[0].where, f"and {len(boxes) - 1} more")
        if len({len(line.values) for line in self._lines}) != 1:
            return  # other outlines have as many points as they need
        if all(map(_is_oriented, self._lines)) and any(map(_is_turned, self._lines)):
            kind = "box-oriented"
        elif all(map(_has_points, self._lines)):
            kind = "points-likely"
        else:
            return
        self._odd = kind
        for line in self._lines:
            self.faults.add(kind, line.where, f"{1 + len(line.values)} numbers")

    def _settle(self) -> None:
        """Where lines end with a score and the number of a track, those of track 1 are no outlines of three points."""
        for index, line in enumerate(self._lines if self._tracked else ()):
            if len(line.values) == _BOX + 2 and line.values[-1] == 1:
                self._lines[index] = line._replace(values=line.values[:_BOX], outline=None)
                self.faults.add("score-ignored", line.where, f"{line.values[_BOX]:g}")

    def rows(self, table: Sequence[int]) -> Annotations:
        """All objects, given the index of the class of each number."""
        sides = np.array([line.size[::-1] for line in self._lines], np.float64).reshape(-1, 2)
        scale = np.concatenate([sides, sides], 1)  # (N, 4): width, height, width, height
        shares = np.array([line.values if line.outline is None else _NAN for line in self._lines]).reshape(-1, _BOX)
        middle, side = shares[:, :2], shares[:, 2:]
        centred = np.concatenate([middle - side / 2, middle + side / 2], 1)
        boxes, pixels = centred * scale, centred.copy()
        for index, line in enumerate(self._lines):
            if line.outline is not None:
                boxes[index] = np.concatenate([line.outline.min(0), line.outline.max(0)])
                points = np.array(line.values).reshape(-1, 2)
                pixels[index] = _NAN if self._odd else np.concatenate([points.min(0), points.max(0)])
        shifted = np.concatenate([middle, middle + side], 1)
        outlines: list[Segmentation | None] = [None if x.outline is None else (x.outline,) for x in self._lines]
        return Annotations(
            boxes=boxes,
            classes=np.array([table[line.class_] for line in self._lines], np.int64),
            pictures=np.array([line.picture for line in self._lines], np.int64),
            location=lambda index: self._lines[index].where,
            segmentations=outlines if any(outline is not None for outline in outlines) else None,
            alternatives=(
                Alternative("shares of corners x1, y1, x2, y2, not of centre and size", shares * scale),
                Alternative("shares of the upper left corner and the size, not of the centre", shifted * scale),
                Alternative("pixels, where shares of width and height are expected", pixels),
                Alternative("corners x1, y1, x2, y2 in pixels, where shares of centre and size are expected", shares),
            ),
        )


def is_number(word: str) -> bool:
    """Whether it reads as one."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def _is_oriented(line: _Line) -> bool:
    """Whether an outline is a rectangle of any direction: its diagonals halve each other and are equally long."""
    if line.outline is None or len(line.outline) != 4 or not np.isfinite(line.outline).all():
        return False
    first, second = line.outline[2] - line.outline[0], line.outline[3] - line.outline[1]
    long, other = float(np.hypot(*first)), float(np.hypot(*second))
    slack = max(1.0, _SKEW * max(long, other))
    off = float(np.hypot(*(line.outline[0] + line.outline[2] - line.outline[1] - line.outline[3]))) / 2
    return off <= slack and abs(long - other) <= slack


def _is_turned(line: _Line) -> bool:
    """Whether the first side of a rectangle goes neither along nor down its picture."""
    assert line.outline is not None
    x, y = np.abs(line.outline[1] - line.outline[0]).tolist()
    return bool(min(x, y) > max(1.0, _SKEW * max(x, y)))


def _has_points(line: _Line) -> bool:
    """Whether the numbers read as a box and key points, all of which are in it or, not seen, at 0, 0."""
    if len(line.values) < _FIRST_POINTS:
        return False
    x, y, width, height = line.values[:_BOX]
    rest = np.array(line.values[_BOX:])
    readings = [rest.reshape(-1, 2)]
    if len(rest) % 3 == 0 and np.isin(rest[2::3], (0, 1, 2)).all():
        readings.append(rest.reshape(-1, 3)[:, :2])
    slack = 1e-3
    for points in readings:
        near = np.abs(points - (x, y)) <= np.array([width / 2, height / 2]) + slack
        if (near.all(1) | (points == 0).all(1)).all() and near.any():
            return True
    return False
