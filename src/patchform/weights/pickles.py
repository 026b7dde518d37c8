"""Checkpoints of others that are pickles: the one place that opens them, for the command that converts a named file.

A pickle is a program. torch.load with weights_only=True runs only what builds tensors, numbers, text and containers,
and here argparse.Namespace, in which many training scripts keep their options, and refuses everything else. What numpy
puts beside weights (a best score, an array of class frequencies) is read without running numpy: the names that its
pickles call stand for functions and classes of this file, which take a number for nothing and an array for the bytes
that it is. Holes were found in weights_only twice (CVE-2025-32434, CVE-2026-24747; mended in the oldest torch that
patchform takes), so no pickle is opened on the way to anything else: once converted it is safetensors.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy
import torch
from torch import Tensor, nn

from patchform import lookup
from patchform.errors import ModelFileError, UsageError
from patchform.weights import files
from patchform.weights.sources import MOST_ENTRIES, archive, is_pickle, most_unpacked

SAVE = 'import torch; torch.save(model.state_dict(), "weights.pth")'
"""What makes a file that is read."""
DEEPEST = 16
"""Dictionaries inside one another that are still followed."""


NUMBERS = ("f", "i", "u", "b")
"""How the codes of kinds begin of which there are tensors."""


class _Kind:
    """In place of numpy.dtype: a kind of numbers by its code, such as "f4"."""

    def __init__(self, code: Any = "", *options: Any) -> None:
        self.code = str(code)
        self.order: Literal["=", "<", ">"] = "="

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]


class _Array:
    """In place of numpy.ndarray: a tensor, or None for what is no array of numbers."""

    tensor: Tensor | None = None

    def __setstate__(self, state: Any) -> None:
        match state:
            case (int(), tuple(shape), _Kind() as kind, bool(by_columns), bytes(data)) if kind.code[:1] in NUMBERS:
                dtype = numpy.dtype(kind.code).newbyteorder(kind.order)
                array = numpy.ndarray(shape, dtype, buffer=data, order="F" if by_columns else "C")
                if min(shape, default=0) < 0 or array.nbytes != len(data):
                    raise ValueError(f"{len(data)} bytes are no array of shape {shape}")
                self.tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=True))


def _array(*arguments: Any) -> _Array:
    """In place of what numpy calls to make an array, whose content is told to it later."""
    return _Array()


def _number(*arguments: Any) -> None:
    """In place of what numpy calls to make a number, which no weights are made of."""


def _no_bytes(*arguments: Any) -> bytes:
    """In place of the type, which pickles call to make none of them: the content of an empty array."""
    return b""


_NUMPY: list[tuple[Callable[..., Any], str]] = [
    (_no_bytes, "builtins.bytes"),
    (_no_bytes, "__builtin__.bytes"),
    (_Kind, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""What stands for the names in a pickle that numpy wrote."""


class Contents(NamedTuple):
    """What a pickle holds."""

    parts: dict[str, dict[str, Tensor]]
    """The dictionaries that hold tensors, by their path ("model", "ema.module"; "" is the outermost)."""
    ignored: tuple[str, ...]
    """Paths of what is no tensor in a dictionary of names: numbers, settings, lists, the state of an optimizer."""


