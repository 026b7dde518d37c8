"""Tar shards of pictures without labels, whatever else they hold. To judge on, WebDataset's classes are taken."""

from __future__ import annotations

from pathlib import Path

from patchform.data.faults import Faults
from patchform.data.formats.base import Format
from patchform.data.listing import Item, Listing, ordered
from patchform.data.shards import hold_data
from patchform.data.webdataset import content_of
from patchform.settings import DataSettings


class UnlabelledShards(Format):
    """Tar shards of pictures without labels, whatever else they hold. To judge on, WebDataset's classes are taken."""

    tasks = ("pretraining",)
    layout = "tar shards of pictures"
    takes = "anything"

    def recognises(self, path: Path) -> bool:
        """Whether it is a shard, or a folder with shards anywhere below and neither pictures nor videos beside them."""
        return hold_data(path)

    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """List the pictures of all shards, none of which has a class, unless they are to judge on.

        That is so when `classes` are given, which ones does not matter, and where all pictures have a member `.cls`
        beside them that give two classes or more. `settings` are not used.

        Raises:
            DataError: as `content_of`; a class that is no text.
        """
        content = content_of(path, classes=False)
        pictures, notes = content.pictures, content.notes
        lacking = len(content.without_class())
        labels = () if classes is None or lacking else content.classes()
        names = ordered(labels)
        if len(names) < 2:
            if classes is not None and 0 < lacking < len(pictures):
                notes += (
                    f"{lacking} of {len(pictures)} pictures have no class, so that those of the others do not count",
                )
            items = tuple(Item(picture.path, ()) for picture in pictures)
            return Listing(classes=(), items=items, root=content.root, notes=notes)
        index = {name: number for number, name in enumerate(names)}
        items = tuple(Item(picture.path, (index[name],)) for picture, name in zip(pictures, labels))
        notes += (f"judged by their {len(names)} classes",)
        return Listing(classes=names, items=items, root=content.root, notes=notes)
