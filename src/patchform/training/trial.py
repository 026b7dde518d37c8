"""How fast a recipe goes on this machine: a few of its steps are taken on its data, and forgotten."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import NamedTuple

from patchform.data.checks.examination import check
from patchform.data.dataset import Splits
from patchform.data.listing import few_of
from patchform.data.loader import evaluation_loader
from patchform.device import fast_precision, pick_device
from patchform.distributed import SINGLE
from patchform.evaluation import evaluate
from patchform.settings import ModelSettings, Recipe
from patchform.tasks.base import find_task
from patchform.training.batches import Batches, TrainingData
from patchform.training.learner import Learner
from patchform.training.memory import memory_errors
from patchform.training.preparation import model_of, seed_everything
from patchform.training.progress import Reporter
from patchform.training.run import RunContext, Stop
from patchform.training.schedule import RunLength

STEPS, PICTURES = 3, 64
"""Steps on pictures that are seen for the first time, and again on the same; pictures of a validation."""
ENOUGH = 8.0
"""Seconds after which no further step is measured."""


class Durations(NamedTuple):
    """Seconds that the parts of a run take."""

    epoch: float
    """Of training, pictures known."""
    validation: float
    start: float
    """Once: pictures are opened for the first time."""

    def total(self, epochs: int, validate_every: int) -> float:
        """Of a run, and of the look at all once more for its page."""
        return self.start + epochs * self.epoch + (math.ceil(epochs / validate_every) + 1) * self.validation


def measure(recipe: Recipe, splits: Splits) -> Durations:
    """Take a few steps, and validate a few pictures. Nothing is written; weights to start from are not read.

    Args:
        recipe: all settings. Pictures are opened in this process, whatever `data.workers` says.
        splits: of its data.

    Raises:
        PatchformError: what the steps of a run raise: of settings, of pictures that cannot be read, of memory.
    """
    settings, device = recipe.training, pick_device(recipe.training.device)
    precision = fast_precision(device).precision if settings.precision == "auto" else settings.precision
    recipe = dataclasses.replace(
        recipe,
        training=dataclasses.replace(settings, precision=precision),
        data=dataclasses.replace(recipe.data, workers=0, features=None),
        model=_at_its_slowest(recipe.model),
    )
    skipped = 0.99 if recipe.data.skip_bad else 0.0
    train, validation = (
        check(few_of(listing, count), recipe.preprocessing, skip_bad=skipped)[0]
        for listing, count in ((splits.train, STEPS * settings.batch_size), (splits.validation, PICTURES))
    )
    counts = (1,) * len(train.classes)
    data = TrainingData(Splits(train, validation, splits.notes), counts, recipe.preprocessing)
    seed_everything(settings.seed)
    model = model_of(recipe, data.listing, data.preprocessing, counts=data.counts, say=lambda sentence: None)
    steps = math.ceil(len(data.listing) / settings.batch_size)
    learner = Learner(model.to(device), recipe, RunLength(steps, 2 * steps), SINGLE)
    learner.begin(0)
    at_once = min(settings.micro_batch or settings.batch_size, settings.batch_size)
    with memory_errors(at_once, data.preprocessing), Reporter(shown=False) as reporter:
        seconds = _seconds_of_steps(learner, data, RunContext(Path(), device, SINGLE, reporter, Stop()))
        started = time.perf_counter()
        task = find_task(recipe.task).of(learner.model.head)
        loader = evaluation_loader(data.validation_samples(task, recipe), at_once, 0)
        evaluate(learner.evaluated(), loader, task, precision=precision)
        validating = (time.perf_counter() - started) * len(splits.validation) / max(1, len(validation))
    step, opened = min(seconds[steps:]), seconds[:steps]
    all_steps = math.ceil(len(splits.train) / settings.batch_size)
    return Durations(all_steps * step, validating, all_steps * max(0.0, min(opened) - step))


def _at_its_slowest(model: ModelSettings) -> ModelSettings:
    """From nothing, as it learns when most of it does."""
    frozen = 0 if model.frozen_epochs else model.frozen
    return dataclasses.replace(model, init_from=None, compile=False, frozen=frozen, frozen_epochs=0)


def _seconds_of_steps(learner: Learner, data: TrainingData, context: RunContext) -> list[float]:
    """Of two epochs, but of no more steps than it takes to know."""
    batches, seconds, begun = Batches(learner.recipe, data, learner.length, context, 0), list[float](), time.monotonic()
    for number in range(learner.length.steps):
        started = time.perf_counter()
        learner.take(number, batches.next(number), counted=True)
        seconds.append(time.perf_counter() - started)
        if number >= learner.length.steps_per_epoch and time.monotonic() - begun > ENOUGH:
            break
    return seconds
