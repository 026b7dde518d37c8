"""Names of files as lists write them: whether they stay inside the data set, and what is meant where there is none."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from patchform.data.listing import SUFFIXES, walk
from patchform.errors import DataError

_FILE = "file://"
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")
"""What annotation servers put before the name of a file that is sent to them."""


def is_inside(name: str) -> bool:
    """Whether a relative path, with slashes of either kind, stays below where it starts."""
    parts = name.replace("\\", "/").split("/")
    return bool(name) and parts[0] != "" and ":" not in parts[0] and ".." not in parts


def inside(name: str, home: Path, base: Path | None = None) -> str | None:
    """A listed name with forward slashes and no detours, if it stays in the data set; else None.

    Args:
        name: relative, or absolute; with slashes of either kind.
        home: folder of the data set. Absolute names, and those with "..", become relative to it.
        base: folder that names with ".." begin at; default: `home`.
    """
    name = name.replace("\\", "/")
    if is_inside(name):
        short = posixpath.normpath(name)
        return None if short == "." else short
    if name.startswith(_FILE):
        name = unquote(name[len(_FILE) :])
    if not name or "\0" in name or ":" in name.split("/")[0]:
        return None
    path = posixpath.normpath((home if base is None else base).absolute().as_posix() + "/" + name)
    if name.startswith("/"):
        path = posixpath.normpath(name)
    for root in (home.absolute(), home.resolve()):
        if Path(path).is_relative_to(posixpath.normpath(root.as_posix())):
            short = posixpath.relpath(path, root.as_posix())
            return None if short == "." else short
    return None


def is_file(path: Path | str) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    return os.path.isfile(path)


def exists(path: Path | str) -> bool:
    """Whether there is such a file or folder; a name that no file can have is none."""
    return os.path.exists(path)


class NearNames:
    """Files below a folder by what people and tools change about names. It is looked through at the first question.

    Nothing is read in place of what is listed: names are offered, for the user to choose.

    Args:
        folder: where they are.
        endings: of the names that count, in lower case; () for all.
    """

    def __init__(self, folder: Path, endings: tuple[str, ...] = SUFFIXES) -> None:
        self.folder, self.endings = folder, endings
        self._tables: list[dict[str, list[str]]] | None = None

    def offer(self, name: str) -> str:
        """Words that name the file most like `name`, as 'there is "b/my photo.jpg", in another folder'; else ""."""
        if not name:
            return ""
        if self._tables is None:
            self._tables = self._all()
        for table, key in zip(self._tables, _KEYS, strict=True):
            if near := table.get(key(name)):
                more = f" and {len(near) - 1} more" if len(near) > 1 else ""
                return ", ".join(part for part in (f'there is "{near[0]}"{more}', _difference(name, near[0])) if part)
        return ""

    def _all(self) -> list[dict[str, list[str]]]:
        tables: list[dict[str, list[str]]] = [{} for _ in _KEYS]
        try:
            files = [file for file in walk(self.folder) if file.name.lower().endswith(self.endings or "")]
        except DataError:
            files = []
        for file in files:
            name = file.relative_to(self.folder).as_posix()
            for table, key in zip(tables, _KEYS, strict=True):
                table.setdefault(key(name), []).append(name)
        return tables


def near_path(home: Path, name: str) -> str | None:
    """The file or folder whose path in `home` differs by case, Unicode form or % codes alone, if there is one."""
    path = home
    for part in PurePosixPath(name).parts:
        if not exists(path / part):
            try:
                alike = [entry.name for entry in sorted(path.iterdir()) if _key(entry.name) == _key(part)]
            except (OSError, ValueError):
                return None
            if not alike:
                return None
            part = alike[0]
        path /= part
    return path.relative_to(home).as_posix()


def nearest(path: Path) -> str:
    """Words that name the file or folder that was meant by a path to nowhere; "" where there is none."""
    near = near_path(Path(path.anchor or "."), path.relative_to(path.anchor).as_posix())
    return f'there is "{Path(path.anchor, near)}"' if near else ""


def with_offer(what: str, offer: str) -> str:
    """What is missing, and what there is in place of it."""
    return "; ".join(part for part in (what, offer) if part)


def _key(name: str) -> str:
    """Equal for names that differ by case, Unicode form, slashes, % codes, or by what stands for a space."""
    plain = _nfc(unquote(name.replace("\\", "/"), errors="replace")).casefold()
    return re.sub(r"[ _+\xa0]+", "_", posixpath.normpath(plain.strip()))


def _without_suffix(name: str) -> str:
    return PurePosixPath(_key(name)).with_suffix("").as_posix() if PurePosixPath(_key(name)).name else ""


def _last(name: str) -> str:
    return posixpath.basename(_key(name))


def _stem(name: str) -> str:
    return _UPLOAD.sub("", PurePosixPath(_key(name)).stem)


_KEYS: tuple[Callable[[str], str], ...] = (_key, _without_suffix, _last, _stem)
"""The nearest first."""


def _difference(name: str, other: str) -> str:
    """In what a listed name differs from a file's; "" where it does not."""
    name = name.replace("\\", "/")
    if name.strip() == other:
        return "" if name == other else "without spaces around it"
    raw_stem, raw_other_stem = (posixpath.splitext(posixpath.basename(one))[0] for one in (name, other))
    (folder, last), (other_folder, other_last) = (posixpath.split(_nfc(one)) for one in (name, other))
    (stem, suffix), (other_stem, other_suffix) = posixpath.splitext(last), posixpath.splitext(other_last)
    plain, other_plain = unquote(stem), unquote(other_stem)
    differences = (
        ("in another folder", folder.casefold() != other_folder.casefold()),
        ("in other case", folder != other_folder and folder.casefold() == other_folder.casefold()),
        ("in the other Unicode form of its letters", stem == other_stem and raw_stem != raw_other_stem),
        ("without % codes", stem != plain and other_stem == plain),
        ("with % codes", stem == plain and other_stem != other_plain),
        ("in other case", plain != other_plain and plain.casefold() == other_plain.casefold()),
        ("spelt otherwise", plain.casefold() != other_plain.casefold()),
        ("in other case", plain == other_plain and suffix != other_suffix and suffix.lower() == other_suffix.lower()),
        ("with another suffix", suffix.lower() != other_suffix.lower()),
    )
    words = " and ".join(dict.fromkeys(words for words, applies in differences if applies))
    return words or "in the other Unicode form of its letters"  # of a folder


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
