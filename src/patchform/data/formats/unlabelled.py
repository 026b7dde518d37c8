"""Pictures without labels: any folder, nested or flat. To judge on, class folders are taken at their word."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from patchform.data.faults import Faults
from patchform.data.formats.base import ANY_FOLDER, Format
from patchform.data.listing import SUFFIXES, Item, Listing, first_suffix, ordered, walk
from patchform.errors import DataError
from patchform.settings import DataSettings


class UnlabelledFolder(Format):
    """Pictures without labels: any folder, nested or flat. To judge on, class folders are taken at their word."""

    tasks = ("pretraining",)
    layout = "a folder of pictures, nested or flat"
    certainty = ANY_FOLDER

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a folder with a picture anywhere below."""
        return first_suffix(path, SUFFIXES) is not None

    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """List all pictures below a folder, none of which has a class, unless they are to judge on.

        That is so when `classes` are given, which ones does not matter, and where all pictures lie in two folders or
        more of `path`, whose names are then their classes. `settings` are not used.

        Raises:
            DataError: no picture.
        """
        files = tuple(walk(path))
        pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
        if not pictures:
            raise DataError("no picture", where=path, remedy=f"known file names end in {', '.join(SUFFIXES)}")
        ignored = Counter(file.suffix.lower() or "no suffix" for file in files if file.suffix.lower() not in SUFFIXES)
        notes: tuple[str, ...] = (
            (f"ignored files that are no pictures: {dict(ignored.most_common(5))}",) if ignored else ()
        )
        folders = [file.relative_to(path).parts[0] for file in pictures]
        names = ordered(folders)
        nested = len(names) > 1 and all(file.parent != path for file in pictures)
        if classes is None or not nested:
            return Listing(classes=(), items=tuple(Item(file, ()) for file in pictures), root=path, notes=notes)
        index = {name: number for number, name in enumerate(names)}
        items = tuple(Item(file, (index[folder],)) for file, folder in zip(pictures, folders))
        notes += (f"judged by its {len(names)} folders as classes",)
        return Listing(classes=names, items=items, root=path, notes=notes)
