"""Tar shards of pictures without labels, whatever else they hold. To judge on, WebDataset's classes are taken."""

from __future__ import annotations

from pathlib import Path

from patchform.data.listing import Item, Listing, ordered
from patchform.data.shards import hold_data
from patchform.data.webdataset import content_of
from patchform.settings import DataSettings

TASKS = ("pretraining",)
LAYOUT = "tar shards of pictures"
"""What is looked for, in words."""


def recognises(path: Path) -> bool:
    """Whether `path` is a shard, or a folder with shards anywhere below and neither pictures nor videos beside them."""
    return hold_data(path)


def read(path: Path, settings: DataSettings, classes: tuple[str, ...] | None) -> Listing:
    """List the pictures of all shards, none of which has a class, unless they are to judge on.

    Args:
        path: a shard or a folder.
        settings: not used.
        classes: None: to learn from. Anything else: to judge on, and where all pictures have a member `.cls` beside
            them, these give two classes or more.

    Raises:
        DataError: as `content_of`; a class that is no text.
    """
    content = content_of(path, classes=False)
    pictures, notes = content.pictures, content.notes
    lacking = len(content.without_class())
    found = () if classes is None or lacking else content.classes()
    names = ordered(found)
    if len(names) < 2:
        if classes is not None and 0 < lacking < len(pictures):
            notes += (f"{lacking} of {len(pictures)} pictures have no class, so that those of the others do not count",)
        items = tuple(Item(picture.path, ()) for picture in pictures)
        return Listing(classes=(), items=items, root=content.root, notes=notes)
    index = {name: number for number, name in enumerate(names)}
    items = tuple(Item(picture.path, (index[name],)) for picture, name in zip(pictures, found))
    notes += (f"judged by their {len(names)} classes",)
    return Listing(classes=names, items=items, root=content.root, notes=notes)
