"""The model of a run folder, also of a run that has not ended: its best so far, or that of its newest checkpoint."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from patchform.errors import ModelFileError
from patchform.weights import files
from patchform.weights.sources import (
    BEST,
    CHECKPOINTS,
    DESCRIPTION,
    FORMAT,
    WEIGHTS,
    check_description,
    read_description,
)

STATE, AVERAGE = "state.json", "average.safetensors"
"""In a checkpoint: where the run stood, and the moving average, if there is one."""
_ARCHITECTURE = ("task", "backbone", "head", "backbone_options", "head_options")


class SavedModel(NamedTuple):
    """Where a model lies, every bit of it as its manifest says."""

    weights: Path
    description: dict[str, Any]
    """The content of model.json, or what the checkpoint says of it."""
    source: Path
    """The file of the description."""
    note: str
    """What the user should know: which model of a run that has not ended it is; "" of one that has."""


def find_model(folder: Path) -> SavedModel:
    """The model of a run folder, of `best/` or of a checkpoint.

    Raises:
        ModelFileError: there is none, it is damaged or not understood.
    """
    if not (folder / DESCRIPTION).exists():
        if (folder / STATE).exists():
            return _of_checkpoint(folder, f"the model is that of the checkpoint {folder}")
        if (folder / CHECKPOINTS).is_dir() or (folder / BEST).is_dir():
            return _unfinished(folder)
    return SavedModel(folder / WEIGHTS, read_description(folder), folder / DESCRIPTION, "")


def data_digest(run: Path) -> str | None:
    """Of the pictures that a run was trained and validated on (`data.dataset.digest`), as its checkpoints have it; None
    where none is left that says so.
    """
    for state in sorted((run / CHECKPOINTS).glob(f"step-*/{STATE}"), reverse=True):
        with suppress(ModelFileError):
            identity = files.read_json(state).get("identity")
            if isinstance(identity, dict) and isinstance(identity.get("data"), str):
                return str(identity["data"])
    return None


def _unfinished(run: Path) -> SavedModel:
    copies = sorted((run / CHECKPOINTS).glob(f"{BEST}-*"), reverse=True)
    for folder in (run / BEST, *copies):
        if folder.is_dir() and not files.verify(folder, (DESCRIPTION, WEIGHTS)):
            note = f"{run} has not ended: the model is its best so far, {folder.relative_to(run)}"
            return SavedModel(folder / WEIGHTS, read_description(folder), folder / DESCRIPTION, note)
    for folder in sorted((run / CHECKPOINTS).glob("step-*"), reverse=True):
        if not files.verify(folder):
            which = f"that of its newest checkpoint, {folder.name}, which no validation has chosen"
            return _of_checkpoint(folder, f"{run} has not ended: the model is {which}")
    remedy = "resume the run to go on"
    raise ModelFileError("the run has not ended and has no whole model yet", where=run, remedy=remedy)


def _of_checkpoint(folder: Path, note: str) -> SavedModel:
    """The average of a checkpoint if it has one, else its model."""
    if faults := files.verify(folder):
        raise ModelFileError(f"not an intact checkpoint ({faults[0]})", where=folder)
    identity = files.read_json(folder / STATE).get("identity")
    if not isinstance(identity, dict):
        raise ModelFileError("it does not say of what model it is", where=folder / STATE)
    description = {
        "format": FORMAT,
        "architecture": {name: identity[name] for name in _ARCHITECTURE if name in identity},
        "classes": identity.get("classes"),
        "preprocessing": identity.get("preprocessing"),
        "thresholds": None,
        "ids": None,
    }
    check_description(description, folder / STATE)
    average = folder / AVERAGE
    weights = average if average.exists() else folder / WEIGHTS
    return SavedModel(weights, description, folder / STATE, note)
