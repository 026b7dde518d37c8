"""What a file of weights holds, which models it fills, and the same weights written in another layout."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchform import lookup
from patchform.descriptions import Architecture, Preprocessing
from patchform.errors import FolderError, ModelFileError, UsageError
from patchform.heads.base import Head
from patchform.loading import OWN, class_names, layouts_of, load_weights, prefixes_of, sizes_of
from patchform.model import Model, build_model, load, save
from patchform.weights import files, pickles, sources
from patchform.weights.hub import is_row, locate
from patchform.weights.load_report import Report, shorten

ENOUGH = 0.5
"""Share of a small backbone's tensors by which a family is worth a closer look."""
NAMED, ALIKE = 0.95, 0.8
"""Shares of a backbone's tensors, by name and with as many numbers, by which a variant is tried: tables may differ."""


DETECTORS = ("detr", "detr_masks")
"""Heads that are tried at their published size where a family has a layout of that name."""


class Fit(NamedTuple):
    """A model that a file's tensors fill."""

    architecture: Architecture
    report: Report
    classes: int
    """Outputs of the file's classifier; 0 where it has none."""


class Look(NamedTuple):
    """What a file of weights holds."""

    kind: str
    """safetensors, npz, shards or model folder."""
    tensors: dict[str, Tensor]
    """By name, on no device: shapes and kinds of numbers."""
    notes: Mapping[str, str]
    """What its header says; written by whoever made the file."""
    classes: tuple[str, ...]
    fits: tuple[Fit, ...]
    """Models that it fills: those that nothing has to be resized for, or if there are none the others."""
    nearest: dict[str, float]
    """Where there are none: share of a small backbone's tensors that it has, the nearest families first."""
    why: str
    """Where there are none: what does not fit of the model that is nearest, if one is near."""

    @property
    def numbers(self) -> int:
        """How many."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def bytes(self) -> int:
        """Of the numbers."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The model that a file is for, as far as it is known."""

    backbone: str
    """family/size."""
    options: dict[str, Any]
    head: str | None = None
    """None: the one that fits."""
    head_options: dict[str, Any]
    preprocessing: Preprocessing | None = None
    """None: the variant's."""
    classes: tuple[str, ...] = ()
    """Empty: not known."""


# -------------------------------------------------------------------------------------------------------------- look


def look(source: str | Path, *, model: str | None = None, say: Callable[[str], None] = lambda sentence: None) -> Look:
    """Say what a file holds and which models it fills. Nothing of it is executed and no pickle is opened.

    Args:
        source: what `weights.hub.locate` takes.
        model: family/size or published weights that it is for; None tries all.
        say: called before the network is used.

    Raises:
        UsageError: no such model.
        ModelFileError: not a file of weights.
    """
    wanted = None if model is None else _wanted(model)
    path = locate(source, say=say)
    found = sources.read(path)
    bare = {name: tensor.to("meta") for name, tensor in found.tensors.items()}
    fits: list[Fit] = []
    nearest: dict[str, float] = {}
    why = ""
    if found.own:
        with torch.device("meta"):
            made = load(path, weights=False)
        fits = [_fit(made, bare, OWN)]
    elif wanted is not None:
        try:
            fits = [fit(bare, wanted)]
        except ModelFileError as error:
            why = str(error)
    else:
        nearest = dict(sorted(_shares(bare).items(), key=lambda pair: -pair[1])[:3])
        near = [family for family, share in nearest.items() if share >= ENOUGH]
        fits, why = _fits(bare, near)
    fits = [one for one in fits if not one.report.of("resized")] or fits
    return Look(_kind(path), bare, found.metadata, found.classes, tuple(fits), {} if fits else nearest, why)


def fit(tensors: Mapping[str, Tensor], wanted: Wanted, layout: str | None = None) -> Fit:
    """How a file's tensors fill a model: everything but the numbers is looked at.

    Args:
        tensors: may be on "meta".
        wanted: the model; without a head, linear ones, the one of token labels and `DETECTORS` are tried.
        layout: of the tensors; recognised if None.

    Raises:
        UsageError: no such backbone, option, head or layout.
        ModelFileError: they do not fill it.
    """
    bare = {name: tensor.to("meta") for name, tensor in tensors.items()}
    first: ModelFileError | None = None
    for head, head_options in _heads(wanted):
        of = replace(wanted, head=head, head_options=head_options)
        try:
            with torch.device("meta"):
                found = _fit(_built(of), bare, layout)
                again = _built(of, tuple(map(str, range(found.classes or 1))))
            return _fit(again, bare, found.report.layout)
        except ModelFileError as error:
            first = first or error
    assert first is not None
    raise first


