"""Models that a file of weights may be for, and how its tensors fill them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchform import lookup
from patchform.adaptation import CLASSIFIER
from patchform.descriptions import Architecture, Preprocessing
from patchform.errors import ModelFileError
from patchform.heads.base import Head
from patchform.loading import layouts_of, load_weights
from patchform.model import Model, build_model
from patchform.weights.load_report import Report

PUBLISHED_HEADS: dict[str, Mapping[str, Any]] = {
    "detr": {},
    "detr_masks": {},
    "upernet": {"norm_eps": 1e-5},
    "semantic_fpn": {},
}
"""Heads that are tried at their published size where a family has a layout whose name ends so, and their options."""


class Fit(NamedTuple):
    """A model that a file's tensors fill."""

    architecture: Architecture
    report: Report
    classes: int
    """Outputs of the file's classifier; 0 where it has none."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """The model that a file is for, as far as it is known."""

    backbone: str
    """family/size."""
    options: Mapping[str, Any] = field(default_factory=dict)
    head: str | None = None
    """None: the one that fits."""
    head_options: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    """None: the variant's."""
    classes: tuple[str, ...] = ()
    """Empty: not known."""


def fit(tensors: Mapping[str, Tensor], candidate: Candidate, layout: str | None = None) -> Fit:
    """How a file's tensors fill a model: everything but the numbers is looked at.

    Args:
        tensors: may be on "meta".
        candidate: the model; without a head, linear ones, the one of token labels and `PUBLISHED_HEADS` are tried.
        layout: of the tensors; recognised if None.

    Raises:
        UsageError: no such backbone, option, head or layout.
        ModelFileError: they do not fill it.
    """
    bare = {name: tensor.to("meta") for name, tensor in tensors.items()}
    first_error: ModelFileError | None = None
    headless: Fit | None = None
    for head, head_options in _heads(candidate):
        variant = replace(candidate, head=head, head_options=head_options)
        try:
            with torch.device("meta"):
                first_fit = fill(build(variant), bare, layout)
                model = build(variant, tuple(map(str, range(first_fit.classes or 1))))
            fitting = fill(model, bare, first_fit.report.layout)
        except ModelFileError as error:
            first_error = first_error or error
            continue
        if not any(entry.name.startswith("head.") for entry in fitting.report.of("new")):
            return fitting
        if head not in PUBLISHED_HEADS:  # these are of files that have them
            headless = headless or fitting
    if headless is not None:
        return headless
    assert first_error is not None
    raise first_error


def fill(model: Model, tensors: Mapping[str, Tensor], layout: str | None) -> Fit:
    """How tensors fill this model."""
    assert model.architecture is not None
    report = load_weights(model, tensors, layout=layout)
    named = (entry for entry in report.entries if re.fullmatch(rf"head\.({CLASSIFIER})\.bias", entry.name))
    bias = next((entry for entry in named if entry.sources), None)
    if bias is None:
        return Fit(model.architecture, report, 0)
    own = model.state_dict()  # what else comes from the same tensor is no class: that there is nothing, for detectors
    siblings = [entry.name for entry in report.entries if entry is not bias and entry.sources == bias.sources]
    rows = len(tensors[report.prefix + bias.sources[0]]) - sum(len(own[name]) for name in siblings)
    return Fit(model.architecture, report, rows)


def _heads(candidate: Candidate) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Heads to try: the one that is named, else those of published models."""
    if candidate.head is not None or candidate.head_options:
        yield candidate.head or "linear", candidate.head_options
        return
    yield "linear", {}
    with torch.device("meta"):
        backbone = build(replace(candidate, head="linear")).backbone
    yield "linear", {"hidden": backbone.width}
    if backbone.width == 2 * backbone.channels[-1]:  # two class tokens side by side, each with a layer of its own
        yield "linear", {"parts": (backbone.channels[-1],) * 2}
    yield "token_label", {}
    for head, options in PUBLISHED_HEADS.items():
        if any(name == head or name.endswith(f"_{head}") for name in layouts_of(backbone)):
            yield head, options


def build(candidate: Candidate, classes: Sequence[str] = ("?",)) -> Model:
    """The model; without a head, under a linear one."""
    head = candidate.head or "linear"
    return build_model(
        lookup.the_class("heads", head, Head).tasks[0],
        backbone=candidate.backbone,
        head=head,
        classes=classes,
        preprocessing=candidate.preprocessing,
        backbone_options=dict(candidate.options),
        head_options=dict(candidate.head_options),
    )
