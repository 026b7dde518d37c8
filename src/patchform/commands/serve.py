"""Answer over HTTP what pictures show, and show a page to try it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from patchform import system
from patchform.commands import early_checks, inference_options, terminal
from patchform.commands.inference_options import SCORE
from patchform.errors import UsageError
from patchform.schema import Range, number
from patchform.training.standing import look

if TYPE_CHECKING:
    from patchform.serving.jobs import Card

EXAMPLE = "patchform serve runs/first"
PORT, DECODERS = number(int, Range(least=0, most=65535)), number(int, Range(least=1, most=256))
TOKEN = "PATCHFORM_TOKEN"
"""Variable of the environment: what is given on a command line is seen in lists of processes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where, what is taken, and how predictions are made."""
    parser.add_argument(
        "run", metavar="RUN|FILE", help="run folder, exported file (.onnx, .xml, .pt2), published weights"
    )
    option = "of published weights: " + inference_options.OPTION
    parser.add_argument("--option", metavar="K=V", action="append", default=[], help=option)
    parser.add_argument("--host", default="127.0.0.1", help="address; others than this machine need --token")
    parser.add_argument("--port", type=PORT, default=8000, metavar="N", help="0: any that is free (default: 8000)")
    workers = "processes that decode pictures (default: one for two cores); the model has one of its own"
    parser.add_argument("--workers", type=DECODERS, metavar="N", help=workers)
    token = f"what clients must know: Authorization: Bearer TOKEN (default: the variable {TOKEN})"
    parser.add_argument("--token", metavar="TEXT", help=token)
    limit = "such as queue=32, body=10000000 or batch=8; several times for several (see docs/serving.md)"
    parser.add_argument("--limit", metavar="NAME=N", action="append", default=[], help=limit)
    counts = "objects that count (default: as validation chose, by class)"
    parser.add_argument("--threshold", type=SCORE, metavar="SCORE", help=counts)
    parser.add_argument("--device", type=inference_options.device, default="auto", help="auto, cpu, cuda, mps")
    inference_options.add_arguments(parser)
    inference_options.add_runtime_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it: 0, or 128 + the number of a second one."""
    early_checks.trained(arguments.run, published=True)
    options = inference_options.constructor_options(arguments.option)
    inference_options.check(arguments)

    from patchform.serving.limits import parse
    from patchform.serving.log import Log
    from patchform.serving.model_process import Opening

    try:
        from patchform.serving.server import Place, serve
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed", remedy='pip install "patchform[serve]"') from error

    limits = parse(arguments.limit)
    place = Place(arguments.host, arguments.port, arguments.token or os.environ.get(TOKEN) or None)
    place.check()
    opening = Opening(
        arguments.run,
        {
            "device": arguments.device,
            "threshold": arguments.threshold,
            "infer": inference_options.chosen(arguments),
            "runtime": inference_options.runtime_options(arguments),
            "options": options,
        },
        tuple(arguments.plugin),
        _facts(arguments.run),
    )

    def begun(address: str, card: Card) -> None:
        if arguments.json:
            print(json.dumps({"address": address, **card._asdict()}, allow_nan=False), flush=True)
        else:
            what = f"{card.task}, {len(card.classes)} classes"
            terminal.say(
                f"{arguments.run} ({what}) answers at {address} : open it, or POST pictures to {address}/predict"
            )

    decoders = arguments.workers or max(1, system.cores() // 2)
    with closing(Log(sys.stderr)) as log:
        return serve(opening, place, limits, decoders, begun=begun, log=log)


def _facts(run: str) -> tuple[tuple[str, str], ...]:
    """How well a run did."""
    row = look(Path(run))
    return () if row is None or row.score is None else (("validation", f"{row.metric} {row.score:.4f}"),)
