"""Options of the verbs that ask a model what a picture shows: how it is asked."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from patchform.errors import UsageError

if TYPE_CHECKING:
    from patchform.inference import Inference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--window`, `--stride`, `--margin`, `--scales`, `--mirrored`, `--clips`, `--crops`."""
    window = "for large pictures: window by window of N x N pixels, averaged or merged where they overlap"
    parser.add_argument("--window", type=int, metavar="N", help=window)
    parser.add_argument("--stride", type=int, metavar="N", help="pixels from a window to the next (default: 2/3 of it)")
    parser.add_argument(
        "--margin",
        type=int,
        metavar="N",
        help="pixels along a window's edges that do not count, for masks (default: 0)",
    )
    parser.add_argument("--scales", type=float, nargs="+", metavar="X", help="average over sizes of the picture")
    parser.add_argument("--mirrored", action="store_true", help="average with the mirror image")
    parser.add_argument("--clips", type=int, metavar="N", help="of videos: average over N clips of each (default: 1)")
    parser.add_argument("--crops", type=int, metavar="N", help="of videos: and N crops of each clip (default: 1)")


def chosen(arguments: argparse.Namespace) -> Inference | None:
    """The way that was asked for; None for the usual one.

    Windows are of the picture itself (`SlicedObjects`) or of the model's input (`SlidingWindow`), as the task of the
    model of `arguments.run` has it (`Task.windows`).

    Raises:
        UsageError: windows, scales and views at once, or a number that is none.
        ModelFileError: windows, and no intact model that says what they are for.
    """
    from patchform.inference import MultiScale, MultiView, SlicedObjects, SlidingWindow

    if arguments.clips is not None or arguments.crops is not None:
        clips, crops = (1 if number is None else number for number in (arguments.clips, arguments.crops))
        if min(clips, crops) < 1:
            raise UsageError(f"{clips} clips and {crops} crops", remedy="give numbers of at least 1")
        if arguments.window or arguments.scales or arguments.mirrored:
            raise UsageError("views of videos beside windows or scales", remedy="choose one of them")
        return MultiView(clips, crops)
    for name in ("stride", "margin"):
        if getattr(arguments, name) is not None and arguments.window is None:
            raise UsageError(f"--{name} without --window")
    if arguments.window is None:
        scales = tuple(arguments.scales or (1.0,))
        if min(scales) <= 0:
            raise UsageError(f"a scale of {min(scales):g}", remedy="give numbers above 0")
        return MultiScale(scales, arguments.mirrored) if arguments.scales or arguments.mirrored else None
    if arguments.scales or arguments.mirrored:
        raise UsageError("windows and scales at once", remedy="choose one of them")
    margin = arguments.margin or 0
    usual = min(-(-2 * arguments.window // 3), arguments.window - 2 * margin)
    stride = usual if arguments.stride is None else arguments.stride
    if not (margin >= 0 and 0 < stride <= arguments.window - 2 * margin):
        beside = f" with margins of {margin}" if margin else ""
        raise UsageError(f"windows of {arguments.window} pixels{beside}, {stride} apart, do not cover a picture")
    window, apart = (arguments.window,) * 2, (stride,) * 2
    if _windows_of(arguments.run) != "picture":
        return SlidingWindow(window, apart, margin=margin)
    if margin:
        raise UsageError("--margin is for masks", remedy="leave it out where a model finds objects")
    return SlicedObjects(window, apart)


def _windows_of(run: str) -> str:
    from patchform.tasks.base import find_task
    from patchform.weights.sources import read_description

    return find_task(str(read_description(Path(run))["architecture"].get("task"))).windows
