"""What a data set holds, before any picture is opened: classes by name, files by path."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from patchform.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".npy")
"""Names that are taken for pictures in a folder; what they really are is decided by their content."""


TRAIN, VALIDATION = ("train", "training"), ("val", "valid", "validation", "test")
"""Names of the parts of a data set."""


class Item(NamedTuple):
    """A picture and what is known of it."""

    path: Path
    classes: tuple[int, ...]
    """Indices into the listing's classes: one for single labels, any number for multiple ones, none with a mask."""
    mask: Path | None = None
    """Picture of a class for every pixel."""


@dataclass(frozen=True, kw_only=True)
class Coding:
    """What the numbers, or the colours, of label pictures mean. A class is an index into the listing's classes."""

    ids: tuple[tuple[int, int], ...] = ()
    """(number in the file, class or `IGNORED`); any other number is a fault."""
    colors: tuple[tuple[tuple[int, int, int], int], ...] = ()
    """((red, green, blue), class or `IGNORED`). When given, colours count and numbers do not."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All pictures of one part of a data set."""

    classes: tuple[str, ...]
    """Names; a position is the class index everywhere."""
    items: tuple[Item, ...]
    root: Path
    """Folder that names are relative to."""
    notes: tuple[str, ...] = ()
    """What the user should know: things ignored, counted or mapped. One sentence each."""
    coding: Coding | None = None
    """Of the masks; None without any."""

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        """Path of an item relative to the root, with forward slashes."""
        return relative_name(self.items[index].path, self.root)

    def as_bytes(self) -> bytes:
        """Names and classes of all items, for a digest of what is listed."""
        lines = [f"{self.name(index)}\0{item.classes}\n" for index, item in enumerate(self.items)]
        return "".join(lines + [repr(self.coding)] * (self.coding is not None)).encode(errors="surrogateescape")

    def counts(self) -> tuple[int, ...]:
        """Number of pictures of each class."""
        found = [0] * len(self.classes)
        for item in self.items:
            for index in item.classes:
                found[index] += 1
        return tuple(found)


def relative_name(path: Path, root: Path) -> str:
    """`path` relative to `root` with forward slashes, or as it is when it lies elsewhere."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to the system or to a tool, not to the data set."""
    return name.startswith((".", "@eaDir", "__MACOSX")) or name.lower() in ("thumbs.db", "desktop.ini", "$recycle.bin")


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, by name. Links to folders are followed unless they lead back to a folder above.

    A folder named like a picture is given as it is, for the decoder to refuse.
    """
    above: list[tuple[int, int]] = []

    def visit(place: Path) -> Iterator[Path]:
        status = place.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        above.append(identity)
        with os.scandir(place) as found:
            entries = sorted((entry for entry in found if not is_hidden(entry.name)), key=lambda entry: entry.name)
        for entry in entries:
            path = place / entry.name
            is_folder = path.is_dir() if entry.is_symlink() else entry.is_dir()  # a link to itself is none
            if is_folder and not entry.name.lower().endswith(SUFFIXES):
                yield from visit(path)
            else:
                yield path
        above.pop()

    try:
        yield from visit(folder)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=error.filename or folder) from None


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in their order: by number when all are whole numbers, else by character."""
    names = set(names)
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def mapping_note(classes: Sequence[str]) -> tuple[str, ...]:
    """A note on how names that are numbers, but not their own positions, were numbered."""
    if not classes or not all(name.isascii() and name.isdigit() for name in classes):
        return ()
    pairs = ", ".join(f"{name} -> {index}" for index, name in enumerate(classes[:12]))
    return (f"class names are numbers, in numerical order (name -> index): {pairs}{' ...' * (len(classes) > 12)}",)


def check_names(names: Sequence[str], where: Path) -> None:
    """Raise DataError when two class names are equal up to case and spaces: most likely they mean one class."""
    seen: dict[str, str] = {}
    for name in names:
        key = "".join(name.casefold().split())
        if key in seen:
            raise DataError(
                f'classes "{seen[key]}" and "{name}" differ only by case or spaces', where=where, remedy="rename one"
            )
        seen[key] = name


def by_name(found: Iterable[str], classes: Sequence[str], where: Path) -> dict[str, int]:
    """Indices by name. Raises DataError for a name that is not among `classes`."""
    indices = {name: index for index, name in enumerate(classes)}
    unknown = [name for name in found if name not in indices]
    if unknown:
        raise DataError(
            f"{len(unknown)} unknown class{'es' * (len(unknown) > 1)}: {quoted(unknown)}",
            where=where,
            remedy=f"known are {quoted(classes)}",
        )
    return indices


def quoted(names: Sequence[object], limit: int = 5) -> str:
    """The first few names for a message."""
    return ", ".join(f'"{name}"' for name in names[:limit]) + (f" and {len(names) - limit} more" * (len(names) > limit))
