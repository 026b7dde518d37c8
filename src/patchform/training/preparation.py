"""From a recipe to the things that a run is made of."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from patchform.data.checks import check, overlap
from patchform.data.dataset import Splits
from patchform.data.listing import Listing
from patchform.errors import UsageError
from patchform.heads.base import DenseHead
from patchform.loading import load_weights
from patchform.model import Model, build_model, describe
from patchform.records import Preprocessing
from patchform.settings import DataSettings, Recipe
from patchform.tasks.base import find_task
from patchform.training.progress import Reporter
from patchform.training.run import Stop


def refuse_nonsense(recipe: Recipe) -> None:
    """Raise UsageError for a setting out of its range, before anything is read."""
    data, model, moves, shape, course = recipe.data, recipe.model, recipe.optimizer, recipe.schedule, recipe.training
    change, task = recipe.augmentation, find_task(recipe.task)
    unlabelled = not task.labelled
    sides = (data.image_size,) if isinstance(data.image_size, int) else data.image_size
    ranges = {
        "data.image_size": (min(sides) >= 1, "at least 1"),
        "data.channels": (data.channels >= 1, "at least 1"),
        "data.frames": (
            data.frames >= (1 if task.frames else 0),
            "at least 1 for videos, 0 for pictures",
        ),
        "data.frame_step": (data.frame_step >= 1, "at least 1"),
        "data.sampling": (data.sampling in ("dense", "uniform"), "dense or uniform"),
        "data.crop_share": (0 < data.crop_share <= 1, "in (0, 1]"),
        "data.workers": (data.workers >= 0, "at least 0"),
        "data.skip_bad": (0 <= data.skip_bad < 1, "in [0, 1)"),
        "model.drop_path": (model.drop_path is None or 0 <= model.drop_path < 1, "in [0, 1)"),
        "model.frozen": (
            model.frozen == "all" or (isinstance(model.frozen, int) and model.frozen >= 0),
            "a number of layers, or all",
        ),
        "model.frozen_epochs": (model.frozen_epochs >= 0, "at least 0"),
        "model.norms": (model.norms in ("learn", "frozen", "synchronised"), "learn, frozen or synchronised"),
        "augmentation.views": (change.views == 1 or (change.views > 1 and unlabelled), "1, or more for pretraining"),
        **{
            f"augmentation.{name}": (change.views > 1 or not getattr(change, name), "left out without views")
            for name in ("local_views", "grey", "blur", "solarise")
        },
        **{
            f"augmentation.{name}": (not (unlabelled and getattr(change, name)), "0: there are no labels to mix")
            for name in ("mixup", "cutmix")
        },
        "training.patience": (not (unlabelled and course.patience), "0: no number tells which model is better"),
        "augmentation.sizes": (min(change.sizes, default=1) >= 1, "of lengths of at least 1"),
        "augmentation.mosaic": (0 <= change.mosaic <= 1, "in [0, 1]"),
        "augmentation.copy_paste": (0 <= change.copy_paste <= 1, "in [0, 1]"),
        "optimizer.lr": (0 < moves.lr <= 1000, "in (0, 1000]"),
        "optimizer.weight_decay": (moves.weight_decay >= 0, "at least 0"),
        "optimizer.layer_decay": (0 < moves.layer_decay <= 1, "in (0, 1]"),
        "optimizer.backbone_rate": (moves.backbone_rate >= 0, "at least 0"),
        "optimizer.clip": (moves.clip >= 0, "at least 0"),
        "schedule.warmup_epochs": (shape.warmup_epochs >= 0, "at least 0"),
        "schedule.milestones": (
            shape.name != "steps" or min(shape.milestones, default=0) > 0,
            "one number of epochs or more, each above 0",
        ),
        "schedule.gamma": (0 < shape.gamma <= 1, "in (0, 1]"),
        "loss.pixel_stride": (recipe.loss.pixel_stride >= 1, "at least 1"),
        "training.epochs": (course.epochs >= 1, "at least 1"),
        "training.batch_size": (course.batch_size >= 1, "at least 1"),
        "training.micro_batch": (course.micro_batch >= 0, "at least 0"),
        "training.pixels_at_once": (course.pixels_at_once >= 0, "at least 0"),
        "training.ema": (0 <= course.ema < 1, "in [0, 1)"),
        "training.validate_every": (course.validate_every >= 1, "at least 1"),
        "training.save_every": (course.save_every >= 0, "at least 0"),
        "training.keep": (course.keep >= 1, "at least 1"),
    }
    for name, (holds, needed) in ranges.items():
        if not holds:
            section, _, key = name.partition(".")
            raise UsageError(f"{name} is {getattr(getattr(recipe, section), key)}", remedy=f"it must be {needed}")


def preprocessing_of(data: DataSettings) -> Preprocessing:
    """What the settings say of the way from a file to the model, with the defaults filled in."""
    known = Preprocessing()
    size = data.image_size
    return Preprocessing(
        size=(size, size) if isinstance(size, int) else (size[0], size[1]),
        resize=data.resize,
        crop_share=data.crop_share,
        interpolation=data.interpolation,
        channels=data.channels,
        bits=data.bits,
        mean=tuple(data.mean) if data.mean else known.mean if data.channels == 3 else (0.5,),
        std=tuple(data.std) if data.std else known.std if data.channels == 3 else (0.5,),
        frames=data.frames,
        frame_step=data.frame_step,
        sampling=data.sampling,
    )


def seed_everything(seed: int) -> None:
    """Seed the global generators: the initial weights, and then dropout and stochastic depth, follow from it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def checked(
    splits: Splits, data: DataSettings, preprocessing: Preprocessing, reporter: Reporter, *, stop: Stop
) -> tuple[Splits, tuple[int, ...]]:
    """The splits without bad pictures, and how much there is to learn of each class; says what was found."""
    watch = functools.partial(_watch, stop)
    train, first = check(splits.train, preprocessing, skip_bad=data.skip_bad, progress=watch)
    validation, second = check(splits.validation, preprocessing, skip_bad=data.skip_bad, progress=watch)
    for report in (first, second):
        for note in report.notes:
            reporter.note(note)
        if report.faults:
            bad = report.faults[0]
            counted = f"{len(report.faults)} of {report.checked} {train.thing}s"
            reporter.note(f"left out {counted}, first {bad.where}: {bad.what}")
    if twins := overlap(train, validation):
        reporter.note(f"{len(twins)} {train.thing}s are in training and in validation, first {twins[0][0]}")
    return splits._replace(train=train, validation=validation), first.pixels or train.counts()


