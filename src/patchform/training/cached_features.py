"""A head that learns from features which a frozen backbone gave once, instead of from pictures at every step.

Each picture is looked at once, as at evaluation (`probing.frozen`), and a sample is then the row of numbers that it
gave. So there is no augmentation, and a step takes what the head takes. All else of a run is as ever: the model that is
trained, saved and resumed is the whole one.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import NamedTuple, cast

from torch import Tensor
from torch.utils.data import Dataset

from patchform import lookup
from patchform.data.dataset import Splits
from patchform.data.listing import Listing
from patchform.data.loader import Key
from patchform.data.samples import labels_of
from patchform.device import Precision, RunOptions
from patchform.errors import UsageError
from patchform.heads.base import Head
from patchform.model import Model
from patchform.probing import frozen
from patchform.records import Batch, Features, Sample
from patchform.settings import AugmentationSettings, Recipe
from patchform.training.learner import Learner
from patchform.training.run import RunContext

NO_AUGMENTATION = AugmentationSettings(crop_scale=(1.0, 1.0), flip=0.0)


class Rows(NamedTuple):
    """What the backbone says of each picture, in the order of its listing."""

    train: Tensor
    """(N, D) float32."""
    validation: Tensor
    """(M, D) float32."""


class RowSamples(Dataset[Sample]):
    """Rows in place of pictures, as images (D, 1, 1), with the classes of their items.

    Args:
        listing: of N pictures.
        rows: (N, D).
    """

    def __init__(self, listing: Listing, rows: Tensor) -> None:
        self.listing, self.rows = listing, rows

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, key: Key) -> Sample:
        """The sample of an index, the same in every epoch."""
        _, index = key
        row = self.rows[index, :, None, None]
        return Sample(row, labels_of(self.listing.items[index]), self.listing.name(index), (1, 1))


def refuse(recipe: Recipe) -> None:
    """Raise UsageError for a run that cannot learn from features which were computed once."""
    model = recipe.model
    if recipe.data.features is None:
        return
    stays = model.frozen == "all" or not recipe.optimizer.backbone_rate
    if not stays or (model.frozen_epochs and recipe.optimizer.backbone_rate) or model.adapter != "none":
        remedy = "set model.frozen all, model.frozen_epochs 0 and model.adapter none"
        raise UsageError("data.features is for a backbone that stays as it is", remedy=remedy)
    if recipe.loss.teacher.model is not None:
        raise UsageError("data.features, and a teacher, who looks at pictures", remedy="leave one of them out")
    known = model.head in lookup.names("heads")
    if not (known and lookup.the_class("heads", model.head, Head).reads_summary_alone) or recipe.preprocessing.frames:
        what = "data.features is for pictures and a head that reads their summary alone"
        raise UsageError(what, remedy="take the head linear, or leave out data.features")


def as_looked_at(recipe: Recipe) -> Recipe:
    """The recipe, without augmentation where pictures are looked at once."""
    return recipe if recipe.data.features is None else replace(recipe, augmentation=NO_AUGMENTATION)


def rows_of(learner: Learner, splits: Splits, context: RunContext) -> Rows | None:
    """What the backbone of a learner says of all pictures, from the disk where it was kept; None where it is not asked
    for. From here on the learner's models take rows for images.

    Raises:
        UsageError: several processes.
        PatchformError: whatever `probing.frozen.outputs` raises.
    """
    recipe = learner.recipe
    if recipe.data.features is None:
        return None
    if not context.rank.single:
        raise UsageError("data.features is for one process", remedy="start one; the head alone takes little time")
    options = RunOptions(
        batch_size=recipe.training.micro_batch or recipe.training.batch_size,
        workers=recipe.data.workers,
        device=str(context.device),
        precision=cast("Precision", recipe.training.precision),
        say=context.reporter.note,
    )
    train, validation = (
        frozen.outputs(
            learner.model,
            listing,
            cache=recipe.data.features,
            options=options,
            progress=functools.partial(_between_batches, context),
        )
        for listing in (splits.train, splits.validation)
    )
    for model in filter(None, (learner.model, learner.average)):
        vars(model)["features"] = given  # in place of the method, for as long as this run lasts
    return Rows(train, validation)


def given(batch: Batch) -> Features:
    """The features that rows are."""
    return Features(maps=(), strides=(), size=(1, 1), tokens=None, summary=batch.images.flatten(1))


def forget(model: Model) -> Model:
    """The model, which takes pictures again."""
    vars(model).pop("features", None)
    return model


def _between_batches(context: RunContext, done: int, count: int) -> None:
    context.stop.check()
