"""A trained model that another learns from: opened as it is, shown what the student sees, never moved.

It is in evaluation mode and without gradients, in no optimizer, average or checkpoint. It looks at the very pixels that
the student looks at, with its own normalisation, and at its own input size if that is another. Its answers are computed
at each step: those to pictures that are changed at random come once, and there is nothing exact to keep.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchform import lookup
from patchform.data.transforms import resize
from patchform.errors import ModelFileError, UsageError
from patchform.heads.base import Head
from patchform.model import Model, load
from patchform.published_models import class_names, pretrained
from patchform.records import Batch, Features
from patchform.settings import Recipe, TeacherSettings
from patchform.weights import files
from patchform.weights.hub import locate

UNNAMED = ("class",)
"""Stands for classes that nobody asks for."""


class Seen(NamedTuple):
    """What a model makes of a batch."""

    head: Head
    features: Features
    raw: Any
    """The output of the head, None where nobody asks for it."""


class Teacher:
    """A model to learn from. No module, so that it is a part of none.

    Args:
        settings: of the recipe; `model` names it.
        student: what learns from it, on its device.

    Raises:
        UsageError: no such model, or one of other channels or of clips.
        PatchformError: whatever `model.load` and `published_models.pretrained` raise.
    """

    def __init__(self, settings: TeacherSettings, student: Model) -> None:
        assert settings.model is not None
        self.source, self.note = settings.model, ""
        self.asks_head = settings.kind not in ("tokens", "features")
        with torch.random.fork_rng(devices=[]):  # the student draws the numbers that it draws alone
            model = self._open(settings)
        own, theirs = student.preprocessing, model.preprocessing
        if own.channels != theirs.channels:
            what = f"the teacher sees {theirs.channels} channels and the student {own.channels}"
            raise UsageError(what, where=self.source, remedy="take another teacher, or set preprocessing.channels")
        if model.backbone.frames is not None and not own.frames:
            raise UsageError("the teacher looks at clips", where=self.source, remedy="take a teacher of pictures")
        self.model = model.requires_grad_(False).eval().to(student.mean.device)
        self.digest = files.digest(model.state_dict())
        fixed = own.resize in ("crop", "squash")
        if settings.size and not fixed:
            remedy = "set loss.teacher.size to null"
            raise UsageError(f"loss.teacher.size, and pictures of several sizes ({own.resize})", remedy=remedy)
        self.size = settings.size or (theirs.size if fixed else None)

    def _open(self, settings: TeacherSettings) -> Model:
        if not os.path.lexists(self.source) and lookup.is_weights_name(self.source):
            bare = settings.kind in ("tokens", "features") and not class_names(lookup.weights_file(self.source).labels)
            return pretrained(self.source, classes=UNNAMED if bare else None)
        folder = locate(self.source)
        if not folder.is_dir():
            remedy = "name a run folder, or published weights (patchform weights list)"
            raise UsageError("no teacher is there", where=self.source, remedy=remedy)
        return load(folder, say=self._remember)

    def _remember(self, note: str) -> None:
        self.note = note

    @torch.no_grad()
    def look(self, batch: Batch) -> Seen:
        """What it makes of a batch of the student's, each picture as a whole."""
        images, size = batch.images, self.size
        if size is not None and batch.padding is None:
            flat = images.flatten(0, -4) if images.dim() == 5 else images
            flat = resize(flat, size, self.model.preprocessing.interpolation)
            images = flat.unflatten(0, images.shape[:-3]) if images.dim() == 5 else flat
        seen = batch._replace(images=images, targets=(), exchanged=None)
        features = self.model.features(seen)
        return Seen(self.model.head, features, self.model.head(features) if self.asks_head else None)

    def __str__(self) -> str:
        names = self.model.architecture
        what = "" if names is None else f"{names.backbone} under {names.head}, "
        number = sum(parameter.numel() for parameter in self.model.parameters())
        size = "the student's size" if self.size is None else f"{self.size[0]} x {self.size[1]} pixels"
        note = f" ({self.note})" if self.note else ""
        return f"{self.source}: {what}{number:,} parameters that stay, at {size}; {self.digest[:12]}{note}"


