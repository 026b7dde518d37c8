"""The state of a run on disk: all that an exact resume needs, in safetensors and JSON, each file with its SHA-256.

    checkpoints/step-00000123/  model, average, optimizer, random .safetensors | state.json | manifest.json (last)
                                and of a run with adapters model-apart, average-apart .safetensors

model and average are plain models, which others can read; what merging adapters into them loses lies apart.

A checkpoint is there whole or not at all (`weights.files.atomic_folder`). On resume the newest one whose every bit is
right wins; older ones are deleted only after a newer one is on the disk.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from patchform import distributed, schema
from patchform.errors import ModelFileError, UsageError
from patchform.model import Model
from patchform.resources import writing
from patchform.schema import Range
from patchform.training import adapters
from patchform.training.scaling import OFF, LossScaling
from patchform.weights import files
from patchform.weights.stopped import STATE

FORMAT = 1
SCALER, BESIDE = "scaler.safetensors", "beside.safetensors"
"""Of runs in float16 alone; of those that learn something beside their model."""
APART = "{}-apart.safetensors"
"""Of runs with adapters alone: `adapters.State.apart` of the model, and of the average."""


Count = Annotated[int, Range(least=0, most=2**53)]


@dataclass(kw_only=True)
class Counters:
    """Where a run stands."""

    step: Count = 0
    """Optimizer steps taken."""
    reported: Count = 0
    """Step of the last epoch end that was validated and logged."""
    epoch_loss: float = 0.0
    """Sum over the steps of this epoch."""
    best: float | None = None
    """Best score so far."""
    best_step: Count = 0
    without_better: Count = 0
    """Validations since the best one."""

    def to_json(self) -> str:
        """As text, for other processes."""
        return json.dumps(dataclasses.asdict(self))

    def load_json(self, text: str) -> None:
        """Take on the values of another one's `to_json`."""
        for name, value in json.loads(text).items():
            setattr(self, name, value)


@dataclass(frozen=True, kw_only=True)
class State:
    """What `state.json` holds."""

    format: int
    """Version of the file."""
    counters: Counters
    random: dict[str, Any]
    """Global generators of Python and NumPy, as they give themselves; torch's are tensors beside."""
    identity: dict[str, Any]
    """What must be the same on resume."""
    machine: dict[str, int | str]
    """What the last bits depend on, see `machine`."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """All that moves in a run."""

    model: Model
    average: Model | None
    optimizer: Optimizer
    counters: Counters
    scaler: LossScaling = OFF
    beside: nn.Module | None = None
    """What is learnt beside the model and left behind."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All that the optimizer may move, by names that differ."""
        yield from self.model.named_parameters()
        if self.beside is not None:
            yield from self.beside.named_parameters("beside")


# ------------------------------------------------------------------------------------------------------------- save


