"""From a trained model to files that hold all that using it takes: each is there whole, and proved, or not at all."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch.export import ExportedProgram

from patchform import __version__
from patchform.errors import FolderError, UsageError, unheard
from patchform.export import onnx_file, openvino_file, precision, program_file
from patchform.export.graph import FileGraph, example, takes_sizes, trace_file
from patchform.export.int8_options import Int8Report
from patchform.export.onnx_file import WEIGHTS
from patchform.export.options import SUFFIXES, ExportOptions
from patchform.export.preparation import prepared
from patchform.model import Model
from patchform.resources import writing
from patchform.runtime.description import FILE_FORMAT, FileDescription
from patchform.runtime.openvino_session import openvino
from patchform.tasks.base import Task, task_of
from patchform.weights.files import TEMPORARY, digest, one_line

Prove = Callable[[Path], None]
"""Compares a file with the model that it was made from; raises where it is not the same."""
ToInt8 = Callable[[Path, Path, FileDescription], Int8Report]
"""Makes an ONNX file of int8 of one of float32: `patchform.export.quantize`."""


class Exported(NamedTuple):
    """A file that was written."""

    path: Path
    description: FileDescription
    bytes: int
    """Of all that belongs to it."""
    seconds: float


def export_model(
    model: Model,
    out: str | Path,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    prove: Prove | None = None,
    to_int8: ToInt8 | None = None,
    say: Callable[[str], None] = unheard,
) -> list[Exported]:
    """Write a model as a file, or as one for each of several sizes.

    Args:
        model: built by `build_model`; it is not changed.
        out: the file. Of several sizes `model.onnx` becomes `model-224x224.onnx` and so on.
        options: what it should be.
        overwrite: replace files that are there.
        prove: called with each file before it gets its place; what it raises keeps the file from it.
        to_int8: makes a file of int8 of one of float32; needed for the dtype int8.
        say: called with what is going on, a sentence.

    Raises:
        UsageError: a name that ends otherwise than files of the format, a package that is missing, or a model that
            cannot be exported so.
        FolderError: a file is there, and `overwrite` is False.
        ResourceError: the disk is full or the place is not writable.
    """
    wanted = options or ExportOptions()
    files = places(model, Path(out), wanted, overwrite=overwrite)
    if wanted.dtype != "int8":
        to_int8 = None
    elif to_int8 is None:
        raise UsageError("int8 without pictures to measure it on", remedy="use `patchform.export`, or pass to_int8")
    ready, weights = prepared(model), digest(model.state_dict())
    return [
        _export(ready, weights, wanted, size, file, prove, to_int8, say)
        for size, file in zip(wanted.sizes or (None,), files)
    ]


def targets(out: Path, options: ExportOptions) -> list[Path]:
    """The files that will be written, one for each size. Raises UsageError for a name of another format."""
    suffix = SUFFIXES[options.format]
    if out.suffix != suffix:
        others = [name for name, ending in SUFFIXES.items() if ending == out.suffix]
        meant = f", or say --format {others[0]}" if others else ""
        raise UsageError(f"{out} for a file of {options.format}", remedy=f"let the name end in {suffix}{meant}")
    if len(options.sizes) < 2:
        return [out]
    return [out.with_name(f"{out.stem}-{height}x{width}{suffix}") for height, width in options.sizes]


def describe(model: Model, options: ExportOptions, size: tuple[int, int] | None, weights: str = "") -> FileDescription:
    """What a file for these options says of itself; `weights`: the digest of the model before it was made ready."""
    assert model.architecture is not None
    task = task_of(model.architecture, model.head)
    graph = FileGraph(model, task)
    with torch.inference_mode():
        outputs = graph.inner(*example(model, size or (2 * least_side(model),) * 2, batch=options.batch or 1))
        derived = task.derived(outputs, graph.thresholds)
    return FileDescription(
        format=FILE_FORMAT,
        patchform=__version__,
        task=model.architecture.task,
        task_options=task.options(),
        architecture=model.architecture,
        classes=model.classes,
        ids=model.ids,
        thresholds=model.thresholds,
        preprocessing=model.preprocessing,
        resizes=options.resize_inside,
        inputs=("images", "sizes") if takes_sizes(task, options) else ("images",),
        record=type(outputs).__name__,
        outputs=(*outputs._fields, *derived),
        batch=options.batch,
        sizes=() if size is None else (size,),
        least=1 if options.resize_inside else min(size) if size else least_side(model),
        dtype=options.dtype,
        weights=weights,
    )


def least_side(model: Model) -> int:
    """Shortest side of input that a file for any size is made and checked for: one cell of the coarsest map."""
    return max(model.backbone.feature_info.strides)


def beside(file: Path) -> list[Path]:
    """What may lie beside a file and belong to it: weights."""
    return [file.with_suffix(".bin")] if file.suffix == SUFFIXES["openvino"] else [file.with_name(file.name + WEIGHTS)]


def places(model: Model, out: Path, options: ExportOptions, *, overwrite: bool) -> list[Path]:
    """The files that will be written. Raises as `export_model` for all that can be known beforehand."""
    files = targets(out, options)
    if options.format != "torch":
        onnx_file.check_installed()
    if options.format == "openvino":
        openvino()
    if options.dtype == "int8" and options.format == "torch":
        raise UsageError("int8 in a .pt2 file", remedy="take --format onnx or openvino")
    if len(set(options.sizes)) != len(options.sizes):
        raise UsageError("a size is named twice")
    if options.resize_inside and options.sizes:
        raise UsageError("a size for pictures that are resized inside", remedy="leave --size or --resize-inside out")
    there = [part for file in files for part in (file, *beside(file)) if part.exists()]
    if there and not overwrite:
        raise FolderError("exists already", where=there[0], remedy="name another with --out, or say --overwrite")
    return files


def _export(
    model: Model,
    weights: str,
    options: ExportOptions,
    size: tuple[int, int] | None,
    file: Path,
    prove: Prove | None,
    to_int8: ToInt8 | None,
    say: Callable[[str], None],
) -> Exported:
    start = time.monotonic()
    task, description = task_of(model.architecture, model.head), describe(model, options, size, weights)
    taken = "pictures of any size" if size is None else f"{size[0]}x{size[1]}"
    with _unfinished(file) as temporary:
        say(f"{file}: making the graph for {taken}")
        program = _traced(model, task, options, size)
        if precision.halves(options):
            program = precision.halved(program)
        seconds = time.monotonic() - start
        say(f"{file}: the graph took {seconds:.0f} s, to write it takes about {2 * seconds:.0f} s")
        description = _write(program, description, options, temporary, to_int8)
        number = sum(part.stat().st_size for part in temporary.parent.iterdir())
        if prove is not None:
            say(f"{file}: written in {time.monotonic() - start:.0f} s, now it is checked")
            prove(temporary)
    return Exported(file, description, number, time.monotonic() - start)


def _traced(model: Model, task: Task, options: ExportOptions, size: tuple[int, int] | None) -> ExportedProgram:
    try:
        with precision.computing(options):
            program = trace_file(model, task, options, size)
        return program_file.without_unused(program_file.without_notes(program))
    except torch._dynamo.exc.UserError as error:
        if size is not None:
            raise
        height, width = model.preprocessing.size
        remedy = f"name the sizes that it will meet: --size {height}x{width}"
        raise UsageError(f"its graph is tied to sizes ({one_line(str(error))})", remedy=remedy) from error


def _write(
    program: ExportedProgram,
    description: FileDescription,
    options: ExportOptions,
    path: Path,
    to_int8: ToInt8 | None,
) -> FileDescription:
    """Write the file, and give what it then says of itself."""
    if options.format == "torch":
        program_file.write(program, description, path)
        return description
    between = path.with_suffix(SUFFIXES["onnx"])
    onnx_file.write(onnx_file.convert(program, description, opset=options.opset), between)
    if to_int8 is not None:
        description = replace(description, left_out=to_int8(between, between, description).kept_float32())
        onnx_file.describe_again(between, description)
    if options.format == "openvino":
        openvino_file.write(between, description, path)
        for part in path.parent.glob(f"{between.name}*"):
            part.unlink()
    return description


@contextmanager
def _unfinished(file: Path) -> Iterator[Path]:
    """Where to write a file, and what belongs to it, until it is whole and takes its place."""
    folder = file.parent / f"{TEMPORARY}{os.getpid()}-{file.name}"
    with writing(file):
        folder.mkdir()
    try:
        yield folder / file.name
        with writing(file):
            parts = sorted(folder.iterdir(), key=_weights_first)
            for part in parts:
                part.replace(file.parent / part.name)
            for stale in set(beside(file)) - {file.parent / part.name for part in parts}:
                stale.unlink(missing_ok=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _weights_first(part: Path) -> bool:
    """What names the others comes last."""
    return part.suffix in SUFFIXES.values()
