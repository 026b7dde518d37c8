"""What to type instead of a run that starts from nothing and has little to learn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from patchform import lookup, schema, system
from patchform.settings import DataSettings, Recipe
from patchform.tasks.base import Task, find_task
from patchform.training.batches import TrainingData
from patchform.training.saving import quoted, with_plugins

FEW = 10_000
"""Pictures or clips, from which on a model may start from nothing."""
COLOURS = 3
"""Channels of the pictures that published weights have seen."""


def start_notes(recipe: Recipe, data: TrainingData) -> list[str]:
    """What to say of a run that starts from nothing with few pictures, and a command that starts from knowledge."""
    task, listing = find_task(recipe.task), data.listing
    few = len(listing) < FEW and recipe.preprocessing.channels == COLOURS
    if recipe.model.init_from is not None or not (few and task.suggested):
        return []
    row = lookup.weights_file(task.suggested)
    return [
        f"{len(listing):,} {listing.thing}s are few for a model that starts from nothing: it has to learn from them"
        f" what edges and shapes are, too; from one that knows pictures ({row.megabytes} MB, {row.licence}, fetched"
        " once):",
        f"  {fine_tuning(recipe, task)}",
    ]


def fine_tuning(recipe: Recipe, task: Task) -> str:
    """The command that fine-tunes published weights on the data of a recipe."""
    words = ["patchform", "train", f"{recipe.task}/fine_tune"]
    usual = {field.name: field.value for field in schema.fields(DataSettings())}
    for field in schema.fields(recipe.data):
        if field.name == "path" and field.value is not None:
            words += ["--data", quoted(Path(field.value))]
        elif field.value != usual[field.name] and field.name not in ("features", "workers"):
            words += [f"--data.{field.name}", _word(field.value)]
    return with_plugins(" ".join([*words, "--from", task.suggested]))


def _word(value: Any) -> str:
    return system.quoted(value if isinstance(value, str) else json.dumps(value))
