"""What a run says of what to type: where it starts from nothing with little to learn from, and when it has ended."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patchform import lookup, schema
from patchform.settings import DataSettings, Recipe
from patchform.tasks.base import Task, find_task
from patchform.training.batches import TrainingData
from patchform.training.saving import quoted
from patchform.training.schedule import RunLength

FEW = 10_000
"""Pictures or clips, from which on a model may start from nothing."""
COLOURS = 3
"""Channels of the pictures that published weights have seen."""


def start_note(recipe: Recipe, data: TrainingData) -> str | None:
    """What to say of a run that starts from nothing with few pictures: a command that starts from knowledge."""
    task, listing = find_task(recipe.task), data.listing
    few = len(listing) < FEW and recipe.preprocessing.channels == COLOURS
    if recipe.model.init_from is not None or not (few and task.suggested):
        return None
    row = lookup.weights_file(task.suggested)
    return (
        f"{len(listing):,} {listing.thing}s are few for a model that starts from nothing: what edges and shapes are, it has"
        f" to learn from these too. To start from one that knows pictures ({row.megabytes} MB, {row.licence}, fetched"
        f" once): {fine_tuning(recipe, task)}"
    )


def fine_tuning(recipe: Recipe, task: Task) -> str:
    """The command that fine-tunes published weights on the data of a recipe."""
    words = ["patchform", "train", f"{recipe.task}/fine_tune"]
    usual = {field.name: field.value for field in schema.fields(DataSettings())}
    for field in schema.fields(recipe.data):
        if field.name == "path" and field.value is not None:
            words += ["--data", quoted(Path(field.value))]
        elif field.value != usual[field.name] and field.name not in ("features", "workers"):
            words += [f"--data.{field.name}", _word(field.value)]
    plugins = [word for place in lookup.plugins() for word in ("--plugin", shlex.quote(str(place)))]
    return " ".join([*words, "--from", task.suggested, *plugins])


def score(task: Task, best: float | None, step: int, length: RunLength, samples: int) -> str:
    """What a run has reached, in words.

    Args:
        task: of the run.
        best: its best score; None where no number tells which model is better.
        step: of that.
        length: of the run.
        samples: that it was scored on.
    """
    if best is None:
        return "no number tells which of its models is the best: the last one is kept"
    epoch, epochs = (number // length.steps_per_epoch for number in (step, length.steps))
    where = f"epoch {epoch} of {epochs}, on {samples:,} held out" if samples else f"epoch {epoch} of {epochs}"
    return f"best {task.better} {best:.4f} (higher is better) in {where}: {task.meaning or task.better}"


def next_commands(task: Task, folder: Path, thing: str) -> Iterator[str]:
    """What to do with the model of a run, a command each.

    Args:
        task: of the run.
        folder: of the run.
        thing: what its data are, such as "picture".
    """
    run, things = quoted(folder), f"{thing}s".upper()
    if not task.labelled:
        yield f"patchform probe {run} --data LABELLED_{things}"
        yield f"patchform train classification --data LABELLED_{things} --from {run}"
        yield f"patchform features {run} {things} --out features.safetensors"
        return
    yield f"patchform predict {run} {things} --out answers/"
    yield f"patchform evaluate {run} --data OTHER_{things}"
    yield f"patchform export {run} --format onnx"


def _word(value: Any) -> str:
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))
