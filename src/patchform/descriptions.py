"""What settings, model files and the tables of papers say of a model: plain records, which import no torch.

Fields state their ranges (`schema.Range`), units and meanings here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from patchform.schema import Factor, Length, Options, Range, Same, Side

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of the pixels of ImageNet, per channel."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Everything between a decoded file and the model, stated once and stored in the model file."""

    size: Annotated[tuple[Side, Side], Same()] = (224, 224)
    """Model input in pixels: one side, or [height, width]."""
    resize: Literal["crop", "squash", "keep", "fit", "native"] = "crop"
    """crop: resize the shorter side, keep the aspect, take the centre; squash: resize both sides. The whole picture at
    its aspect, for masks and objects: keep: its shorter side becomes that of size; fit: the same, but its longer side
    stays within that of size, whichever way the picture lies; native: in its own pixels."""
    crop_share: Annotated[float, Range(above=0, most=1)] = 0.875
    """For crop: share of the resized image's shorter side that the centre crop keeps."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic"
    """How pixels are resampled; always antialiased."""
    channels: Annotated[int, Range(least=1, most=4096)] = 3
    """1 grey, 3 RGB, 4 RGBA, or the number of bands."""
    bits: Literal[8, 16] = 8
    """Depth that is kept: 8 gives uint8; 16 gives float32 in 0..1 and loses nothing of 16-bit files."""
    background: Annotated[int, Range(least=0, most=255)] = 0
    """Grey level behind transparent pixels when the model does not see alpha."""
    mean: Annotated[tuple[Annotated[float, Range(least=-1e3, most=1e3)], ...], Length(least=1, most=4096)] | None = None
    """Per channel (or one for all), of values scaled to 0..1; null: ImageNet's for 3 channels, 0.5 otherwise."""
    std: Annotated[tuple[Annotated[float, Range(least=1e-6, most=1e3)], ...], Length(least=1, most=4096)] | None = None
    """Per channel (or one for all), of values scaled to 0..1; null: ImageNet's for 3 channels, 0.5 otherwise."""
    frames: Annotated[int, Range(least=0, most=4096)] = 0
    """Frames of a clip; 0: pictures."""
    frame_step: Annotated[int, Range(least=1, most=4096)] = 1
    """For dense: frames of the video from one of the clip to the next."""
    sampling: Literal["dense", "uniform"] = "uniform"
    """uniform: the middle frame of each of so many equal parts of the video, in training any frame of the part. dense:
    frames frame_step apart from the middle of the video, in training from any start. A video with fewer frames than
    that repeats its last one."""

    def resolved(self) -> Preprocessing:
        """The same with statistics for those that are null."""
        mean, std = IMAGENET if self.channels == 3 else ((0.5,), (0.5,))
        return replace(self, mean=self.mean or mean, std=self.std or std)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a model is made of, by names of the registry: enough to build it again."""

    task: str
    backbone: str
    """family/size, such as swin/t."""
    head: str
    backbone_options: Options
    """Arguments that override the variant's row."""
    head_options: Options
    """Arguments of the head, the loss's among them."""

    def __str__(self) -> str:
        """In words."""
        return f"{self.task}: {self.backbone} under {self.head}"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What `model.json` holds: enough to build a model again and to use it."""

    format: int
    """Version of the file."""
    architecture: Architecture
    classes: Annotated[tuple[str, ...], Length(most=100_000)]
    """Names in the order of the head's outputs; none of models that learn without labels."""
    preprocessing: Preprocessing
    """With its statistics."""
    thresholds: Annotated[tuple[Factor, ...], Length(most=100_000)] | None = None
    """Scores from which a prediction of an object counts, one a class; null where none were chosen."""
    ids: Annotated[tuple[int | str, ...], Length(most=100_000)] | None = None
    """Of the classes in the data that they were learnt from (COCO's category ids), all different; null without."""


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
    """Height and width at which it was judged, pixels."""
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
    gated: bool = False
    """Its owner lets in who asked and was let in: `hf auth login`."""

    @property
    def by_hand(self) -> bool:
        """Not fetched by its name: a pickle, which the user converts, or a plain address whose sum is not known."""
        return self.place.startswith("torchvision:") or (self.place.startswith("https:") and self.sha256 is None)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the world knows of a family beside its paper: the content of `published/<family>.py`."""

    layouts: dict[str, Any]
    """`LAYOUTS`: `weights.rules.Rules` by name, between a published classifier and one of ours."""
    scores: tuple[Score, ...]
    """`SCORES`."""
    weights: tuple[WeightsFile, ...] = ()
    """`WEIGHTS`."""
    computes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`COMPUTES`: by layout, options of the backbone with which the code computes whose names it has."""
    differs: dict[str, str] = field(default_factory=dict)
    """`DIFFERS`: by layout, at which sizes its code computes what no option of the backbone does."""
    option_hints: tuple[Any, ...] = ()
    """`OPTION_HINTS`: `weights.option_hints.Hint`s, by which weights tell the options that they are for."""
    init_layouts: dict[str, Any] = field(default_factory=dict)
    """`INIT_LAYOUTS`: `weights.rules.Rules` by name, for weights of another family that training may start from."""
