"""Score a trained model on labelled pictures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchform.commands import inference_options, recipes, terminal
from patchform.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchform.metrics.base import Scores

EXAMPLE = "patchform evaluate runs/first --data holiday-photos/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `evaluate_run` takes."""
    parser.add_argument("run", metavar="RUN", help="run folder, or exported file (.onnx, .xml, .pt2)")
    parser.add_argument("--data", metavar="DIR", help="folder or CSV list (default: the run's validation pictures)")
    out = "for evaluation.json and report.html (default: RUN; of a file beside it, FILE.evaluation); or a .csv file"
    parser.add_argument("--out", metavar="DIR|FILE.csv", help=f"{out} for the scores, a line a class and one of all")
    parser.add_argument("--per-picture", metavar="FILE.csv", help="the same for each picture: truth, answer, scores")
    inference_options.add_run_arguments(parser)
    inference_options.add_arguments(parser)
    inference_options.add_runtime_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the numbers."""
    scores = evaluate(
        arguments.run,
        data=arguments.data,
        out=arguments.out,
        per_picture=arguments.per_picture,
        infer=inference_options.chosen(arguments),
        runtime=inference_options.runtime_options(arguments),
        say=terminal.say,
        **inference_options.run_options(arguments),
    )
    if arguments.json:
        print(json.dumps(scores.as_json(), allow_nan=False))
        return 0
    width = max(map(len, scores.numbers))
    print(f"{'images':{width}}  {scores.samples}")
    for name, value in scores.numbers.items():
        print(f"{name:{width}}  {'-' if value is None else f'{value:.4f}'}")
    return 0


def evaluate(
    run: str | Path,
    data: Any = None,
    *,
    classes: Sequence[str] | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Scores:
    """Evaluate a run folder or an exported file; writes evaluation.json, confusion.png, pr.png and report.html.

    Of a file that lies in a run folder, data are read as that run's recipe says.

    Args:
        run: run folder, or file.
        data: folder or CSV list, or a Python object (`patchform.data.python_sets`); default: the validation pictures of
            the run.
        classes: names of the numbers in the targets of a Python object.
        out: folder for these; or a file NAME.csv, not there yet, for the scores: a line a class and one of all.
        options: of `patchform.evaluation.evaluate_run`: infer, runtime, per_picture, progress, batch_size, workers,
            device, precision, skip_bad, say.

    Raises:
        UsageError: no data, and the run has held out a part of its own.
        PatchformError: whatever `evaluate_run` raises.
    """
    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    path = _validation_of(folder) if data is None or (isinstance(data, str) and not data) else _path_of(data, classes)
    settings = recipes.resolve(folder).data if (folder / "recipe.yaml").is_file() else None

    from patchform.evaluation import check_table, evaluate_run
    from patchform.report import write_report
    from patchform.weights.files import replace_text

    table = check_table(out) if out is not None and Path(out).suffix.lower() == ".csv" else None
    if table is None:
        options["out"] = out
    scores = evaluate_run(run, path, settings=settings, **options)
    shown = {name: options[name] for name in ("out", "skip_bad", "runtime") if name in options}
    write_report(run, path, settings=settings, **shown)
    if table is not None:
        replace_text(table, scores.as_csv())
    return scores


def _path_of(data: Any, classes: Sequence[str] | None) -> str:
    from patchform.data import python_sets  # torch

    paths = python_sets.paths_of(data, classes)
    return str(paths.get("validation") or paths["path"])


def _validation_of(folder: Path) -> str:
    if not (folder / "recipe.yaml").is_file():
        what = "a run folder without its recipe, or a file outside of one"
        raise UsageError(what, where=folder, remedy="name the pictures: --data DIR")
    from patchform.data.dataset import has_validation

    recipe = recipes.resolve(folder)
    if recipe.data.validation:
        return recipe.data.validation
    if recipe.data.path and has_validation(recipe.data.path, recipe.task):
        return recipe.data.path
    raise UsageError("the run has no validation folder of its own", where=folder, remedy="name pictures: --data DIR")
