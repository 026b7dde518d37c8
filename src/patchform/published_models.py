"""Models by the names of published weights, and backbones by themselves: built as their files want it, and filled."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchform import lookup
from patchform.descriptions import Preprocessing, WeightsFile
from patchform.errors import UsageError
from patchform.heads.base import NO_HEAD
from patchform.loading import load_weights
from patchform.model import Model, build_model
from patchform.settings import Transfer
from patchform.weights.hub import locate

LARGEST_SIDE = 16_384
"""Pixels."""


def pretrained(
    name: str,
    *,
    classes: Sequence[str] | None = None,
    source: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Model:
    """The model of published weights, with its preprocessing and class names, in evaluation mode on the CPU.

    Args:
        name: family/variant.tag; `patchform weights list` shows them. The file is fetched unless it is in the cache.
        classes: other ones: the rows of its classifier go by name where it has names, and the others are fresh. For
            weights without a classifier: of a fresh one; without them the backbone comes by itself.
        source: the file, where it lies on the disk already.
        options: arguments of the backbone that override those of the weights.
        say: called with what is fetched and with the lines of the report of the load.

    Raises:
        UsageError: no such weights, or weights whose classes have no names here, and `classes` is missing.
        PatchformError: whatever `weights.hub.locate` and `load_weights` raise.
    """
    row = lookup.weights_file(name)
    names = class_names(row.labels)
    if not (classes or row.classes):
        return load_backbone(name, weights=source, options=options, say=say)
    if not (classes or names):
        what = f"its {row.classes} classes have no names here"
        raise UsageError(what, where=name, remedy="name the classes: its own, or others for a new head")
    model = build_model(
        "classification",
        backbone=name.partition(".")[0],
        head=row.head,
        classes=classes or names,
        preprocessing=sized(row.preprocessing, (options or {}).get("image_size")),
        backbone_options=_options_of(name, row, options),
        head_options=dict(row.head_options),
    )
    report = load_weights(model, locate(source or name, say=say), transfer=Transfer(classes=names))
    for line in report.lines():
        say(line)
    return model.eval()


def load_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Model:
    """A backbone by itself, filled with weights, in evaluation mode on the CPU: what is probed, or saved for later.

    Args:
        name: of published weights, family/variant.tag, which say options and preprocessing; or family/size.
        weights: a source as of `load_weights`; default: the published ones. Published ones of the same family/size say
            options and preprocessing too.
        options: arguments of the backbone that override those; `image_size` is also what pictures are resized to.
        say: called with what is fetched and with the lines of the report of the load.

    Raises:
        UsageError: no such name or option, or family/size without weights.
        PatchformError: whatever `weights.hub.locate` and `load_weights` raise.
    """
    backbone, published = name.partition(".")[0], name
    if (
        not lookup.is_weights_name(name)
        and isinstance(weights, str)
        and not os.path.lexists(weights)
        and lookup.is_weights_name(weights)
    ):
        published = weights
        if weights.partition(".")[0] != name:
            raise UsageError(f"the weights are of {weights.partition('.')[0]}, not of {name}", where=weights)
    row = lookup.weights_file(published) if lookup.is_weights_name(published) else None
    if row is None:
        lookup.backbone(name)
        if weights is None:
            raise UsageError(
                "a backbone without weights knows nothing", where=name, remedy="name a file: --weights FILE"
            )
    native = None if row is None else row.preprocessing
    if native is None and "image_size" in (options or {}):
        native = Preprocessing()
    model = build_model(
        "pretraining",
        backbone=backbone,
        head=NO_HEAD,
        classes=(),
        preprocessing=None if native is None else sized(native, (options or {}).get("image_size")),
        backbone_options=_options_of(published, row, options),
    )
    report = load_weights(model.backbone, locate(weights or name, say=say))
    for line in report.lines():
        say(line)
    return model.eval()


def _options_of(name: str, row: WeightsFile | None, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of a backbone: those of published weights, and what was asked for over them."""
    published = {} if row is None else computing_options(name.partition(".")[0], row.layout) | row.backbone_options
    return published | dict(options or {})


def sized(preprocessing: Preprocessing, side: Any) -> Preprocessing:
    """With pictures of a side in pixels, or [height, width]; None: as it is. Raises UsageError for anything else."""
    if side is None:
        return preprocessing
    sides = tuple(side) if isinstance(side, list | tuple) else (side, side)
    if len(sides) != 2 or not all(type(one) is int and 1 <= one <= LARGEST_SIDE for one in sides):
        raise UsageError(f"an image size of {side!r}", remedy="name the side in pixels")
    return replace(preprocessing, size=(sides[0], sides[1]))


def class_names(labels: str) -> tuple[str, ...]:
    """Names of a published set of classes in the order of its classifiers, each once; () for one without names here.

    Those of "imagenet-1k" are torchvision's, all different.
    """
    if labels != "imagenet-1k":
        return ()
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def computing_options(name: str, layout: str) -> dict[str, Any]:
    """Options of a backbone, family/size, that make it compute as the code does whose names a layout has."""
    _, variant = lookup.backbone(name)
    return lookup.layout_options(variant.build, name.partition("/")[0], layout)
