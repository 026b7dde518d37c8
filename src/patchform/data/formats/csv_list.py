"""A CSV list of pictures and their classes, as `data.csv_lists` reads it."""

from __future__ import annotations

from pathlib import Path

from patchform.data import csv_lists
from patchform.data.faults import Faults
from patchform.data.formats.base import Format, Parts
from patchform.data.listing import PICTURES, VIDEOS, Listing
from patchform.settings import DataSettings


class CsvList(Format):
    """A line for each picture."""

    tasks = ("classification",)
    layout = "a CSV list"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a file whose name ends in .csv or .tsv."""
        return csv_lists.is_list(path)

    def is_meant(self, path: Path) -> bool:
        """Whether the first row does not name a video."""
        return not csv_lists.is_of_videos(path)

    def parts(self, path: Path) -> Parts | None:
        """The list, twice, where a column of it tells the parts."""
        return csv_lists.both_parts(path)

    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """Read the list; videos are listed as such, and so refused later. Errors as of `csv_lists.read_list`."""
        videos = csv_lists.is_of_videos(path)
        return csv_lists.read_list(path, settings, classes, VIDEOS if videos else PICTURES)
