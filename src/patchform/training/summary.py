"""What a run says of itself before its first step, in one place: what is trained, from where, on what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from patchform import distributed, own_parts, schema
from patchform.errors import ResourceError
from patchform.settings import Recipe, TeacherSettings
from patchform.tasks.base import task_of
from patchform.training import adapters
from patchform.training.batches import TrainingData
from patchform.training.freezing import batch_norms
from patchform.training.learner import Learner
from patchform.training.resuming import Settled
from patchform.training.run import RunContext
from patchform.weights.files import replace_text

SUMMARY = "summary.txt"
"""In a run folder: what each start of the run said of itself."""


class Entry(NamedTuple):
    """A line of the summary."""

    name: str
    text: str


class Start(NamedTuple):
    """What a run begins with, or goes on with."""

    learner: Learner
    data: TrainingData
    settled: Settled
    step: int
    """Steps taken before."""
    at_once: int
    """Samples that go through the model together."""


def announce(start: Start, context: RunContext) -> None:
    """Say what is about to be trained, and keep it in the run folder; a run that goes on adds to what is there.

    Raises:
        ResourceError: the disk is full or the folder is not writable.
    """
    entries = list(summary(start, context))
    wide = max(len(entry.name) for entry in entries)
    lines = [f"{entry.name:{wide}}  {entry.text}" for entry in entries]
    for line in lines:
        context.reporter.note(line)
    if context.rank.is_main:
        path = context.folder / SUMMARY
        replace_text(path, "\n".join([*_kept(path), *lines, ""]))


def summary(start: Start, context: RunContext) -> Iterable[Entry]:
    """The lines, with the model as it is at its first step."""
    learner, recipe, origin = start.learner, start.learner.recipe, start.settled.origin
    model, settings = learner.model, recipe.training
    listing, length = start.data.listing, learner.length
    added = adapters.parameters(model)
    backbone, head = (
        f"{_count(part.parameters()) - number:,} parameters"
        for part, number in ((learner.model.trained, _count(added)), (model.head, 0))
    )
    yield Entry("recipe", f"{origin.name}: {recipe.task.replace('_', ' ')}, {_several(settings.epochs, 'epoch')}")
    yield Entry("backbone", f"{recipe.model.backbone}, {backbone}{_with(_backbone_options(recipe))}")
    yield Entry("head", f"{recipe.model.head}, {head}{_with(recipe.model.head_options)}")
    if added:
        sizes = f"{_count(added):,} parameters in {_several(len(adapters.adapted(model)), 'product')}"
        yield Entry("adapter", f"{recipe.model.adapter} {adapters.in_words(recipe.model.lora)}: {sizes}")
    yield Entry("parameters", _trained(model))
    yield Entry("frozen", _frozen(learner))
    yield Entry("weights", _source(start))
    if learner.distilled is not None or recipe.loss.teacher != TeacherSettings():
        none = "none: loss.teacher.model names no model"
        yield Entry("teacher", none if learner.distilled is None else str(learner.distilled))
    for section in own_parts.SLOTS:
        if words := own_parts.in_words(section, getattr(recipe, section)):
            yield Entry(section, f"your own: {words}{_with(getattr(recipe, section).options)}")
    yield Entry("input", _input(recipe))
    batch = min(settings.batch_size, len(listing))
    at_once = f", {start.at_once} at once" * (start.at_once < batch)
    yield Entry(
        "data",
        f"{len(listing)} {listing.thing}s to learn from, {len(start.data.splits.validation)} to validate on; batches of"
        f" {batch}{at_once}; {_several(length.steps_per_epoch, 'step')} an epoch, {length.steps:,} in all",
    )
    task = task_of(model.architecture, model.head)
    if task.labelled and task.meaning:
        yield Entry("score", f"{task.better}, higher is better: {task.meaning}")
    if recipe.data.features is not None:
        yield Entry("features", f"each picture is looked at once, without augmentation; kept in {recipe.data.features}")
    yield Entry("device", _device(context))
    yield Entry("precision", start.settled.precision)
    yield Entry("run folder", str(context.folder))
    yield Entry("started", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))


def _several(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _with(options: Mapping[str, Any]) -> str:
    return f"; with {', '.join(f'{name} {schema.shown(value)}' for name, value in options.items())}" if options else ""


def _backbone_options(recipe: Recipe) -> dict[str, Any]:
    drop_path = recipe.model.drop_path
    return {**recipe.model.options, **({} if drop_path is None else {"drop_path": drop_path})}


def _trained(model: nn.Module) -> str:
    every, trained = _count(model.parameters()), _count(p for p in model.parameters() if p.requires_grad)
    return f"{every:,}, all of them train" if every == trained else f"{trained:,} of {every:,} train"


def _frozen(learner: Learner) -> str:
    """What does not move at the first step, and until when."""
    settings, layers, steps = learner.recipe.model, len(learner.model.trained.layers()), learner.length.steps
    frozen = settings.frozen if learner.recipe.optimizer.backbone_rate else "all"
    parts = []
    if frozen and learner.frozen.now:
        until = learner.frozen.until
        words = "the backbone" if frozen == "all" else f"the stem and {frozen} of {layers} layers of the backbone"
        if until < float("inf"):
            words += f" for {_several(settings.frozen_epochs, 'epoch')}" + ", all of this run" * (until >= steps)
        parts.append(words)
    if settings.adapter != "none":
        return "the backbone but for its adapter" + "".join(f"; {part} have none" for part in parts)
    if settings.norms == "frozen" and (norms := len(batch_norms(learner.model.trained))):
        parts.append(f"{norms} batch normalisations")
    return " and ".join(parts) or "nothing"


def _source(start: Start) -> str:
    """Where the weights come from."""
    recipe = start.learner.recipe
    if start.step:
        return f"this run's own after step {start.step} of {start.learner.length.steps}"
    if recipe.model.init_from is not None:
        return recipe.model.init_from
    return f"from nothing (seed {recipe.training.seed})"


def _input(recipe: Recipe) -> str:
    p = recipe.preprocessing
    (height, width), frames = p.size, f"{p.frames} frames of " * bool(p.frames)
    return f"{frames}{height} x {width} pixels ({p.resize}), {_several(p.channels, 'channel')}"


def _device(context: RunContext) -> str:
    kind, count = context.device.type, distributed.rank_and_world().world_size
    name = torch.cuda.get_device_name(context.device) if kind == "cuda" else _several(torch.get_num_threads(), "thread")
    return f"{kind}, {name}" + f", {count} processes" * (count > 1)


def _kept(path: Path) -> list[str]:
    """What earlier starts said, and an empty line."""
    try:
        return [*path.read_text(encoding="utf-8").splitlines(), ""] if path.exists() else []
    except ValueError:  # damaged: it is for people alone
        return []
    except OSError as error:
        raise ResourceError(f"cannot be read ({error.strerror})", where=path) from error
