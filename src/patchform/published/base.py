"""Rows of `WEIGHTS` for two publishers that many families share."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from patchform.descriptions import Preprocessing, WeightsFile
from patchform.weights.rules import Rule

HALF = (0.5, 0.5, 0.5)
"""Mean and deviation of what was trained on pixels in -1..1; ImageNet's are the default."""
CLIP_STATISTICS: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
"""Of the pixels that CLIP learnt from."""
LABELS = {0: "", 512: "", 768: "", 1024: "", 1000: "imagenet-1k", 21_841: "imagenet-22k", 21_843: "imagenet-21k"}


class Origin(NamedTuple):
    """What several files of one publisher have in common; the defaults are those of most files of timm."""

    layout: str = "timm"
    licence: str = "apache-2.0"
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    half: bool = False
    """Mean and deviation are `HALF`."""
    head: str = "linear"
    options: Mapping[str, Any] = MappingProxyType({})
    """Of the backbone."""
    head_options: Mapping[str, Any] = MappingProxyType({})


TIMM = Origin()


def timm(
    variant: str,
    model: str,
    megabytes: int,
    *,
    tag: str = "",
    side: int = 224,
    crop: float = 0.9,
    classes: int = 1000,
    origin: Origin = TIMM,
) -> WeightsFile:
    """A file in timm's organisation on the hub, used as timm's own configuration of it says.

    `model` is timm's name for it, "architecture.tag"; `tag` its tag unless given. `side` is the input's in pixels,
    `crop` the share that the centre crop keeps.
    """
    statistics: dict[str, Any] = {"mean": HALF, "std": HALF} if origin.half else {}
    return WeightsFile(
        variant=variant,
        tag=tag or model.partition(".")[2],
        place=f"hub:timm/{model}/model.safetensors",
        megabytes=megabytes,
        licence=origin.licence,
        layout=origin.layout,
        preprocessing=Preprocessing(
            size=(side, side), crop_share=crop, interpolation=origin.interpolation, **statistics
        ),
        classes=classes,
        labels=LABELS[classes],
        backbone_options=dict(origin.options),
        head=origin.head,
        head_options=dict(origin.head_options),
    )


def torchvision(
    variant: str,
    name: str,
    megabytes: int,
    *,
    layout: str = "torchvision",
    resize: int,
    side: int = 224,
    interpolation: Literal["bilinear", "bicubic"] = "bicubic",
    licence: str = "bsd-3-clause",
) -> WeightsFile:
    """A file of torchvision, for 1000 classes; a pickle that has to be converted.

    `name` is "function/weights", as torchvision calls them; `resize` what the shorter side becomes before the crop.
    """
    return WeightsFile(
        variant=variant,
        tag="torchvision_" + name.partition("/")[2].removeprefix("IMAGENET1K_").lower(),
        place=f"torchvision:{name}",
        megabytes=megabytes,
        licence=licence,
        layout=layout,
        preprocessing=Preprocessing(size=(side, side), crop_share=side / resize, interpolation=interpolation),
        classes=1000,
        labels=LABELS[1000],
    )


def block_rules(source: str, parts: Mapping[str, str]) -> tuple[Rule, ...]:
    """Parts of every block, source to target; `source`, which says {b}, is in front of the names of the source."""
    return tuple((source + name, f"backbone.blocks.{{b}}.{target}") for name, target in parts.items())