def read_pickle(path: Path) -> Contents:
    """Open a pickle that torch.save wrote, and run nothing of it.

    Args:
        path: a file that the user named for this: a zip archive with a data.pkl, or a stream of older versions.

    Returns:
        Tensors on the CPU, dense and contiguous; those that shared all their memory still do.

    Raises:
        ModelFileError: not such a file, damaged, or it names anything beside tensors and plain values, unpacks to far
            more than it is, or has no tensors with names.
    """
    if not holds_pickle(path):
        remedy = "only .pth, .pt and .bin files need converting"
        raise ModelFileError("not a checkpoint of torch.save", where=path, remedy=remedy)
    try:
        quiet = warnings.catch_warnings(action="ignore")  # of odd protocols, which it then reads or refuses
        with quiet, torch.serialization.safe_globals([argparse.Namespace, *_NUMPY]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # a hostile file may make it raise anything
        remedy = "nothing of it was executed; save the weights alone, where it was made: " + SAVE
        raise ModelFileError(_reason(str(error)), where=path, remedy=remedy) from error
    contents = _contents(content, path, arrays=False)
    contents = contents if contents.parts else _contents(content, path, arrays=True)
    if not contents.parts:
        raise ModelFileError("it holds no tensors with names", where=path)
    return contents


def holds_pickle(path: Path) -> bool:
    """Whether a file is what torch.save writes; nothing of it is opened to tell.

    Raises:
        ModelFileError: missing, not a regular file, or a damaged archive.
    """
    start = files.read_bytes(path, files.LARGEST_TENSORS, start=512)
    if not start.startswith(b"PK\x03\x04"):
        return is_pickle(start)
    with archive(path) as (_, entries):
        return any(entry.filename.endswith("/data.pkl") for entry in entries)


def choose(parts: Mapping[str, dict[str, Tensor]], part: str | None = None) -> dict[str, Tensor]:
    """The only part, or the one of that name.

    Raises:
        UsageError: no such part, or several and none named; it lists them.
    """
    if part is None and len(parts) == 1:
        (part,) = parts
    if part is None:
        counts = ", ".join(f'"{name}" ({len(tensors)})' for name, tensors in parts.items())
        raise UsageError(f"tensors in {len(parts)} parts: {counts}", remedy="name the part")
    if part not in parts:
        raise lookup.no_such("part", part, parts)
    return parts[part]


def _reason(message: str) -> str:
    """What torch refused, without its advice on how to run the file all the same."""
    if named := re.search(r"GLOBAL ([\w.]+)", message):
        return f"it names {named[1]}, neither a tensor nor a plain value"
    message = message.rpartition("WeightsUnpickler error:")[2].strip().removeprefix("Weights only load failed.")
    return f"a pickle that is not opened: {files.one_line(message.partition('In PyTorch')[0])}"


def _contents(content: Any, path: Path, *, arrays: bool) -> Contents:
    """Sort what was in the pickle; the file may hold a dictionary in itself, or one tensor a million times.

    Arrays of numpy count as tensors only where they are asked for: beside tensors they are no weights.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    ignored: list[str] = []
    size, most, entries = 0, most_unpacked(path.stat().st_size), 0
    queue: list[tuple[str, int, Any]] = [("", 0, content)]
    for key, depth, value in queue:  # grows on the way
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            ignored.append(key)
            continue
        tensors = {}
        for name, inner in value.items():
            if not name.isprintable():
                raise ModelFileError(f"a name that cannot be printed: {name!a}", where=path)
            if arrays and isinstance(inner, _Array) and inner.tensor is not None:
                inner = inner.tensor
            if isinstance(inner, Tensor):
                size += inner.nbytes if inner.layout == torch.strided else 0
                tensors[name] = inner
            else:
                queue.append((f"{key}.{name}" if key else name, depth + 1, inner))
        entries += len(value)
        if depth > DEEPEST or entries > MOST_ENTRIES:
            raise ModelFileError(f"more than {DEEPEST} levels or {MOST_ENTRIES} entries", where=path)
        if size > most:
            raise ModelFileError(f"its tensors are of {size} bytes; up to {most} are believed", where=path)
        if tensors and key in parts:
            raise ModelFileError(f'two parts are called "{key}"', where=path)
        if tensors:
            parts[key] = {name: _owned(tensor, name, path) for name, tensor in tensors.items()}
    return Contents(parts, tuple(ignored))


def _owned(tensor: Tensor, name: str, path: Path) -> Tensor:
    """The tensor without anything that hangs on it: gradient, view of a larger memory, odd order of its axes."""
    dense = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    if type(tensor) not in (Tensor, nn.Parameter) or not dense:
        raise ModelFileError(f"{name} is not a dense tensor", where=path)
    plain = tensor.detach().resolve_conj().resolve_neg()
    whole = plain.is_contiguous() and plain.nbytes == plain.untyped_storage().nbytes()
    return plain if whole else plain.clone(memory_format=torch.contiguous_format)
