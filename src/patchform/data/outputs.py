"""The folder that a prediction writes into: names that never collide, and a list of what was written.

The list, `.written.jsonl`, has a line {"file", "sha256"} for each file. By it a later prediction knows what it may take
away and what is no source of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path, PurePosixPath
from typing import TextIO

from patchform import system
from patchform.data.listing import walk
from patchform.drawing import save
from patchform.errors import FolderError, ResourceError

WRITTEN, LIST = "predictions.jsonl", ".written.jsonl"
"""In each folder that a prediction writes: the answers, a line each, and the list of the other files."""
LONGEST = 200
"""Bytes of a name, to which endings are added: file systems end at 255."""
_LARGEST_LIST = 1 << 28
_NAMED = 3
"""Files that are named in a message."""


def distinct(places: Sequence[str], paths: Sequence[Path | None], endings: Sequence[str]) -> list[str]:
    """A name for each place, with forward slashes, so that no two files and no file and folder fall together.

    Places stay as they are where they differ; else all are told by their paths below the folder that has them all. What
    is alike even then gets a number. On file systems that ignore case it is so too.

    Args:
        places: below the folders that were given.
        paths: of the same, None for what lies in memory.
        endings: of the files that are written for each.
    """
    places = ["/".join(_short(part) for part in place.split("/")) for place in places]
    folded = [place.casefold() for place in places]
    known = [os.path.abspath(path) for path in paths if path is not None]
    if len(set(folded)) < len(folded) and len(set(known)) > 1:
        common = os.path.commonpath([os.path.dirname(path) for path in known])
        below = [None if path is None else os.path.relpath(os.path.abspath(path), common) for path in paths]
        places = [
            place if path is None else "/".join(map(_short, Path(path).parts)) for place, path in zip(places, below)
        ]
    files, folders, names = {WRITTEN, LIST}, set[str](), []
    for place in places:
        name = _free(place, files, folders, endings)
        names.append(name)
        files |= {name.casefold() + ending for ending in endings}
        folders |= {str(folder) for folder in PurePosixPath(name.casefold()).parents}
    return names


def _free(place: str, files: set[str], folders: set[str], endings: Sequence[str]) -> str:
    """The place, with numbers after those of its parts that are taken: folders by files, and its last by anything."""
    home = ""
    *above, last = place.split("/")
    for part in above:
        home += next(name for name in _numbered(part) if (home + name).casefold() not in files) + "/"

    def free(name: str) -> bool:
        return not any((home + name).casefold() + ending in files | folders for ending in endings)

    return home + next(filter(free, _numbered(last)))


def _numbered(name: str) -> Iterator[str]:
    """a, a-2, a-3, ..."""
    yield name
    yield from (f"{name}-{number}" for number in count(2))


def _short(name: str) -> str:
    return os.fsdecode(os.fsencode(system.file_name(name))[:LONGEST])


def listed(folder: Path) -> set[Path] | None:
    """The files that a prediction wrote into a folder by its list, WRITTEN among them; None without a list."""
    sums = _read(folder)
    return None if sums is None else {folder / WRITTEN, *(folder / name for name in sums)}


class OutputFolder:
    """Where the files of a prediction go, each put on the list. Use as a context manager.

    Args:
        folder: made if need be.
        overwrite: what an earlier prediction wrote there is taken away first. What was changed since, and what it did
            not write, stays.
    """

    def __init__(self, folder: Path, *, overwrite: bool = False) -> None:
        self.folder, self.overwrite = folder, overwrite
        self._list: TextIO | None = None

    def file(self, name: str, ending: str) -> Path:
        """Where a file of a name goes; names have forward slashes."""
        return self.folder / f"{name}{ending}"

    def refuse(self, files: Iterable[Path]) -> None:
        """Raise FolderError for the first of these files that is there, or that would lie below one that is no folder.

        With `overwrite` files may be there, folders of their names may not.
        """
        for file in (self.folder / WRITTEN, *files):
            if os.path.lexists(file) and (file.is_dir() or not self.overwrite):
                raise FolderError("the file exists already", where=file, remedy="name another folder, or overwrite")
            for above in file.parents:
                if os.path.lexists(above) and not above.is_dir():
                    raise FolderError("a file where a folder is to be", where=above, remedy="name another folder")
                if above == self.folder:
                    break

    def clear(self, files: Iterable[Path]) -> tuple[str, ...]:
        """Take away what an earlier prediction wrote, and say what stays beside `files`, which come now."""
        if not self.overwrite or not self.folder.is_dir():
            return ()
        home, emptied = self.folder.resolve(), set()
        for name, digest in (_read(self.folder) or {}).items():
            file = self.folder / name
            own = file.parent.resolve().is_relative_to(home) and file.is_file() and not file.is_symlink()
            if own and _digest(file) == digest:
                with _writing(file):
                    file.unlink()
                emptied |= {folder for folder in file.parents if self.folder in folder.parents}
        for folder in sorted(emptied, key=lambda folder: -len(folder.parts)):
            if not any(folder.iterdir()):
                folder.rmdir()
        coming = {self.folder / WRITTEN, *files}
        left = [file for file in walk(self.folder) if file not in coming]
        if not left:
            return ()
        names = ", ".join(file.relative_to(self.folder).as_posix() for file in left[:_NAMED])
        many = f"{len(left)} other file{'s' * (len(left) > 1)}"
        return (
            f"{many} stay in {self.folder}, not written by a prediction or changed since: {names}"
            + ", ..." * (len(left) > _NAMED),
        )

    def __enter__(self) -> OutputFolder:
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._list = open(self.folder / LIST, "w" if self.overwrite else "a", encoding="utf-8", newline="\n")
        return self

    def __exit__(self, *_: object) -> None:
        if self._list is not None:
            self._list.close()

    def answers(self) -> TextIO:
        """The open file of answers. Raises ResourceError."""
        with _writing(self.folder / WRITTEN):
            return open(self.folder / WRITTEN, "w" if self.overwrite else "x", encoding="utf-8", newline="\n")

    def save(self, content: bytes, path: Path) -> None:
        """Write a file that appears whole or not at all, and its folder. Raises FolderError, ResourceError."""
        self._ready(path)
        self._note(path, hashlib.sha256(content).hexdigest())
        save(content, path)

    def film(self, path: Path, write: Callable[[Path], None]) -> None:
        """Let a function write a file. Raises what that raises."""
        self._ready(path)
        write(path)
        self._note(path, _digest(path))

    def _ready(self, path: Path) -> None:
        """Make the folder of a file, and raise FolderError if it is there and must not be."""
        if not self.overwrite and os.path.lexists(path):
            raise FolderError("the file exists already", where=path, remedy="name another folder, or overwrite")
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)

    def _note(self, path: Path, digest: str) -> None:
        assert self._list is not None
        with _writing(self.folder / LIST):
            name = path.relative_to(self.folder).as_posix()
            self._list.write(json.dumps({"file": name, "sha256": digest}) + "\n")
            self._list.flush()


def _read(folder: Path) -> dict[str, str] | None:
    """Names and sums of a list; None where there is none. Lines that are none are left out, as are names outside."""
    file = folder / LIST
    try:
        if file.stat().st_size > _LARGEST_LIST:
            return {}
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    sums = {}
    for line in lines:
        try:
            entry = json.loads(line)
            name, digest = str(entry["file"]), str(entry["sha256"])
        except (ValueError, KeyError, TypeError, RecursionError):  # cut by a power failure
            continue
        path = PurePosixPath(name)
        if not path.is_absolute() and ".." not in path.parts and "\0" not in name:
            sums[name] = digest
    return sums


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(f"cannot be written ({error.strerror})", where=path) from error
