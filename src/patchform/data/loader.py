"""Which sample comes when: a pure function of (seed, epoch, step), so that the state of a loader is one integer.

Nothing here, nor in a loader made here, draws from the global random numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from patchform import lookup
from patchform.data import workers as processes
from patchform.data.collate import PackedTargets, collate, share_memory
from patchform.data.listing import Listing
from patchform.data.transforms import whole_size
from patchform.descriptions import Preprocessing
from patchform.distributed import SINGLE, Rank
from patchform.errors import PatchformError
from patchform.records import Batch, Sample
from patchform.resources import of_memory, out_of_memory

Key = tuple[int, int]
"""(epoch, index): what a data set is asked for."""


def derive(*parts: int | str) -> int:
    """A seed, 0 <= seed < 2**63, from several numbers or words: equal for equal parts, unrelated for others."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A generator of random numbers of its own, seeded by `derive(*parts)`."""
    return torch.Generator().manual_seed(derive(*parts))


def order(count: int, *, seed: int, epoch: int, weights: Tensor | None = None) -> Tensor:
    """Indices of one epoch.

    Args:
        count: size of the data set.
        seed: of the run.
        epoch: counted from 0; the order depends on nothing else.
        weights: (count,) relative frequencies; draws with replacement then.

    Returns:
        (count,) int64: a permutation, or `count` draws when weights are given.
    """
    numbers = generator(seed, "order", epoch)
    if weights is None:
        return torch.randperm(count, generator=numbers)
    # not `multinomial`, which takes at most 2**24 entries
    limits = weights.double().cumsum(0)
    draws = torch.rand(count, generator=numbers, dtype=torch.float64) * limits[-1]
    return torch.searchsorted(limits, draws, right=True).clamp_(max=count - 1)


def balance(listing: Listing) -> Tensor:
    """(N,) float64 weights with which every class is drawn equally often.

    An image of several classes has the weight of its rarest; one of none, the smallest of all.
    """
    counts = listing.counts()
    smallest = 1 / max(1, *counts)
    return torch.tensor(
        [max((1 / counts[index] for index in item.classes), default=smallest) for item in listing.items],
        dtype=torch.float64,
    )


def aspects(listing: Listing) -> Tensor | None:
    """(N,) bool: which pictures are higher than wide; None where sizes are not known or all lie alike."""
    sizes = [item.objects.size for item in listing.items if item.objects is not None]
    upright = torch.tensor([height > width for height, width in sizes], dtype=torch.bool)
    return upright if 0 < int(upright.sum()) < len(upright) == len(listing) else None


def input_sizes(listing: Listing, preprocessing: Preprocessing) -> list[tuple[int, int]] | None:
    """(height, width) at which a model sees each picture as a whole; None where sizes are not known."""
    sizes = [item.objects.size for item in listing.items if item.objects is not None]
    if len(sizes) < len(listing) or preprocessing.resize == "crop":
        return None
    return [whole_size(preprocessing, height, width) for height, width in sizes]


def grouped(indices: Sequence[int], groups: Sequence[bool], size: int) -> list[int]:
    """Indices in another order: batches of `size` that are cut from it hold one group each, while that is possible.

    Batches come in the order in which they would be full if indices were dealt out to their groups one by one, and what
    is left of both groups at the end.
    """
    waiting: tuple[list[int], list[int]] = ([], [])
    ordered: list[int] = []
    for index in indices:
        group = waiting[groups[index]]
        group.append(index)
        if len(group) == size:
            ordered += group
            group.clear()
    return ordered + waiting[0] + waiting[1]


