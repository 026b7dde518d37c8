"""Model = normalisation -> backbone -> head. All that the loop, evaluate, predict and export ever see."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchform import lookup
from patchform.backbones.base import Backbone, over_frames
from patchform.errors import ModelFileError, UsageError
from patchform.heads.base import Head
from patchform.records import Architecture, Batch, Features, Loss, Preprocessing, Target
from patchform.tasks.base import find_task
from patchform.weights import files
from patchform.weights.sources import DESCRIPTION, FORMAT, WEIGHTS, read_description

R = TypeVar("R", Architecture, Preprocessing)


class Model(nn.Module):
    """A backbone under a head, with the pixel statistics inside.

    Args:
        backbone, head: the two parts.
        classes: names in the order of the head's outputs.
        preprocessing: how pictures become input; stored with the model, read by every command.
        architecture: names to build the same model again; None for models put together by hand (they cannot be saved).

    Attributes:
        thresholds: scores from which a prediction of an object counts, one a class, chosen on validation data and
            stored with the model; None where none were chosen. `predict` does not apply them.
        ids: of the classes in the data that they were learnt from (COCO's category ids), for results that others read;
            None where those have none.
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
        if backbone.prefers_channels_last:
            backbone.to(memory_format=torch.channels_last)
        self.backbone, self.head = backbone, head
        self.classes = tuple(classes)
        self.preprocessing, self.architecture = preprocessing, architecture
        self.thresholds: tuple[float, ...] | None = None
        self.ids: tuple[int | str, ...] | None = None
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(-1, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, batch: Batch) -> dict[str, Loss]:
        """Losses of a batch by name; the sum of their means is minimised."""
        return self.head.loss(self.head(self.features(batch), batch.targets), batch.targets)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Target]:
        """Predictions, one an image, in pixels of the image before resizing. Does not touch the training mode."""
        return self.head.decode(self.head(self.features(batch)), batch.sizes)

    def features(self, batch: Batch) -> Features:
        """The backbone's features of a batch; of clips frame by frame, if it is one of single images."""
        pixels = self.normalise(batch.images, batch.padding)
        if pixels.dim() == 5 and self.backbone.frames is None:
            features = over_frames(self.backbone, pixels, padding=batch.padding)
        else:
            features = self.backbone(pixels, padding=batch.padding)
        return features._replace(pixel_padding=batch.padding)

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

    def counts(self, targets: Sequence[Target]) -> dict[str, Tensor]:
        """() float32 by name of loss: the counts of `forward`, known before it."""
        return self.head.counts(targets)

    @property
    def trained(self) -> Backbone:
        """The built that gradients move: the backbone, but for models whose backbone is a teacher."""
        return self.backbone

    def begin(self, *, step: int, steps: int, epoch: int) -> None:
        """Called once before the first step that a run takes; for models whose course follows its length.

        Args:
            step: optimizer steps taken before; 0 unless it was resumed.
            steps: in all.
            epoch: steps of an epoch.
        """

    def after_step(self, step: int) -> None:
        """Called after each optimizer step, counted from 0; for models that keep a teacher or a queue."""


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
        head: name of a head that serves the task, or of a method of pre-training.
        classes: class names, at least one; not looked at for a task without labels.
        preprocessing: default: the variant's published input size and ImageNet's statistics.
        backbone_options: arguments of the backbone that override its row.
        head_options: arguments of the head.

    Raises:
        UsageError: an unknown name or option, a head of another task, no classes, or statistics of another number of
            channels.
    """
    of = find_task(task)
    if not classes and of.labelled:
        raise UsageError("a model needs at least one class")
    _, variant = lookup.backbone(backbone)
    if preprocessing is None:
        native = variant.options.get("frames", of.frames)
        preprocessing = Preprocessing(size=(variant.image_size, variant.image_size), frames=native)
    if of.frames and not preprocessing.frames:
        raise UsageError("clips of 0 frames", remedy="set data.frames")
    for name in ("mean", "std"):
        if len(getattr(preprocessing, name)) not in (1, preprocessing.channels):
            raise UsageError(
                f"{name} has {len(getattr(preprocessing, name))} numbers for {preprocessing.channels} channels"
            )
    options = dict(backbone_options or {})
    arguments: dict[str, Any] = {"in_channels": preprocessing.channels}
    for name, value in (("image_size", preprocessing.size), ("frames", preprocessing.frames)):
        if value and name in inspect.signature(variant.build).parameters:
            arguments[name] = value
    built = build_backbone(backbone, **(arguments | options))
    made_of = Architecture(
        task=task, backbone=backbone, head=head, backbone_options=options, head_options=dict(head_options or {})
    )
    return _BUILDERS[of.models](built, tuple(classes), preprocessing, made_of)


def _under_head(
    backbone: Backbone, classes: tuple[str, ...], preprocessing: Preprocessing, made_of: Architecture
) -> Model:
    """A backbone under a head of `heads/`."""
    kind: type[Head] = lookup.the_class("heads", made_of.head, Head)
    if made_of.task not in kind.tasks:
        raise UsageError(
            f'head "{made_of.head}" does not serve {made_of.task}', remedy=f"it serves {', '.join(kind.tasks)}"
        )
    lookup.check_options(kind, made_of.head_options, of=f"head {made_of.head}")
    build: Any = kind  # the options are the head's own
    head = build(
        channels=backbone.channels,
        strides=backbone.strides,
        width=backbone.width,
        classes=len(classes),
        **made_of.head_options,
    )
    return Model(backbone, head, classes=classes, preprocessing=preprocessing, architecture=made_of)


def _as_method(
    backbone: Backbone, classes: tuple[str, ...], preprocessing: Preprocessing, made_of: Architecture
) -> Model:
    """A method of `pretraining/`, which is a model itself and has no classes."""
    kind = lookup.the_class("pretraining", made_of.head, Model)
    lookup.check_options(kind, made_of.head_options, of=f"method {made_of.head}")
    model: Model = kind(backbone, preprocessing, **made_of.head_options)
    model.architecture = made_of
    return model


_BUILDERS = {"heads": _under_head, "pretraining": _as_method}
"""By the folder in which a task's models are found (`Task.models`)."""