def _fit(made: Model, tensors: Mapping[str, Tensor], layout: str | None) -> Fit:
    """How they fill this model."""
    assert made.architecture is not None
    report = load_weights(made, tensors, layout=layout)
    biases = (entry for entry in report.entries if entry.name.startswith("head.classifier.") and entry.sources)
    bias = next((entry for entry in biases if entry.name.endswith(".bias")), None)
    if bias is None:
        return Fit(made.architecture, report, 0)
    own = made.state_dict()  # what else comes from the same tensor is no class: that there is nothing, for detectors
    beside = [entry.name for entry in report.entries if entry is not bias and entry.sources == bias.sources]
    rows = len(tensors[report.prefix + bias.sources[0]]) - sum(len(own[name]) for name in beside)
    return Fit(made.architecture, report, rows)


def _heads(wanted: Wanted) -> Iterator[tuple[str, dict[str, Any]]]:
    """Heads that published models have, if none is wanted."""
    if wanted.head is not None or wanted.head_options:
        yield wanted.head or "linear", wanted.head_options
        return
    yield "linear", {}
    with torch.device("meta"):
        backbone = _built(replace(wanted, head="linear")).backbone
    yield "linear", {"hidden": backbone.width}
    yield "token_label", {}
    for detector in DETECTORS:
        if detector in layouts_of(backbone):
            yield detector, {}


def _built(wanted: Wanted, classes: Sequence[str] = ("?",)) -> Model:
    head = wanted.head or "linear"
    return build_model(
        lookup.the_class("heads", head, Head).tasks[0],  # type: ignore[attr-defined]
        backbone=wanted.backbone,
        head=head,
        classes=classes,
        preprocessing=wanted.preprocessing,
        backbone_options=wanted.options,
        head_options=wanted.head_options,
    )


class _Met(NamedTuple):
    """How much a backbone and a file have in common, by the layout that finds most."""

    named: float
    """Share of the backbone's tensors that are made from names of the file."""
    alike: float
    """Share that have as many numbers, too."""


def _met(wanted: Wanted, tensors: Mapping[str, Tensor]) -> _Met:
    with torch.device("meta"):
        made = _built(wanted)
    own = {  # without counters of batches, which old files lack
        name: tensor
        for name, tensor in made.state_dict().items()
        if name.startswith("backbone.") and tensor.is_floating_point()
    }
    met = []
    for prefix in prefixes_of(tensors):
        sizes = {name.removeprefix(prefix): tensor.numel() for name, tensor in tensors.items()}
        for rules in layouts_of(made.backbone).values():
            pairs = ((own[place], names) for place, (_, names) in rules.plan((), own, {}).made.items())
            there = [(place, names) for place, names in pairs if all(name in sizes for name in names)]
            alike = sum(sum(map(sizes.__getitem__, names)) == place.numel() for place, names in there)
            met.append(_Met(len(there) / len(own), alike / len(own)))
    return max(met)


