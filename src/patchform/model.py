"""Model = normalisation -> backbone -> head. All that the loop, evaluate, predict and export ever see."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from patchform import lookup
from patchform.backbones.base import Backbone
from patchform.errors import UsageError
from patchform.heads.base import Head
from patchform.records import Architecture, Batch, Features, Preprocessing, Target

FORMAT = 1
"""Version of model.json; a reader refuses a newer one."""


class Model(nn.Module):
    """A backbone under a head, with the pixel statistics inside.

    Args:
        backbone, head: the two parts.
        classes: names in the order of the head's outputs.
        preprocessing: how pictures become input; stored with the model, read by every command.
        architecture: names to build the same model again; None for models put together by hand (they cannot be saved).
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        *,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        architecture: Architecture | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.classes = tuple(classes)
        self.preprocessing, self.architecture = preprocessing, architecture
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(-1, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a batch: named scalars whose sum is minimised."""
        return self.head.loss(self.head(self.features(batch), batch.targets), batch.targets)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Target]:
        """Predictions, one an image, in pixels of the image before resizing. Does not touch the training mode."""
        return self.head.decode(self.head(self.features(batch)), batch.sizes)

    def features(self, batch: Batch) -> Features:
        """The backbone's features of a batch."""
        return self.backbone(self.normalise(batch.images, batch.padding), padding=batch.padding)

    def normalise(self, images: Tensor, padding: Tensor | None = None) -> Tensor:
        """(..., C, H, W) uint8 0..255 or float 0..1 -> float, (x - mean) / std, and 0 on padding."""
        pixels = images.to(self.mean.dtype)
        if not images.is_floating_point():
            pixels = pixels / 255
        pixels = (pixels - self.mean) / self.std
        if padding is None:
            return pixels
        shape = (len(padding), *(1,) * (images.dim() - 3), *padding.shape[1:])  # no time, no channels
        return pixels.masked_fill(padding.view(shape), 0)

    def count(self, targets: Sequence[Target]) -> Tensor:
        """() float: the weight of these targets in the loss of a larger batch."""
        return self.head.count(targets)

    def after_step(self, step: int) -> None:
        """Called after each optimizer step; for models that keep a teacher or a queue."""


def build_backbone(name: str, **options: Any) -> Backbone:
    """Build a variant by name.

    Args:
        name: family/size, such as "swin/t".
        options: arguments of the class that override the variant's row, such as `in_channels` or `drop_path`.

    Raises:
        UsageError: no such family, size or option; the message names the nearest.
    """
    _, variant = lookup.backbone(name)
    lookup.check_options(variant.build, options, of=name)
    native = {"image_size": variant.image_size} if "image_size" in inspect.signature(variant.build).parameters else {}
    return variant.build(**{**native, **variant.options, **options})


def build_model(
    task: str,
    *,
    backbone: str,
    head: str,
    classes: Sequence[str],
    preprocessing: Preprocessing | None = None,
    backbone_options: dict[str, Any] | None = None,
    head_options: dict[str, Any] | None = None,
) -> Model:
    """Build a model from names. The backbone's native image size and channels follow the preprocessing.

    Args:
        task: "classification", ...
        backbone: family/size.
        head: name of a head that serves the task.
        classes: class names, at least one.
        preprocessing: default: the variant's published input size and ImageNet's statistics.
        backbone_options: arguments of the backbone that override its row.
        head_options: arguments of the head.

    Raises:
        UsageError: an unknown name or option, a head of another task, no classes, or statistics of another channel count.
    """
    if not classes:
        raise UsageError("a model needs at least one class")
    _, variant = lookup.backbone(backbone)
    if preprocessing is None:
        preprocessing = Preprocessing(size=(variant.image_size, variant.image_size))
    for name in ("mean", "std"):
        if len(getattr(preprocessing, name)) not in (1, preprocessing.channels):
            raise UsageError(f"{name} has {len(getattr(preprocessing, name))} numbers for {preprocessing.channels} channels")
    options = dict(backbone_options or {})
    arguments: dict[str, Any] = {"in_channels": preprocessing.channels}
    if "image_size" in inspect.signature(variant.build).parameters:
        arguments["image_size"] = preprocessing.size
    trunk = build_backbone(backbone, **(arguments | options))
    kind = lookup.the_class("heads", head, Head)
    if task not in kind.tasks:  # type: ignore[attr-defined]
        raise UsageError(f'head "{head}" does not serve {task}', remedy=f"it serves {', '.join(kind.tasks)}")  # type: ignore[attr-defined]
    lookup.check_options(kind, head_options or {}, of=f"head {head}")
    top = kind(
        channels=trunk.channels,
        strides=trunk.strides,
        width=trunk.width,
        classes=len(classes),
        **(head_options or {}),
    )
    made_of = Architecture(
        task=task, backbone=backbone, head=head, backbone_options=options, head_options=dict(head_options or {})
    )
    return Model(trunk, top, classes=classes, preprocessing=preprocessing, architecture=made_of)


def describe(model: Model) -> dict[str, Any]:
    """Everything needed to build the model again and to use it, as plain JSON values (the content of model.json)."""
    if model.architecture is None:
        raise UsageError("this model was put together by hand and has no names", remedy="build it with build_model")
    return {
        "format": FORMAT,
        "architecture": dataclasses.asdict(model.architecture),
        "classes": list(model.classes),
        "preprocessing": dataclasses.asdict(model.preprocessing),
    }
