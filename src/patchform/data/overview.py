"""What is seen of a data set at a glance: its numbers, and the size of its pictures."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

from patchform.data.dataset import Splits
from patchform.data.images import upright_size
from patchform.data.listing import Listing, few_of
from patchform.errors import DataError

LOOKED_AT = 100
"""Pictures whose sizes are looked at."""


class Overview(NamedTuple):
    """Of both parts of a data set."""

    thing: str
    """What an item is."""
    training: int
    validation: int
    classes: int
    size: tuple[int, int] | None
    """Median height and width, pixels; None of videos."""

    def __str__(self) -> str:
        size = f", {self.size[1]} x {self.size[0]} pixels in the median" if self.size else ""
        return (
            f"{self.training} {self.thing}s to learn from and {self.validation} to judge by, of {self.classes}"
            f" class{'es' * (self.classes != 1)}{size}"
        )


def overview(splits: Splits) -> Overview:
    """Numbers from the listings, sizes from the headers of a few pictures; what cannot be read is left out."""
    train = splits.train
    size = None if train.videos else _median_size(train)
    return Overview(train.thing, len(train), len(splits.validation), len(train.classes), size)


def _median_size(listing: Listing) -> tuple[int, int] | None:
    sizes = list[tuple[int, int]]()
    for item in few_of(listing, LOOKED_AT).items:
        try:
            sizes.append(upright_size(item.path))
        except DataError:
            continue
    if not sizes:
        return None
    heights, widths = zip(*sizes)
    return round(median(heights)), round(median(widths))
