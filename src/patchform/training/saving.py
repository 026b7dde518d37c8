"""What a run keeps on the disk, and what it goes on from."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from patchform import distributed, lookup, system
from patchform.distributed import Rank
from patchform.errors import DivergedError, Interrupted, PatchformError, ResourceError
from patchform.model import Model, save
from patchform.resources import out_of_memory, writing
from patchform.tasks.base import task_of
from patchform.training import checkpoint, run
from patchform.training.best import BestModel
from patchform.training.checkpoint import Counters
from patchform.training.learner import Learner
from patchform.training.metrics_log import MetricsLog
from patchform.training.preparation import plain
from patchform.training.progress import Reporter
from patchform.training.recipe_files import flat
from patchform.training.run import RunContext
from patchform.training.standing import STANDING, Standing, Written, as_text
from patchform.weights.files import replace_text


class Saver:
    """Writes the checkpoints of a run, in the one process that writes; restores the newest.

    Args:
        learner: what is saved.
        identity: what must be the same on resume, as plain values.
        context: where the run happens.
    """

    def __init__(self, learner: Learner, identity: dict[str, Any], context: RunContext) -> None:
        self.learner, self.identity, self.context = learner, identity, context
        self.counters = Counters()
        self.folder = context.folder / run.CHECKPOINTS
        self.best = BestModel(context.folder)
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
        self._parts = checkpoint.Parts(
            model=learner.model,
            average=learner.average,
            optimizer=learner.optimizer,
            counters=self.counters,
            scaler=learner.scaler,
            beside=learner.beside,
        )
        self._saved = self._tried = 0
        self._log: MetricsLog | None = None
        self._unlogged: set[str | None] = set()

    def resume(self) -> None:
        """Put the run back to its newest whole checkpoint, random numbers included; errors as of `checkpoint`."""
        path, notes = checkpoint.newest(self.folder)
        if path is None:
            notes.append("nothing was saved yet: beginning at step 0")
        else:
            notes += checkpoint.restore(self._parts, path, identity=self.identity)
            notes.append(f"resuming after step {self.counters.step}")
            self._saved = self._tried = self.counters.step
            self.counters.load_json(distributed.broadcast_text(lambda: self._check_best(notes)))
        for note in notes:
            self.context.reporter.note(note)

    def _check_best(self, notes: list[str]) -> str:
        notes += self.best.check(self.counters)
        return self.counters.to_json()

    def due(self, step: int) -> bool:
        """Whether the recipe wants a checkpoint of a step."""
        length, period = self.learner.length, self.learner.recipe.training.save_every
        return length.ends(step, period or length.steps_per_epoch)

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one."""
        if self.counters.step == self._saved or not self.context.rank.is_main:
            return
        settings = self.learner.recipe.training
        self._tried = self.counters.step
        if not self.finite():
            step = self.counters.step
            raise DivergedError(f"weights are not finite after step {step}", remedy="lower optimizer.lr")
        with save_errors(settings.on_save_error, self.context.reporter):
            if self._log is not None:
                self._log.flush()  # a checkpoint is never newer than the log of its steps
            checkpoint.save(self._parts, self.folder, identity=self.identity, keep=settings.keep)
            self._saved = self.counters.step
            self.best.prune({self.counters.best_step, *checkpoint.best_steps(self.folder)})

    @contextmanager
    def saved_on_error(self) -> Iterator[None]:
        """Save the run where it ends by an error, if its state is that after a whole step, and say how it goes on."""
        try:
            yield
        except Interrupted as error:
            self._rescue(error, "stopped")
            after = f" after step {self.counters.step}" if self.counters.step else " before the first step"
            remedy = f"go on with: {self._command()}"
            raise Interrupted(error.exit_code, where=self.context.folder, after=after, remedy=remedy) from None
        except Exception as error:
            self._rescue(error, "diverged" if isinstance(error, DivergedError) else "failed")
            if self.context.rank.is_main:
                self.context.reporter.note(f"{self._standing()}; go on with: {self._command()}")
            raise
        except KeyboardInterrupt:  # at once, so as it is
            self.context.reporter.note(f"{self._standing()}; go on with: {self._command()}")
            raise

    def _rescue(self, error: Exception, state: Written) -> None:
        """Save what was learnt. What cannot be saved is said, and the error stays the one that it was."""
        with suppress(PatchformError):
            self._write_standing(state)
        say, step = self.context.reporter.note, self.counters.step
        if out_of_memory(error):
            traceback.clear_frames(error.__traceback__)  # they hold what the step had made
        if not self.learner.undo():
            say(f"step {step + 1} ended half way: it is not saved")
        elif step != self._tried and self.finite():
            try:
                self.save()
            except (PatchformError, MemoryError, RuntimeError, OSError) as second:
                say(f"not saved after step {step}: {second}")
        if (best := self.counters.best) is not None:
            say(f"its best model so far, of step {self.counters.best_step} and score {best:.4g}, can be used already:"
                f" patchform predict {quoted(self.context.folder)} PICTURES")  # fmt: skip

    @contextmanager
    def _log_errors(self) -> Iterator[None]:
        """As `save_errors`, each said once: there may be one at every step."""
        try:
            yield
        except ResourceError as error:
            if self.learner.recipe.training.on_save_error == "stop":
                raise
            if error.where not in self._unlogged:
                self.context.reporter.note(f"not logged, going on: {error}")
            self._unlogged.add(error.where)

    def _standing(self) -> str:
        return f"saved after step {self._saved}" if self._saved else "nothing is saved yet"

    def _command(self) -> str:
        return resume_command(self.context.folder, self.context.rank)

    def finite(self) -> bool:
        """Whether all weights are."""
        return all_finite(self.learner.model, self.learner.average, self.learner.beside)

    def write_recipe(self) -> None:
        """Write the recipe as it was resolved, and say so if the disk has little room for what comes."""
        if not self.context.rank.is_main:
            return
        resolved = dataclasses.replace(self.learner.recipe, name=self.context.folder.name)
        text = yaml.safe_dump(plain(dataclasses.asdict(resolved)), sort_keys=False)
        replace_text(self.context.folder / run.RECIPE, text)
        self._write_standing("running")
        size = sum(tensor.nbytes for tensor in self.learner.model.state_dict().values())
        needed = 3 * size * (3 + (self.learner.average is not None))  # weights, two moments, the average
        if (free := shutil.disk_usage(self.context.folder).free) < needed:
            room = f"{free >> 20} MB are free, three checkpoints need {needed >> 20} MB"
            self.context.reporter.note(f"the disk may become full: {room}")

    def finish(self, model: Model) -> None:
        """Write the model that the run ends with."""
        folder, is_main = self.context.folder, self.context.rank.is_main
        distributed.all_or_none(lambda: save(model, folder) if is_main else None)
        self._write_standing("finished")

    def _write_standing(self, state: Written) -> None:
        """For those who list runs."""
        if not self.context.rank.is_main:
            return
        recipe, model = self.learner.recipe, self.learner.model
        task = task_of(model.architecture, model.head)
        standing = Standing(
            state=state,
            task=recipe.task,
            backbone=recipe.model.backbone,
            head=recipe.model.head,
            metric=task.better if task.labelled else None,
            meaning=task.meaning,
            epochs=recipe.training.epochs,
        )
        replace_text(self.context.folder / STANDING, as_text(standing))

    def log(self) -> MetricsLog | nullcontext[None]:
        """The log of the run from this step on; None in processes that do not write."""
        if not self.context.rank.is_main:
            return nullcontext()
        recipe, counters = self.learner.recipe, self.counters
        self._log = MetricsLog(
            self.context.folder,
            counters.step,
            counters.reported,
            loggers=recipe.training.loggers,
            settings=dict(flat(plain(dataclasses.asdict(recipe)))),
            say=self.context.reporter.note,
            errors=self._log_errors,
        )
        for note in self._log.notes:
            self.context.reporter.note(note)
        return self._log


