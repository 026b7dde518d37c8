"""What data sets of pictures and of clips share: keys, random numbers, and what stays in memory."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import Dataset, get_worker_info

from patchform.data import python_sets
from patchform.data.listing import Item, Listing
from patchform.data.loader import Key, derive
from patchform.descriptions import Preprocessing
from patchform.records import Label, Sample

CACHE_BYTES = 1 << 30
"""What was decoded is kept in memory, all workers together, if the whole set fits."""

D = TypeVar("D")
"""What is decoded of an item."""


def labels_of(item: Item) -> Label:
    """The classes of an item as a truth."""
    return Label(torch.tensor(item.classes, dtype=torch.int64))


class Samples(Dataset[Sample], Generic[D]):
    """The items of a listing as samples, asked for by (epoch, index).

    Random choices see numbers that depend on (seed, epoch, index) alone, so results are equal for any order of access
    and any number of workers; the global random state is left as it was.

    Args:
        listing: what there is.
        preprocessing: how files are decoded.
        seed: of the random choices.
    """

    def __init__(self, listing: Listing, preprocessing: Preprocessing, seed: int = 0) -> None:
        self.listing, self.preprocessing, self.seed = listing, preprocessing, seed
        self._cache: dict[int, D] | None = {}
        self._seen, self._seen_bytes = 0, 0

    def __getstate__(self) -> dict[str, Any]:
        """For a worker that is started afresh: what was decoded stays here."""
        empty: dict[int, D] | None = None if self._cache is None else {}
        sets = python_sets.kept(self.listing.root)
        return {**vars(self), "_cache": empty, "_seen": 0, "_seen_bytes": 0, "_sets": sets}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In that worker."""
        python_sets.keep(state.pop("_sets"))
        vars(self).update(state)

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, key: Key) -> Sample:
        """The sample; its size is the (height, width) of the picture or frames, upright, before the transform.

        Raises DataError when a file cannot be decoded.
        """
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(self.seed, "transform", epoch, index))
            return self._sample(index)

    @abstractmethod
    def _sample(self, index: int) -> Sample:
        """The sample of an item; all that is drawn is drawn from torch's global numbers."""

    def _cached(self, index: int) -> D | None:
        """What was decoded of an item before, if it is still there."""
        return None if self._cache is None else self._cache.get(index)

    def _fits(self, size: int) -> bool:
        """Whether an item of so many bytes, decoded, is to be kept: the set as a whole fits as far as one can tell.

        The guess gets better with each item. Once it says no, nothing is kept any more.
        """
        if self._cache is None:
            return False
        self._seen += 1
        self._seen_bytes += size
        worker = get_worker_info()
        if self._seen_bytes / self._seen * len(self) > CACHE_BYTES / (worker.num_workers if worker else 1):
            self._cache = None
        return self._cache is not None

    def _store(self, index: int, decoded: D) -> None:
        """Keep what `_fits`."""
        if self._cache is not None:
            self._cache[index] = decoded
