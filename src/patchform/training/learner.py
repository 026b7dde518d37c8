"""What learns in a run, and how it moves."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from patchform import distributed
from patchform.data.collate import split
from patchform.data.loader import derive, generator
from patchform.distributed import Rank
from patchform.model import Model
from patchform.records import Batch
from patchform.settings import Recipe
from patchform.tasks.base import task_of
from patchform.training import adapters, ema, freezing, optimizer, schedule
from patchform.training.distillation import Distilled, Term, distilled
from patchform.training.own_loss import OwnLoss, own_loss
from patchform.training.scaling import LossScaling
from patchform.training.schedule import RunLength
from patchform.training.step import StepResult, step


class Learner:
    """A model, its moving average if there is one, its optimizer, and what of it is frozen or adapted.

    Args:
        model: on its device, with the weights that it starts from.
        recipe: of the run; its teacher, if it names one, is opened.
        length: how long it is.
        rank: of this process.

    Raises:
        PatchformError: whatever `freezing.Freezing` and `distillation.distilled` raise.
    """

    def __init__(self, model: Model, recipe: Recipe, length: RunLength, rank: Rank) -> None:
        self.model, self.recipe, self.length, self.rank = model, recipe, length, rank
        adapters.add(model, recipe.model)
        self.average = ema.average_of(model) if recipe.training.ema else None
        self.distilled = distilled(model, recipe)
        self.own_loss = own_loss(model, recipe.loss)
        if recipe.model.checkpointing:
            recompute_activations(model)
        if recipe.model.compile:
            model.trained.compile()
        if recipe.model.norms == "synchronised" and not rank.single:
            freezing.synchronise(model)
        self.frozen = freezing.Freezing(model, recipe, length.steps_per_epoch)
        self.optimizer = optimizer.build(model, recipe.optimizer, beside=self.beside)
        self.scaler = LossScaling(model.mean.device.type, recipe.training.precision)
        self.optimizer.register_step_pre_hook(self._moves)
        task, stride = task_of(model.architecture, model.head), model.trained.strides[-1]
        smoothing = recipe.loss.smoothing
        self._token_mixing = task.token_mixing(recipe.augmentation, len(model.classes), stride, smoothing)
        self._undo: Undo | None = None
        self._whole = True

    def evaluated(self) -> Model:
        """The model that is evaluated and kept: the average, or the model itself without one; of one with adapters a
        copy that has them added in.
        """
        return adapters.merged(self.average or self.model)

    @property
    def objective(self) -> Model | Distilled | OwnLoss:
        """What gives the losses: the model, or the model with its teacher, or under a loss of the user's own."""
        return self.distilled or self.own_loss or self.model

    @property
    def beside(self) -> Term | None:
        """What is learnt beside the model and left behind."""
        return self.distilled.term if self.distilled is not None and list(self.distilled.term.parameters()) else None

    def mixed(self, number: int, batch: Batch) -> Batch:
        """The batch of a step, whose tokens are mixed if the recipe says so."""
        rng_key = () if self.rank.single else (self.rank.rank,)
        return self._token_mixing.mix(batch, generator(self.recipe.training.seed, "mix tokens", number, *rng_key))

    def begin(self, step: int) -> None:
        """Be as before a step, from which the run goes on."""
        self.model.begin(step=step, steps=self.length.steps, epoch=self.length.steps_per_epoch)
        self.model.train()
        self.frozen.at(step)

    def rate(self, number: int) -> float:
        """The learning rate of a step."""
        return self.recipe.optimizer.lr * schedule.multiplier(self.recipe.schedule, number, self.length)

    def take(self, number: int, batch: Batch, *, counted: bool) -> StepResult:
        """Take an optimizer step; where its result is not finite, nothing moves. `training.precision` is not auto.

        Args:
            number: of the step, from 0.
            batch: this process's share, on the device.
            counted: False where the share is another process's too.
        """
        settings = self.recipe.training
        self._undo = Undo.of(self.model)
        if not self.rank.single:  # each process draws by itself, and a checkpoint of the first one need not know what
            torch.manual_seed(derive(settings.seed, "model", number, self.rank.rank))
        self.frozen.at(number)
        optimizer.set_rate(self.optimizer, self.rate(number))
        result = step(
            self.objective,
            list(split(self.mixed(number, batch), settings.micro_batch, settings.pixels_at_once)),
            optimizer=self.optimizer,
            reduce=distributed.all_reduce_sum,
            precision=settings.precision,
            scaler=self.scaler,
            clip=self.recipe.optimizer.clip,
            counted=counted,
        )
        if result.finite:
            distributed.all_reduce_mean(freezing.running_statistics(self.model))
            if self.average is not None:
                ema.update(self.average, self.model, ema.decay_at(number, settings.ema))
            self.model.after_step(number)
        self._undo, self._whole = None, True
        return result

    def undo(self) -> bool:
        """Be again as after the last whole step, where a step failed.

        Returns:
            Whether that can be: not where the weights had begun to move.
        """
        if self._undo is not None and self._whole:
            self._undo.put_back()
            self.optimizer.zero_grad(set_to_none=True)
            self._undo = None
        return self._whole

    def _moves(self, *_: object) -> None:
        self._whole = False


class Undo(NamedTuple):
    """What the forward pass of a step moves beside gradients: random numbers, and statistics that a model keeps."""

    random: Tensor
    on_devices: list[Tensor]
    buffers: list[tuple[Tensor, Tensor]]
    """Each, and what it held."""

    @classmethod
    def of(cls, model: Model) -> Undo:
        """As it is now."""
        parameters = {name for name, _ in model.named_parameters()}
        state = model.state_dict()
        buffers = [(tensor, tensor.clone()) for name, tensor in state.items() if name not in parameters]
        on_devices = torch.cuda.get_rng_state_all() if model.mean.device.type == "cuda" else []
        return cls(torch.get_rng_state(), on_devices, buffers)

    def put_back(self) -> None:
        """Be as it was."""
        torch.set_rng_state(self.random)
        if self.on_devices:
            torch.cuda.set_rng_state_all(self.on_devices)
        for tensor, held in self.buffers:
            tensor.copy_(held)


def recompute_activations(model: Model) -> None:
    """Keep only the input of each of the backbone's layers and compute the rest again in the backward pass.

    Chen et al. 2016, "Training deep nets with sublinear memory cost". The gradients are the same; random numbers are
    drawn alike both times.
    """
    for layer in model.trained.layers():
        layer.forward = functools.partial(_recomputed, layer.forward)


def _recomputed(forward: Any, *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    return recompute(forward, *inputs, use_reentrant=False, **named)
