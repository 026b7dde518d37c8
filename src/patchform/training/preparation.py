"""From a recipe to the things that a run is made of."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchform import lookup, own_parts, settings, system
from patchform.data.checks.copies import overlap
from patchform.data.checks.examination import check
from patchform.data.dataset import Splits, check_before, digest
from patchform.data.listing import Listing
from patchform.descriptions import Preprocessing
from patchform.errors import ModelFileError, UsageError
from patchform.heads.base import NO_HEAD, DenseHead, Head
from patchform.loading import load_weights
from patchform.loggers.base import class_of
from patchform.model import Model, build_model, describe
from patchform.records import Batch
from patchform.settings import DataSettings, Recipe
from patchform.tasks.base import Task, find_task
from patchform.training import adapters, cached_features, own_loss
from patchform.training.distillation import Distilled
from patchform.training.progress import Reporter
from patchform.training.run import Stop
from patchform.training.teacher import check_there
from patchform.weights.hub import locate
from patchform.weights.sources import DESCRIPTION, read_description


def refuse_nonsense(recipe: Recipe, *, new: bool = False) -> None:
    """Raise UsageError for a setting out of its range, or that is not for the task, before anything is read.

    For a `new` run also FolderError, if its folder would be made inside the data set and taken for a part of it.
    """
    settings.check(recipe)
    augment, task = recipe.augmentation, find_task(recipe.task)
    unlabelled = not task.labelled
    needed = {
        "preprocessing.frames": (not task.frames or recipe.preprocessing.frames > 0, "at least 1 for videos"),
        "augmentation.views": (unlabelled or augment.views == 1, "1, or more for pretraining"),
        **{
            f"augmentation.{name}": (augment.views > 1 or not getattr(augment, name), "left out without views")
            for name in ("local_views", "grey", "blur", "solarise")
        },
        **{
            f"augmentation.{name}": (not (unlabelled and getattr(augment, name)), "0: there are no labels to mix")
            for name in ("mixup", "cutmix")
        },
        "model.adapter": (not unlabelled or recipe.model.adapter == "none", "none: the backbone is what is learnt"),
        "training.patience": (not (unlabelled and recipe.training.patience), "0: no number says which is better"),
    }
    for name, (holds, what) in needed.items():
        if not holds:
            section, _, key = name.partition(".")
            raise UsageError(f"{name} is {getattr(getattr(recipe, section), key)}", remedy=f"it must be {what}")
    own_parts.look(recipe)
    own_loss.refuse(recipe)
    for logger in recipe.training.loggers:
        class_of(logger).check()
    task.token_mixing(recipe.augmentation, 1, 1, 0.0)
    cached_features.refuse(recipe)
    check_there(recipe)
    check_model(recipe)
    if new and recipe.data.path is not None:
        for written in filter(None, (recipe.runs, recipe.data.features)):
            check_before(Path(written), recipe.data.path, recipe.task)


def seed_everything(seed: int) -> None:
    """Seed the global generators: the initial weights, and then dropout and stochastic depth, follow from it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def checked(
    splits: Splits, task: Task, data: DataSettings, preprocessing: Preprocessing, reporter: Reporter, *, stop: Stop
) -> tuple[Splits, tuple[int, ...]]:
    """The splits without bad pictures, and how much there is to learn of each class; says what was found."""
    looking = functools.partial(_looking, stop, reporter)
    train, first = check(
        splits.train, preprocessing, skip_bad=data.skip_bad, progress=functools.partial(looking, "to learn from")
    )
    validation, second = check(
        splits.validation, preprocessing, skip_bad=data.skip_bad, progress=functools.partial(looking, "to validate on")
    )
    for listing, report in ((train, first), (validation, second)):
        hints = task.refuse_opened(listing, report, training=report is first)
        for note in (*report.notes, *hints):
            reporter.note(note)
        if report.faults:
            bad = report.faults[0]
            counted = f"{len(report.faults)} of {report.checked} {train.thing}s"
            reporter.note(f"left out {counted}, first {bad.where}: {bad.what}")
    if duplicates := overlap(train, validation):
        reporter.note(f"{len(duplicates)} {train.thing}s are in training and in validation, first {duplicates[0][0]}")
    return splits._replace(train=train, validation=validation), first.pixels or train.counts()