def resume_command(folder: Path, rank: Rank) -> str:
    """What to type to go on with a run, in the folder in which it was started."""
    words = ["patchform", "train"]
    if not rank.single:
        if os.environ.get("LOCAL_WORLD_SIZE", str(rank.world_size)) != str(rank.world_size):
            return "the command that started it on every machine, with --resume"
        words = ["torchrun", "--nproc-per-node", str(rank.world_size), "-m", *words]
    return with_plugins(f"{system.joined(words)} {quoted(folder)} --resume")


def with_plugins(command: str) -> str:
    """A command with the plug-in folders that were named."""
    words = [word for place in lookup.plugins() for word in ("--plugin", str(place))]
    return " ".join([command, *map(system.quoted, words)])


def quoted(folder: Path) -> str:
    """A path as a word of a command line, which is no option."""
    text = str(folder)
    return system.quoted(f"./{text}" if text.startswith("-") else text)


@contextmanager
def save_errors(policy: str, reporter: Reporter) -> Iterator[None]:
    """A disk that is full stops the run, or is only noted, as `training.on_save_error` has it."""
    try:
        yield
    except ResourceError as error:
        if policy == "stop":
            raise
        reporter.note(f"not saved, going on: {error}")


@torch.no_grad()
def all_finite(*models: nn.Module | None) -> bool:
    """Whether all parameters and buffers are finite."""
    states = [model.state_dict() for model in models if model is not None]
    tensors = [tensor for state in states for tensor in state.values() if tensor.is_floating_point() and tensor.numel()]
    largest = torch._foreach_norm(tensors, math.inf)
    return bool(torch.stack([norm.float() for norm in largest]).isfinite().all())
