"""What a run keeps on the disk, and what it goes on from."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import yaml
from torch import nn

from patchform.errors import DataError, DivergedError, Interrupted, PeerError, ResourceError
from patchform.training import checkpoint, run
from patchform.training.checkpoint import Counters
from patchform.training.learner import Learner
from patchform.training.metrics_log import MetricsLog
from patchform.training.preparation import plain
from patchform.training.progress import Reporter
from patchform.training.run import RunContext
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
        self.folder.mkdir(exist_ok=True)
        self._parts = checkpoint.Parts(
            model=learner.model,
            average=learner.average,
            optimizer=learner.optimizer,
            counters=self.counters,
            scaler=learner.scaler,
        )
        self._saved = 0

    def resume(self) -> None:
        """Put the run back to its newest whole checkpoint, random numbers included; errors as of `checkpoint`."""
        path, notes = checkpoint.newest(self.folder)
        if path is None:
            notes.append("nothing was saved yet: beginning at step 0")
        else:
            notes += checkpoint.restore(self._parts, path, identity=self.identity)
            notes.append(f"resuming after step {self.counters.step}")
            self._saved = self.counters.step
        for note in notes:
            self.context.reporter.note(note)

    def due(self, step: int) -> bool:
        """Whether the recipe wants a checkpoint of a step."""
        length, period = self.learner.length, self.learner.recipe.training.save_every
        return length.ends(step, period or length.steps_per_epoch)

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one."""
        if self.counters.step == self._saved or not self.context.rank.is_main:
            return
        settings = self.learner.recipe.training
        if not self.finite():
            step = self.counters.step
            raise DivergedError(f"weights are not finite after step {step}", remedy="lower optimizer.lr")
        with save_errors(settings.on_save_error, self.context.reporter):
            checkpoint.save(self._parts, self.folder, identity=self.identity, keep=settings.keep)
            self._saved = self.counters.step

    @contextmanager
    def saved_on_error(self) -> Iterator[None]:
        """Save the run, unless its weights are not finite, where it ends by an error from which it can be resumed."""
        try:
            yield
        except (Interrupted, DataError, DivergedError, PeerError):
            if self.finite():
                self.save()
            raise

    def finite(self) -> bool:
        """Whether all weights are."""
        return all_finite(self.learner.model, self.learner.average)

    def write_recipe(self) -> None:
        """Write the recipe as it was resolved, and say so if the disk has little room for what comes."""
        if not self.context.rank.is_main:
            return
        resolved = dataclasses.replace(self.learner.recipe, name=self.context.folder.name)
        text = yaml.safe_dump(plain(dataclasses.asdict(resolved)), sort_keys=False)
        replace_text(self.context.folder / run.RECIPE, text)
        size = sum(tensor.nbytes for tensor in self.learner.model.state_dict().values())
        needed = 3 * size * (3 + (self.learner.average is not None))  # weights, two moments, the average
        if (free := shutil.disk_usage(self.context.folder).free) < needed:
            room = f"{free >> 20} MB are free, three checkpoints need {needed >> 20} MB"
            self.context.reporter.note(f"the disk may become full: {room}")

    def log(self) -> MetricsLog | nullcontext[None]:
        """The log of the run from this step on; None in processes that do not write."""
        if not self.context.rank.is_main:
            return nullcontext()
        tensorboard = self.learner.recipe.training.tensorboard
        return MetricsLog(self.context.folder, self.counters.step, self.counters.reported, tensorboard=tensorboard)


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
