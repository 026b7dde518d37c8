"""The part of `export` that makes files of int8."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchform.commands import inference_options, recipes
from patchform.errors import UsageError, unheard
from patchform.schema import Range, number

if TYPE_CHECKING:
    from patchform.export.int8_options import Int8Report
    from patchform.export.quantizers import Feeds
    from patchform.model import Model
    from patchform.runtime.description import FileDescription

PICTURES = 256
"""That ranges of activations and the loss are measured on, if there are as many. With 64 a picture in a hundred lay
outside the ranges of a ParNet, and was far off."""
SNR = 20.0
DECIBELS = number(float, Range(least=0, most=120))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--int8`, `--calibration`, `--calibration-images`, `--int8-snr`."""
    method = "ranges of activations of int8: static (of pictures), dynamic (of each batch), auto (default: by measure)"
    parser.add_argument("--int8", choices=("auto", "static", "dynamic"), default="auto", help=method)
    data = "labelled pictures that int8 is measured on (default: those that the run was trained on)"
    parser.add_argument("--calibration", metavar="DIR", help=data)
    many = f"of these, evenly picked (default: {PICTURES})"
    kind = inference_options.IMAGES
    parser.add_argument("--calibration-images", type=kind, default=PICTURES, metavar="N", help=many)
    snr = f"decibels by which the last layers exceed the error of int8; layers stay float32 for it (default: {SNR:g})"
    parser.add_argument("--int8-snr", type=DECIBELS, default=SNR, metavar="DB", help=snr)


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `converter` takes of a command line."""
    return {
        "method": arguments.int8,
        "data": arguments.calibration,
        "images": arguments.calibration_images,
        "least_snr": arguments.int8_snr,
    }


def converter(
    run: str | Path,
    model: Model,
    *,
    format: str,
    data: str | Path | None = None,
    images: int = PICTURES,
    progress: Callable[[str, int, int], None] | None = None,
    say: Callable[[str], None] = unheard,
    **more: Any,
) -> Callable[[Path, Path, FileDescription], Int8Report]:
    """What makes an int8 file of a float32 one: `to_int8` of `patchform.export.writing.export_model`.

    Args:
        run: the folder that is exported.
        model: of it, loaded.
        format: of the file. Of OpenVINO ranges are static: it is slower with dynamic ones than in float32.
        data: labelled pictures; default: those that the run was trained on.
        images: how many of these.
        progress: called with what is done, how much, of how much.
        say: called with what became of it, sentences.
        more: fields of `patchform.export.int8_options.Int8Options`: method, bits, least_snr.

    Raises:
        UsageError: `data` or static ranges, and no pictures.
        DataError: pictures that cannot be used.
    """
    from patchform.export.int8_options import Int8Options
    from patchform.export.quantize import quantize

    wanted = Int8Options(**more)
    if format == "openvino":
        if wanted.method == "dynamic":
            raise UsageError("OpenVINO is slow with dynamic ranges", remedy="leave out --int8 dynamic")
        wanted = replace(wanted, method="static")

    def convert(source: Path, target: Path, description: FileDescription) -> Int8Report:
        try:
            pictures: Sequence[Feeds] = _pictures(Path(run), model, data, images, description)
        except UsageError as error:
            if data is not None or wanted.method == "static":
                raise
            say(f"int8 with dynamic ranges, and what it loses is not measured layer by layer: {error.what}")
            pictures = []
        report = quantize(source, target, pictures, wanted, progress=progress)
        for line in report.lines():
            say(line)
        return report

    return convert


def _pictures(
    folder: Path, model: Model, data: str | Path | None, images: int, description: FileDescription
) -> Sequence[Feeds]:
    from patchform.export.calibration import CalibrationPictures, listing_of
    from patchform.tasks.base import task_of

    recipe = recipes.resolve(folder) if (folder / "recipe.yaml").is_file() else None
    task = task_of(model.architecture, model.head)
    listing = listing_of(model, task, recipe, data)
    skip_bad = 0.0 if recipe is None else recipe.data.skip_bad
    return CalibrationPictures(model, task, listing, images, description, skip_bad)
