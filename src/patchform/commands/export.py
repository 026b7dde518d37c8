"""Write a trained model as a file that needs no patchform: ONNX, a .pt2 program of torch, or OpenVINO."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchform.commands import early_checks, export_check, export_int8, inference_options, terminal
from patchform.errors import UsageError
from patchform.schema import Range, number

if TYPE_CHECKING:
    from patchform.export.writing import Exported

EXAMPLE = "patchform export runs/first --format onnx"
OPSET = number(int, Range(least=20, most=23))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `export` takes."""
    parser.add_argument("run", metavar="RUN", nargs="?", help="run folder")
    parser.add_argument("--format", choices=("onnx", "torch", "openvino"), default="onnx", help="default: onnx")
    parser.add_argument("--out", metavar="FILE", help="default: RUN/model.onnx, model.pt2 or model.xml")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    size = "free (default): any; or HxW,HxW,...: a file for each, with all that follows from its size worked out"
    parser.add_argument("--size", metavar="SIZE", default="free", help=size)
    batch = "pictures at once (default: any number)"
    parser.add_argument("--batch", type=inference_options.IMAGES, default=0, metavar="N", help=batch)
    dtype = "of weights and arithmetic: float32 (default), float16, int8"
    parser.add_argument("--dtype", choices=("float32", "float16", "int8"), default="float32", help=dtype)
    inside = "take pictures of any size and resize them inside, as training did"
    parser.add_argument("--resize-inside", action="store_true", help=inside)
    parser.add_argument("--opset", type=OPSET, default=20, metavar="N", help="of ONNX (default: 20)")
    export_int8.add_arguments(parser)
    export_check.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """A line for each file, or a JSON object in a list."""
    early_checks.data(arguments.data)
    if arguments.check is not None:
        early_checks.file(arguments.check)
        return export_check.run(arguments)
    if arguments.run is None or arguments.of_run is not None:
        raise UsageError("no run to export", remedy="patchform export RUN; --run is for --check FILE")
    early_checks.trained(arguments.run, file=False)
    _sizes(arguments.size)
    console = terminal.stderr_console()
    with terminal.progress_bars(console) as progress:
        files = export(
            arguments.run,
            format=arguments.format,
            out=arguments.out,
            overwrite=arguments.overwrite,
            size=arguments.size,
            batch=arguments.batch,
            dtype=arguments.dtype,
            resize_inside=arguments.resize_inside,
            opset=arguments.opset,
            check=export_check.options(arguments) | {"progress": progress},
            int8=export_int8.options(arguments) | {"progress": progress},
            say=terminal.above(console),
        )
    if arguments.json:
        print(json.dumps([_record(file) for file in files], allow_nan=False))
        return 0
    for file in files:
        told = file.description
        takes = (
            ", ".join(f"{height}x{width}" for height, width in told.sizes) or f"any size from {told.least} pixels on"
        )
        megabytes = file.bytes / 1e6
        print(f"{file.path}  {megabytes:.1f} MB  {told.dtype}  {takes}  gives {', '.join(told.outputs)}")
        print(f"{file.path}  {export_check.sentence(file.path)}")
    return 0


def export(
    run: str | Path,
    *,
    out: str | Path | None = None,
    size: str | Sequence[Any] = "free",
    check: Mapping[str, Any] | None = None,
    int8: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Write the model of a run folder as files for other runtimes, each of which is checked against it.

    Args:
        run: run folder.
        out: the file; default: `model` in the run folder, with the format's ending.
        size: "free" for any, "224x224" or "224x224,256x320" for a file for each, or a list of (height, width).
        check: how files are proved, arguments of `patchform.commands.export_check.prover`: data, images, allow,
            unproved, workers, progress.
        int8: how files of int8 are made, arguments of `patchform.commands.export_int8.converter`: method, data, images,
            bits, least_snr, progress.
        options: fields of `patchform.export.options.ExportOptions` (format, dtype, resize_inside, batch, opset), and
            of `patchform.export.writing.export_model`: overwrite, say.

    Returns:
        A list of `patchform.export.writing.Exported`: path, description, bytes, seconds.

    Raises:
        UsageError: options that do not go together, a package that is missing, a model that cannot be so; no pictures
            to prove a file on.
        FolderError: a file is there, and `overwrite` is False.
        ModelFileError: the run is damaged, or a file does not compute what the model does.
        ResourceError: the disk is full or the place is not writable.
    """
    from patchform import model as models
    from patchform import schema
    from patchform.errors import unheard
    from patchform.export.options import SUFFIXES, ExportOptions
    from patchform.export.writing import export_model, places

    about = {name: options.pop(name) for name in ("overwrite", "say") if name in options}
    values = options | {"sizes": _sizes(size) if isinstance(size, str) else [list(pair) for pair in size]}
    try:
        wanted = schema.build(ExportOptions, values, parse=str)
    except schema.Misfit as misfit:
        raise UsageError(misfit.what, remedy=misfit.remedy) from None
    model = models.load(run, say=about.get("say", unheard))
    file = Path(run) / f"model{SUFFIXES[wanted.format]}" if out is None else Path(out)
    places(model, file, wanted, overwrite=bool(about.get("overwrite")))  # before pictures are looked for
    prove = export_check.prover(run, model, **(check or {}), say=about.get("say", unheard))
    to_int8 = export_int8.converter(run, model, format=wanted.format, **(int8 or {}), say=about.get("say", unheard))
    return export_model(model, file, wanted, prove=prove, to_int8=to_int8, **about)


def _sizes(text: str) -> list[list[int]]:
    """(height, width) of each of "224x224,256x320"; none of "free"."""
    return [] if text == "free" else [list(inference_options.picture_size(part)) for part in text.split(",")]


def _record(file: Exported) -> dict[str, Any]:
    """What was written, as plain values, and the report on it."""
    from patchform.export.proving import report_path

    return {
        "file": str(file.path),
        "bytes": file.bytes,
        "seconds": round(file.seconds, 1),
        "check": json.loads(report_path(file.path).read_text(encoding="utf-8")),
        "description": json.loads(file.description.as_text()),
    }
