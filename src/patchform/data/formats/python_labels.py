"""Python objects of (picture, class), as `data.python_sets` holds them."""

from __future__ import annotations

from pathlib import Path

from patchform.data import python_sets
from patchform.data.faults import Faults
from patchform.data.formats.base import Format
from patchform.data.listing import PICTURES, Listing
from patchform.data.python_lists import labelled
from patchform.settings import DataSettings


class PythonLabels(Format):
    """Python objects of (picture, class), as `data.python_sets` holds them."""

    tasks = ("classification",)
    layout = "a Python object of (picture, class)"
    takes = "objects"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is that of an object that is held."""
        return python_sets.is_held(path)

    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """List the items with their classes. Errors as of `python_lists.labelled`."""
        return labelled(path, settings, classes, PICTURES)
