"""Score a trained model on labelled pictures."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchform import system
from patchform.commands import early_checks, inference_options, recipes, terminal
from patchform.errors import DataError, UsageError
from patchform.settings import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchform.data.listing import Listing
    from patchform.metrics.base import Scores

EXAMPLE = "patchform evaluate runs/first --data holiday-photos/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `evaluate_run` takes."""
    parser.add_argument("run", metavar="RUN", help="run folder, or exported file (.onnx, .xml, .pt2)")
    data = "folder or CSV list (default: what the run was validated on, a share that it held out too)"
    parser.add_argument("--data", metavar="DIR", help=data)
    out = "for evaluation.json and report.html (default: RUN; of a file beside it, FILE.evaluation); or a .csv file"
    parser.add_argument("--out", metavar="DIR|FILE.csv", help=f"{out} for the scores, a line a class and one of all")
    parser.add_argument("--per-picture", metavar="FILE.csv", help="the same for each picture: truth, answer, scores")
    inference_options.add_run_arguments(parser)
    inference_options.add_arguments(parser)
    inference_options.add_runtime_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the numbers."""
    early_checks.trained(arguments.run)
    early_checks.data(arguments.data)
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
    _print(scores)

    from patchform.evaluation import results_of

    own = arguments.out is None or arguments.out.lower().endswith(".csv")
    home = results_of(Path(arguments.run)) if own else Path(arguments.out)
    terminal.say(f"pictures, and numbers by class: {home / 'report.html'}")
    return 0


def _print(scores: Scores) -> None:
    """A number a line with what it means, on several lines where a terminal is narrow."""
    from patchform.metrics.meanings import meaning

    said = {name: "-" if value is None else f"{value:.4f}" for name, value in scores.numbers.items()}
    said = {"images": str(scores.samples), **said}
    name_width, width = max(map(len, said)), max(map(len, said.values()))
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
    for name, value in said.items():
        first = f"{name:{name_width}}  {value:{width}}  "
        print(
            textwrap.fill(meaning(name), max(60, columns), initial_indent=first, subsequent_indent=" " * len(first))
            or first.rstrip()
        )


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
            the run, or the share that it held out.
        classes: names of the numbers in the targets of a Python object.
        out: folder for these; or a file NAME.csv, not there yet, for the scores: a line a class and one of all.
        options: of `patchform.evaluation.evaluate_run`: infer, runtime, per_picture, progress, batch_size, workers,
            device, precision, skip_bad, say.

    Raises:
        UsageError: no data, and the run does not say which pictures it was validated on.
        DataError: those that it held out are not there, or not the same, any more.
        PatchformError: whatever `evaluate_run` raises.
    """
    folder = Path(run) if Path(run).is_dir() else Path(run).parent
    path: str | Listing
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


def _validation_of(folder: Path) -> str | Listing:
    """What a run was validated on: a place of its own, or the share of its pictures that it held out."""
    remedy = f"name labelled pictures: patchform evaluate {system.quoted(str(folder))} --data DIR"
    if not (folder / "recipe.yaml").is_file():
        raise UsageError("no recipe says what it was validated on", where=folder, remedy=remedy)
    recipe = recipes.resolve(folder)
    if recipe.data.validation:
        return recipe.data.validation
    if recipe.data.path is None:
        raise UsageError("its recipe does not say what it was validated on", where=folder, remedy=remedy)
    if not os.path.lexists(Path(recipe.data.path).expanduser()):
        what = "the pictures that it was trained on are not there, as seen from here"
        raise DataError(what, where=recipe.data.path, remedy=remedy)
    from patchform.data.dataset import has_validation

    if has_validation(Path(recipe.data.path).expanduser(), recipe.task):
        return recipe.data.path
    return _held_out(folder, recipe, remedy)


def _held_out(folder: Path, recipe: Recipe, remedy: str) -> Listing:
    """The share that a run held out, by the same split of the same pictures.

    Raises:
        DataError: the pictures are others by now: some that were trained on would be among those held out.
        UsageError: no checkpoint is left that says which they were.
    """
    from patchform.data.checks.examination import without_bad
    from patchform.data.dataset import digest, open_data
    from patchform.weights.stopped import data_digest

    data, preprocessing = recipe.data, recipe.preprocessing
    known = data_digest(folder)
    if known is None:
        what = "no checkpoint is left that says which pictures were held out"
        raise UsageError(what, where=folder, remedy=remedy)
    splits = open_data(data, seed=recipe.training.seed, preprocessing=preprocessing, task=recipe.task)
    whole = len(splits.train) + len(splits.validation)
    if data.skip_bad:  # what could not be read was left out
        train, held_out = (without_bad(part, preprocessing, data.skip_bad)[0] for part in splits[:2])
        splits = splits._replace(train=train, validation=held_out)
    if digest(splits) != known:
        what = "pictures or labels were added, renamed or taken away since: those held out cannot be told"
        raise DataError(what, where=data.path, remedy=remedy)
    note = f"the {len(splits.validation)} of {whole} {splits.validation.thing}s that training held out"
    return replace(splits.validation, notes=(note,))