def _shares(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """By family: share of the tensors of its small backbones that are there by name."""
    shares = {}
    for family in lookup.names("backbones"):
        variants = lookup.module("backbones", family).VARIANTS
        small = [name for name in variants if "nano" in name] or list(variants)[:1]
        shares[family] = max(_met(_plain(f"{family}/{size}"), tensors).named for size in small)
    return shares


def _plain(backbone: str, options: Mapping[str, Any] | None = None) -> Wanted:
    return Wanted(backbone=backbone, options=dict(options or {}), head_options={})


def _fits(tensors: Mapping[str, Tensor], families: Sequence[str]) -> tuple[list[Fit], str]:
    """Every model of the first family that has one which is filled; or what the nearest one says."""
    nearest, why = _Met(0, 0), ""
    for family in families:
        plain = [_plain(f"{family}/{size}") for size in lookup.module("backbones", family).VARIANTS]
        rows = lookup.published(family).weights
        special = [_plain(f"{family}/{row.variant}", row.backbone_options) for row in rows if row.backbone_options]
        for models in (plain, special):
            found = []
            for model in models:
                met = _met(model, tensors)
                if met.named < NAMED or met.alike < ALIKE:
                    continue
                try:
                    found.append(fit(tensors, model))
                except ModelFileError as error:
                    nearest, why = max((nearest, why), (met, f"{model.backbone}: {error}"), key=lambda pair: pair[0])
            if found:
                return found, ""
    return [], why


def _kind(path: Path) -> str:
    if path.is_dir():
        return "model folder" if (path / sources.DESCRIPTION).exists() else "folder of safetensors"
    start = files.read_bytes(path, files.LARGEST_TENSORS, start=2)
    return "npz" if start == b"PK" else "shards" if path.name.endswith(".json") else "safetensors"


# ----------------------------------------------------------------------------------------------------------- convert


def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: str,
    model: str | None = None,
    layout: str | None = None,
    part: str | None = None,
    image_size: int | None = None,
    head: str | None = None,
    options: Mapping[str, Any] | None = None,
    head_options: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Report:
    """Write weights in another layout, as float32. What would have to be resized is refused.

    Args:
        source: what `weights.hub.locate` takes; also a pickle of torch.save, which is opened here and nowhere else.
        out: a new .safetensors file; a new folder where `to` is "patchform".
        to: a layout of the family, or "patchform".
        model: family/size; or published weights that `source` is a file of: their size, options and classes count.
        layout: of the source; recognised if None.
        part: of a pickle that holds several.
        image_size: side in pixels that the source is for; default: the model's.
        head: default: the one that fits.
        options: arguments of the backbone.
        head_options: arguments of the head.
        classes: names in the order of the classifier; a model folder needs them where nothing else says them.
        force: write over what is there.
        say: called before the network is used.

    Returns:
        How the source was read. A source without the head's tensors is written without them.

    Raises:
        FolderError: `out` is there.
        UsageError: no such name, the model is not known, or names for other classes than there are.
        ModelFileError: the source does not fill the model as it is.
        ResourceError: the disk is full or the place is not writable.
    """
    out = Path(out)
    if to != OWN and out.suffix != ".safetensors":
        raise UsageError(f"{out} does not end in .safetensors", remedy="only that is written")
    if not force and os.path.lexists(out) and not (to == OWN and out.is_dir() and not any(out.iterdir())):
        raise FolderError("exists already", where=out, remedy="name another place, or say --force")
    if to != OWN and out.is_dir():
        raise FolderError("a folder", where=out, remedy="name a file")
    named = str(source) if model is None and not os.path.lexists(source) and is_row(str(source)) else model
    path = locate(source, say=say)
    if path.is_dir() and (path / sources.DESCRIPTION).exists():
        if model is not None:
            raise UsageError("a model folder says itself of which model it is", where=path, remedy="leave out --model")
        made = load(path, weights=False)
        report = load_weights(made, path, layout=OWN)
    else:
        tensors = _tensors(path, part)
        if named is None:
            raise UsageError("which model is it for?", where=path, remedy="--model family/size; `weights show` helps")
        wanted = _wanted(named, image_size, options, head, head_options)
        made, report = _filled(tensors, wanted, layout, classes, path)
        if to == OWN and not (classes or wanted.classes):
            raise UsageError(
                "the classes have no names", where=path, remedy="--classes imagenet-1k, or a file of names"
            )
    new = [entry.name for entry in report.of("new") if entry.name.startswith("head.")]
    if to == OWN:
        if new:
            what = shorten(new)
            raise UsageError(
                f"the source has no {what}", where=path, remedy="convert to another layout, and train a head"
            )
        save(made, out)
        return report
    layouts = layouts_of(made.backbone)
    if to not in layouts:
        raise lookup.no_such("layout", to, layouts)
    own = {name: tensor for name, tensor in made.state_dict().items() if name not in new}
    written = layouts[to].dump(own, sizes=lambda place: sizes_of(made, place))
    files.replace_tensors(out, written, {"format": "pt"})  # without it transformers reads nothing
    return report


def _wanted(
    name: str,
    image_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    head: str | None = None,
    head_options: Mapping[str, Any] | None = None,
) -> Wanted:
    """The model of family/size or of published weights, with what the user says over it."""
    wanted = Wanted(backbone=name, options={}, head_options={})
    if is_row(name):
        row = lookup.weights_file(name)
        wanted = Wanted(
            backbone=name.partition(".")[0],
            options=row.backbone_options,
            head=row.head,
            head_options=row.head_options,
            preprocessing=row.preprocessing,
            classes=class_names(row.labels),
        )
    lookup.backbone(wanted.backbone)
    if image_size is not None:
        if image_size < 1:
            raise UsageError(f"an image size of {image_size}", remedy="name the side in pixels")
        wanted = replace(
            wanted, preprocessing=replace(wanted.preprocessing or Preprocessing(), size=(image_size, image_size))
        )
    return replace(
        wanted,
        options={**wanted.options, **(options or {})},
        head=head or wanted.head,
        head_options={**wanted.head_options, **(head_options or {})},
    )


def _tensors(path: Path, part: str | None) -> dict[str, Tensor]:
    """What is in a file; of a pickle the named part, checked as everything else is."""
    if path.is_dir() or not pickles.holds_pickle(path):
        if part is not None:
            raise UsageError("only a pickle has parts", where=path)
        return sources.read(path).tensors
    found = pickles.choose(pickles.read_pickle(path).parts, part)
    sources.check(found, path)
    return found


def _filled(
    tensors: dict[str, Tensor], wanted: Wanted, layout: str | None, classes: Sequence[str] | None, path: Path
) -> tuple[Model, Report]:
    """The model with as many classes as the tensors have, filled with them."""
    found = fit(tensors, wanted, layout)
    if resized := found.report.of("resized"):
        raise UsageError(
            f"it is for another size: {resized[0].name} {resized[0].note}",
            where=path,
            remedy="name the size that it is for: --image-size",
        )
    names = tuple(classes or wanted.classes or map(str, range(found.classes or 1)))
    if found.classes and len(names) != found.classes:
        raise UsageError(f"{len(names)} names for {found.classes} classes", where=path)
    of = found.architecture
    made = _built(replace(wanted, head=of.head, head_options=of.head_options), names)
    return made, load_weights(made, tensors, layout=found.report.layout, prefix=found.report.prefix)
