"""What a file of weights holds, which models it fills, and the same weights written in another layout."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchform import lookup
from patchform.commands.candidates import Candidate, Fit, build, fill, fit
from patchform.descriptions import Preprocessing
from patchform.errors import FolderError, ModelFileError, UsageError
from patchform.heads.base import NO_HEAD, NoHead
from patchform.layers.fitting import keeps_numbers
from patchform.loading import OWN, export_weights, layouts_of, load_weights, prefixes_of
from patchform.model import Model, build_model, load, save
from patchform.published_models import class_names, computing_options, sized
from patchform.weights import files, pickles, sources
from patchform.weights.hub import locate
from patchform.weights.load_report import Report, shorten

ENOUGH = 0.5
"""Share of a small backbone's tensors by which a family is worth a closer look."""
NAMED, ALIKE = 0.95, 0.8
"""Shares of a backbone's tensors, by name and with as many numbers, by which a variant is tried: tables may differ."""
PARTED = 1.5
"""So many tensors of ours come from one of a file at most: some hold queries, keys and values in one."""


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


# -------------------------------------------------------------------------------------------------------------- look


def look(
    source: str | Path,
    *,
    model: str | None = None,
    prefix: str | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Look:
    """Say what a file holds and which models it fills. Nothing of it is executed and no pickle is opened.

    Args:
        source: what `weights.hub.locate` takes.
        model: family/size or published weights that it is for; None tries all.
        prefix: only tensors whose names begin so are looked at, without it.
        say: called before the network is used.

    Raises:
        UsageError: no such model.
        ModelFileError: not a file of weights.
    """
    candidate = None if model is None else _candidate(model, SourceOptions())
    path = locate(source, say=say)
    content = sources.read(path)
    bare = {name: tensor.to("meta") for name, tensor in _behind(content.tensors, prefix, path).items()}
    fits: list[Fit] = []
    nearest: dict[str, float] = {}
    why = ""
    if content.own:
        with torch.device("meta"):
            own_model = load(sources.model_folder(path) or path, weights=False)
        fits = [fill(own_model, bare, OWN)]
    elif candidate is not None:
        try:
            fits = [fit(bare, candidate)]
        except ModelFileError as error:
            why = str(error)
    else:
        nearest = dict(sorted(_name_shares(bare).items(), key=lambda pair: -pair[1])[:3])
        near = [family for family, share in nearest.items() if share >= ENOUGH]
        fits, why = _fits(bare, near)
    fits = [exact for exact in fits if not exact.report.of("resized")] or fits
    return Look(_kind(path), bare, content.metadata, content.classes, tuple(fits), {} if fits else nearest, why)


class _Overlap(NamedTuple):
    """How much a backbone and a file have in common, by the layout that finds most."""

    named: float
    """Share of the backbone's tensors that are made from names of the file."""
    alike: float
    """Share that have as many numbers, too."""


def _overlap(candidate: Candidate, tensors: Mapping[str, Tensor], least: float = 0) -> _Overlap:
    """Nothing where the file has too few tensors for a share `least` of the backbone's."""
    with torch.device("meta"):
        model = build(candidate)
    own = {  # without counters of batches, which old files lack
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("backbone.") and tensor.is_floating_point()
    }
    if least * len(own) > PARTED * len(tensors):
        return _Overlap(0, 0)
    overlaps = []
    for prefix in prefixes_of(tensors):
        sizes = {name.removeprefix(prefix): tensor.numel() for name, tensor in tensors.items()}
        for rules in layouts_of(model.backbone).values():
            pairs = ((own[target], names) for target, (_, names) in rules.plan((), own, {}).filled.items())
            present = [(tensor, names) for tensor, names in pairs if all(name in sizes for name in names)]
            alike = sum(sum(map(sizes.__getitem__, names)) == tensor.numel() for tensor, names in present)
            overlaps.append(_Overlap(len(present) / len(own), alike / len(own)))
    return max(overlaps)


def _name_shares(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """By family: share of the tensors of its small backbones that are there by name."""
    shares = {}
    for family in lookup.names("backbones"):
        variants = lookup.module("backbones", family).VARIANTS
        small = [name for name in variants if "nano" in name] or list(variants)[:1]
        shares[family] = max(_overlap(Candidate(backbone=f"{family}/{size}"), tensors).named for size in small)
    return shares


def _fits(tensors: Mapping[str, Tensor], families: Sequence[str]) -> tuple[list[Fit], str]:
    """Every model of the first family that has one which is filled; or what the nearest one says."""
    nearest, why = _Overlap(0, 0), ""
    for family in families:
        plain = [Candidate(backbone=f"{family}/{size}") for size in lookup.module("backbones", family).VARIANTS]
        rows = [row for row in lookup.published(family).weights if row.backbone_options]
        special = [Candidate(backbone=f"{family}/{row.variant}", options=row.backbone_options) for row in rows]
        for models in (plain, special):
            fits = []
            for model in models:
                overlap = _overlap(model, tensors, NAMED)
                if overlap.named < NAMED or overlap.alike < ALIKE:
                    continue
                try:
                    fits.append(fit(tensors, model))
                except ModelFileError as error:
                    if overlap > nearest:
                        nearest, why = overlap, f"{model.backbone}: {error}"
            if fits:
                return fits, ""
    return [], why


def _kind(path: Path) -> str:
    if sources.model_folder(path):
        return "model folder"
    if path.is_dir():
        return "folder of safetensors"
    start = files.read_bytes(path, files.LARGEST_TENSORS, start=2)
    return "npz" if start == b"PK" else "shards" if path.name.endswith(".json") else "safetensors"


# ----------------------------------------------------------------------------------------------------------- convert


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What the user says of a file that is converted."""

    model: str | None = None
    """family/size; or published weights that it is a file of: their size, options and classes count."""
    layout: str | None = None
    """None: recognised."""
    part: str | None = None
    """Of a pickle that holds several."""
    prefix: str | None = None
    """Only tensors whose names begin so are meant, without it."""
    image_size: int | None = None
    """Side in pixels that it is for; None: the model's."""
    head: str | None = None
    """None: the one that fits; "none": the backbone alone, whatever else there is."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the backbone."""
    head_options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the head."""
    classes: Sequence[str] | None = None
    """Names in the order of the classifier; a model folder needs them where nothing else says them."""


def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: str,
    options: SourceOptions = SourceOptions(),
    force: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Report:
    """Write weights in another layout, as float32. What would have to be resized is refused.

    Args:
        source: what `weights.hub.locate` takes; also a pickle of torch.save, which is opened here and nowhere else.
        out: a new .safetensors file; a new folder where `to` is "patchform".
        to: a layout of the family, or "patchform".
        options: what is known of the source.
        force: write over what is there.
        say: called before the network is used.

    Returns:
        How the source was read. A source without the head's tensors is written without them: as a model folder it is
        one of a backbone by itself, which is probed, or trained a head on.

    Raises:
        FolderError: `out` is there.
        UsageError: no such name, the model is not known, or names for other classes than there are.
        ModelFileError: the source does not fill the model as it is.
        ResourceError: the disk is full or the place is not writable.
    """
    out = Path(out)
    _check_out(out, to, force)
    path = locate(source, say=say)
    folder = sources.model_folder(path)
    if folder and (path.is_dir() or options.model is None):
        model, report = _own_model(folder, options)
    else:
        if options.model is None and not os.path.lexists(source) and lookup.is_weights_name(str(source)):
            options = replace(options, model=str(source))
        model, report = _filled_model(path, options, to)
    unfilled = [entry.name for entry in report.of("new") if entry.name.startswith("head.")]
    if to == OWN:
        if not folder and options.head is None and isinstance(model.head, NoHead):
            say("the source has no head: the folder holds a backbone by itself")
        save(model, out)
        return report
    written = export_weights(model, to, without=unfilled)
    files.replace_tensors(out, written, {"format": "pt"})  # without it transformers reads nothing
    return report


def _check_out(out: Path, to: str, force: bool) -> None:
    if to != OWN and out.suffix != ".safetensors":
        raise UsageError(f"{out} does not end in .safetensors", remedy="only that is written")
    if not force and os.path.lexists(out) and not (to == OWN and out.is_dir() and not any(out.iterdir())):
        raise FolderError("exists already", where=out, remedy="name another place, or say --force")
    if to != OWN and out.is_dir():
        raise FolderError("a folder", where=out, remedy="name a file")


def _own_model(path: Path, options: SourceOptions) -> tuple[Model, Report]:
    """The model of a model folder."""
    if options.model is not None:
        raise UsageError("a model folder says itself of which model it is", where=path, remedy="leave out --model")
    model = load(path, weights=False)
    return model, load_weights(model, path, layout=OWN)


def _filled_model(path: Path, options: SourceOptions, to: str) -> tuple[Model, Report]:
    """The model that a file is for, with as many classes as it has, filled with its tensors."""
    tensors = _behind(_tensors(path, options.part), options.prefix, path)
    if options.model is None:
        raise UsageError("which model is it for?", where=path, remedy="--model family/size; `weights show` helps")
    candidate = _candidate(options.model, options)
    bare = options.head == NO_HEAD
    fitted = fit(tensors, replace(candidate, head=None) if bare else candidate, options.layout)
    if resized := [entry for entry in fitted.report.of("resized") if not keeps_numbers(entry.note)]:
        what = f"it is for another size: {resized[0].name} {resized[0].note}"
        raise UsageError(what, where=path, remedy="name the size that it is for: --image-size")
    names = tuple(candidate.classes or map(str, range(fitted.classes or 1)))
    if fitted.classes and len(names) != fitted.classes:
        raise UsageError(f"{len(names)} names for {fitted.classes} classes", where=path)
    architecture = fitted.architecture
    computing = computing_options(candidate.backbone, fitted.report.layout)
    candidate = replace(candidate, options={**computing, **candidate.options})
    if bare or (to == OWN and any(entry.name.startswith("head.") for entry in fitted.report.of("new"))):
        if options.classes and not bare:
            what = f"{len(options.classes)} names for the classes of a source without a head"
            raise UsageError(what, where=path, remedy="leave them out: the folder is that of a backbone by itself")
        return _without_head(candidate, fitted, tensors)
    model = build(replace(candidate, head=architecture.head, head_options=architecture.head_options), names)
    report = load_weights(model, tensors, layout=fitted.report.layout, prefix=fitted.report.prefix)
    if to == OWN and not candidate.classes:
        raise UsageError("the classes have no names", where=path, remedy="--classes imagenet-1k, or a file of names")
    return model, report


def _without_head(candidate: Candidate, fitted: Fit, tensors: Mapping[str, Tensor]) -> tuple[Model, Report]:
    """The backbone by itself."""
    model = build_model(
        "pretraining",
        backbone=candidate.backbone,
        head=NO_HEAD,
        classes=(),
        preprocessing=candidate.preprocessing,
        backbone_options=dict(candidate.options),
    )
    report = load_weights(model.backbone, tensors, layout=fitted.report.layout, prefix=fitted.report.prefix)
    return model, report


def _candidate(name: str, options: SourceOptions) -> Candidate:
    """The model of family/size or of published weights, with what the user says over it."""
    candidate = Candidate(backbone=name)
    if lookup.is_weights_name(name):
        row = lookup.weights_file(name)
        candidate = Candidate(
            backbone=name.partition(".")[0],
            options=row.backbone_options,
            head=row.head,
            head_options=row.head_options,
            preprocessing=row.preprocessing,
            classes=class_names(row.labels),
        )
    lookup.backbone(candidate.backbone)
    preprocessing = candidate.preprocessing
    side = options.options.get("image_size") if options.image_size is None else options.image_size
    if side is not None:
        preprocessing = sized(preprocessing or Preprocessing(), side)
    return replace(
        candidate,
        options={**candidate.options, **options.options},
        head=options.head or candidate.head,
        head_options={**candidate.head_options, **options.head_options},
        preprocessing=preprocessing,
        classes=tuple(options.classes or candidate.classes),
    )


def _behind(tensors: dict[str, Tensor], prefix: str | None, path: Path) -> dict[str, Tensor]:
    """Those whose names begin so, without it."""
    if prefix is None:
        return tensors
    named = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not named:
        remedy = f"the names are {shorten(list(tensors))}"
        raise ModelFileError(f'no tensor begins with "{prefix}"', where=path, remedy=remedy)
    return named


def _tensors(path: Path, part: str | None) -> dict[str, Tensor]:
    """What is in a file; of a pickle the named part, checked as everything else is."""
    if path.is_dir() or not pickles.holds_pickle(path):
        if part is not None:
            raise UsageError("only a pickle has parts", where=path)
        return sources.read(path).tensors
    tensors = pickles.choose(pickles.read_pickle(path).parts, part)
    sources.check(tensors, path)
    return tensors
