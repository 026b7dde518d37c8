"""The pictures that a file is proved on: those that its run was validated on, or any others of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from patchform.data.checks.examination import without_bad
from patchform.data.dataset import open_data, open_evaluation
from patchform.data.listing import Listing
from patchform.data.loader import Key
from patchform.errors import DataError, PatchformError, UsageError
from patchform.evaluation import settings_for
from patchform.model import Model
from patchform.runtime.description import FileDescription
from patchform.settings import Recipe
from patchform.tasks.base import Task

SHOWN = 6
"""Pictures that are tried at many sizes, if there are as many."""


def of_run(model: Model, task: Task, recipe: Recipe | None, data: str | Path | None) -> Listing:
    """What a model is proved on.

    Args:
        model: of the run.
        task: of the model.
        recipe: of the run, which says what it was validated on; a part of its own data that it held out is held out
            again.
        data: these pictures instead.

    Raises:
        UsageError: no recipe, or one whose data are not here, and no others are named.
        DataError: data that cannot be used.
    """
    if data is not None:
        settings = settings_for(model, None if recipe is None else recipe.data)
        listing = open_evaluation(data, settings, model.classes, task.name)
    else:
        listing = _held_out(model, recipe)
    task.refuse(listing)
    return listing


def _held_out(model: Model, recipe: Recipe | None) -> Listing:
    remedy = "name labelled pictures: --data DIR; or write the file unproved: --unproved"
    if recipe is None or recipe.data.path is None:
        raise UsageError("the run does not say which pictures it was validated on", remedy=remedy)
    try:
        splits = open_data(
            replace(recipe.data, allow_empty_class=True),
            seed=recipe.training.seed,
            preprocessing=model.preprocessing,
            task=recipe.task,
        )
    except PatchformError as error:
        what = f"the pictures that the run was validated on cannot be had ({error.what})"
        raise UsageError(what, where=error.where, remedy=remedy) from None
    if splits.validation.classes != model.classes and model.classes:
        what = "the classes of the data are not those of the run any more"
        raise DataError(what, where=recipe.data.path, remedy=remedy)
    return splits.validation


def some(listing: Listing, number: int, model: Model, skip_bad: float = 0.0) -> Listing:
    """So many pictures at most, evenly picked, without those that cannot be read if a share of such is put up with."""
    count = len(listing)
    if count > number:
        indices = [index * count // number for index in range(number)]
        listing = replace(listing, items=tuple(listing.items[index] for index in indices))
    usable, _ = without_bad(listing, model.preprocessing, skip_bad)
    return usable


def taken(listing: Listing, model: Model, task: Task, description: FileDescription) -> Listing:
    """The pictures that a file takes once they are prepared: of one for some sizes, those of these sizes."""
    if not description.sizes or description.resizes:
        return listing
    p = model.preprocessing
    if p.resize in ("crop", "squash"):
        return listing if tuple(p.size) in description.sizes else replace(listing, items=())
    samples = task.evaluation_samples(listing, p)
    sizes = [samples[(0, index)].image.shape[-2:] for index in range(len(listing))]
    return replace(
        listing, items=tuple(item for item, size in zip(listing.items, sizes) if tuple(size) in description.sizes)
    )


def decoded(listing: Listing, model: Model, task: Task) -> Sequence[Tensor]:
    """A few pictures in their own pixels, (C, H, W), or clips (T, C, H, W)."""
    samples = task.evaluation_samples(listing, replace(model.preprocessing, resize="native"))
    count = len(listing)
    keys: list[Key] = [(0, index * count // SHOWN) for index in range(SHOWN)] if count > SHOWN else []
    return [samples[key].image for key in keys or [(0, index) for index in range(count)]]


def made_up(model: Model) -> Sequence[Tensor]:
    """Soft spots and grain, as `decoded`: of something that no model has learnt."""
    p, draw = model.preprocessing, torch.Generator().manual_seed(0)
    frames = p.frames or 1
    pictures = []
    for _ in range(SHOWN):
        spots = torch.rand(frames, p.channels, 5, 7, generator=draw)
        pixels = F.interpolate(spots, size=p.size, mode="bicubic").clamp(0, 1)
        pixels = (pixels + 0.05 * torch.randn(pixels.shape, generator=draw)).clamp(0, 1)
        pixels = pixels if p.frames else pixels[0]
        pictures.append(pixels if p.bits == 16 else (pixels * 255).round().to(torch.uint8))
    return pictures
