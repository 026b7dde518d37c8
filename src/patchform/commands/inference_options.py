"""Options of the verbs that run a trained model: over which data how, and how predictions are made."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from patchform.errors import UsageError
from patchform.schema import Range, number

if TYPE_CHECKING:
    from patchform.inference import Inference
    from patchform.runtime.sessions import RuntimeOptions

THREADS = number(int, Range(least=1, most=1024))
IMAGES, WORKERS = number(int, Range(least=1, most=1_000_000)), number(int, Range(least=0, most=1024))
"""Types of what several verbs take: images at once, processes that decode."""
SECONDS, SCALE = number(float, Range(above=0, most=1e9)), number(float, Range(above=0, most=100))
SCORE, SKIPPED = number(float, Range(least=0, most=1e6)), number(float, Range(least=0, below=1))
MARGIN = number(int, Range(least=0, most=16_384))
SIDE, VIEWS = number(int, Range(least=1, most=16_384)), number(int, Range(least=1, most=1000))


def picture_size(text: str) -> tuple[int, int]:
    """(height, width) of "224x224", pixels. Raises UsageError for other words."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.lower())
    if found is None or not (int(found[1]) and int(found[2])):
        raise UsageError(f'--size "{text}"', remedy="say height x width, such as 224x224")
    return int(found[1]), int(found[2])


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """`--batch-size`, `--workers`, `--device`, `--skip-bad`: fields of `device.RunOptions`."""
    at_once, bad = (
        "images at once, those of one size together; changes no number but by rounding",
        "unreadable pictures to put up with",
    )
    parser.add_argument("--batch-size", type=IMAGES, default=32, metavar="N", help=at_once)
    parser.add_argument("--workers", type=WORKERS, default=0, metavar="N", help="processes that decode")
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--skip-bad", type=SKIPPED, default=0.0, metavar="SHARE", help=bad)


def device(name: str) -> str:
    """A type of argparse: the name of a device, which may not be here."""
    if re.fullmatch(r"auto|cpu|mps|(cuda|xpu|hpu|npu)(:\d+)?", name) is None:
        raise argparse.ArgumentTypeError(f"it cannot be {name!r}; it is auto, cpu, cuda, cuda:1, ... or mps")
    return name


OPTION = "argument of the backbone, such as layer_scale=1 or image_size=224; several times for several"