class TrainingBatches(Sampler[list[Key]]):
    """Keys of all batches from one step to another, over all epochs, in one iteration.

    An epoch has `ceil(count / batch_size)` steps, so the last batch may be short; step s belongs to epoch
    `s // steps_per_epoch`. Starting at step s gives what the whole iteration gives from s on.

    Args:
        count: size of the data set, at least 1.
        batch_size: samples of a batch, at least 1.
        seed: of the order.
        start_step: first step, 0 at the beginning of training.
        steps: one past the last step.
        weights: see `order`.
        groups: (count,) bool; batches hold one group each as far as that goes, so that pictures that lie alike need
            little padding. Number of steps and what comes in an epoch are the same.
        share: of several processes: which part of each batch comes here. A process for which a short batch has nothing
            gets its first sample, `borrowed`.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        start_step: int,
        steps: int,
        weights: Tensor | None = None,
        groups: Tensor | None = None,
        share: Rank = SINGLE,
    ) -> None:
        self.count, self.batch_size, self.seed, self.share = count, batch_size, seed, share
        self.start_step, self.steps, self.weights = start_step, steps, weights
        self.groups = None if groups is None else groups.tolist()
        self.steps_per_epoch = math.ceil(count / batch_size)
        self._cached: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step)

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start_step, self.steps):
            batch = self.whole(step)
            yield batch[self.share.rank :: self.share.world_size] or batch[:1]

    def whole(self, step: int) -> list[Key]:
        """Keys of the batch of a step, of all processes together."""
        epoch, number = divmod(step, self.steps_per_epoch)
        start = number * self.batch_size
        return [(epoch, index) for index in self._epoch(epoch)[start : start + self.batch_size]]

    def size(self, step: int) -> int:
        """Samples of the batch of a step, of all processes together."""
        return min(self.batch_size, self.count - step % self.steps_per_epoch * self.batch_size)

    def borrowed(self, step: int) -> bool:
        """Whether this process has no sample of its own in the batch of a step."""
        return self.size(step) <= self.share.rank

    def _epoch(self, epoch: int) -> list[int]:
        cached, indices = self._cached
        if epoch != cached:
            indices = order(self.count, seed=self.seed, epoch=epoch, weights=self.weights).tolist()
            if self.groups is not None:
                indices = grouped(indices, self.groups, self.batch_size)
            self._cached = epoch, indices
        return indices


def training_loader(
    dataset: Dataset[Sample], batches: TrainingBatches, workers: int = 0, *, pin: bool = False
) -> DataLoader[Batch]:
    """Batches of the training set, in the order of `batches`. Results do not depend on `workers`.

    Args:
        dataset: takes (epoch, index), gives a `Sample`.
        batches: what to ask for.
        workers: processes, one thread each; 0 loads in this process.
        pin: put batches into pinned memory, for faster copies to a GPU.

    Raises:
        PatchformError: while iterating, what the data set raised, also when a worker did.
        ResourceError: while iterating, when a worker was killed (most often for memory).
    """
    return _Loader(dataset, batches, workers, pin=pin, persistent=False)  # one iteration spans all epochs


def evaluation_loader(
    dataset: Dataset[Sample],
    batch_size: int,
    workers: int = 0,
    *,
    pin: bool = False,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> DataLoader[Batch]:
    """Batches of every sample once, as of epoch 0. Arguments and errors as in `training_loader`.

    Args:
        dataset: as there.
        batch_size: samples of a batch at most.
        workers: as there.
        pin: as there.
        sizes: (height, width) of each sample: a batch then holds one size, and the largest come first. The order does
            not depend on `batch_size`. None: in order.
    """
    keys = [(0, index) for index in range(len(cast("Sized", dataset)))]
    runs = [keys]
    if sizes is not None:
        of_size: dict[tuple[int, int], list[Key]] = {}
        for key, size in zip(keys, sizes, strict=True):
            of_size.setdefault(size, []).append(key)
        runs = [of_size[size] for size in sorted(of_size, key=lambda size: (-size[0] * size[1], size))]
    batches = [run[start : start + batch_size] for run in runs for start in range(0, len(run), batch_size)]
    return _Loader(dataset, batches, workers, pin=pin, persistent=True)


class _Loader(DataLoader[Batch]):
    """A loader with a generator of its own, whose workers hand over few tensors, and errors as they are."""

    def __init__(self, dataset: Dataset[Sample], batches: Any, workers: int, *, pin: bool, persistent: bool) -> None:
        super().__init__(
            _Fetch(dataset),
            batch_sampler=batches,
            num_workers=workers,
            timeout=processes.PATIENCE if workers else 0,
            collate_fn=_identity,
            generator=torch.Generator(),  # else making an iterator draws from the global one
            worker_init_fn=processes.begin,
            persistent_workers=persistent and workers > 0,
            pin_memory=pin,
        )

    def __iter__(self) -> Any:  # of batches; torch's type is that of its own iterators
        if not self.num_workers:
            loaded, crew = super().__iter__(), processes.Crew([])
        else:
            with processes.hired() as crew:
                loaded = super().__iter__()
            if crew.processes:  # else those of the iteration before go on
                self._crew = crew
            crew = self._crew
        try:
            while (batch := _next(loaded, crew)) is not None:
                yield batch
        except PatchformError:
            self._iterator = None
            raise
        finally:
            del loaded


def _next(loaded: Iterator[Any], crew: processes.Crew) -> Any:
    """A batch, None at the end. Raises what a data set raised, and ResourceError for a worker that is gone."""
    batch = None
    try:
        batch = crew.next(loaded)
        if isinstance(batch, PatchformError):
            raise batch
        return batch
    finally:  # a traceback holds this frame: nothing in it may keep the workers alive
        del batch, loaded


class _Fetch(Dataset[Any]):
    """Runs where the samples are made. A fault becomes a value: torch would rebuild the exception from a text."""

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __reduce__(self) -> tuple[Any, ...]:
        return _fetch, (lookup.Plugins(), self.dataset)  # in this order: the data set may be of a plug-in's class

    def __getitems__(self, keys: Sequence[Key]) -> Batch | PatchformError:
        try:
            batch = collate([self.dataset[key] for key in keys])
            if batch.targets:
                batch = batch._replace(targets=PackedTargets.of(batch.targets))
            return batch if get_worker_info() is None else _shared(batch)
        except PatchformError as error:
            return error
        except (MemoryError, RuntimeError, OSError) as error:
            if not out_of_memory(error):
                raise
            remedy = "lower data.workers or training.batch_size"
            return of_memory(error, f"out of memory with {len(keys)} pictures of a batch", remedy)


def _fetch(_: lookup.Plugins, dataset: Dataset[Sample]) -> _Fetch:
    return _Fetch(dataset)


def _identity(batch: Any) -> Any:
    return batch


def _shared(batch: Batch) -> Batch:
    """The batch in memory that the run can look into. Left to torch, nobody would hear that there is none left."""
    for tensor in (batch.images, batch.padding, batch.views):
        if tensor is not None:
            share_memory(tensor)
    if isinstance(batch.targets, PackedTargets):
        batch.targets.column.each(share_memory)
    return batch