def save(parts: Parts, folder: Path, *, identity: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint of this step, then delete all but the newest `keep`.

    Args:
        parts: what to write.
        folder: the run's `checkpoints`.
        identity: plain values that must be the same on resume.
        keep: at least 1.

    Raises:
        ResourceError: the disk is full or the folder is not writable; earlier checkpoints are untouched.
    """
    path = folder / name_of(parts.counters)
    numbers, generators = _random_state()
    with files.atomic_folder(path) as unfinished:
        for name, model in _models(parts).items():
            state_of_model = adapters.state_of(model)
            files.write_tensors(unfinished / f"{name}.safetensors", state_of_model.plain)
            if state_of_model.apart:
                files.write_tensors(unfinished / APART.format(name), state_of_model.apart)
        files.write_tensors(unfinished / "optimizer.safetensors", _optimizer_state(parts))
        files.write_tensors(unfinished / "random.safetensors", generators)
        if parts.beside is not None:
            files.write_tensors(unfinished / BESIDE, parts.beside.state_dict())
        if scaling := parts.scaler.tensors():
            files.write_tensors(unfinished / SCALER, scaling)
        state = State(
            format=FORMAT, counters=parts.counters, random=numbers, identity=identity, machine=machine(parts.model)
        )
        files.write_json(unfinished / STATE, dataclasses.asdict(state))
    _prune(folder, path, keep)
    return path


def name_of(counters: Counters) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{counters.step:08d}"


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Delete all but the newest `keep`; what claims to be newer than the one just written is left of a damaged one."""
    whole = [path for path in steps(folder) if path.name <= newest.name]
    for path in set(steps(folder)) - set(whole[-max(keep, 1) :]):
        doomed = folder / f"{files.TEMPORARY}{path.name}"
        with writing(path):
            path.rename(doomed)  # half a deleted checkpoint must not look like one
        files.failpoint("prune")
        shutil.rmtree(doomed, ignore_errors=True)


def steps(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first, whole or not."""
    return sorted(folder.glob("step-*"))


def best_steps(folder: Path) -> list[int]:
    """The step of the best model that each checkpoint of a run speaks of; damaged ones speak of none."""
    spoken_of = []
    for path in steps(folder):
        with suppress(ModelFileError):
            counters = files.read_json(path / STATE).get("counters")
            step = counters.get("best_step") if isinstance(counters, dict) else None
            spoken_of += [step] if isinstance(step, int) else []
    return spoken_of


def machine(model: Model) -> dict[str, int | str]:
    """What the last bits of a result depend on beside the recipe."""
    device = next(model.parameters()).device
    return {
        "processes": distributed.rank_and_world().world_size,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


# ------------------------------------------------------------------------------------------------------------- load


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint without a fault, None if no checkpoint was ever written; and a line for each bad one.

    Raises:
        ModelFileError: there are checkpoints, and none is whole.
    """
    notes: list[str] = []
    for path in reversed(steps(folder)):
        faults = files.verify(path)
        if not faults:
            return path, notes
        notes.append(f"skipped a damaged checkpoint: {path.name}/{faults[0]}")
    if notes:
        raise ModelFileError(
            f"no checkpoint is whole ({'; '.join(notes)})", where=folder, remedy="start a new run, or restore a copy"
        )
    return None, notes


def restore(parts: Parts, path: Path, *, identity: dict[str, Any]) -> list[str]:
    """Put a run back to where a checkpoint left it, random generators included.

    Args:
        parts: as they were built for the run; changed in place.
        path: a checkpoint without a fault.
        identity: as on saving.

    Returns:
        A line for each difference of the machine that may change the last bits.

    Raises:
        ModelFileError: the checkpoint is of another run; names the keys that differ.
    """
    state = _state(path)
    saved = state.identity
    if differing := sorted(key for key in saved.keys() | identity.keys() if saved.get(key) != identity.get(key)):
        raise ModelFileError(
            f"the checkpoint is of another run: {', '.join(differing)} differ",
            where=path,
            remedy="resume with the same settings, or start a new run with model.init_from",
        )
    try:
        for name, model in _models(parts).items():
            _load(model, path, name)
        if parts.beside is not None:
            parts.beside.load_state_dict(files.read_tensors(path / BESIDE))
        _load_optimizer(parts, path / "optimizer.safetensors")
        if (path / SCALER).exists():
            parts.scaler.load_tensors(files.read_tensors(path / SCALER))
        parts.counters.load_json(state.counters.to_json())
        _set_random_state(state.random, files.read_tensors(path / "random.safetensors"))
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ModelFileError(f"not what this version writes ({error})", where=path) from error
    current = machine(parts.model)
    return [
        f"resuming with {name} {current.get(name)}, was {value}: results will be close, not identical"
        for name, value in state.machine.items()
        if current.get(name) != value
    ]


def _state(path: Path) -> State:
    content, where = files.read_json(path / STATE), path / STATE
    if content.get("format") != FORMAT:
        raise ModelFileError(f"format {content.get('format')!a} is not {FORMAT}", where=where)
    try:
        state = schema.build(State, content)
    except schema.Misfit as misfit:
        raise ModelFileError(
            f"not what this version writes: {misfit.what}", where=where, remedy=misfit.remedy
        ) from None
    counters = state.counters
    if path.name != name_of(counters) or max(counters.reported, counters.best_step) > counters.step:
        raise ModelFileError("its counters are not those of this checkpoint", where=where)
    return state


def _models(parts: Parts) -> dict[str, Model]:
    """By the names of their files."""
    return {"model": parts.model} | ({} if parts.average is None else {"average": parts.average})


def _load(model: Model, path: Path, name: str) -> None:
    apart = path / APART.format(name)
    state = adapters.State(
        files.read_tensors(path / f"{name}.safetensors"), files.read_tensors(apart) if apart.exists() else {}
    )
    model.load_state_dict(adapters.own_state(model, state))


# ------------------------------------------------------------------------------------------- optimizer and generators


_OF_GROUPS = {"params", "lr", "lr_scale", "weight_decay"}
"""What a run itself has put into the groups of an optimizer."""


def _optimizer_state(parts: Parts) -> dict[str, Tensor]:
    """Tensors by "<parameter>/<quantity>". Raises UsageError for an optimizer that keeps anything else."""
    state, optimizer = parts.optimizer.state, parts.optimizer
    kept = {key for values in state.values() for key, value in values.items() if not isinstance(value, Tensor | None)}
    moved = {
        key
        for group in optimizer.param_groups
        for key, value in group.items()
        if key not in _OF_GROUPS and value != optimizer.defaults.get(key)
    }
    if kept or moved:
        what = f"{type(optimizer).__name__} keeps {', '.join(sorted(kept | moved))}, which no checkpoint would hold"
        raise UsageError(what, remedy="keep it as a tensor in self.state[parameter], and nothing in its groups")
    return {
        f"{name}/{key}": value
        for name, parameter in parts.named_parameters()
        for key, value in state.get(parameter, {}).items()
        if value is not None  # SGD without momentum
    }


def _load_optimizer(parts: Parts, path: Path) -> None:
    names = {id(parameter): name for name, parameter in parts.named_parameters()}
    ordered = [parameter for group in parts.optimizer.param_groups for parameter in group["params"]]
    index = {names[id(parameter)]: i for i, parameter in enumerate(ordered)}
    state: dict[int, dict[str, Tensor]] = {}
    for full, tensor in files.read_tensors(path).items():
        name, _, key = full.rpartition("/")
        if name not in index and name in names.values():
            continue  # it moved before, and is frozen now
        like = ordered[index[name]]
        if tensor.shape == like.shape:  # fused kernels need the parameter's memory format
            tensor = torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        state.setdefault(index[name], {})[key] = tensor
    parts.optimizer.load_state_dict({"state": state, "param_groups": parts.optimizer.state_dict()["param_groups"]})


def _random_state() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Plain numbers and tensors of the global generators of Python, NumPy and torch."""
    version, words, gauss = random.getstate()
    numeric: dict[str, Any] = dict(np.random.get_state(legacy=False))
    numeric["state"] = {"key": numeric["state"]["key"].tolist(), "pos": numeric["state"]["pos"]}
    numbers = {"python": [version, list(words), gauss], "numpy": numeric}
    tensors = {"torch": torch.get_rng_state()}
    for index, state in enumerate(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []):
        tensors[f"cuda.{index}"] = state
    return numbers, tensors


def _set_random_state(numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    version, words, gauss = numbers["python"]
    random.setstate((version, tuple(words), gauss))
    numeric = numbers["numpy"]
    numeric["state"]["key"] = np.array(numeric["state"]["key"], dtype=np.uint32)
    np.random.set_state(numeric)
    torch.set_rng_state(tensors["torch"])
    for index in range(torch.cuda.device_count()):
        if (state := tensors.get(f"cuda.{index}")) is not None:
            torch.cuda.set_rng_state(state, index)
