"""What of a model stays as it is while the rest learns: layers of its backbone, and batch normalisation.

Both are done to a built model from outside; no backbone knows of them. What is frozen has no gradient and hence no
state in the optimizer, is in evaluation mode, and, as nothing below it has a gradient either, leaves no graph behind.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from patchform import distributed
from patchform.backbones.base import Backbone
from patchform.distributed import Rank
from patchform.errors import UsageError
from patchform.layers.norms import BatchNorm1d, BatchNorm2d
from patchform.model import Model
from patchform.settings import Recipe

Frozen = int | str
"""A number of layers from the input on, or "all"."""


def depths(backbone: Backbone) -> dict[nn.Module, int]:
    """The depth of each module, and of the parameters that are directly its own.

    The stem has depth 0, layer i (from 1) of the backbone's L has i, what stands behind a layer among its siblings goes
    with it, what stands in front of all of them with the layer before, what follows the last layer has L + 1.
    """
    layers = backbone.layers()
    number_of = {layer: number for number, layer in enumerate(layers, 1)}
    depth_of: dict[nn.Module, int] = {}

    def inside(module: nn.Module) -> list[int]:
        return [number_of[part] for part in module.modules() if part in number_of]

    def visit(module: nn.Module, depth: int) -> None:
        numbers = inside(module)
        if module in number_of or not numbers:
            for part in module.modules():
                depth_of.setdefault(part, number_of.get(module, depth))
            return
        before = depth_of[module] = numbers[0] - 1
        for child in module.children():
            visit(child, before if before < len(layers) else before + 1)
            before = max([before, *inside(child)])

    visit(backbone, 0)
    return depth_of


class Freezing:
    """Freezes the part of a model that a recipe names, and thaws it after so many epochs.

    Args:
        model: as built; what is frozen to the end of the run is frozen at once, so that no optimizer holds it.
        recipe: `model.frozen`, `model.frozen_epochs` and `model.norms`; an `optimizer.backbone_rate` of 0 freezes all.
            Under an adapter the backbone's batch normalisation stays as it is, like all that is its own.
        steps_per_epoch: optimizer steps.

    Raises:
        UsageError: more layers than the backbone has.
    """

    def __init__(self, model: Model, recipe: Recipe, steps_per_epoch: int) -> None:
        frozen: Frozen = recipe.model.frozen if recipe.optimizer.backbone_rate else "all"
        to_the_end = not (recipe.model.frozen_epochs and recipe.optimizer.backbone_rate)
        self.until = math.inf if to_the_end else recipe.model.frozen_epochs * steps_per_epoch
        self._frozen: bool | None = None
        if model.head.reads_maps_alone:  # nothing to learn for them, and weight decay is not to wear them down
            for parameter in model.trained.parameters_beyond_maps():
                parameter.requires_grad_(False)
        modules = frozen_of(model.trained, frozen)
        self._modules = [module for module in modules if all(part in modules for part in module.modules())]
        parameters = (parameter for module in modules for parameter in module.parameters(recurse=False))
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._norms: list[nn.Module] = []
        if recipe.model.norms == "frozen" or recipe.model.adapter != "none":
            own = {id(backbone): backbone for backbone in (model.backbone, model.trained)}.values()
            self._norms = [norm for backbone in own for norm in batch_norms(backbone)]
        for norm in self._norms:
            norm.requires_grad_(False)
        if to_the_end:
            self.at(0)

    @property
    def now(self) -> bool:
        """Whether something is frozen at the step of the last `at`."""
        return self._frozen is True and bool(self._modules)

    def at(self, step: int) -> None:
        """Be as the model is to be at a step: before it, with the model in training mode."""
        frozen = step < self.until
        if frozen != self._frozen:
            for parameter in self._parameters:
                parameter.requires_grad_(not frozen)
            self._frozen = frozen
        for module in self._modules:
            module.training = not frozen
        for norm in self._norms:
            norm.requires_grad_(False).eval()


def frozen_of(backbone: Backbone, frozen: Frozen) -> dict[nn.Module, int]:
    """The modules of the stem and of so many layers behind it; none for 0, the whole backbone for "all"."""
    number = len(backbone.layers())
    if frozen == "all":
        return depths(backbone)
    if not isinstance(frozen, int) or not 0 <= frozen <= number:
        remedy = f'this backbone has {number} layers; "all" is the whole of it'
        raise UsageError(f"model.frozen is {frozen}", remedy=remedy)
    return {module: depth for module, depth in depths(backbone).items() if frozen and depth <= frozen}


def untaught_note(recipe: Recipe) -> str | None:
    """What to say of a backbone that starts from nothing and does not learn; None of any other."""
    model = recipe.model
    stays = (model.frozen == "all" and not model.frozen_epochs) or not recipe.optimizer.backbone_rate
    if model.init_from is not None or not (stays or model.adapter != "none"):
        return None
    return "the backbone's weights are random and stay so: --from names those of one that has learnt"


# ------------------------------------------------------------------------------------------------- batch normalisation


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The layers that normalise by the statistics of what goes through them together."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


def running_statistics(model: Model) -> list[Tensor]:
    """What batch normalisation has seen so far, where it goes on: several processes see each their own share of it."""
    layers = [layer for layer in batch_norms(model) if layer.training]
    values = [value for layer in layers for value in (layer.running_mean, layer.running_var)]
    return [value for value in values if value is not None]


def synchronise(model: Model) -> None:
    """Let batch normalisation see what goes through the model in all processes together.

    A sample that a short last batch lends to a process without one of its own is seen twice.
    """
    for layer in batch_norms(model):
        if not isinstance(layer, BatchNorm1d | BatchNorm2d):
            raise UsageError(f"model.norms synchronised does not know {type(layer).__name__}")
        layer.add_up = _Sum.apply


class _Sum(torch.autograd.Function):
    """A sum over processes, whose gradient is that of the losses of all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce_sum([total])
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce_sum([total])
        return total


def statistics_note(model: Model, recipe: Recipe, rank: Rank) -> str | None:
    """What to say of a run whose batch statistics are not those of whole batches; None where they are.

    Raises:
        UsageError: statistics of all processes, each of which may look at another number of parts.
    """
    settings, synchronised = recipe.training, recipe.model.norms == "synchronised"
    share = math.ceil(settings.batch_size / rank.world_size)
    parted = 0 < settings.micro_batch < share or settings.pixels_at_once > 0
    if synchronised and not rank.single and parted:
        remedy = "set training.micro_batch and training.pixels_at_once to 0, or model.norms to learn"
        raise UsageError("model.norms synchronised needs each process's share of a batch at once", remedy=remedy)
    live = [layer for layer in batch_norms(model) if layer.training]
    if not live or not (parted or (not rank.single and not synchronised)):
        return None
    at_once = "a part" if parted else "a process's share"
    return (
        f"{len(live)} layers normalise by the statistics of {at_once} of a batch: gradients are not those of the whole"
        " batch (model.norms frozen keeps the statistics that the backbone starts from, synchronised joins processes)"
    )
