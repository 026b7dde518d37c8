"""Annotations written to a new folder: never into the data set that they come from, never over a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

from patchform import system
from patchform.data.listing import Listing
from patchform.errors import FolderError, ResourceError

Copies: TypeAlias = Literal["none", "copy", "link"]
"""What is done about the pictures: nothing, copies, or symbolic links to the originals."""


def check_target(folder: Path, *sources: Path) -> None:
    """Raise FolderError for a folder inside one of the data sets."""
    target = folder.expanduser().resolve()
    for source in sources:
        if target.is_relative_to(source.resolve()):
            remedy = "choose a folder elsewhere; nothing is ever written into a data set"
            raise FolderError(f"inside the data set {source}", where=folder, remedy=remedy)


def check_apart(folder: Path, data: str | Path, *listings: Listing) -> None:
    """Raise FolderError for a folder in which the next who reads these data would find what is written.

    Args:
        folder: where something is to be written.
        data: as they were given: a folder, or a list of files.
        listings: what is read of them.
    """
    whole = Path(data).expanduser().is_dir()
    for listing in listings:
        check_target(folder, *({listing.root} if whole else {item.path.parent for item in listing.items}))


def write_new(file: Path, pieces: Iterable[str]) -> None:
    """Write a file, and the folders above it. Raises FolderError when it exists, ResourceError when it cannot be."""
    with _new(file), file.open("x", encoding="utf-8", newline="\n") as stream:
        stream.writelines(pieces)


def place_pictures(listing: Listing, folder: Path, pictures: Copies) -> None:
    """Put the pictures into a folder, by their relative names. Raises as `write_new` does."""
    if pictures == "none":
        return
    for index, item in enumerate(listing.items):
        file = folder / listing.name(index)
        with _new(file):
            if os.path.lexists(file):
                raise FileExistsError
            if pictures == "link":
                file.symlink_to(item.path.resolve())
            else:
                shutil.copyfile(item.path, file)


@contextmanager
def _new(file: Path) -> Iterator[None]:
    """Make the folders above a file that is written in this block."""
    if bad := [part for part in file.relative_to(file.anchor).parts if not system.is_file_name(part)]:
        raise ResourceError(f"cannot be written: Windows has no file of the name {bad[0]!r}", where=file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield
    except FileExistsError:
        raise FolderError("exists already", where=file, remedy="choose another folder") from None
    except OSError as error:
        raise ResourceError(f"cannot be written: {error.strerror}", where=file) from None
