"""Where a run stands, in a small file that is read without torch: what it is, and how it ended if it has."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from patchform import schema, system
from patchform.errors import UsageError
from patchform.schema import Range
from patchform.training.recipe_files import load

STANDING = "run.json"
RECIPE, LOCK, METRICS, MODEL, DIVERGED = "recipe.yaml", "run.lock", "metrics.csv", "model.json", "diverged.json"
"""Other files of a run folder. Their names are here, since whoever lists runs imports no torch."""
LARGEST = 1 << 24
"""Bytes of a file that are still read."""
State = Literal["running", "finished", "stopped", "diverged", "failed", "broken"]
Written = Literal["running", "finished", "stopped", "diverged", "failed"]
Count = Annotated[int, Range(least=0, most=2**53)]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What `run.json` holds."""

    format: int = 1
    """Version of the file."""
    state: Written
    """As of the process that wrote it: one that was killed leaves "running"."""
    task: str
    backbone: str
    head: str
    metric: str | None
    """Column of metrics.csv by which its models are compared, higher is better."""
    meaning: str
    """Of that, in words."""
    epochs: Count
    """In all."""


class Row(NamedTuple):
    """What is known of a run folder."""

    name: str
    """Of the folder."""
    task: str | None
    model: str | None
    """family/size."""
    metric: str | None
    score: float | None
    """The best so far of that metric."""
    epoch: int
    """Epochs that have ended."""
    epochs: int | None
    """In all."""
    changed: float
    """When it last did something, seconds since 1970."""
    state: State
    why: str
    """What is broken of it, "" otherwise."""


def look(folder: Path) -> Row | None:
    """What is known of a folder; None where it is no run. Only small files are read, and none is trusted."""
    present = [name for name in (STANDING, RECIPE, METRICS) if os.path.lexists(folder / name)]
    if not ({STANDING, RECIPE} & set(present)):
        return None
    changed = max(_changed(folder / name) for name in present)
    faults: list[str] = []
    standing = _standing(folder, faults) if STANDING in present else None
    if standing is None:
        standing = _of_recipe(folder, faults)
    rows = _rows(folder / METRICS)
    epochs = [int(row["epoch"]) for row in rows if row.get("epoch", "").isdecimal()]
    metric = None if standing is None else standing.metric
    scores = [value for row in rows if metric and (value := _number(row.get(metric))) is not None]
    return Row(
        name=folder.name,
        task=None if standing is None else standing.task,
        model=None if standing is None else standing.backbone,
        metric=metric,
        score=max(scores, default=None),
        epoch=max(epochs, default=0),
        epochs=None if standing is None else standing.epochs,
        changed=changed,
        state=_state(folder, standing, faults),
        why="; ".join(faults),
    )


def _state(folder: Path, standing: Standing | None, faults: list[str]) -> State:
    if is_locked(folder):
        return "running"
    if faults or standing is None:
        return "broken"
    if standing.state == "finished" and not (folder / MODEL).is_file():
        faults.append(f"{MODEL} is missing")
        return "broken"
    return "stopped" if standing.state == "running" else standing.state


def owner_of(folder: Path) -> str:
    """Words on the process that holds the lock of a run folder, none if there is none."""
    try:
        with open(folder / LOCK, encoding="utf-8") as file:
            if system.try_lock(file.fileno(), shared=True):
                return ""
            owner = json.loads(file.read() or "{}")
            facts = dict.fromkeys(("pid", "host", "start"), "?")
            return " by process {pid} on {host} since {start}".format_map(facts | owner)
    except (OSError, ValueError, TypeError):
        return ""


def is_locked(folder: Path) -> bool:
    """Whether a process of this machine is at work in a run folder."""
    if not _readable(folder / LOCK):
        return False
    try:
        with open(folder / LOCK, encoding="utf-8") as file:
            return not system.try_lock(file.fileno(), shared=True)
    except OSError:
        return False


def as_text(standing: Standing) -> str:
    """The content of `run.json`."""
    return json.dumps(asdict(standing), indent=1) + "\n"


def _standing(folder: Path, faults: list[str]) -> Standing | None:
    try:
        if not _readable(folder / STANDING):
            raise ValueError
        standing = schema.build(Standing, json.loads((folder / STANDING).read_text(encoding="utf-8")))
        schema.check(standing)
        return standing
    except (OSError, ValueError, RecursionError):
        faults.append(f"{STANDING} cannot be read")
        return None


def _of_recipe(folder: Path, faults: list[str]) -> Standing | None:
    """Likewise of a run that has no such file, from its recipe, which does not say what its models are compared by."""
    try:
        if not _readable(folder / RECIPE):
            raise UsageError("no file")
        recipe = load(folder / RECIPE)
    except UsageError:
        faults.append(f"{RECIPE} cannot be read")
        return None
    ended: Written = "finished" if (folder / MODEL).is_file() else "stopped"
    return Standing(
        state="diverged" if ended == "stopped" and (folder / DIVERGED).is_file() else ended,
        task=recipe.task,
        backbone=recipe.model.backbone,
        head=recipe.model.head,
        metric=None,
        meaning="",
        epochs=recipe.training.epochs,
    )


def _rows(path: Path) -> list[Mapping[str, Any]]:
    """The rows of metrics.csv, as far as they can be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if _readable(path) else ""
        rows = list(csv.DictReader(text.splitlines(), restval=""))
    except (OSError, csv.Error):
        return []
    return [row for row in rows if all(isinstance(value, str) for value in row.values())]


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _readable(path: Path) -> bool:
    """Whether it is a file, no pipe or device, and not a large one."""
    try:
        about = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(about.st_mode) and about.st_size <= LARGEST


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
