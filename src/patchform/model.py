"""Model = normalisation -> backbone -> head. All that the loop, evaluate, predict and export ever see."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchform import lookup, schema
from patchform.backbones.base import Backbone, exchanged, over_frames
from patchform.data.collate import by_size
from patchform.descriptions import Architecture, Description, Preprocessing
from patchform.device import pick_device
from patchform.errors import ModelFileError, UsageError, printable, warned
from patchform.heads.base import NO_HEAD, Head, NoHead
from patchform.layers.token_mixing import exchange
from patchform.markup import table
from patchform.records import Batch, CellBox, Features, Loss, Target
from patchform.schema import Misfit
from patchform.tasks.base import find_task
from patchform.weights import files
from patchform.weights.sources import DESCRIPTION, FORMAT, WEIGHTS
from patchform.weights.stopped import find_model


class Model(nn.Module):
    """A backbone under a head, with the pixel statistics inside. What it is given are attributes; none is set later.

    Args:
        backbone, head: the two parts.
        classes: names in the order of the head's outputs.
        preprocessing: how pictures become input; stored with the model, read by every command.
        architecture: names to build the same model again; None for models put together by hand (they cannot be saved).
        ids: of the classes in their data (COCO's category ids), for results that others read; None where it has none.
        thresholds: scores from which a prediction of an object counts, one a class, chosen on validation data and kept
            with the model; None where none were chosen. `predict` does not apply them.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        *,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        architecture: Architecture | None = None,
        ids: Sequence[int | str] | None = None,
        thresholds: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if backbone.prefers_channels_last:
            backbone.to(memory_format=torch.channels_last)
        self.backbone, self.head = backbone, head
        self.classes: Final = tuple(classes)
        self.preprocessing: Final = preprocessing.resolved()
        self.architecture: Final = architecture
        self.ids: Final = None if ids is None else tuple(ids)
        self.thresholds: Final = None if thresholds is None else tuple(thresholds)
        self.register_buffer("mean", torch.tensor(self.preprocessing.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.preprocessing.std).view(-1, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def __repr__(self) -> str:
        return f"Model({', '.join(self._facts())})"

    def _repr_html_(self) -> str:
        return table(zip(("model", "size", "input", "classes"), zip(self._facts())), kind="words")

    def _facts(self) -> tuple[str, ...]:
        number, (height, width) = sum(parameter.numel() for parameter in self.parameters()), self.preprocessing.size
        words = printable(", ".join(self.classes[:6])) + ", ..." * (len(self.classes) > 6)
        classes, model = f"{len(self.classes)} classes: {words}", str(self.architecture or "by hand")
        return model, f"{number:,} parameters", f"{height} x {width} pixels", classes

    def forward(self, batch: Batch) -> dict[str, Loss]:
        """Losses of a batch by name; the sum of their means is minimised."""
        return self.head.loss(self.head(self.features(batch), batch.targets), batch.targets)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Target]:
        """Predictions, one an image, in pixels of the image before resizing. Does not touch the training mode.

        Images of one size go through the model together and without padding (`data.collate.by_size`). In training, a
        batch is padded to its largest image.
        """
        return by_size(batch, self._predict)

    def _predict(self, batch: Batch) -> list[Target]:
        return self.head.decode(self.head(self.features(batch)), batch.sizes)

    def features(self, batch: Batch) -> Features:
        """The backbone's features of a batch; of clips frame by frame, if it is one of single images."""
        pixels = self.normalise(batch.images, batch.padding)
        if pixels.dim() == 5 and self.backbone.frames is None:
            features = over_frames(self.backbone, pixels, padding=batch.padding)
        elif batch.exchanged is not None:
            features = self._with_exchanged_cells(pixels, batch.exchanged)
        else:
            features = self.backbone(pixels, padding=batch.padding)
        if self.head.reads_maps_alone and torch.is_grad_enabled():
            features = self._with_all_gradients(features)
        return features._replace(pixel_padding=batch.padding)

    def _with_exchanged_cells(self, pixels: Tensor, box: CellBox) -> Features:
        """Features of images that exchange cells behind the embedding; each token goes back to its own image."""
        with exchanged(self.backbone, box):
            features: Features = self.backbone(pixels)
        if features.tokens is None:
            return features
        grid = (features.maps[-1].shape[-2], features.maps[-1].shape[-1])
        return features._replace(tokens=exchange(features.tokens.unflatten(1, grid), box).flatten(1, 2))

    def _with_all_gradients(self, features: Features) -> Features:
        """The same, and whatever is learnt from maps gives parameters that they do not come from a gradient of zeros:
        distributed training waits for that of every parameter.
        """
        idle = [parameter for parameter in self.backbone.parameters_beyond_maps() if parameter.requires_grad]
        *maps, last = features.maps
        return features._replace(maps=(*maps, _ZeroGradients.apply(last, *idle))) if idle else features

    def normalise(self, images: Tensor, padding: Tensor | None = None) -> Tensor:
        """(..., C, H, W) uint8 0..255 or float 0..1 -> float, (x - mean) / std, and 0 on padding.

        Raises:
            UsageError: images of another number of channels than the model is for.
        """
        channels = self.preprocessing.channels
        if images.dim() < 3 or images.shape[-3] != channels:
            what = (
                f"images {tuple(images.shape)} for a model of {channels} channels, which are the third axis from behind"
            )
            raise UsageError(what, remedy="build it with preprocessing.channels, or bring the images to it")
        pixels = images.to(self.mean.dtype)
        if not images.is_floating_point():
            pixels = pixels / 255
        pixels = (pixels - self.mean) / self.std
        if padding is None:
            return pixels
        shape = (padding.shape[0], *(1,) * (images.dim() - 3), *padding.shape[1:])  # no time, no channels
        return pixels.masked_fill(padding.view(shape), 0)

    def pick_device(self, name: str | torch.device) -> torch.device:
        """Where it is run, of a setting: see `device.pick_device`."""
        return pick_device(name)

    def counts(self, targets: Sequence[Target]) -> dict[str, Tensor]:
        """() float32 by name of loss: the counts of `forward`, known before it."""
        return self.head.counts(targets)

    @property
    def trained(self) -> Backbone:
        """What gradients move: the backbone, but for models whose backbone is a teacher."""
        return self.backbone

    def begin(self, *, step: int, steps: int, epoch: int) -> None:
        """Called once before the first step that a run takes; for models that follow the length of a run.

        Args:
            step: optimizer steps taken before; 0 unless it was resumed.
            steps: in all.
            epoch: steps of an epoch.
        """

    def after_step(self, step: int) -> None:
        """Called after each optimizer step, counted from 0; for models that keep a teacher or a queue."""


class _ZeroGradients(torch.autograd.Function):
    """The first tensor; the others get a gradient of zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return (gradients[0], *map(torch.zeros_like, ctx.saved_tensors))


def build_backbone(name: str, **options: Any) -> Backbone:
    """Build a variant by name.

    Args:
        name: family/size, such as "swin/t".
        options: arguments of the class that override the variant's row, such as `in_channels` or `drop_path`.

    Raises:
        UsageError: no such family, size or option; the message names the nearest.
    """
    _, variant = lookup.backbone(name)
    lookup.check_options(variant.build, options, of=name, usual=variant.options)
    native = {"image_size": variant.image_size} if "image_size" in inspect.signature(variant.build).parameters else {}
    return variant.build(**{**native, **variant.options, **options})


def build_model(
    task: str,
    *,
    backbone: str,
    head: str,
    classes: Sequence[str],
    ids: Sequence[int | str] | None = None,
    preprocessing: Preprocessing | None = None,
    backbone_options: dict[str, Any] | None = None,
    head_options: dict[str, Any] | None = None,
) -> Model:
    """Build a model from names. The backbone's native image size and channels follow the preprocessing.

    Args:
        task: "classification", ...
        backbone: family/size.
        head: name of a head that serves the task, or of a method of pre-training, or "none" for a backbone by itself.
        classes: class names, at least one; not looked at for a task without labels.
        ids: see `Model`.
        preprocessing: default: the variant's published input size and ImageNet's statistics.
        backbone_options: arguments of the backbone that override its row.
        head_options: arguments of the head.

    Raises:
        UsageError: an unknown name or option, a head of another task, no classes, or statistics of another number of
            channels.
    """
    architecture = Architecture(
        task=task,
        backbone=backbone,
        head=head,
        backbone_options=dict(backbone_options or {}),
        head_options=dict(head_options or {}),
    )
    if preprocessing is None:
        _, variant = lookup.backbone(backbone)
        native = variant.options.get("frames", find_task(task).frames)
        preprocessing = Preprocessing(size=(variant.image_size, variant.image_size), frames=native)
    return _assemble(architecture, preprocessing, classes, ids, None)


def _assemble(
    architecture: Architecture,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    ids: Sequence[int | str] | None,
    thresholds: Sequence[float] | None,
) -> Model:
    """The model of a description."""
    task = find_task(architecture.task)
    if not classes and task.labelled:
        raise UsageError("a model needs at least one class")
    if task.frames and not preprocessing.frames:
        raise UsageError("clips of 0 frames", remedy="set preprocessing.frames")
    for name in ("mean", "std"):
        numbers = getattr(preprocessing, name)
        if numbers and len(numbers) not in (1, preprocessing.channels):
            raise UsageError(f"{name} has {len(numbers)} numbers for {preprocessing.channels} channels")
    _, variant = lookup.backbone(architecture.backbone)
    arguments: dict[str, Any] = {"in_channels": preprocessing.channels}
    for name, value in (("image_size", preprocessing.size), ("frames", preprocessing.frames)):
        if value and name in inspect.signature(variant.build).parameters:
            arguments[name] = value
    backbone = build_backbone(architecture.backbone, **(arguments | architecture.backbone_options))
    head = _BUILDERS[task.models](backbone, tuple(classes), preprocessing, architecture)
    if isinstance(head, Model):
        return head
    return Model(
        backbone,
        head,
        classes=classes,
        preprocessing=preprocessing,
        architecture=architecture,
        ids=ids,
        thresholds=thresholds,
    )


def _head(
    backbone: Backbone, classes: tuple[str, ...], preprocessing: Preprocessing, architecture: Architecture
) -> Head:
    """A head of `heads/`."""
    kind = lookup.the_class("heads", architecture.head, Head)
    if architecture.task not in kind.tasks:
        raise UsageError(
            f'head "{architecture.head}" does not serve {architecture.task}',
            remedy=f"it serves {', '.join(kind.tasks)}",
        )
    lookup.check_options(kind, architecture.head_options, of=f"head {architecture.head}")
    build: Any = kind  # the options are the head's own
    head: Head = build(backbone.feature_info, classes=len(classes), **architecture.head_options)
    return head


def _as_method(
    backbone: Backbone, classes: tuple[str, ...], preprocessing: Preprocessing, architecture: Architecture
) -> Model:
    """A method of `pretraining/`, which is a model itself and has no classes; or the backbone by itself."""
    if architecture.head == NO_HEAD:
        lookup.check_options(NoHead, architecture.head_options, of=f"head {NO_HEAD}")
        return Model(backbone, NoHead(), classes=(), preprocessing=preprocessing, architecture=architecture)
    kind = lookup.the_class("pretraining", architecture.head, Model)
    lookup.check_options(kind, architecture.head_options, of=f"method {architecture.head}")
    build: Any = kind
    model: Model = build(backbone, preprocessing, architecture=architecture, **architecture.head_options)
    return model


_BUILDERS: dict[str, Callable[..., Head | Model]] = {"heads": _head, "pretraining": _as_method}
"""By the folder in which a task's models are found (`Task.models`)."""


def describe(model: Model, *, thresholds: Sequence[float] | None = None) -> dict[str, Any]:
    """Everything needed to build the model again and to use it, as plain JSON values (the content of model.json).

    Args:
        model: built by `build_model`.
        thresholds: chosen since; default: those that it has.
    """
    if model.architecture is None:
        raise UsageError("this model was put together by hand and has no names", remedy="build it with build_model")
    chosen = model.thresholds if thresholds is None else tuple(thresholds)
    description = Description(
        format=FORMAT,
        architecture=model.architecture,
        classes=model.classes,
        preprocessing=model.preprocessing,
        thresholds=chosen,
        ids=model.ids,
    )
    return dataclasses.asdict(description)


# ---------------------------------------------------------------------------------------------------- save and load

SCRATCH = 1 << 24
"""Tensor elements that may be made in building a model, beside two for each byte of its weights file (one is usual)."""
CALLS = 20
"""Operations that may be done in building a model, for each tensor of its weights file (two or three are usual)."""


def save(model: Model, folder: str | Path, *, thresholds: Sequence[float] | None = None) -> None:
    """Write `model.safetensors`, `model.json` and their manifest into a folder, which is made if need be.

    Args:
        model: built by `build_model`.
        folder: where to.
        thresholds: chosen since; default: those that it has.

    Raises:
        UsageError: the model was put together by hand.
        ResourceError: the disk is full or the folder is not writable.
    """
    description = describe(model, thresholds=thresholds)
    with files.atomic_folder(Path(folder)) as unfinished:
        files.write_tensors(unfinished / WEIGHTS, model.state_dict())
        files.write_json(unfinished / DESCRIPTION, description)


def load(folder: str | Path, *, weights: bool = True, say: Callable[[str], None] = warned) -> Model:
    """Build the model of a run folder, in evaluation mode on the CPU.

    Names in the file select entries of the registry and nothing else: opening a model runs no code of its author.

    Args:
        folder: what `save` or a training run wrote. Of a run that has not ended, the best model so far is taken, or
            that of its newest checkpoint.
        weights: False builds the architecture with fresh weights.
        say: called with which model of such a run it is, a sentence; default: a warning of Python.

    Raises:
        ModelFileError: a file is missing, damaged, of a newer format, or says something that is not understood; the
            weights are not those of this architecture or not finite.
    """
    saved = find_model(Path(folder))
    if saved.note:
        say(saved.note)
    size = saved.weights.stat().st_size
    with _Bounded(2 * size + SCRATCH, CALLS * (files.count_tensors(saved.weights) + 100)):
        model = _build(saved.description, saved.source)
    if weights:
        _fill(model, files.read_tensors(saved.weights), saved.weights)
    return model.eval()


class _Bounded(TorchDispatchMode):
    """Within it, so many tensor elements may be made, by so many calls: lines of JSON cannot ask for a giant."""

    def __init__(self, elements: int, calls: int) -> None:
        super().__init__()
        self.left, self.calls = elements, calls

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call(*args, **(kwargs or {}))
        self.calls -= 1
        if isinstance(result, Tensor) and not call._schema.is_mutable:
            self.left -= result.numel()
        if min(self.left, self.calls) < 0:
            raise ValueError("it would be far larger than its weights file")
        return result


def _build(content: dict[str, Any], source: Path) -> Model:
    try:
        d = schema.build(Description, content)
        _check_classes(d)
        names = d.architecture
        options, head_options = _as_tuples(names.backbone_options), _as_tuples(names.head_options)
        architecture = dataclasses.replace(names, backbone_options=options, head_options=head_options)
        return _assemble(architecture, d.preprocessing, d.classes, d.ids, d.thresholds)
    except schema.Misfit as misfit:
        raise ModelFileError(misfit.what, where=source, remedy=misfit.remedy) from None
    except Exception as error:  # whatever a constructor says of a file's values, the file is at fault
        raise ModelFileError(f"cannot be built: {error}", where=source) from error


def _check_classes(description: Description) -> None:
    """Raise Misfit unless there is a threshold, or another id, for each class."""
    number, thresholds, ids = len(description.classes), description.thresholds, description.ids
    if thresholds is not None and len(thresholds) != number:
        raise Misfit(thresholds, f"{number} numbers", key="thresholds")
    if ids is not None and not len(ids) == len(set(ids)) == number:
        raise Misfit(ids, f"{number} different numbers or words", key="ids")


def _as_tuples(options: Any) -> Any:
    """Options as a constructor had them: JSON knows no tuples."""
    if isinstance(options, dict):
        return {key: _as_tuples(value) for key, value in options.items()}
    if isinstance(options, list):
        return tuple(_as_tuples(value) for value in options)
    return options


def _fill(model: Model, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy the weights in: all of them, nothing else, each of the right shape and type and finite."""
    own = model.state_dict()
    if names := sorted(set(own) ^ set(tensors)):
        raise ModelFileError(f"{len(names)} tensors are missing or unexpected: {', '.join(names[:5])}", where=source)
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype) != (own[name].shape, own[name].dtype):
            actual, expected = ((tuple(t.shape), t.dtype) for t in (tensor, own[name]))
            raise ModelFileError(f"{name} is {actual}, not {expected}", where=source)
        if not torch.isfinite(tensor).all():
            raise ModelFileError(f"{name} is not finite", where=source)
    model.load_state_dict(tensors)
