"""The training loop, read from top to bottom. There are no callbacks: what wants to change it is probably a Model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch

from patchform import distributed
from patchform.device import pick_device
from patchform.errors import DivergedError
from patchform.markup import chart, escape
from patchform.model import Model
from patchform.settings import UNKNOWN, Origin, Recipe, TrainingSettings
from patchform.tasks.base import Task, task_of
from patchform.training import resuming, run, summary
from patchform.training.advice import start_notes
from patchform.training.batches import Batches, TrainingData, open_training
from patchform.training.cached_features import forget, rows_of
from patchform.training.freezing import statistics_note, untaught_note
from patchform.training.learner import Learner
from patchform.training.memory import keep_freed_memory, memory_errors
from patchform.training.metrics_log import History, MetricsLog, curve, history
from patchform.training.preparation import identity_of, model_of, refuse_nonsense, seed_everything
from patchform.training.progress import Reporter
from patchform.training.run import RunContext
from patchform.training.saving import Saver
from patchform.training.standing import DIVERGED
from patchform.training.step import StepResult
from patchform.training.summary import Start
from patchform.training.validation import Validation
from patchform.weights.files import failpoint, replace_text


class Run(NamedTuple):
    """A finished run."""

    folder: Path
    model: Model
    """As saved in the folder: the best by validation, the moving average if there is one; in evaluation mode."""
    step: int
    """Optimizer steps taken."""
    best: float | None
    """The score of the model, None without one."""
    best_step: int
    recipe: Recipe
    """As it was resolved."""
    data: TrainingData
    """What it has learnt from, and was scored on."""

    @property
    def task(self) -> Task:
        """What the score means."""
        return task_of(self.model.architecture, self.model.head)

    @property
    def history(self) -> History:
        """The epochs, a dict each: `epoch`, `step`, `train_loss`, `val_loss`, the scores, `lr`, `seconds`, and so on;
        None where a number was not measured.
        """
        return history(self.folder)

    def __repr__(self) -> str:
        return f"Run({self._in_words()})"

    def _repr_html_(self) -> str:
        losses = [curve(self.history, name) for name in ("train_loss", "val_loss")]
        name = self._better()
        scores = [] if name is None else [curve(self.history, name)]
        charts = "".join(chart(title, curves) for title, curves in (("loss", losses), (name or "", scores)))
        return f"<p>{escape(self._in_words())}</p>{charts}"

    def _in_words(self) -> str:
        words = f"{self.folder}: {self.step} steps"
        return words if self.best is None else f"{words}, {self._better()} {self.best:.4g} after {self.best_step}"

    def _better(self) -> str | None:
        return None if self.best is None else task_of(self.model.architecture, self.model.head).better


def train(recipe: Recipe, *, resume: bool = False, progress: bool = True, origin: Origin = UNKNOWN) -> Run:
    """Train a model, or go on with a run that was stopped, to the same bits as if it had not been.

    The run folder `recipe.runs`/`recipe.name` gets what `patchform.model`, `training.checkpoint` and
    `training.metrics_log` describe. Of several processes each has its share of every batch; the first one writes.

    Args:
        recipe: all settings; complete in itself.
        resume: go on from the newest whole checkpoint of the folder.
        progress: show how it goes, on stderr.
        origin: where the recipe came from, to be said.

    Raises:
        UsageError: a setting out of range, an unknown name.
        DataError: data that cannot be used.
        ModelFileError: on resume, no whole checkpoint or one of another run.
        FolderError: the run exists already, is in use, is not there to resume, or would lie in the data set.
        DivergedError: the loss or the gradient is not finite; the weights before that step are saved.
        ResourceError: out of memory, a full disk.
        Interrupted, PeerError: SIGTERM or Ctrl-C, or another process failed; the run was saved.
    """
    refuse_nonsense(recipe, new=not resume)
    settings, stem = recipe.training, f"{recipe.task}-{recipe.model.backbone.replace('/', '-')}"
    with (
        run.Stop() as stop,
        distributed.process_group() as rank,
        Reporter(shown=progress, heard=rank.is_main) as reporter,
        run.opened(Path(recipe.runs), recipe.name, stem=stem, resume=resume) as folder,
    ):
        context = RunContext(folder, _device(settings), rank, reporter, stop)
        settled = resuming.settle(recipe, origin, context, resume=resume)
        recipe = settled.recipe

        # ------------------------------------------------------------------------------------------------- data
        data = distributed.all_or_none(lambda: open_training(recipe, context, resume=resume))
        length = data.length(recipe)

        # ------------------------------------------------------------------------------------------------ model
        seed_everything(settings.seed)
        model = model_of(recipe, data.listing, data.preprocessing, counts=data.counts, say=reporter.note)
        learner = Learner(model.to(context.device), recipe, length, rank)

        # ----------------------------------------------------------------------------------------------- resume
        saver = Saver(learner, identity_of(recipe, model, data.splits, learner.distilled), context)
        if resume:
            saver.resume()
        counters, data = saver.counters, data._replace(rows=rows_of(learner, data.splits, context))
        learner.begin(counters.step)
        resuming.keep_earlier(settled, context)
        saver.write_recipe()
        distributed.broadcast(list(learner.objective.state_dict().values()))  # one seed gives other bits elsewhere

        # ------------------------------------------------------------------------------------------------ steps
        at_once = min(settings.micro_batch or settings.batch_size, settings.batch_size)
        batches = Batches(recipe, data, length, context, counters.step)
        validation = Validation(learner, data, context, at_once)
        _announce(summary.Start(learner, data, settled, counters.step, at_once), context)
        reporter.begin(counters.step, validation.work)
        with memory_errors(at_once, data.preprocessing), saver.log() as log, saver.saved_on_error():
            _take_steps(learner, batches, validation, saver, log)

            # ---------------------------------------------------------------------------------------- the model
            final = saver.best.final(forget(learner.evaluated()), counters, reporter.note)
            saver.finish(final)
        return Run(folder, final.eval(), counters.step, counters.best, counters.best_step, recipe, data)


def _take_steps(
    learner: Learner, batches: Batches, validation: Validation, saver: Saver, log: MetricsLog | None
) -> None:
    """Step after step to the end of the run; between two steps the only places where it validates, saves and stops."""
    counters, length, patience = saver.counters, learner.length, learner.recipe.training.patience
    while True:
        step = counters.step
        if length.ends(step, length.steps_per_epoch) and counters.reported < step:  # a resume may be at a validated end
            counters.load_json(distributed.broadcast_text(lambda: validation.end_epoch(counters, log)))
        last = step >= length.steps
        last |= 0 < patience <= counters.without_better
        if last or saver.due(step):
            distributed.all_or_none(saver.save)
        distributed.all_or_none(saver.context.stop.check)
        if last:
            return
        batch = batches.next(step)
        skipped = learner.scaler.skipped
        result = learner.take(step, batch, counted=batches.own(step))
        if learner.scaler.skipped > skipped:
            saver.context.reporter.note(_skipped(learner, step + 1))
        elif not result.finite:
            raise _diverged(saver.context, learner.rate(step), step + 1, batches.names(step), result)
        counters.step, counters.epoch_loss = step + 1, counters.epoch_loss + result.loss
        failpoint("before-log")
        rate = learner.rate(step)
        if log is not None:
            log.step(step + 1, loss=result.loss, norm=result.norm, lr=rate)
        epoch = step // length.steps_per_epoch + 1
        saver.context.reporter.step(step + 1, epoch=epoch, loss=result.loss, images=batches.size(step))


def _device(settings: TrainingSettings) -> torch.device:
    """The device of the run, the machine set up for it."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = pick_device(settings.device)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def _announce(start: Start, context: RunContext) -> None:
    """Say what is trained, and what of it is otherwise than one may think."""
    learner, say = start.learner, context.reporter.note
    for note in start.settled.origin.notes:
        say(note)
    summary.announce(start, context)
    remarks = [
        statistics_note(learner.model, learner.recipe, context.rank),
        None if start.step else untaught_note(learner.recipe),
        *([] if start.step else start_notes(learner.recipe, start.data)),
        resuming.rate_note(start.settled, start.step, learner.length),
        "every step was taken already: nothing is left to train" if start.step >= learner.length.steps else None,
    ]
    for remark in filter(None, remarks):
        say(remark)


def _skipped(learner: Learner, step: int) -> str:
    """What to say of a step whose gradient was beyond float16."""
    scaler = learner.scaler
    return (
        f"step {step} was skipped, its gradient is beyond float16 ({scaler.skipped} so far); losses are scaled by"
        f" {scaler.get_scale():g} from here on"
    )


def _diverged(context: RunContext, rate: float, step: int, names: list[str], result: StepResult) -> DivergedError:
    """The error, after all file names of the batch were written beside the log."""
    if context.rank.is_main:
        replace_text(context.folder / DIVERGED, json.dumps({"step": step, "files": names}, indent=1))
    return DivergedError(
        f"the loss is {result.loss:g} and its gradient's norm {result.norm:g} at step {step} (learning rate {rate:g})",
        where=", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else ""),
        remedy="look at these pictures, lower optimizer.lr, or set optimizer.clip",
    )
