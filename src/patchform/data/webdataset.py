"""The layout of WebDataset in tar shards: members of one sample share their path up to the first dot of the file name.

`000.tar` holds the picture `a/1.jpg` and, beside it, its class `a/1.cls`, as text: a whole number or a name. Pictures
come in the order of their names, as if each shard were a folder; in which order a shard was filled does not matter.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from patchform.data import shards
from patchform.data.listing import SUFFIXES, TRAIN, VALIDATION, quoted, relative_name, walk
from patchform.errors import DataError

_CLASS = "cls"
_LONGEST_CLASS = 1000
"""Bytes."""


class Member(NamedTuple):
    """A member that is a picture."""

    shard: Path
    name: str
    label: str | None
    """Name of the member with its class."""

    @property
    def path(self) -> Path:
        """As any file is named."""
        return self.shard / self.name


class Content(NamedTuple):
    """What shards hold."""

    pictures: tuple[Member, ...]
    root: Path
    """Folder that names are relative to."""
    notes: tuple[str, ...]

    def without_class(self) -> list[str]:
        """Names of pictures without a class."""
        return [relative_name(picture.path, self.root) for picture in self.pictures if picture.label is None]

    def classes(self) -> list[str]:
        """The class of each picture, all of which have one. Raises DataError for what is none."""
        by_shard: dict[Path, dict[str, str]] = {}
        for picture in self.pictures:
            by_shard.setdefault(picture.shard, {})[picture.label or ""] = ""
        for shard, labels in by_shard.items():
            texts = shards.contents(shard, list(labels), _LONGEST_CLASS)
            labels.update((name, _class(text, shard / name)) for name, text in zip(labels, texts))
        return [by_shard[picture.shard][picture.label or ""] for picture in self.pictures]


def content_of(path: Path, *, classes: bool) -> Content:
    """Find all pictures of a shard, or of all shards below a folder. Only headers are read.

    Args:
        path: the shard or the folder.
        classes: whether the classes of pictures are used; otherwise they count among what is ignored.

    Raises:
        DataError: no picture, a shard that cannot be used, or shards to validate on beside those to learn from.
    """
    files = [path] if path.is_file() else [file for file in walk(path) if shards.is_shard(file.name)]
    _check_parts(files, path)
    pictures: list[Member] = []
    ignored, crowded, links = Counter[str](), list[str](), list[str]()
    for shard in files:
        table = shards.index(shard)
        links += [(shard / name).name for name in table.links]
        labels = {_key(name): name for name in table.names if _ending(name) == _CLASS}
        members = [Member(shard, name, labels.get(_key(name))) for name in shards.pictures(table)]
        used = {member.name for member in members} | {member.label for member in members if classes}
        ignored.update(
            PurePosixPath(name).suffix.lower() or "no suffix"
            for name in table.names
            if name not in used and not shards.hidden(name)
        )
        samples = Counter(_key(member.name) for member in members)
        crowded += [f"{shard.name}/{key}" for key, number in samples.items() if number > 1]
        pictures += members
    if not pictures:
        raise DataError("no picture in the shards", where=path, remedy=f"known names end in {', '.join(SUFFIXES)}")
    notes = (
        *((f"ignored members that are no pictures: {dict(ignored.most_common(5))}",) if ignored else ()),
        *((f"ignored {len(links)} links in shards: {quoted(links, 3)}",) if links else ()),
        *((f"{len(crowded)} samples of several pictures, each counts: {quoted(crowded, 3)}",) if crowded else ()),
    )
    return Content(tuple(pictures), path.parent if path.is_file() else path, notes)


def _key(name: str) -> str:
    """What members of one sample share."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _ending(name: str) -> str:
    """What tells members of one sample apart."""
    return name.rpartition("/")[2].partition(".")[2].lower()


def _class(data: bytes, where: Path) -> str:
    try:
        name = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise DataError("not UTF-8", where=where, remedy="write a whole number or a name") from None
    if not name or not name.isprintable():
        raise DataError("not one class" if name else "no class", where=where, remedy="write a whole number or a name")
    return name


def _check_parts(files: list[Path], where: Path) -> None:
    """Raise DataError when by their names some shards are to learn from and others to validate on."""
    words = {file.name: set(re.split("[^a-z]+", file.name.lower())) for file in files}
    train, held_out = ([name for name, own in words.items() if own & set(part)] for part in (TRAIN, VALIDATION))
    if train and held_out:
        what = f'shards to learn from and to validate on in one folder: "{train[0]}" and "{held_out[0]}"'
        raise DataError(what, where=where, remedy="put them into train/ and val/ below it")
