"""Pictures as an exported file takes them: what int8 finds its ranges on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from patchform.data.dataset import open_data
from patchform.data.listing import Listing
from patchform.errors import PatchformError, UsageError
from patchform.export import pictures
from patchform.export.quantizers import Feeds
from patchform.model import Model
from patchform.runtime.description import FileDescription
from patchform.settings import Recipe
from patchform.tasks.base import Task


def listing_of(model: Model, task: Task, recipe: Recipe | None, data: str | Path | None) -> Listing:
    """What a run was trained on, or other pictures of its kind.

    Args:
        model: of the run.
        task: of the model.
        recipe: of the run.
        data: these pictures instead.

    Raises:
        UsageError: the run's pictures are not here, and no others are named.
        DataError: data that cannot be used.
    """
    if data is not None:
        return pictures.of_run(model, task, recipe, data)
    remedy = "name some: --calibration DIR"
    if recipe is None or recipe.data.path is None:
        raise UsageError("the run does not say which pictures it was trained on", remedy=remedy)
    settings = replace(recipe.data, allow_empty_class=True)
    try:
        splits = open_data(settings, seed=recipe.training.seed, preprocessing=model.preprocessing, task=recipe.task)
    except PatchformError as error:
        what = f"the pictures that the run was trained on cannot be had ({error.what})"
        raise UsageError(what, where=error.where, remedy=remedy) from None
    return splits.train


class CalibrationPictures(Sequence[Feeds]):
    """So many pictures, evenly picked, each as inputs of a file by name; read when they are asked for.

    Args:
        model: of the run.
        task: of the model.
        listing: pictures, or videos.
        number: at most.
        description: of the file.
        skip_bad: share of unreadable ones to put up with.

    Raises:
        DataError: a picture that cannot be read.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        listing: Listing,
        number: int,
        description: FileDescription,
        skip_bad: float = 0.0,
    ) -> None:
        preprocessing = model.preprocessing
        if description.resizes:
            preprocessing = replace(preprocessing, resize="native")
        usable = pictures.some(listing, number, model, skip_bad)
        self._number, self._description = len(usable), description
        self._samples = task.evaluation_samples(usable, preprocessing)

    def __len__(self) -> int:
        return self._number

    @overload
    def __getitem__(self, index: int) -> Feeds: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Feeds]: ...

    def __getitem__(self, index: int | slice) -> Feeds | Sequence[Feeds]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample = self._samples[(0, index)]
        images = _as_taken(sample.image, self._description)[None].repeat_interleave(self._description.batch or 1, 0)
        sizes = torch.tensor([sample.size], dtype=torch.int64).expand(len(images), 2)
        named = {"images": images, "sizes": sizes}
        return {name: named[name].contiguous().numpy() for name in self._description.inputs}


def _as_taken(image: Tensor, description: FileDescription) -> Tensor:
    """uint8, or float32 in 0..1 for files of 16 bits; of the file's first size, if it has any."""
    deep = description.preprocessing.bits > 8
    pixels = image if image.is_floating_point() else image.float() / 255
    taken: Sequence[tuple[int, int]] = description.sizes
    if taken and tuple(image.shape[-2:]) not in taken:
        frames = pixels[None] if pixels.dim() == 3 else pixels
        resized = torch.nn.functional.interpolate(frames, taken[0], mode="bilinear", antialias=True)
        pixels = resized.clamp(0, 1).reshape(*image.shape[:-2], *taken[0])
    elif not deep and not image.is_floating_point():
        return image
    return pixels if deep else (pixels * 255).round().to(torch.uint8)
