"""An exported file as a `Model`: predictor, evaluation and every way of inference show it pictures as they do a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchform import outputs as records
from patchform.backbones.base import Backbone
from patchform.errors import DataError, ModelFileError, UsageError
from patchform.heads.base import Head
from patchform.model import Model
from patchform.records import Batch, Features, Loss, Target
from patchform.runtime.description import FileDescription
from patchform.runtime.sessions import Session

ANY_SIZES = ("LabelOutputs", "ObjectOutputs", "MaskedObjectOutputs", "MaskOutputs", "EmbeddingOutputs")
"""Records that pictures of several sizes have in common."""


class FileModel(Model):
    """A file behind the contract of a `Model`: `predict` and what is known of it. It has no parts to look into.

    Args:
        session: the file, opened.
        description: what it says of itself.
        path: of the file, for messages.

    Raises:
        ModelFileError: its outputs are of a kind that is not known.
    """

    def __init__(self, session: Session, description: FileDescription, path: Path) -> None:
        preprocessing = description.preprocessing
        super().__init__(
            _NoBackbone(path),
            _NoHead(description, path),
            classes=description.classes,
            preprocessing=replace(preprocessing, resize="native") if description.resizes else preprocessing,
            architecture=description.architecture,
            ids=description.ids,
            thresholds=description.thresholds,
        )
        self.session, self.description, self.path = session, description, path
        try:
            self.record: Any = records.record_of(description.record)
        except KeyError:
            remedy = "update patchform"
            raise ModelFileError(f'outputs of a kind "{description.record}"', where=path, remedy=remedy) from None
        fields = self.record._fields
        if description.outputs[: len(fields)] != fields:
            what = f"outputs {', '.join(description.outputs)} that are no {description.record}"
            raise ModelFileError(what, where=path, remedy="export it again")

    def pick_device(self, name: str | torch.device) -> torch.device:
        """The CPU, where the runtime takes pictures from. Raises UsageError for any other."""
        if str(name) not in ("auto", "cpu"):
            raise UsageError(f"no device {name} for an exported file", where=self.path, remedy="choose its provider")
        return torch.device("cpu")

    def _predict(self, batch: Batch) -> list[Target]:
        """Of images of one size, without padding."""
        self._check(batch)
        images, predictions = self._as_taken(batch.images.cpu()), dict[int, Target]()
        for indices in self._together(batch.sizes):
            sizes = torch.tensor([batch.sizes[index] for index in indices], dtype=torch.int64)
            part = images if len(indices) == len(images) else images[indices]
            predictions |= zip(indices, self._understood(self._run(part, sizes)))
        return [predictions[index] for index in range(len(batch.sizes))]

    def _understood(self, record: Any) -> list[Target]:
        """What a record says of each. Raises ModelFileError where it is not what the file says of itself."""
        try:
            predictions: list[Target] = record.predictions()
            classes = [int(tensor.max()) for tensor in (one.classes for one in predictions) if tensor.numel()]
        except (RuntimeError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(f"outputs that are no {self.description.record} ({error})", where=self.path) from error
        if max(classes, default=0) >= max(1, len(self.classes)):
            raise ModelFileError(f"class {max(classes)} of {len(self.classes)} names", where=self.path)
        return predictions

    def _check(self, batch: Batch) -> None:
        """Raise DataError for images of a size that the file does not take, UsageError for those of other channels."""
        height, width = batch.images.shape[-2:]
        if batch.images.shape[-3] != self.preprocessing.channels:
            raise UsageError(f"images {tuple(batch.images.shape)} for a file of {self.preprocessing.channels} channels")
        if torch.is_autocast_enabled("cpu"):
            raise UsageError("an exported file computes in its own precision", remedy="ask for float32")
        sizes, least, name = self.description.sizes, self.description.least, next(iter(batch.names), "")
        if sizes and (height, width) not in sizes:
            taken = ", ".join(f"{tall} x {wide}" for tall, wide in sizes)
            what = f"an input of {height} x {width} pixels for a file that takes {taken}"
            raise DataError(what, where=name, remedy="export it with --size free, or use the run itself")
        if min(height, width) < least:
            what = f"an input of {height} x {width} pixels for a file whose shortest side is {least}"
            raise DataError(what, where=name, remedy="take a larger picture, or use the run itself")

    def _as_taken(self, images: Tensor) -> Tensor:
        """uint8 0..255, of files of 16 bits float32 0..1. Raises UsageError for pixels that it cannot be given."""
        if self.preprocessing.bits > 8:
            return images if images.is_floating_point() else images.float() / 255
        if not images.is_floating_point():
            return images
        pixels = (images * 255).round()
        if not torch.equal(pixels / 255, images):
            what = "an exported file takes pixels of 8 bits, and pictures resized once more are finer"
            raise UsageError(what, where=self.path, remedy="use the run itself for scales")
        return pixels.to(torch.uint8)

    def _together(self, sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
        """Indices of pictures that go in at once: all, or where outputs may have the size of the picture, of each."""
        if "sizes" not in self.description.inputs or self.description.record in ANY_SIZES:
            yield list(range(len(sizes)))
            return
        indices_of: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            indices_of.setdefault(size, []).append(index)
        yield from indices_of.values()

    def _run(self, images: Tensor, sizes: Tensor) -> Any:
        """The record of all; of a file for a fixed number in parts, the last of which its last picture fills up."""
        number = len(images)
        at_once = self.description.batch or number
        parts: list[list[Tensor]] = []
        for start in range(0, number, at_once):
            index = torch.arange(start, start + at_once).clamp(max=number - 1)
            whole = at_once == number
            named = self.session.run(*((images, sizes) if whole else (images[index], sizes[index])))
            parts.append([named[name] for name in self.description.outputs[: len(self.record._fields)]])
        return self.record(*(column[0] if len(column) == 1 else torch.cat(column) for column in zip(*parts)))


class _NoBackbone(Backbone):
    """What stands where a file has no backbone that could be looked into."""

    channels, strides, width = (1,), (1,), 1

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def check(self, images: Tensor) -> None:
        """Raise UsageError: there are no features."""
        raise UsageError("an exported file gives predictions and no features", where=self.path, remedy=_REMEDY)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """Never comes to it."""
        raise NotImplementedError

    def layers(self) -> list[nn.Module]:
        """None."""
        return []


class _NoHead(Head):
    """What is known of a file's head."""

    def __init__(self, description: FileDescription, path: Path) -> None:
        super().__init__()
        self.path = path
        self.labels = str(description.task_options.get("labels", "single"))

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> Any:
        """Never comes to it."""
        raise NotImplementedError

    def loss(self, raw: Any, targets: Sequence[Target]) -> dict[str, Loss]:
        """Raise UsageError: it does not learn."""
        raise UsageError("an exported file does not learn", where=self.path, remedy=_REMEDY)

    def decode(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> list[Target]:
        """Never comes to it."""
        raise NotImplementedError


_REMEDY = "use the run folder that it was exported from"