def _looking(stop: Stop, reporter: Reporter, what: str, done: int, count: int) -> None:
    stop.check()
    reporter.looking(what, done, count)


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
        say: called with what became of the weights that it starts from.

    Raises:
        ModelFileError: weights that do not fit; where they say of which backbone they are, that one is named.
    """
    model, source = _build(recipe, listing, preprocessing, counts), recipe.model.init_from
    if source is not None:
        try:
            report = load_weights(model, locate(source, say=say), transfer=recipe.model.transfer)
        except ModelFileError as error:
            theirs, own = _backbone_of(source), (recipe.model.backbone, recipe.model.options)
            if theirs is None or theirs == own:
                raise
            what, mine = (f"{name}{f' with {json.dumps(options)}' * bool(options)}" for name, options in (theirs, own))
            flags = f"--model.backbone {theirs[0]} --model.options {system.quoted(json.dumps(theirs[1]))}"
            raise ModelFileError(
                f"the weights are of {what}, the model to train has {mine}", where=source, remedy=f"take {flags}"
            ) from error
        first, *others = report.lines()
        for line in (f"starting from {source}: {first}", *others):
            say(line)
    return model


def _backbone_of(source: str) -> tuple[str, dict[str, Any]] | None:
    """The backbone, and its options, that a run folder or a published name says its weights are of; else None."""
    if source in (published := lookup.weights_files()):
        return source.partition(".")[0], plain(published[source].backbone_options)
    if not (Path(source) / DESCRIPTION).is_file():
        return None
    architecture = read_description(Path(source)).get("architecture")
    names = architecture if isinstance(architecture, dict) else {}
    options = {name: value for name, value in dict(names.get("backbone_options") or {}).items() if name != "drop_path"}
    return str(names.get("backbone")), options


def check_model(recipe: Recipe) -> None:
    """Raise UsageError for options of which no model can be built, or shown a picture, before any data are read.

    It is built on no device, so nothing is allocated. What a layer then cannot say is left to the real one.
    """
    p, model = recipe.preprocessing, recipe.model
    head = {name: value for name, value in model.head_options.items() if name != "class_weights"}  # they are looked at
    bare = replace(recipe, model=replace(model, head_options=head), loss=replace(recipe.loss, class_weights="none"))
    try:
        with torch.device("meta"), torch.no_grad():
            built = _build(bare, Listing(classes=("a", "b"), items=(), root=Path()), p, ()).eval()
            if built.backbone.frames is not None and not p.frames:
                remedy = "take another backbone, or learn from videos"
                raise UsageError(f"{model.backbone} looks at clips, not at pictures", remedy=remedy)
            if recipe.augmentation.mix_token and not built.backbone.embedding:
                what = f"augmentation.mix_token: {model.backbone} names no embedding behind which tokens can be mixed"
                raise UsageError(what, remedy="set it to 0, or take another backbone")
            image = torch.empty(1, *((p.frames,) if p.frames else ()), p.channels, *p.size)
            built.features(Batch(image, (), ("",), (p.size,)))
            adapters.add(built, model)
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError, RuntimeError) as error:
        if not (model.options or model.head_options) or "meta tensor" in str(error):
            return
        first = " ".join(str(error).split())[:200]
        what = f"{model.backbone} under {model.head} cannot be built with these options ({first})"
        raise UsageError(what, remedy="mend model.options or model.head_options") from error


def _build(recipe: Recipe, listing: Listing, preprocessing: Preprocessing, counts: Sequence[int]) -> Model:
    if recipe.model.head == NO_HEAD:
        raise UsageError("a backbone without a head learns nothing", remedy="name a head, or a method of pre-training")
    options, head_options = dict(recipe.model.options), dict(recipe.model.head_options)
    if recipe.model.drop_path is not None:
        options["drop_path"] = recipe.model.drop_path
    if recipe.data.labels != "single":
        head_options["labels"] = recipe.data.labels
    if recipe.loss.smoothing:
        head_options["smoothing"] = recipe.loss.smoothing
    weights = recipe.loss.class_weights
    if isinstance(weights, list):
        head_options["class_weights"] = list(weights)
    elif weights != "none":
        power = 1.0 if weights == "balanced" else 0.5
        head_options["class_weights"] = [
            (sum(counts) / (len(counts) * count)) ** power if count else 1.0 for count in counts
        ]
    if recipe.loss.pixel_stride > 1:
        if not (
            recipe.model.head in lookup.names("heads")
            and issubclass(lookup.the_class("heads", recipe.model.head, Head), DenseHead)
        ):
            raise UsageError("loss.pixel_stride is for masks", remedy="leave it at 1")
        head_options["pixel_stride"] = recipe.loss.pixel_stride
    return build_model(
        recipe.task,
        backbone=recipe.model.backbone,
        head=recipe.model.head,
        classes=listing.classes,
        ids=listing.ids,
        preprocessing=preprocessing,
        backbone_options=options,
        head_options=head_options,
    )


def identity_of(recipe: Recipe, model: Model, splits: Splits, distilled: Distilled | None = None) -> dict[str, Any]:
    """What must be the same for a resume to make sense, as plain values."""
    description = describe(model)
    architecture = description["architecture"]
    architecture["head_options"].pop("pixel_stride", None)  # a resumed run may learn from more pixels, or fewer
    return plain(
        architecture
        | {
            "classes": description["classes"],
            "preprocessing": description["preprocessing"],
            "data": digest(splits),
            "balanced": recipe.data.balanced,
            "optimizer": recipe.optimizer.name,
            "batch_size": recipe.training.batch_size,
            "seed": recipe.training.seed,
            "average": recipe.training.ema > 0,
        }
        | adapters.identity(recipe.model)
        | ({"optimizer.options": recipe.optimizer.options} if recipe.optimizer.options else {})
        | ({} if distilled is None else {"teacher": distilled.identity})
    )


def plain(value: Any) -> Any:
    """The value as JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(value))