def check_there(recipe: Recipe) -> None:
    """Raise UsageError, or ModelFileError, for a teacher that is not there, before any data are read; opens nothing."""
    source = recipe.loss.teacher.model
    if source is None or source.startswith(("hub:", "https:", "http:")) or Path(source).exists():
        return
    if lookup.is_weights_name(source):
        lookup.weights_file(source)
    else:
        remedy = "name a run folder, or published weights (patchform weights list)"
        raise ModelFileError("no teacher is there", where=source, remedy=remedy)


def class_order(teacher: Model, student: Model, source: str) -> list[int]:
    """Of each class of the student its number among those of the teacher.

    Raises:
        UsageError: they are not the same classes.
    """
    if len(set(teacher.classes)) != len(teacher.classes):
        raise UsageError("two classes of the teacher have one name", where=source, remedy="learn its tokens instead")
    if set(teacher.classes) != set(student.classes):
        unknown = sorted(set(student.classes) - set(teacher.classes))
        what = f"it does not know {unknown[0]!r}" if unknown else f"it has {len(teacher.classes)} classes"
        raise UsageError(
            f"the teacher's classes are not the {len(student.classes)} of the data: {what}",
            where=source,
            remedy="set loss.teacher.kind to tokens or features, or take another teacher",
        )
    return [teacher.classes.index(name) for name in student.classes]


# --------------------------------------------------------------------------------------------------- cells on cells


def cells_of(features: Features) -> Tensor:
    """(B, D, h, w): the tokens where they lie, normalised; of a backbone without tokens its coarsest map.

    Raises:
        UsageError: tokens that are not the cells of the coarsest map.
    """
    last = features.maps[-1]
    return last if features.tokens is None else on_grid(features.tokens, features)


def on_grid(tokens: Tensor, features: Features) -> Tensor:
    """(B, N, D) -> (B, D, h, w) on the grid of the coarsest map; raises UsageError as `cells_of`."""
    height, width = features.maps[-1].shape[-2:]
    if tokens.shape[1] != height * width:
        remedy = "learn its logits, or take another model"
        raise UsageError(f"{tokens.shape[1]} tokens do not lie on the grid of {height} x {width} cells", remedy=remedy)
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def laid_over(cells: Tensor, source: Features, target: Features) -> Tensor:
    """Cells (B, D, h, w) of one model at the centres of the cells (h', w') of another, which saw the same picture at
    another size: bilinear, beyond the outermost centres as there. On equal grids nothing changes.

    Args:
        cells: on the coarsest map of `source`.
        source: features of the model that they are of.
        target: of the other one.
    """
    weights = [
        _weights(
            (source.size[axis], source.strides[-1], source.maps[-1].shape[axis - 2]),
            (target.size[axis], target.strides[-1], target.maps[-1].shape[axis - 2]),
            cells,
        )
        for axis in (0, 1)
    ]
    with torch.autocast(cells.device.type, enabled=False):
        down, across = (matrix.to(torch.promote_types(cells.dtype, torch.float32)) for matrix in weights)
        return down @ cells.to(down.dtype) @ across.t()


def _weights(source: tuple[int, int, int], target: tuple[int, int, int], like: Tensor) -> Tensor:
    """(h', h) float32: what each cell of a side weighs at each centre; sides as (pixels, stride, cells)."""
    (size, stride, count), (size_to, stride_to, count_to) = source, target
    reach, reach_to = max(size, stride * count), max(size_to, stride_to * count_to)
    centres = (torch.arange(count_to, dtype=torch.float64) + 0.5) * (reach_to / count_to / size_to)  # shares of a side
    places = (centres * (size * count / reach) - 0.5).clamp(0, count - 1)
    return (1 - (places[:, None] - torch.arange(count)).abs()).clamp(min=0).to(like.device, torch.float32)
