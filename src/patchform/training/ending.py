"""What a run has reached, where it lies, and what to type next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from patchform.tasks.base import Task
from patchform.training.loop import Run
from patchform.training.pace import in_words
from patchform.training.saving import quoted, with_plugins

WIDE = 12
"""Columns of a name."""


def ending(run: Run, *, page: str | None, seconds: float) -> Iterator[tuple[str, str]]:
    """What a run has reached, where it lies and what to type next: names and lines.

    Args:
        run: that has ended.
        page: where its page is.
        seconds: that it took, this time.
    """
    task, length, listing = run.task, run.data.length(run.recipe), run.data.splits.validation
    if run.best is None:
        yield "best", "no number tells which model of the run is the best: the last one is kept"
    else:
        epoch, epochs = (number // length.steps_per_epoch for number in (run.best_step, length.steps))
        on = f"{len(listing):,} {listing.thing}s"
        yield "best", f"{task.better} {run.best:.4f} on {on}, in epoch {epoch} of {epochs} (higher is better)"
        if task.meaning:
            yield "", task.meaning
    yield "model", str(run.folder)
    if page is not None:
        yield "page", page
    yield "time", in_words(seconds)
    for number, command in enumerate(next_commands(task, run.folder, listing.thing)):
        yield "" if number else "next", with_plugins(command)


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
        yield f"patchform train classification/small --data LABELLED_{things} --from {run}"
        yield f"patchform features {run} {things} --out features.safetensors"
        return
    yield f"patchform predict {run} {things} --out answers/"
    yield f"patchform evaluate {run} --data OTHER_{things}"
    yield f"patchform export {run} --format onnx"
