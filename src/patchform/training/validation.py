"""The end of an epoch: scores, the best model so far, a row of numbers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cached_property
from typing import cast

from patchform.data.loader import evaluation_loader, input_sizes
from patchform.device import Precision
from patchform.evaluation import evaluate, loss_of
from patchform.metrics.base import Scores
from patchform.model import Model
from patchform.records import Batch
from patchform.tasks.base import find_task
from patchform.training.batches import TrainingData
from patchform.training.best import BestModel
from patchform.training.checkpoint import Counters
from patchform.training.learner import Learner
from patchform.training.metrics_log import MetricsLog
from patchform.training.own_loss import own_loss
from patchform.training.pace import Work
from patchform.training.run import RunContext
from patchform.training.saving import save_errors
from patchform.weights.files import failpoint

LOG_LOSS = "log_loss"
"""The number that is the loss of a head of one label: it need not be computed twice."""


class Validation:
    """Scores a learner on the validation set and keeps the best model, in the one process that does.

    Args:
        learner: what is scored.
        data: what it is scored on.
        context: where the run happens.
        at_once: pictures that go through the model together.
    """

    def __init__(self, learner: Learner, data: TrainingData, context: RunContext, at_once: int) -> None:
        recipe = learner.recipe
        self.learner, self.context, self.settings = learner, context, recipe.training
        self.task = find_task(recipe.task).of(learner.model.head)
        samples = data.validation_samples(self.task, recipe)
        pin, sizes = context.device.type == "cuda", input_sizes(data.splits.validation, data.preprocessing)
        self.loader = evaluation_loader(samples, at_once, recipe.data.workers, pin=pin, sizes=sizes)
        self._data, self._at_once = data, at_once
        self._since = time.perf_counter()

        period = learner.length.steps_per_epoch * self.settings.validate_every
        self.work = Work(learner.length.steps, period, len(data.splits.validation))

    def end_epoch(self, counters: Counters, log: MetricsLog | None) -> str:
        """Validate where that is due, keep the model if it is the best so far, write a row.

        Returns:
            The counters afterwards, as text.
        """
        step, length, reporter = counters.step, self.learner.length, self.context.reporter
        numbers: dict[str, float | None] = {"train_loss": counters.epoch_loss / length.steps_per_epoch}
        if length.ends(step, self.work.steps_per_validation) or step >= length.steps:
            evaluated = self.learner.evaluated()
            scores = self._scores(evaluated)
            if self.task.labelled and (self.learner.own_loss or LOG_LOSS not in scores.numbers):
                numbers["val_loss"] = self._loss(evaluated)
            numbers |= scores.numbers
            for note in scores.notes:
                reporter.note(note)
            self._keep_best(evaluated, scores, counters)
        now, speed = time.perf_counter(), reporter.speed()
        if log is not None:
            pace = {"lr": self.learner.rate(step - 1), "seconds": now - self._since, "images_per_second": speed}
            log.epoch(step // length.steps_per_epoch, step, numbers | pace)
        self._since = now
        reporter.epoch(step // length.steps_per_epoch, step, numbers)
        counters.reported, counters.epoch_loss = step, 0.0
        return counters.to_json()

    def _scores(self, model: Model) -> Scores:
        return evaluate(
            model,
            self.loader,
            self.task,
            precision=cast("Precision", self.settings.precision),
            pixels=self.settings.pixels_at_once,
            progress=self._between_batches,
        )

    @cached_property
    def _as_learnt(self) -> Iterable[Batch]:
        """Made where it is asked for: what it decodes stays in memory."""
        recipe = self.learner.recipe
        pin = self.context.device.type == "cuda"
        return evaluation_loader(self._data.validation_as_learnt(recipe), self._at_once, recipe.data.workers, pin=pin)

    def _loss(self, model: Model) -> float | None:
        return loss_of(
            model,
            self._as_learnt,
            precision=cast("Precision", self.settings.precision),
            pixels=self.settings.pixels_at_once,
            progress=self._between_batches,
            losses=own_loss(model, self.learner.recipe.loss) or model,
        )

    def _between_batches(self, done: int) -> None:
        self.context.stop.check()
        self.context.reporter.validating(done)

    def _keep_best(self, model: Model, scores: Scores, counters: Counters) -> None:
        without_better = counters.without_better + 1  # counted when nothing can fail any more
        if scores.best is not None and (counters.best is None or scores.best > counters.best):
            failpoint("before-best")
            with save_errors(self.settings.on_save_error, self.context.reporter):
                thresholds = self.task.thresholds(scores)
                BestModel(self.context.folder).save(model, counters.step, thresholds=thresholds)
                counters.best, counters.best_step, without_better = scores.best, counters.step, 0
        counters.without_better = without_better
