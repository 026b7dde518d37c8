"""A loss of the user's own, in place of the head's: `loss.name` (see `own_parts`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from patchform import own_parts
from patchform.errors import UsageError
from patchform.heads.base import number_of
from patchform.model import Model
from patchform.records import Batch, Loss, Target
from patchform.settings import LossSettings, Recipe, TeacherSettings
from patchform.tasks.base import find_task


class OwnLoss(nn.Module):
    """What is minimised where a recipe names a loss: its mean over images. Its parameters are those of the model.

    Args:
        model: whose head gives what is judged.
        settings: of the recipe.

    Raises:
        UsageError: there is no such loss, or it has parameters of its own.
    """

    def __init__(self, model: Model, settings: LossSettings) -> None:
        super().__init__()
        self.model, self.name = model, settings.name
        loss = own_parts.made("loss", settings)
        if isinstance(loss, nn.Module) and list(loss.parameters()):
            what = f"the loss {settings.name} has parameters, which no optimizer would move"
            raise UsageError(what, remedy="write a head that has them (docs/add-a-head.md)")
        self._loss = (loss,)  # no part of what is saved

    def forward(self, batch: Batch) -> dict[str, Loss]:
        """{"loss": ...} over images. Raises UsageError for a loss that does not give a number an image."""
        raw = self.model.head(self.model.features(batch), batch.targets)
        return {"loss": Loss(self._of_images(raw, batch.targets).sum(), number_of(batch.targets))}

    def counts(self, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The number of images."""
        return {"loss": number_of(targets).to(self.model.mean.device)}

    def _of_images(self, raw: Any, targets: Sequence[Target]) -> Tensor:
        losses = self._loss[0](raw, targets)
        if not isinstance(losses, Tensor) or losses.shape != (len(targets),) or not losses.is_floating_point():
            given = f"{tuple(losses.shape)} {losses.dtype}" if isinstance(losses, Tensor) else type(losses).__name__
            what = f"the loss {self.name} gives {given} for {len(targets)} images"
            raise UsageError(what, remedy="give a tensor with the loss of each image, not their mean")
        if torch.is_grad_enabled() and not losses.requires_grad:
            what = f"the loss {self.name} has no gradient"
            raise UsageError(what, remedy="compute it from what the head gives, with torch")
        return losses.float()


def own_loss(model: Model, settings: LossSettings) -> OwnLoss | None:
    """The loss of a recipe, None where it is the head's."""
    return None if settings.name is None else OwnLoss(model, settings)


def refuse(recipe: Recipe) -> None:
    """Raise UsageError for settings of the head's loss beside one of the user's own, which would not read them."""
    loss = recipe.loss
    if loss.name is None:
        return
    if find_task(recipe.task).models != "heads":
        remedy = "write a method (docs/add-a-task.md)"
        raise UsageError(f"{recipe.task} learns by a method of its own, not by a loss over a head", remedy=remedy)
    default, own = LossSettings(), f"beside the loss {loss.name}, which does not read it"
    for name in LossSettings.of_heads:
        if (value := getattr(loss, name)) != (usual := getattr(default, name)):
            raise UsageError(f"loss.{name} is {value} {own}", remedy=f"set it to {usual}")
    if loss.teacher != TeacherSettings():
        raise UsageError(f"loss.teacher is set beside the loss {loss.name}", remedy="leave one of them out")
    if recipe.augmentation.mix_token:
        raise UsageError(f"augmentation.mix_token is set {own}", remedy="set it to 0")
