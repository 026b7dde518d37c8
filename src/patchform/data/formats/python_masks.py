"""Python objects of (picture, mask), as `data.python_sets` holds them."""

from __future__ import annotations

from pathlib import Path

from patchform.data import python_sets
from patchform.data.faults import Faults
from patchform.data.formats.base import Format
from patchform.data.listing import Listing
from patchform.data.python_lists import masked
from patchform.settings import DataSettings


class PythonMasks(Format):
    """Python objects of (picture, mask), as `data.python_sets` holds them."""

    tasks = ("semantic_segmentation",)
    layout = "a Python object of (picture, mask)"
    takes = "objects"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is that of an object that is held."""
        return python_sets.is_held(path)

    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """List the items, whose masks are read like files. Errors as of `python_lists.masked`."""
        return masked(path, settings, classes)
