"""A folder of class folders: `photos/cat/1.jpg`. The name of a folder is the name of its class."""

from __future__ import annotations

from pathlib import Path

from patchform.data.class_folders import has_folders, read_folders
from patchform.data.faults import Faults
from patchform.data.formats.base import CLASS_FOLDERS, Format
from patchform.data.listing import PICTURES, Listing
from patchform.data.shards import hold_data
from patchform.settings import DataSettings


class ImageFolder(Format):
    """A folder of class folders: `photos/cat/1.jpg`. The name of a folder is the name of its class."""

    tasks = ("classification",)
    layout = "a folder of class folders"
    certainty = CLASS_FOLDERS

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a folder with at least one folder that could be a class, and not of tar shards."""
        return has_folders(path) and not hold_data(path)

    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """List the pictures of all class folders, in deeper folders too. Arguments and errors as of `read_folders`."""
        return read_folders(path, settings, classes, PICTURES)
