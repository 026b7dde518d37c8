"""Options of the verbs that ask a model what a picture shows: how it is asked."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from patchform.errors import UsageError

if TYPE_CHECKING:
    from patchform.inference import Ask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--window`, `--stride`, `--scales`, `--mirrored`."""
    window = "for large pictures: window by window of N x N pixels, averaged or merged where they overlap"
    parser.add_argument("--window", type=int, metavar="N", help=window)
    parser.add_argument("--stride", type=int, metavar="N", help="pixels from a window to the next (default: 2/3 of it)")
    parser.add_argument("--scales", type=float, nargs="+", metavar="X", help="average over sizes of the picture")
    parser.add_argument("--mirrored", action="store_true", help="average with the mirror image")


def way(arguments: argparse.Namespace) -> Ask | None:
    """The way that was asked for; None for the usual one.

    Windows are of the picture itself (`Sliced`) if the model of `arguments.run` finds objects, otherwise of the model's
    input (`Sliding`).

    Raises:
        UsageError: windows and scales at once, or a number that is none.
        ModelFileError: windows, and no intact model that says what they are for.
    """
    from patchform.inference import Scaled, Sliced, Sliding

    if arguments.stride is not None and arguments.window is None:
        raise UsageError("--stride without --window")
    if arguments.window is None:
        scales = tuple(arguments.scales or (1.0,))
        if min(scales) <= 0:
            raise UsageError(f"a scale of {min(scales):g}", remedy="give numbers above 0")
        return Scaled(scales, arguments.mirrored) if arguments.scales or arguments.mirrored else None
    if arguments.scales or arguments.mirrored:
        raise UsageError("windows and scales at once", remedy="choose one of them")
    stride = -(-2 * arguments.window // 3) if arguments.stride is None else arguments.stride
    if not 0 < stride <= arguments.window:
        raise UsageError(f"windows of {arguments.window} pixels, {stride} apart, do not cover a picture")
    kind = Sliced if _finds_objects(arguments.run) else Sliding
    return kind((arguments.window,) * 2, (stride,) * 2)


def _finds_objects(run: str) -> bool:
    from patchform import lookup
    from patchform.records import Instances
    from patchform.tasks.base import Task
    from patchform.weights.sources import read_description

    name = read_description(Path(run))["architecture"].get("task")
    kind: type[Task] | None = lookup.the_class("tasks", name, Task) if isinstance(name, str) else None
    return kind is not None and kind.target is Instances
