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
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor


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


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Everything between a decoded file and the model, stated once and stored in the model file."""

    size: tuple[int, int] = (224, 224)
    """Model input (height, width) in pixels."""
    resize: Literal["crop", "squash", "keep", "fit", "native"] = "crop"
    """crop: resize the shorter side, keep the aspect, take the centre; squash: resize both sides. The whole picture at
    its aspect, for dense tasks: keep: its shorter side becomes that of `size`; fit: the same, but its longer side stays
    within that of `size`, whichever way the picture lies; native: in its own pixels."""
    crop_share: float = 0.875
    """For crop: share of the resized image's shorter side that the centre crop keeps, in (0, 1]."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic"
    """Always antialiased."""
    channels: int = 3
    """1 grey, 3 RGB, 4 RGBA or any number of bands."""
    bits: Literal[8, 16] = 8
    """Depth that is kept: 8 gives uint8; 16 gives float32 in 0..1 and loses nothing of 16-bit files."""
    background: int = 0
    """Grey level, 0..255, behind transparent pixels when the model does not see alpha."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Per channel (or one for all), of values scaled to 0..1."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    frames: int = 0
    """Of a clip; 0: pictures."""
    frame_step: int = 1
    """For dense: frames of the video from one of the clip to the next."""
    sampling: Literal["dense", "uniform"] = "uniform"
    """uniform: the middle frame of each of `frames` equal parts of the video, in training any frame of the part. dense:
    frames `frame_step` apart from the middle of the video, in training from any start. A video with fewer frames than
    that repeats its last one."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a model is made of, by names of the registry: enough to build it again."""

    task: str
    backbone: str
    """family/size, such as swin/t."""
    head: str
    backbone_options: dict[str, Any]
    """Arguments that override the variant's row."""
    head_options: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a backbone file's `VARIANTS`: what to build and at which input size it was published."""

    build: Any
    """The Backbone class."""
    image_size: int
    """Height and width of the published input, pixels. Passed on where the class takes `image_size`."""
    options: dict[str, Any]
    """Arguments of the class."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One row of a family's `SCORES`: what was reported for a variant."""

    variant: str
    scores: dict[str, float]
    """Such as {"imagenet-1k top-1": 81.2}; per cent."""
    source: str
    """Paper and table, or the authors' page."""
    image_size: int = 224
    training: str = "imagenet-1k"
    """What it was trained on."""


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """One row of a family's `WEIGHTS`: a file that somebody published, and all that using it takes.

    Its name is family/variant.tag, such as "vit/b16.augreg_in21k_ft_in1k". It is fetched when a user names it.
    """

    variant: str
    tag: str
    """What tells the files of a variant apart."""
    place: str
    """ "hub:owner/name/file"; "https://..."; or "torchvision:function/weights", a pickle, which is not fetched."""
    megabytes: int
    """About: four bytes for each number of the model."""
    licence: str
    layout: str
    """One of the family's `LAYOUTS`."""
    preprocessing: Preprocessing
    classes: int
    """Outputs of its classifier; 0 where it has none."""
    labels: str = ""
    """What its classes are: "imagenet-1k" (with names), "imagenet-21k", "imagenet-22k", or nothing."""
    sha256: str | None = None
    """None where it is not known: a plain address then needs one from the user."""
    backbone_options: dict[str, Any] = field(default_factory=dict)
    """Arguments that override the variant's row."""
    head: str = "linear"
    head_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the world knows of a family beside its paper: the content of `published/<family>.py`."""

    layouts: dict[str, Any]
    """`LAYOUTS`: `weights.rules.Rules` by name, between a published classifier and one of ours."""
    scores: tuple[Score, ...]
    """`SCORES`."""
    weights: tuple[WeightsFile, ...] = ()
    """`WEIGHTS`."""
    init_layouts: dict[str, Any] = field(default_factory=dict)
    """`INIT_LAYOUTS`: `weights.rules.Rules` by name, for weights of another family that training may start from."""