def describe(model: Model) -> dict[str, Any]:
    """Everything needed to build the model again and to use it, as plain JSON values (the content of model.json)."""
    if model.architecture is None:
        raise UsageError("this model was put together by hand and has no names", remedy="build it with build_model")
    return {
        "format": FORMAT,
        "architecture": dataclasses.asdict(model.architecture),
        "classes": list(model.classes),
        "preprocessing": dataclasses.asdict(model.preprocessing),
        "thresholds": None if model.thresholds is None else list(model.thresholds),
        "ids": None if model.ids is None else list(model.ids),
    }


# ---------------------------------------------------------------------------------------------------- save and load

LARGEST_SIDE, LARGEST_OPTION = 16_384, 1_000_000
"""Bounds on what a model file may ask for, checked before anything is built."""
SCRATCH = 1 << 24
"""Tensor elements that may be made in building a model, beside two for each byte of its weights file (one is usual)."""


def save(model: Model, folder: str | Path) -> None:
    """Write `model.safetensors`, `model.json` and their manifest into a folder, which is made if need be.

    Raises:
        UsageError: the model was put together by hand.
        ResourceError: the disk is full or the place is not writable.
    """
    description = describe(model)
    with files.atomic_folder(Path(folder)) as place:
        files.write_tensors(place / WEIGHTS, model.state_dict())
        files.write_json(place / DESCRIPTION, description)


def load(folder: str | Path, *, weights: bool = True) -> Model:
    """Build the model of a run folder, in evaluation mode on the CPU.

    Names in the file select entries of the registry and nothing else: opening a model runs no code of its author.

    Args:
        folder: what `save` or a training run wrote.
        weights: False builds the architecture with fresh weights.

    Raises:
        ModelFileError: a file is missing, damaged, of a newer format, or says something that is not understood; the
            weights are not those of this architecture or not finite.
    """
    folder = Path(folder)
    description = read_description(folder)
    with _Bounded(2 * (folder / WEIGHTS).stat().st_size + SCRATCH):
        model = _build(description, folder / DESCRIPTION)
    if weights:
        _fill(model, files.read_tensors(folder / WEIGHTS), folder / WEIGHTS)
    return model.eval()


