"""Options of the verbs that ask a model for the class of every pixel: how it is asked."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from patchform.errors import UsageError

if TYPE_CHECKING:
    from patchform.inference import Ask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--window`, `--stride`, `--scales`, `--mirrored`."""
    window = "for large pictures: windows of N x N pixels, averaged where they overlap"
    parser.add_argument("--window", type=int, metavar="N", help=window)
    parser.add_argument("--stride", type=int, metavar="N", help="pixels from a window to the next (default: 2/3 of it)")
    parser.add_argument("--scales", type=float, nargs="+", metavar="X", help="average over sizes of the picture")
    parser.add_argument("--mirrored", action="store_true", help="average with the mirror image")


def way(arguments: argparse.Namespace) -> Ask | None:
    """The way that was asked for; None for the usual one.

    Raises:
        UsageError: windows and scales at once, or a number that is none.
    """
    from patchform.inference import Scaled, Sliding

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
    return Sliding((arguments.window,) * 2, (stride,) * 2)
