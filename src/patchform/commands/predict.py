"""Say what pictures show: a line of JSON for each."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchform.commands import early_checks, inference_options, terminal
from patchform.commands.inference_options import IMAGES, SCORE, SECONDS
from patchform.errors import UsageError

if TYPE_CHECKING:
    from patchform.prediction import Predictor

EXAMPLE = "patchform predict runs/first new/*.jpg --out answers/"
SOME_FAILED = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `prediction.write` takes."""
    parser.add_argument("run", metavar="RUN", help="run folder, exported file (.onnx, .xml, .pt2), published weights")
    option = "of published weights: " + inference_options.OPTION
    parser.add_argument("--option", metavar="K=V", action="append", default=[], help=option)
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help="picture, video, folder, pattern, or - for stdin")
    parser.add_argument("--out", metavar="DIR", help="folder for predictions.jsonl and annotated pictures")
    parser.add_argument("--format", metavar="FORMAT", help="of objects coco or yolo: in this format too, in --out")
    ids = "of coco: annotation file whose ids the results have (default: the one beside the pictures)"
    parser.add_argument("--ids", metavar="FILE", help=ids)
    over = "replace what an earlier prediction left in --out; other files stay"
    parser.add_argument("--overwrite", action="store_true", help=over)
    counts, every = (
        "objects that count (default: as validation chose, by class)",
        "of videos: an answer each so many seconds",
    )
    parser.add_argument("--threshold", type=SCORE, metavar="SCORE", help=counts)
    parser.add_argument("--every", type=SECONDS, metavar="SECONDS", help=every)
    parser.add_argument("--span", type=SECONDS, metavar="SECONDS", help="with --every: what each answer sees")
    parser.add_argument("--batch-size", type=IMAGES, default=16, metavar="N", help="images at once")
    parser.add_argument("--device", type=inference_options.device, default="auto", help="auto, cpu, cuda, mps")
    inference_options.add_arguments(parser)
    inference_options.add_runtime_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Lines on stdout; exit code 8 when some pictures could not be used."""
    early_checks.trained(arguments.run, published=True)
    early_checks.sources(arguments.sources)
    options = inference_options.constructor_options(arguments.option)
    if arguments.span is not None and arguments.every is None:
        raise UsageError("--span without --every")
    inference_options.check(arguments)

    from patchform.prediction import write
    from patchform.timeline import Along

    along = None if arguments.every is None else Along(arguments.every, arguments.span)
    infer = inference_options.chosen(arguments)
    predictor = load(
        arguments.run,
        device=arguments.device,
        threshold=arguments.threshold,
        infer=infer,
        runtime=inference_options.runtime_options(arguments),
        options=options,
        say=terminal.say,
    )
    written = write(
        predictor,
        arguments.sources,
        stream=sys.stdout,
        out=arguments.out,
        batch_size=arguments.batch_size,
        along=along,
        overwrite=arguments.overwrite,
        format=arguments.format,
        ids=arguments.ids,
        say=terminal.say,
    )
    if arguments.out is not None and written.images > written.failed:
        terminal.say(f"predictions.jsonl and pictures of the answers are in {arguments.out}")
    if written.failed:
        print(f"{written.failed} of {written.images} pictures could not be used", file=sys.stderr)
    return SOME_FAILED if written.failed else 0


def load(run: str | Path, **options: Any) -> Predictor:
    """The model of a run folder, an exported file or published weights, ready to predict.

    Args:
        run: run folder, file, or name of published weights.
        options: of `patchform.prediction.load`: device, precision, infer, threshold, runtime, options, say.

    Raises:
        ModelFileError: the folder holds no intact model, the file is damaged or not patchform's.
    """
    from patchform import prediction

    return prediction.load(run, **options)
