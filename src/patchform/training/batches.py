"""What a run learns from: its data, and the batches of its steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from torch.utils.data import Dataset

from patchform import distributed
from patchform.data.collate import to_device
from patchform.data.dataset import Splits, open_data
from patchform.data.listing import Listing
from patchform.data.loader import TrainingBatches, aspects, balance, generator, training_loader
from patchform.descriptions import Preprocessing
from patchform.records import Batch, Sample
from patchform.settings import Recipe
from patchform.tasks.base import Task, find_task
from patchform.training.cached_features import NO_AUGMENTATION, Rows, RowSamples
from patchform.training.preparation import checked
from patchform.training.run import RunContext
from patchform.training.schedule import RunLength

UNCHANGED = replace(NO_AUGMENTATION, scale=(1.0, 1.0))
"""Nothing is drawn but, where a picture is larger than the input, what part of it is seen."""

OF_LOSS = 256
"""Pictures of which the loss is computed at each validation."""


class TrainingData(NamedTuple):
    """What a run learns from and validates on."""

    splits: Splits
    counts: tuple[int, ...]
    """Pictures, or pixels, of each class that is learnt."""
    preprocessing: Preprocessing
    rows: Rows | None = None
    """In place of pictures (`cached_features`)."""

    @property
    def listing(self) -> Listing:
        """What is learnt from."""
        return self.splits.train

    def length(self, recipe: Recipe) -> RunLength:
        """How long the run is."""
        steps_per_epoch = math.ceil(len(self.listing) / recipe.training.batch_size)
        return RunLength(steps_per_epoch, steps_per_epoch * recipe.training.epochs)

    def training_samples(self, recipe: Recipe) -> Dataset[Sample]:
        """What is learnt from, one by one."""
        if self.rows is not None:
            return RowSamples(self.splits.train, self.rows.train)
        task, seed = find_task(recipe.task), recipe.training.seed
        return task.training_samples(self.splits.train, self.preprocessing, recipe.augmentation, seed)

    def validation_samples(self, task: Task, recipe: Recipe) -> Dataset[Sample]:
        """What it is scored on, one by one, by a task as its head has it."""
        if self.rows is not None:
            return RowSamples(self.splits.validation, self.rows.validation)
        return task.evaluation_samples(self.splits.validation, self.preprocessing, recipe.training.seed)

    def validation_as_learnt(self, recipe: Recipe) -> Dataset[Sample]:
        """Validation pictures as if they were learnt from, but not changed at random: what their loss is computed on.

        `OF_LOSS` at most, evenly picked: they are looked at beside all those that the scores are made of.
        """
        listing = self.splits.validation
        if self.rows is not None:
            return RowSamples(listing, self.rows.validation)
        listing = replace(listing, items=listing.items[:: max(1, math.ceil(len(listing) / OF_LOSS))])
        task, seed = find_task(recipe.task), recipe.training.seed
        return task.training_samples(listing, self.preprocessing, UNCHANGED, seed)


def open_training(recipe: Recipe, context: RunContext, *, resume: bool) -> TrainingData:
    """Open the data of a run, and look at every file of it where that is not known from before.

    Raises:
        DataError: data that cannot be used.
        Interrupted: the user asked to stop meanwhile.
    """
    preprocessing = recipe.preprocessing
    splits = open_data(recipe.data, seed=recipe.training.seed, preprocessing=preprocessing, task=recipe.task)
    task = find_task(recipe.task)
    hints = (*task.refuse(splits.train, training=True), *task.refuse(splits.validation))
    for note in (*splits.notes, *hints):
        context.reporter.note(note)
    counts = splits.train.counts()
    weighted = recipe.loss.class_weights in ("balanced", "root")
    if not resume or recipe.data.skip_bad or weighted:  # a resumed run was checked already
        splits, counts = checked(splits, task, recipe.data, preprocessing, context.reporter, stop=context.stop)
    return TrainingData(splits, counts, preprocessing)


class Batches:
    """The batches of a run from a step on, one after the other: mixed, on the device, this process's share of each.

    Args:
        recipe: of the run.
        data: what is learnt from.
        length: how long the run is.
        context: where the run happens.
        start: the first step.
    """

    def __init__(self, recipe: Recipe, data: TrainingData, length: RunLength, context: RunContext, start: int) -> None:
        listing, settings = data.listing, recipe.training
        self._seed, self._context, self._listing = settings.seed, context, listing
        task = find_task(recipe.task)
        self._mixing = task.mixing(recipe.augmentation, len(listing.classes))
        weights = balance(listing) if recipe.data.balanced else None
        groups = None if data.preprocessing.resize == "squash" else aspects(listing)
        self._order = TrainingBatches(
            len(listing), settings.batch_size, settings.seed, start, length.steps, weights, groups, share=context.rank
        )
        samples = data.training_samples(recipe)
        pin = context.device.type == "cuda"
        self._incoming = iter(training_loader(samples, self._order, recipe.data.workers, pin=pin))

    def next(self, step: int) -> Batch:
        """The batch of a step, whichever is next; errors as of the loader, in all processes."""
        batch = to_device(distributed.all_or_none(self._load), self._context.device)
        rank = self._context.rank
        rng_key = () if rank.single else (rank.rank,)
        return self._mixing.mix(batch, generator(self._seed, "mix", step, *rng_key))

    def _load(self) -> Batch:
        return next(self._incoming)

    def own(self, step: int) -> bool:
        """Whether this process has a share of its own in the batch of a step."""
        return not self._order.borrowed(step)

    def size(self, step: int) -> int:
        """Samples of the batch of a step, of all processes together."""
        return self._order.size(step)

    def names(self, step: int) -> list[str]:
        """Files of the batch of a step, of all processes together."""
        return [self._listing.name(index) for _, index in self._order.whole(step)]
