"""Tar shards in the layout of WebDataset (`data.webdataset`): a member `a/1.cls` holds the class of `a/1.jpg`."""

from __future__ import annotations

from pathlib import Path

from patchform.data.faults import Faults
from patchform.data.formats.base import Format
from patchform.data.known_classes import with_unknown
from patchform.data.listing import Item, Listing, by_name, check_names, mapping_note, ordered, quoted
from patchform.data.shards import hold_data
from patchform.data.webdataset import content_of
from patchform.errors import DataError
from patchform.settings import DataSettings


class ClassShards(Format):
    """Tar shards in the layout of WebDataset (`data.webdataset`): a member `a/1.cls` holds the class of `a/1.jpg`."""

    tasks = ("classification",)
    layout = "tar shards of pictures and their classes"
    takes = "anything"

    def recognises(self, path: Path) -> bool:
        """Whether it is a shard, or a folder with shards anywhere below and neither pictures nor videos beside them."""
        return hold_data(path)

    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """List the pictures of all shards. `settings` are not used.

        Raises:
            DataError: as `content_of`; a picture without a class, a class that is no text, unknown, or that differs
                from another one by case or spaces only.
        """
        content = content_of(path, classes=True)
        if lacking := content.without_class():
            raise DataError(
                f"{len(lacking)} of {len(content.pictures)} pictures have no class: {quoted(lacking)}",
                where=path,
                remedy='put it as text into a member "a/1.cls" beside "a/1.jpg"; others, as .json, are not looked at',
            )
        labels = content.classes()
        names = ordered(labels)
        check_names(names, path)
        order = names if classes is None else with_unknown(names, classes)
        indices = by_name(names, order, path)
        items = tuple(Item(picture.path, (indices[name],)) for picture, name in zip(content.pictures, labels))
        notes = content.notes + (mapping_note(order) if classes is None else ())
        return Listing(classes=order, items=items, root=content.root, notes=notes)
