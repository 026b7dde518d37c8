"""What a model says of a batch, as tensors: what an exported file gives, and what predictions are made of.

Records are NamedTuples whose fields are the names of a file's outputs, each with B in front. Their shapes do not depend
on what is seen: where there are fewer objects than places, the last places have score 0 and class -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from patchform.geometry.masks import paste
from patchform.records import Embedding, Instances, Label, Target


class Outputs(Protocol):
    """A NamedTuple of tensors of one batch."""

    @property
    def _fields(self) -> tuple[str, ...]: ...

    def predictions(self) -> list[Target]:
        """One an image."""
        ...


def record_of(name: str) -> type[Any]:
    """The record of this module that a file names. Raises KeyError when there is none."""
    kind = globals()[name] if name.endswith("Outputs") and name != "Outputs" else {}[name]
    assert isinstance(kind, type)
    return kind


class LabelOutputs(NamedTuple):
    """Classes of whole images."""

    scores: Tensor
    """(B, C) float32 in 0..1: softmax, or sigmoid of each class."""
    chosen: Tensor
    """(B, C) bool: the classes decided for; exactly one of each image in single-label work."""

    def predictions(self) -> list[Target]:
        """One `Label` an image."""
        counts: Sequence[int] = self.chosen.sum(1).tolist()
        chosen = self.chosen.nonzero()[:, 1].split(counts)
        return [Label(classes, row) for classes, row in zip(chosen, self.scores)]


class ObjectOutputs(NamedTuple):
    """Objects of images, N places each, scores falling."""

    boxes: Tensor
    """(B, N, 4) float32 xyxy pixels of the picture."""
    classes: Tensor
    """(B, N) int64; -1 where there is no object."""
    scores: Tensor
    """(B, N) float32 in 0..1; 0 where there is none."""

    @classmethod
    def of(cls, boxes: Tensor, classes: Tensor, scores: Tensor, real: Tensor) -> ObjectOutputs:
        """Those that are `real`, (B, N) bool; whatever the others say is taken away."""
        return cls(torch.where(real[..., None], boxes, 0), torch.where(real, classes, -1), torch.where(real, scores, 0))

    def predictions(self) -> list[Target]:
        """One `Instances` an image."""
        return [
            Instances(boxes[real], classes[real], scores[real])
            for boxes, classes, scores, real in zip(self.boxes, self.classes, self.scores, self.classes >= 0)
        ]


class MaskedObjectOutputs(NamedTuple):
    """Objects of images and the mask of each in its box, N places each, scores falling."""

    boxes: Tensor
    """(B, N, 4) float32 xyxy pixels of the picture."""
    classes: Tensor
    """(B, N) int64; -1 where there is no object."""
    scores: Tensor
    """(B, N) float32 in 0..1; 0 where there is none."""
    masks: Tensor
    """(B, N, m, m) float32 in 0..1, stretched over the box: how likely a pixel is the object's."""
    pictures: Tensor
    """(B, 2) int64 height and width of the pictures."""

    def predictions(self) -> list[Target]:
        """One `Instances` an image: a mask is where it is more likely than not."""
        objects = cast("list[Instances]", ObjectOutputs(self.boxes, self.classes, self.scores).predictions())
        return [
            one._replace(masks=paste(probs[real], one.boxes, (int(size[0]), int(size[1]))))
            for one, probs, real, size in zip(objects, self.masks, self.classes >= 0, self.pictures.tolist())
        ]


class EmbeddingOutputs(NamedTuple):
    """Where images lie."""

    scores: Tensor
    """(B, D) float32."""

    def predictions(self) -> list[Target]:
        """One `Embedding` an image."""
        return [Embedding(vector) for vector in self.scores]