class _Bounded(TorchDispatchMode):
    """Within it, so many tensor elements may be made: a few lines of JSON cannot ask for a giant."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.left = elements

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = call(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and not call._schema.is_mutable:
            self.left -= made.numel()
            if self.left < 0:
                raise ValueError("it would be far larger than its weights file")
        return made


def _build(description: dict[str, Any], source: Path) -> Model:
    if odd := set(description) ^ {"format", "architecture", "classes", "preprocessing", "thresholds", "ids"}:
        raise ModelFileError(f"unknown or missing keys: {', '.join(sorted(odd))}", where=source)
    made_of = _record(Architecture, description["architecture"], source)
    preprocessing = _record(Preprocessing, description["preprocessing"], source)
    p = preprocessing
    if not all(0 < number <= LARGEST_SIDE for number in (*p.size, p.channels, p.frame_step, p.frames + 1)):
        raise ModelFileError(f"size, channels, frames and frame_step are not in 1..{LARGEST_SIDE}", where=source)
    thresholds = _thresholds(description["thresholds"], len(description["classes"]), source)
    ids = _ids(description["ids"], len(description["classes"]), source)
    try:
        model = build_model(
            made_of.task,
            backbone=made_of.backbone,
            head=made_of.head,
            classes=description["classes"],
            preprocessing=preprocessing,
            backbone_options=_frozen(made_of.backbone_options),
            head_options=_frozen(made_of.head_options),
        )
    except Exception as error:  # whatever a constructor says of a file's values, the file is at fault
        raise ModelFileError(f"cannot be built: {error}", where=source) from error
    model.thresholds, model.ids = thresholds, ids
    return model


def _thresholds(values: Any, number: int, source: Path) -> tuple[float, ...] | None:
    """None, or a number of 0 or more for each class."""
    if values is None:
        return None
    if not _fits(values, tuple[float, ...]) or len(values) != number or not all(0 <= x < math.inf for x in values):
        raise ModelFileError(f"thresholds are not {number} numbers of 0 or more", where=source)
    return tuple(float(value) for value in values)


def _ids(values: Any, number: int, source: Path) -> tuple[int | str, ...] | None:
    """None, or a whole number or a word for each class, all different."""
    if values is None:
        return None
    plain = isinstance(values, list) and all(type(value) in (int, str) for value in values)
    if not plain or len(values) != number or len(set(values)) < number:
        raise ModelFileError(f"ids are not {number} different numbers or words", where=source)
    return tuple(values)


def _record(kind: type[R], values: Any, source: Path) -> R:
    """A frozen dataclass from JSON values: each field there, none other, each of its type."""
    types = get_type_hints(kind)
    if not isinstance(values, dict) or set(values) != set(types):
        odd = set(values) ^ set(types) if isinstance(values, dict) else types
        raise ModelFileError(f"unknown or missing keys: {', '.join(sorted(odd))}", where=source)
    for name, value in values.items():
        if not _fits(value, types[name]):
            raise ModelFileError(f"{name} is not of type {types[name]}", where=source)
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return kind(**fields)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value has a type, as far as the records use types."""
    of, inner = get_origin(kind), get_args(kind)
    if of is Literal:
        return value in inner
    if of is tuple:
        return isinstance(value, list) and (
            all(_fits(item, inner[0]) for item in value)
            if inner[-1] is Ellipsis
            else len(value) == len(inner) and all(map(_fits, value, inner))
        )
    if of is dict:
        return isinstance(value, dict)
    return type(value) in ((int, float) if kind is float else (kind,))


def _frozen(options: Any) -> Any:
    """Options as a constructor had them (JSON knows no tuples), refused when a number is out of all proportion."""
    if isinstance(options, dict):
        return {key: _frozen(value) for key, value in options.items()}
    if isinstance(options, list):
        return tuple(_frozen(value) for value in options)
    if isinstance(options, int | float) and abs(options) > LARGEST_OPTION:
        raise ValueError(f"an option of {options:g} is above {LARGEST_OPTION}")
    return options


def _fill(model: Model, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy the weights in: all of them, nothing else, each of the right shape and type and finite."""
    wanted = model.state_dict()
    if odd := sorted(set(wanted) ^ set(tensors)):
        raise ModelFileError(f"{len(odd)} tensors are missing or unexpected: {', '.join(odd[:5])}", where=source)
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype) != (wanted[name].shape, wanted[name].dtype):
            found, due = ((tuple(t.shape), t.dtype) for t in (tensor, wanted[name]))
            raise ModelFileError(f"{name} is {found}, not {due}", where=source)
        if not torch.isfinite(tensor).all():
            raise ModelFileError(f"{name} is not finite", where=source)
    model.load_state_dict(tensors)
