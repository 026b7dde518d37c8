"""Ids of pictures and classes in a user's own annotation file, for results that are scored against it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from patchform.data.formats.coco import Coco
from patchform.data.json_lists import elements
from patchform.data.listing import is_hidden, quoted
from patchform.errors import DataError

_REMEDY = "name COCO's json, with images and categories"


class Ids(NamedTuple):
    """Those of one file."""

    file: Path
    pictures: Mapping[str, int | str]
    """By `file_name`, with forward slashes."""
    categories: Mapping[str, int | str]
    """By name."""

    def of_pictures(self, names: Sequence[str], paths: Sequence[Path | None]) -> dict[str, int | str]:
        """Ids by name, of those pictures that the file has.

        A picture is the one whose `file_name` its path ends with, the longest such; else the only one of its file name.
        Of several the one is meant that lies where the file is, or beside its folder.

        Args:
            names: of the pictures.
            paths: of the same, None for what lies in memory.

        Raises:
            DataError: two pictures that the file takes for one.
        """
        by_name = {_plain(name): id_ for name, id_ in self.pictures.items()}
        counts = Counter(name.rsplit("/", 1)[-1] for name in by_name)
        by_end = {end: id_ for name, id_ in by_name.items() if counts[end := name.rsplit("/", 1)[-1]] == 1}
        deepest = max((name.count("/") for name in by_name), default=0) + 1
        homes = [_plain(folder.as_posix()) for folder in self.file.absolute().parents[:2]]
        places = {f"{home}/{name}": id_ for home in homes for name, id_ in by_name.items()}
        matches: dict[int | str, list[str]] = {}
        exact: dict[int | str, str] = {}
        for name, path in zip(names, paths, strict=True):
            whole = _plain(name if path is None else path.absolute().as_posix())
            parts = whole.split("/")
            ends = ("/".join(parts[-number:]) for number in range(min(deepest, len(parts)), 0, -1))
            id_ = next((by_name[end] for end in ends if end in by_name), by_end.get(parts[-1]))
            if whole in places:
                id_ = places[whole]
                exact.setdefault(id_, name)
            if id_ is not None:
                matches.setdefault(id_, []).append(name)
        for id_, owners in matches.items():
            if len(owners) > 1 and id_ not in exact:
                what = f"{owners[0]} and {owners[1]} are both the picture {id_!r}"
                raise DataError(what, where=self.file, remedy="predict the pictures of this file alone")
        return {exact.get(id_, owners[0]): id_ for id_, owners in matches.items()}

    def of_classes(self, classes: Sequence[str]) -> tuple[list[int | str], list[str]]:
        """An id for each class, and the names that the file does not have: they get new ids above all others."""
        new = max((id_ for id_ in self.categories.values() if isinstance(id_, int)), default=0)
        lacking = [name for name in classes if name not in self.categories]
        fresh = {name: new + number for number, name in enumerate(lacking, 1)}
        return [self.categories[name] if name in self.categories else fresh[name] for name in classes], lacking


def read_ids(file: Path) -> Ids:
    """The ids in COCO's json. Raises DataError: cannot be read, other JSON, a name or an id twice."""
    tables: dict[str, dict[str, int | str]] = {"images": {}, "categories": {}}
    keys = {"images": "file_name", "categories": "name"}
    for key, record in elements(file):
        if key not in tables or record is None:
            continue
        name, id_ = (record.get(field) if isinstance(record, dict) else None for field in (keys[key], "id"))
        if not isinstance(name, str) or not isinstance(id_, int | str) or isinstance(id_, bool):
            raise DataError(f"{key} without {keys[key]} and id", where=file, remedy=_REMEDY)
        name = name.replace("\\", "/") if key == "images" else name
        if tables[key].setdefault(name, id_) != id_:
            raise DataError(f'"{name}" has two ids among the {key}', where=file, remedy="number each once")
    for key, table in tables.items():
        if not table:
            raise DataError(f"no {key} with ids", where=file, remedy=_REMEDY)
        if len(set(table.values())) < len(table):
            raise DataError(f"an id twice among the {key}", where=file, remedy="number each once")
    return Ids(file, tables["images"], tables["categories"])


def annotation_files(folder: Path) -> list[Path]:
    """Lists of COCO's kind that lie in a folder, or else in its annotations/."""
    format_ = Coco()
    for place in (folder, folder / "annotations"):
        if place.is_dir():
            files = sorted(file for file in place.iterdir() if file.suffix.lower() == ".json")
            if files := [file for file in files if not is_hidden(file.name) and format_.recognises(file)]:
                return files
    return []


def choose_ids(
    file: Path | None, folders: Sequence[Path], names: Sequence[str], paths: Sequence[Path | None]
) -> tuple[Ids | None, tuple[str, ...]]:
    """The file whose ids are meant, and what to say: the one that is named, or the only one in the folders given.

    Args:
        file: as named; None: none was.
        folders: in which one may lie.
        names: of the pictures.
        paths: of the same, None for what lies in memory.

    Raises:
        DataError: a file that was named and is none, or has none of the pictures.
    """
    if file is not None:
        ids = read_ids(_only(file) if file.is_dir() else file)
        if not ids.of_pictures(names, paths):
            shown = quoted(list(ids.pictures), 2)
            raise DataError(f"none of the {len(names)} pictures", where=file, remedy=f"it has {shown}")
        return ids, ()
    usable: list[Ids] = []
    notes: list[str] = []
    for candidate in dict.fromkeys(file for folder in folders for file in annotation_files(folder)):
        try:
            ids = read_ids(candidate)
            if ids.of_pictures(names, paths):
                usable.append(ids)
        except DataError as error:
            notes.append(f"ids are not those of {candidate}: {error.what}")
    if len(usable) > 1:
        several = quoted([str(ids.file) for ids in usable])
        return None, (f"ids of pictures are made from their names: several files have some ({several}; --ids FILE)",)
    return (usable[0], ()) if usable else (None, tuple(notes))


def _only(folder: Path) -> Path:
    """The annotation file of a folder. Raises DataError if it is none or several."""
    files = annotation_files(folder)
    if len(files) != 1:
        raise DataError(f"{len(files)} annotation files", where=folder, remedy="name one file")
    return files[0]


def _plain(name: str) -> str:
    """One spelling of letters that can be written in two ways."""
    return unicodedata.normalize("NFC", name.removeprefix("./"))
