"""Python objects of (picture, anything), as `data.python_sets` holds them, to learn from without labels."""

from __future__ import annotations

from pathlib import Path

from patchform.data import python_sets
from patchform.data.faults import Faults
from patchform.data.formats.base import Format
from patchform.data.listing import Listing
from patchform.data.python_lists import unlabelled
from patchform.settings import DataSettings


class PythonPictures(Format):
    """Python objects of (picture, anything), as `data.python_sets` holds them, to learn from without labels."""

    tasks = ("pretraining",)
    layout = "a Python object of (picture, anything)"
    takes = "objects"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is that of an object that is held."""
        return python_sets.is_held(path)

    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """List the items, none of which has a class."""
        return unlabelled(path)
