"""Python objects of (picture, boxes and labels), as `data.python_sets` holds them."""

from __future__ import annotations

from pathlib import Path

from patchform.data import python_sets
from patchform.data.faults import Faults
from patchform.data.formats.base import Format
from patchform.data.listing import Listing
from patchform.data.python_lists import annotated
from patchform.settings import DataSettings


class PythonObjects(Format):
    """Python objects of (picture, boxes and labels), as `data.python_sets` holds them."""

    tasks = ("detection", "instance_segmentation")
    layout = "a Python object of (picture, boxes and labels)"
    takes = "objects"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is that of an object that is held."""
        return python_sets.is_held(path)

    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """List the items with their objects. Errors as of `python_lists.annotated`."""
        return annotated(path, settings, classes, faults)
