"""CSV lists of pictures, or of videos, and their classes: what formats of them have in common.

The first line names the columns. One of them holds paths, relative to the list: `image`, `file`, `path`, `filename` or
`video`; the path of a video may be a folder of its frames.
Classes are given in one of two ways:

* a column `label`, `class` or `labels`: one name, or in multi-label work names separated by `|` or `;`;
* one column for each class, with 0 or 1.

Fields are separated by commas, semicolons or tabs, whichever the first line uses most; text is UTF-8.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from patchform.data.known_classes import with_unknown
from patchform.data.listing import (
    SUFFIXES,
    VIDEO_SUFFIXES,
    Item,
    Listing,
    Medium,
    by_name,
    check_names,
    mapping_note,
    ordered,
    quoted,
)
from patchform.errors import DataError
from patchform.settings import DataSettings

_IMAGE, _LABEL = ("image", "file", "path", "filename", "video"), ("label", "class", "labels")


def is_list(path: Path) -> bool:
    """Whether `path` is a file whose name ends in .csv or .tsv."""
    return path.is_file() and path.suffix.lower() in (".csv", ".tsv")


def is_of_videos(path: Path) -> bool:
    """Whether the first row names a video; False for what is no list."""
    try:
        header, rows, _ = _table(path)
    except DataError:
        return False
    image = _column(header, _IMAGE)
    return image is not None and _is_video(path.parent / rows[0][1][image])


def read_list(path: Path, settings: DataSettings, classes: tuple[str, ...] | None, medium: Medium) -> Listing:
    """Read the list.

    Args:
        path: the CSV file.
        settings: `labels` says whether an item may have none or several classes.
        classes: names that give the indices (training's, or the model's); None: those that occur, or the columns.
        medium: what the paths lead to.

    Raises:
        DataError: columns missing; no row; a row of other length, without or with too many classes, or with an unknown
            one; a file twice or missing. Line numbers count from 1.
    """
    header, rows, delimiter = _table(path)
    image = _column(header, _IMAGE)
    if image is None:
        raise DataError("no column of paths", where=path, remedy=f"name one of the columns {' or '.join(_IMAGE)}")
    label = _column(header, _LABEL)
    if label is None:
        columns = [index for index in range(len(header)) if index != image]
        labels = [_flags(row, columns, header, path, line) for line, row in rows]
        names: tuple[str, ...] = tuple(header[index] for index in columns)
        if not names:
            raise DataError("no column of classes", where=path, remedy=f"name one of the columns {' or '.join(_LABEL)}")
    else:
        labels = [_split(row[label], delimiter) for _, row in rows]
        names = ordered(name for own in labels for name in own)
    if settings.labels == "single":
        for (line, _), own in zip(rows, labels, strict=True):
            if len(own) != 1:
                what = f"{len(own)} classes ({quoted(own)})" if own else "no class"
                raise DataError(what, where=f"{path}, line {line}", remedy="give one, or set data.labels to multi")
    if len(set(names)) < len(names):
        raise DataError("two columns of one name", where=path, remedy="rename one")
    check_names(names, path)
    order = names if classes is None else with_unknown(names, classes)
    indices = by_name(names, order, path)
    files = _files(rows, image, path)
    items = tuple(Item(file, tuple(sorted(indices[name] for name in own))) for file, own in zip(files, labels))
    extra = [name for index, name in enumerate(header) if label is not None and index not in (image, label)]
    notes = (
        *((f"ignored columns: {quoted(extra)}",) if extra else ()),
        *(mapping_note(order) if classes is None else ()),
    )
    return Listing(classes=order, items=items, root=path.parent, notes=notes, medium=medium)


def _is_video(path: Path) -> bool:
    """By its name; an animated GIF may be meant as a picture."""
    suffix = path.suffix.lower()
    return suffix not in SUFFIXES and (suffix in VIDEO_SUFFIXES or path.is_dir())


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """Column names, (line number, fields) of each row, and the delimiter."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",\t;", key=first.count)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            lines = [(reader.line_num, [field.strip() for field in row]) for row in reader if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"not a CSV list in UTF-8 ({error})", where=path) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=path) from None
    if len(lines) < 2:
        raise DataError("the list is empty", where=path, remedy="the first line names columns, the others are pictures")
    (_, header), *rows = lines
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{len(row)} fields, the header has {len(header)}", where=f"{path}, line {line}")
    return header, rows, delimiter


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    return next((index for name in names for index, field in enumerate(header) if field.lower() == name), None)


def _split(field: str, delimiter: str) -> tuple[str, ...]:
    separators = "|" if delimiter == ";" else "|;"
    parts = field.replace(separators[-1], "|").split("|")
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _flags(row: Sequence[str], columns: Sequence[int], header: Sequence[str], path: Path, line: int) -> tuple[str, ...]:
    for index in columns:
        if row[index] not in ("0", "1"):
            raise DataError(
                f'"{row[index]}" in column "{header[index]}"',
                where=f"{path}, line {line}",
                remedy=f"class columns hold 0 or 1; or name one column {' or '.join(_LABEL)}",
            )
    return tuple(header[index] for index in columns if row[index] == "1")


def _files(rows: Sequence[tuple[int, list[str]]], image: int, path: Path) -> list[Path]:
    """Paths of all rows, each there and none twice."""
    lines: dict[Path, int] = {}
    for line, row in rows:
        file = path.parent / row[image]
        if file in lines:
            raise DataError(f'"{row[image]}" is listed twice', where=f"{path}, lines {lines[file]} and {line}")
        lines[file] = line
    missing = [file for file in lines if not file.exists()]
    if missing:
        raise DataError(f"{len(missing)} of {len(lines)} files are missing: {quoted(missing)}", where=path)
    return list(lines)