def add_backbone_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, `--weights`, `--option`: of `probe.open_backbone`."""
    parser.add_argument("model", metavar="MODEL", help="run folder, published weights, or backbone (with --weights)")
    parser.add_argument("--weights", metavar="FILE", help="weights of the backbone that MODEL names")
    parser.add_argument("--option", metavar="K=V", action="append", default=[], help=OPTION)


def constructor_options(words: Sequence[str]) -> dict[str, Any]:
    """What `depth=3` says, as {"depth": 3}; what is no JSON is text."""
    options: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f'"{word}" has no value', remedy="write name=value")
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        options[name] = tuple(read) if isinstance(read, list) else read
    return options


def run_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of `add_run_arguments`, by name."""
    return {name: getattr(arguments, name) for name in ("batch_size", "workers", "device", "skip_bad")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--window`, `--stride`, `--margin`, `--measure`, `--scales`, `--mirrored`, `--clips`, `--crops`."""
    window = "for large pictures: window by window of N x N pixels, averaged or merged where they overlap"
    parser.add_argument("--window", type=SIDE, metavar="N", help=window)
    parser.add_argument("--stride", type=SIDE, metavar="N", help="pixels between windows (default: 2/3 of one)")
    margin = "pixels along a window's edges that do not count, for masks (default: 0)"
    parser.add_argument("--margin", type=MARGIN, metavar="N", help=margin)
    measure = (
        "of windows for objects: what two boxes share is compared with the smaller or the union (default: smaller)"
    )
    parser.add_argument("--measure", choices=("smaller", "union"), help=measure)
    parser.add_argument("--scales", type=SCALE, nargs="+", metavar="X", help="average over sizes of the picture")
    parser.add_argument("--mirrored", action="store_true", help="average with the mirror image")
    parser.add_argument("--clips", type=VIEWS, metavar="N", help="of videos: average over N clips of each (default: 1)")
    parser.add_argument("--crops", type=VIEWS, metavar="N", help="of videos: and N crops of each clip (default: 1)")


def chosen(arguments: argparse.Namespace) -> Inference:
    """How predictions are made; without an option from the whole picture at once.

    Windows are of the picture itself (`SlicedObjects`) or of the model's input (`SlidingWindow`), as the task of the
    model of `arguments.run` has it (`Task.windows`).

    Raises:
        UsageError: windows, scales and views at once, or windows that do not cover a picture.
        ModelFileError: windows, and no intact model that says what they are for.
    """
    check(arguments)
    from patchform.inference import MultiScale, MultiView, SlicedObjects, SlidingWindow
    from patchform.model import Model

    if arguments.clips is not None or arguments.crops is not None:
        return MultiView(arguments.clips or 1, arguments.crops or 1)
    if arguments.window is None:
        if not (arguments.scales or arguments.mirrored):
            return Model.predict
        return MultiScale(tuple(arguments.scales or (1.0,)), arguments.mirrored)
    window, strides, margin = (arguments.window,) * 2, (_stride(arguments),) * 2, arguments.margin or 0
    if _windows_of(arguments.run) != "picture":
        if arguments.measure is not None:
            raise UsageError("--measure is for objects", remedy="leave it out where a model gives every pixel a class")
        return SlidingWindow(window, strides, margin=margin)
    if margin:
        raise UsageError("--margin is for masks", remedy="leave it out where a model finds objects")
    return SlicedObjects(window, strides, measure=arguments.measure or "smaller")


def check(arguments: argparse.Namespace) -> None:
    """Raise UsageError for windows, scales and views at once, or windows that do not cover a picture."""
    if arguments.clips is not None or arguments.crops is not None:
        if arguments.window or arguments.scales or arguments.mirrored:
            raise UsageError("views of videos beside windows or scales", remedy="choose one of them")
        return
    for name in ("stride", "margin", "measure"):
        if getattr(arguments, name) is not None and arguments.window is None:
            raise UsageError(f"--{name} without --window")
    if arguments.window is None:
        return
    if arguments.scales or arguments.mirrored:
        raise UsageError("windows and scales at once", remedy="choose one of them")
    margin, stride = arguments.margin or 0, _stride(arguments)
    if not (0 < stride <= arguments.window - 2 * margin):
        margins = f" with margins of {margin}" if margin else ""
        raise UsageError(f"windows of {arguments.window} pixels{margins}, {stride} apart, do not cover a picture")


def _stride(arguments: argparse.Namespace) -> int:
    """Pixels between windows."""
    if arguments.stride is not None:
        return int(arguments.stride)
    return min(-(-2 * arguments.window // 3), arguments.window - 2 * (arguments.margin or 0))


def add_runtime_arguments(parser: argparse.ArgumentParser) -> None:
    """`--runtime`, `--provider`, `--threads`, `--trust`: fields of `runtime.sessions.RuntimeOptions`."""
    runtime, provider = (
        "of an exported file (default: onnxruntime for .onnx, openvino for .xml, torch for .pt2)",
        "of onnxruntime or OpenVINO: cpu, cuda, ... (default: cpu)",
    )
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino", "torch"), default="auto", help=runtime)
    parser.add_argument("--provider", metavar="NAME", default="cpu", help=provider)
    parser.add_argument("--threads", type=THREADS, metavar="N", help="that compute an exported file (default: all)")
    parser.add_argument("--trust", action="store_true", help="open a .pt2 file, which can run code of its author")


def runtime_options(arguments: argparse.Namespace) -> RuntimeOptions:
    """The values of `add_runtime_arguments`."""
    from patchform.runtime.sessions import RuntimeOptions

    return RuntimeOptions(
        runtime=arguments.runtime, provider=arguments.provider, threads=arguments.threads, trust=arguments.trust
    )


def _windows_of(run: str) -> str:
    from patchform.runtime.opening import task_name
    from patchform.tasks.base import find_task

    return find_task(task_name(run)).windows
