"""CSV lists of pictures, or of videos, and their classes: what formats of them have in common.

The first line names the columns. One of them holds paths, relative to the list, with slashes of either kind: `image`,
`file`, `path`, `filename`, `file_name`, `filepath`, `image_path` or `video`; the path of a video may be a folder of its
frames.
Classes are given in one of two ways:

* a column `label`, `class` or `labels`: one name, or in multi-label work names separated by `|` or `;`;
* one column for each class, with 0 or 1.

A column `split`, `subset`, `partition` or `part` may say of each row whether it is to learn from (train), to validate
on (val), or neither (test, unless there is no val).

Fields are separated by commas, semicolons or tabs, whichever the first line uses most; text is what `text_files` reads.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, NoReturn

from patchform.data.foreign_formats import foreign, refuse_foreign
from patchform.data.known_classes import with_unknown
from patchform.data.listed_names import NearNames, exists
from patchform.data.listing import (
    SUFFIXES,
    TRAIN,
    VALIDATION,
    VIDEO_SUFFIXES,
    Item,
    Listing,
    Medium,
    by_name,
    check_names,
    mapping_note,
    ordered,
    quoted,
    relative_name,
    shortened,
)
from patchform.data.text_files import read_text
from patchform.errors import DataError
from patchform.settings import DataSettings

_IMAGE = ("image", "file", "path", "filename", "file_name", "filepath", "image_path", "video")
_LABEL = ("label", "class", "labels")
_PART = ("split", "subset", "partition", "part")
_HELD_OUT = (*VALIDATION[:-1], "dev", VALIDATION[-1], "testing")
"""What a column calls the part to validate on, the first that there is."""
_PARTS = (*TRAIN, *_HELD_OUT)
_SEPARATOR = "sep="
"""How a first line begins that tells a spreadsheet what is between fields."""


def is_list(path: Path) -> bool:
    """Whether `path` is a file whose name ends in .csv or .tsv."""
    return path.is_file() and path.suffix.lower() in (".csv", ".tsv")


def is_of_videos(path: Path) -> bool:
    """Whether the first row names a video; False for what is no list."""
    try:
        table = _table(path)
    except DataError:
        return False
    image = _column(table.header, _IMAGE)
    return image is not None and _is_video(path.parent / table.rows[0][1][image].replace("\\", "/"))


def both_parts(path: Path) -> tuple[Path, Path] | None:
    """The list, twice, where a column of it says what to learn from and what to validate on."""
    if not is_list(path):
        return None
    try:
        split = _split_of(_table(path), path)
    except DataError:
        return None  # `read_list` says why
    return (path, path) if split and split.validation else None


def read_list(path: Path, settings: DataSettings, classes: tuple[str, ...] | None, medium: Medium) -> Listing:
    """Read the list.

    Args:
        path: the CSV file.
        settings: `labels` says whether an item may have none or several classes.
        classes: names that give the indices (training's, or the model's); None: those that occur, or the columns. Of
            a list of both parts, one to learn from is listed without, one to validate on with them.
        medium: what the paths lead to.

    Raises:
        DataError: columns missing; no row; a row of other length, without or with too many classes, or with an unknown
            one; a file twice or missing; a table of boxes with several of a picture. Line numbers count from 1.
    """
    try:
        listing = _read(path, settings, classes, medium)
    except DataError:
        refuse_foreign(path)
        raise
    if known := foreign(path):
        note = f"this may be {known[0].name}: boxes are not read; for them, {known[0].remedy}"
        listing = replace(listing, notes=(*listing.notes, note))
    return listing


def _read(path: Path, settings: DataSettings, classes: tuple[str, ...] | None, medium: Medium) -> Listing:
    table = _table(path)
    image = _column(table.header, _IMAGE)
    if image is None:
        _refuse_columns(table.header, path)
    split = _split_of(table, path)
    notes: tuple[str, ...] = ()
    if split:
        table, notes = split.chosen(table, learnt_from=classes is None)
    header, rows, delimiter = table
    label = _column(header, _LABEL)
    if label is None:
        columns = [index for index in range(len(header)) if index != image and not (split and index == split.column)]
        labels = [_flags(row, columns, header, path, line) for line, row in rows]
        names: tuple[str, ...] = tuple(header[index] for index in columns)
        if not names:
            raise DataError("no column of classes", where=path, remedy=f"name one of the columns {' or '.join(_LABEL)}")
    else:
        labels = [_names(row[label], delimiter) for _, row in rows]
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
    read = (image, label, split.column if split else None)
    extra = [name for index, name in enumerate(header) if label is not None and index not in read]
    notes += (
        *((f"ignored columns: {quoted(extra)}",) if extra else ()),
        *(mapping_note(order) if classes is None else ()),
    )
    return Listing(classes=order, items=items, root=path.parent, notes=notes, medium=medium)


def _is_video(path: Path) -> bool:
    """By its name; an animated GIF may be meant as a picture."""
    suffix = path.suffix.lower()
    return suffix not in SUFFIXES and (suffix in VIDEO_SUFFIXES or os.path.isdir(path))


class _Table(NamedTuple):
    """A list as it is written."""

    header: list[str]
    """Names of the columns."""
    rows: list[tuple[int, list[str]]]
    """Line number and fields of each."""
    delimiter: str


class _Split(NamedTuple):
    """A column that says of each row what it is for."""

    column: int
    name: str
    train: frozenset[str]
    """What it says, in lower case, of rows to learn from; and likewise:"""
    validation: str
    """One of `VALIDATION` or like it; "" where there is none."""

    def chosen(self, table: _Table, *, learnt_from: bool) -> tuple[_Table, tuple[str, ...]]:
        """The rows of one part, and a note on them. What is all of one part is that part."""
        wanted = self.train if learnt_from or not self.validation else {self.validation}
        values = [row[self.column].lower() for _, row in table.rows]
        rows = [row for row, value in zip(table.rows, values) if value in wanted]
        others = Counter(value for value in values if value not in wanted)
        note = f'of column "{self.name}" {len(rows)} rows {"/".join(sorted(wanted & set(values)))} are taken'
        left = ", ".join(f"{number} {value}" for value, number in others.items())
        return table._replace(rows=rows), (f"{note}, not {left}" if left else note,)


def _split_of(table: _Table, path: Path) -> _Split | None:
    """Raises DataError for a column of parts with other words in it."""
    column = _column(table.header, _PART)
    if column is None:
        return None
    values = {row[column].lower(): line for line, row in reversed(table.rows)}
    train = frozenset(values) & frozenset(TRAIN)
    if not train:
        return None
    if unknown := [value for value in values if value not in _PARTS]:
        what = f'"{shortened(unknown[0])}" in column "{table.header[column]}", which tells parts'
        raise DataError(what, where=f"{path}, line {values[unknown[0]]}", remedy="write train, val or test")
    return _Split(column, table.header[column], train, next((name for name in _HELD_OUT if name in values), ""))


def _table(path: Path) -> _Table:
    text = read_text(path)
    skipped = 0
    if text.lower().startswith(_SEPARATOR):
        skipped, text = 1, text.partition("\n")[2]
    delimiter = max(",\t;", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num + skipped, [field.strip() for field in row]) for row in reader if any(row)]
    except csv.Error as error:
        raise DataError(f"not a CSV list ({error})", where=f"{path}, line {reader.line_num + skipped}") from None
    if len(lines) < 2:
        raise DataError("the list is empty", where=path, remedy="the first line names columns, the others are pictures")
    (_, header), *rows = lines
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{len(row)} fields, the header has {len(header)}", where=f"{path}, line {line}")
    return _Table(header, rows, delimiter)


def _refuse_columns(header: Sequence[str], path: Path) -> NoReturn:
    if any(name.lower().endswith((*SUFFIXES, *VIDEO_SUFFIXES)) for name in header):
        what, remedy = "the first line is a row, and names no columns", "write image,label above it"
    else:
        what = f"no column of paths among {quoted(header)}"
        remedy = f"name one of the columns {' or '.join(_IMAGE)}"
    raise DataError(what, where=path, remedy=remedy)


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    return next((index for name in names for index, field in enumerate(header) if field.lower() == name), None)


def _names(field: str, delimiter: str) -> tuple[str, ...]:
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
        name = row[image].replace("\\", "/")
        file = path.parent / name
        if file in lines:
            what = f'"{shortened(name)}" is listed twice'
            raise DataError(what, where=f"{path}, lines {lines[file]} and {line}")
        lines[file] = line
    if missing := [file for file in lines if not exists(file)]:
        offer = NearNames(path.parent, ()).offer(relative_name(missing[0], path.parent))
        what = f"{len(missing)} of {len(lines)} files are missing: {quoted(missing)}"
        raise DataError(what, where=path, remedy=f"for the first, {offer}" if offer else "")
    return list(lines)
