"""What a model says of a batch, as tensors: what an exported file gives, and what predictions are made of.

Records are NamedTuples whose fields are the names of a file's outputs, each with B in front. Their shapes do not depend
on what is seen: where there are fewer objects than places, the last places have score 0 and class -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from patchform.geometry import masks
from patchform.geometry.maps import to_size
from patchform.records import Bitmaps, Embedding, Instances, Label, Regions, Target


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

    @classmethod
    def of_best(cls, scores: Tensor) -> LabelOutputs:
        """The best class of each image is decided for, the first of several."""
        best = scores.argmax(1, keepdim=True)
        return cls(scores, torch.arange(scores.shape[1], device=best.device) == best)

    def predictions(self) -> list[Target]:
        """One `Label` an image."""
        counts: Sequence[int] = self.chosen.sum(1).tolist()
        chosen = self.chosen.nonzero()[:, 1].split(counts)
        return [Label(classes, row) for classes, row in zip(chosen, self.scores)]


class RegionOutputs(NamedTuple):
    """Classes of the pixels of pictures of one size."""

    classes: Tensor
    """(B, H, W) uint8: the best of each pixel."""
    scores: Tensor
    """(B, C, H, W) float32: softmax over the classes."""

    def predictions(self) -> list[Target]:
        """One `Regions` an image."""
        return [Regions(classes.long(), scores) for classes, scores in zip(self.classes, self.scores)]


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
            one._replace(masks=masks.paste(probs[real], one.boxes, (int(size[0]), int(size[1]))))
            for one, probs, real, size in zip(objects, self.masks, self.classes >= 0, self.pictures.tolist())
        ]


class MaskOutputs(NamedTuple):
    """Objects of images, N places each, scores falling, with masks that lie over the whole input."""

    boxes: Tensor
    """(B, N, 4) float32 xyxy pixels of the picture."""
    classes: Tensor
    """(B, N) int64; -1 where there is no object."""
    scores: Tensor
    """(B, N) float32 in 0..1; 0 where there is none."""
    masks: Tensor
    """(B, N, h, w) float32: logits of cells, above 0 where the object is."""
    covered: Tensor
    """(B, 2) int64: height and width in pixels of what the cells are resized to; it may reach beyond the input."""
    inputs: Tensor
    """(B, 2) int64: height and width of the input, to which that is cut."""
    pictures: Tensor
    """(B, 2) int64: height and width of the picture, to which the input is resized."""

    def predictions(self) -> list[Target]:
        """One `Instances` an image."""
        found = ObjectOutputs(self.boxes, self.classes, self.scores).predictions()
        rows = (self.covered.tolist(), self.inputs.tolist(), self.pictures.tolist())
        return [
            cast("Instances", objects)._replace(masks=mask_bitmaps(logits[real, None], covered, whole, size))
            for objects, logits, real, covered, whole, size in zip(found, self.masks, self.classes >= 0, *rows)
        ]


MASK_PIXELS = 1 << 24
"""Pixels of masks on which is worked at once."""


def mask_bitmaps(logits: Tensor, covered: Sequence[int], whole: Sequence[int], size: Sequence[int]) -> Bitmaps:
    """Masks as bitmaps of the picture.

    Args:
        logits: (K, 1, h, w) of cells, above 0 where an object is.
        covered: height and width in pixels of what the cells are resized to.
        whole: of the part of it that is picture, at its top left.
        size: of the picture, to which that part is resized.
    """
    height, width = size
    parts = []
    for some in logits.float().split(max(1, MASK_PIXELS // max(height * width, whole[0] * whole[1]))):
        picture = to_size(some, covered)[..., : whole[0], : whole[1]]
        parts.append(masks.from_dense(to_size(picture, (height, width))[:, 0]))
    return masks.concatenate(parts, (height, width))


class EmbeddingOutputs(NamedTuple):
    """Where images lie."""

    scores: Tensor
    """(B, D) float32."""

    def predictions(self) -> list[Target]:
        """One `Embedding` an image."""
        return [Embedding(vector) for vector in self.scores]
