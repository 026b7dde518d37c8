"""The contract of a data format: a layout of files on a disk, and what of it becomes a listing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from patchform.data.faults import Faults
from patchform.data.known_classes import only_known
from patchform.data.listing import Listing
from patchform.data.writing import Copies
from patchform.settings import DataSettings

Parts = tuple[Path, Path | None]
"""What to learn from, and what to validate on where a format knows of any."""


class Format(ABC):
    """A layout of data. A file of this folder holds one, without state. It opens no picture."""

    tasks: ClassVar[tuple[str, ...]]
    """Names of the tasks that it serves."""
    layout: ClassVar[str]
    """What is looked for, in words, for messages."""
    takes: ClassVar[Literal["its layout", "folders", "anything", "objects"]] = "its layout"
    """What it recognises. folders: any, whatever they are called, so that those of other layouts would do too;
    anything: whatever holds pictures; objects: those of Python (`data.python_sets`), never a folder."""
    inside: ClassVar[tuple[str, ...]] = ()
    """Folders in which train/ and val/ may lie."""

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether a folder or file is of this format. Several formats are asked, so it must be sure."""

    def is_meant(self, path: Path) -> bool:
        """Whether data that it recognises are for its tasks for certain, for commands that are not told the task."""
        return True

    def parts(self, path: Path) -> Parts | None:
        """Both parts, if the format itself says where they are; else the names of folders decide. Raises DataError."""
        return None

    @abstractmethod
    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """List what there is.

        Args:
            path: what it recognises.
            settings: how data are read; a format takes what is for it. `path` in it is what was given, of which the
                other `path` may be a part.
            classes: names that give the indices (training's, or the model's); None: those of the data.
            faults: where to note what is wrong with annotations and does not hinder going on.

        Raises:
            DataError: what cannot be right and hinders going on.
            UsageError: settings that are not for these data.
        """

    def open(
        self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults | None = None
    ) -> Listing:
        """What `read` gives, without classes that are not among `classes` where these are given.

        Without `faults`, fatal ones are raised all at once, and others, hints too, are notes. Raises DataError also for
        an unknown class that anything has.
        """
        collected = Faults() if faults is None else faults
        listing = self.read(path, settings, classes, collected)
        if classes:
            listing = only_known(listing, classes, collected.file or path)
        if faults is not None:
            return listing
        collected.refuse(collected.file or path)
        return replace(listing, notes=listing.notes + collected.notes() + collected.hints())


class WritableFormat(Format):
    """A format of annotated objects in which data can be written, too."""

    keeps: ClassVar[frozenset[str]]
    """What is written beside boxes and classes, of: outlines, runs, crowd, areas, ids."""

    @abstractmethod
    def write(
        self, listing: Listing, folder: Path, *, part: str = "train", pictures: Copies = "none"
    ) -> tuple[str, ...]:
        """Write one part of a data set, never into the one that it comes from.

        Returns:
            What was lost, a sentence each.

        Raises:
            FolderError: the folder is inside the data set, or has such files.
            ResourceError: it cannot be written to.
            DataError: a listing that the format has no place for.
        """
