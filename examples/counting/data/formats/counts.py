"""A folder of pictures with counts.csv in it: lines "file,number"."""

import csv

from patchform.data.formats.base import Format
from patchform.data.listing import Item, Listing
from patchform.errors import DataError

LIST = "counts.csv"


class Counts(Format):
    """How many things each picture shows; that is what `Item.truth` holds."""

    tasks = ("counting",)
    layout = "a folder of pictures with counts.csv in it"

    def recognises(self, path):
        """Whether there is such a list, or one of what is learnt from."""
        return (path / LIST).is_file()

    def read(self, path, settings, classes, faults):
        """One item a line."""
        items = []
        with (path / LIST).open(newline="") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if len(row) != 2 or not row[1].isdecimal():
                    raise DataError("not a file and a number", where=f"{path / LIST}:{number}")
                items.append(Item(path / row[0], (), truth=int(row[1])))
        return Listing(classes=classes or ("things",), items=tuple(items), root=path)