def _watch(stop: Stop, done: int, count: int) -> None:
    stop.check()


def model_of(
    recipe: Recipe,
    listing: Listing,
    preprocessing: Preprocessing,
    *,
    counts: Sequence[int],
    say: Callable[[str], None],
) -> Model:
    """The model of a recipe, with the loss's settings as the head's options, and weights where it starts from some.

    Args:
        recipe: of the run.
        listing: what is learnt from.
        preprocessing: of the model.
        counts: pictures, or pixels, of each class.
        say: hears what became of the weights that it starts from.
    """
    options, top = dict(recipe.model.options), dict(recipe.model.head_options)
    if recipe.model.drop_path is not None:
        options["drop_path"] = recipe.model.drop_path
    if recipe.data.labels != "single":
        top["labels"] = recipe.data.labels
    if recipe.loss.smoothing:
        top["smoothing"] = recipe.loss.smoothing
    weights = recipe.loss.class_weights
    if isinstance(weights, list):
        top["class_weights"] = list(weights)
    elif weights != "none":
        power = 1.0 if weights == "balanced" else 0.5
        top["class_weights"] = [(sum(counts) / (len(counts) * count)) ** power if count else 1.0 for count in counts]
    model = build_model(
        recipe.task,
        backbone=recipe.model.backbone,
        head=recipe.model.head,
        classes=listing.classes,
        preprocessing=preprocessing,
        backbone_options=options,
        head_options=top,
    )
    model.ids = listing.ids
    if recipe.loss.pixel_stride > 1:
        if not isinstance(model.head, DenseHead):
            raise UsageError("loss.pixel_stride is for masks", remedy="leave it at 1")
        model.head.pixel_stride = recipe.loss.pixel_stride
    if recipe.model.init_from is not None:
        report = load_weights(model, recipe.model.init_from, transfer=recipe.model.transfer)
        say(f"starting from {recipe.model.init_from}: {report}")
    return model


def identity_of(recipe: Recipe, model: Model, splits: Splits) -> dict[str, Any]:
    """What must be the same for a resume to make sense, as plain values."""
    description = describe(model)
    digest = hashlib.sha256()
    for listing in (splits.train, splits.validation):
        digest.update(listing.as_bytes() + b"\0")
    return plain(
        description["architecture"]
        | {
            "classes": description["classes"],
            "preprocessing": description["preprocessing"],
            "data": digest.hexdigest(),
            "balanced": recipe.data.balanced,
            "optimizer": recipe.optimizer.name,
            "batch_size": recipe.training.batch_size,
            "seed": recipe.training.seed,
            "average": recipe.training.ema > 0,
        }
    )


def plain(value: Any) -> Any:
    """The value as JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(value))
