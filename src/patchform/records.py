"""The nouns of patchform: small immutable records that every floor above hands on.

Conventions, the same everywhere:

* images are `(C, H, W)`, clips `(T, C, H, W)`; in a batch there is a leading B. Channels are always at dim -3.
* pixel values are uint8 in 0..255 or floating point in 0..1. Data sets yield these; the *model* normalises.
* padding masks are bool and True **on padding**.
* boxes are xyxy pixels of the current image.
* a prediction has the type of a target: with `scores` it is a prediction, without it is a ground truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from patchform.descriptions import Architecture as Architecture
from patchform.descriptions import Preprocessing as Preprocessing
from patchform.descriptions import Published as Published
from patchform.descriptions import Score as Score
from patchform.descriptions import Variant as Variant
from patchform.descriptions import WeightsFile as WeightsFile


class FeatureInfo(NamedTuple):
    """What a head has to know of a backbone's features before the first batch."""

    channels: tuple[int, ...]
    """C_i of each map, fine to coarse."""
    strides: tuple[int, ...]
    """Input pixels per cell of each map."""
    width: int
    """D of tokens and summary."""


class Features(NamedTuple):
    """What a backbone gives: maps for dense heads, tokens for token heads, a summary for classifiers."""

    maps: tuple[Tensor, ...]
    """Fine to coarse, each (B, C_i, H_i, W_i), as the backbone's residual stream holds them (not normalised)."""
    strides: tuple[int, ...]
    """Input pixels per cell of each map."""
    size: tuple[int, int]
    """Height and width of the input, pixels; the last cells of a map may reach beyond it."""
    tokens: Tensor | None = None
    """(B, N, D): the last layer's patch tokens, normalised, without class or register tokens."""
    summary: Tensor | None = None
    """(B, D): class token, or pooled."""
    padding: Tensor | None = None
    """(B, H, W) bool of the coarsest map, True on padding; None when nothing is padded."""
    pixel_padding: Tensor | None = None
    """(B, *size) bool, the same of the input's pixels. The model adds it; a backbone by itself leaves it None."""
    frames: Tensor | None = None
    """(B, T, D) of a clip: a summary of each frame (or tubelet's depth), for heads that look along time."""


class Target(Protocol):
    """What is known, or predicted, of an image: a NamedTuple, which may hold others. A task may bring its own type.

    Tensors in it travel to a device, those of a batch together (`data.collate.PackedTargets`), where uint8 is int64.
    Anything else stays as it is.
    """

    @property
    def _fields(self) -> tuple[str, ...]: ...

    def __iter__(self) -> Iterator[Any]:
        """Over the fields."""
        ...


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in a record of records."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from tensors_of(part)


class Label(NamedTuple):
    """Classes of a whole image (or clip).

    As a target: `classes` are the classes present (exactly one in single-label work); `scores`, when given, is a
    soft target (mixed images). As a prediction: `classes` are those decided for, `scores` one number per class.
    """

    classes: Tensor
    """(K,) int64."""
    scores: Tensor | None = None
    """(C,) float in 0..1."""
    tokens: Tensor | None = None
    """(C, h, w) float in 0..1 of a target: what is in each cell of the model's last map, as a teacher says, or
    (C, 1, 1) where it is the same in all; None: what is in the image."""


IGNORED = 255
"""Class of pixels that count for nothing; so there are at most 255 classes of pixels."""


class Regions(NamedTuple):
    """A class for every pixel. As a prediction `scores` (C, H, W) holds the class probabilities."""

    classes: Tensor
    """(H, W) int64; `IGNORED` in a target counts for nothing. Targets are uint8 until they are on the device."""
    scores: Tensor | None = None


class Bitmaps(NamedTuple):
    """Masks of N objects, of each the pixels in a box around it: memory grows with the objects, not with the picture.

    Functions on them are in `geometry.masks`.
    """

    bits: Tensor
    """(sum of h_i * w_i,) bool: one object after the other, row by row."""
    boxes: Tensor
    """(N, 4) int64: left, top, right, bottom in whole pixels, the last two exclusive; inside the picture."""
    size: tuple[int, int]
    """(height, width) of the picture."""


class Instances(NamedTuple):
    """Objects of a picture. As a prediction it has `scores`, and they fall."""

    boxes: Tensor
    """(N, 4) float32 xyxy pixels of the current image."""
    classes: Tensor
    """(N,) int64."""
    scores: Tensor | None = None
    """(N,) float32 in 0..1."""
    masks: Bitmaps | None = None
    crowd: Tensor | None = None
    """(N,) bool of a truth: regions of many objects, which count for nothing; None where there are none."""
    areas: Tensor | None = None
    """(N,) float32 of a truth: pixels as annotated, for scores by size; None: those of the masks, else of the boxes."""


class Embedding(NamedTuple):
    """Where a model that learnt without labels puts an image. Never a truth: beside it stands a `Label`, of no class
    where none is known.
    """

    scores: Tensor
    """(D,) float32, of any sign."""

    @property
    def classes(self) -> Tensor:
        """(0,) int64: it decides for none."""
        return self.scores.new_empty(0).long()


class Sample(NamedTuple):
    """One item of a data set, before it meets others."""

    image: Tensor
    """(C, H, W), of a clip (T, C, H, W); uint8 in 0..255, or float32 in 0..1 for deep images."""
    target: Target | None
    """None where the truth is not known (prediction)."""
    name: str
    """Where it came from: the path relative to the data set."""
    size: tuple[int, int] = (0, 0)
    """(height, width) in pixels before any resizing: what predictions are given in."""
    views: Tensor | None = None
    """(V, C, h, w): small crops beside those of `image`, which then is (views, C, H, W)."""


CellBox = tuple[int, int, int, int]
"""Top, left, bottom and right of a box of cells, the last two exclusive."""


class Batch(NamedTuple):
    """Samples of one step, stacked."""

    images: Tensor
    """(B, C, H, W) or (B, T, C, H, W); uint8 0..255 or float 0..1."""
    targets: Sequence[Target]
    """One for each image, or empty where the truth is not known."""
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each image before it was resized to the model's input: predictions are given in it."""
    padding: Tensor | None = None
    """(B, H, W) bool, True on padding."""
    views: Tensor | None = None
    """(B, V, C, h, w): small crops of each picture, for methods that compare views; `images` then has crops for T."""
    exchanged: CellBox | None = None
    """Cells of the coarsest map in which images 2i and 2i + 1 exchange their embeddings (`data.token_mixing`)."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss of a batch, or of a part of one: parts, and the shares of several processes, add up field by field."""

    sum: Tensor
    """() float32, already weighted by the loss's factor."""
    count: Tensor
    """() float32, 0 or more: how many things (images, pixels, objects) it is a sum over, each by its weight."""

    @property
    def mean(self) -> Tensor:
        """() what is minimised; 0 where nothing counts."""
        return self.sum / self.count.clamp(min=LEAST)


LEAST = 1e-6
"""Divides what is a sum over nothing, and so 0."""
