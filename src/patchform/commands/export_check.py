"""The part of `export` that proves files: each that is written, and any again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchform.commands import inference_options, recipes, terminal
from patchform.errors import ModelFileError, UsageError, unheard
from patchform.schema import Range, number

if TYPE_CHECKING:
    from patchform.data.listing import Listing
    from patchform.export.proving import Report
    from patchform.model import Model

IMAGES = 1000
"""Pictures that a file is proved on, if there are as many."""
POINTS = number(float, Range(least=0, most=100))
NOT_PROVED = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--check`, `--run`, `--data`, `--images`, `--allow`, `--unproved`, `--workers`, and what runs a file."""
    again = "prove a file that was exported, again, instead of writing one; also writes FILE.check.json"
    parser.add_argument("--check", metavar="FILE", help=again)
    where = "with --check: run folder that it was exported from (default: where it lies)"
    parser.add_argument("--run", metavar="RUN", dest="of_run", help=where)
    data = "labelled pictures to prove the file on (default: those that the run was validated on)"
    parser.add_argument("--data", metavar="DIR", help=data)
    images = f"pictures of these, evenly picked (default: {IMAGES})"
    parser.add_argument("--images", type=inference_options.IMAGES, default=IMAGES, metavar="N", help=images)
    allow = "points of 100 that the metric may lose (default: 0.1, of int8 0.5)"
    parser.add_argument("--allow", type=POINTS, metavar="POINTS", help=allow)
    unproved = "keep the file though there are no pictures to prove it on"
    parser.add_argument("--unproved", action="store_true", help=unproved)
    parser.add_argument(
        "--workers", type=inference_options.WORKERS, default=0, metavar="N", help="processes that decode"
    )
    inference_options.add_runtime_arguments(parser)


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `prover` takes of a command line."""
    return {name: getattr(arguments, name) for name in ("data", "images", "allow", "unproved", "workers")}


def run(arguments: argparse.Namespace) -> int:
    """A table, or the report as JSON; exit code 4 where the file is not proved."""
    console = terminal.stderr_console()
    with terminal.progress_bars(console) as progress:
        report = check(
            arguments.check,
            run=arguments.of_run or arguments.run,
            data=arguments.data,
            images=arguments.images,
            allow=arguments.allow,
            workers=arguments.workers,
            runtime=inference_options.runtime_options(arguments),
            progress=progress,
            say=terminal.above(console),
        )
    print(json.dumps(report.as_json(), allow_nan=False) if arguments.json else "\n".join(report.lines()))
    return 0 if report.proof.proved else NOT_PROVED


def check(
    file: str | Path,
    *,
    run: str | Path | None = None,
    data: str | Path | None = None,
    images: int = IMAGES,
    say: Callable[[str], None] = unheard,
    **more: Any,
) -> Report:
    """Prove an exported file again; the report lies beside it as FILE.check.json.

    Args:
        file: exported.
        run: the run folder that it was exported from; default: where it lies.
        data: labelled pictures; default: those that the run was validated on.
        images: how many of these.
        say: called with remarks, a sentence each.
        more: `allow`, `workers`, `progress` and the like of `patchform.export.check.CheckOptions`, and `runtime` of
            `patchform.runtime.opening.open_model`.

    Raises:
        UsageError: no run or no pictures.
        ModelFileError: the file cannot be opened, or is of another model than the run.
        DataError: pictures that cannot be used.
    """
    from patchform.export.check import CheckOptions
    from patchform.export.proving import prove
    from patchform.model import load

    path = Path(file)
    if not path.is_file():
        raise ModelFileError("no such file", where=path)
    folder = _home(path) if run is None else Path(run)
    model = load(folder, say=say)
    listing, left_out = _pictures(folder, model, data, images)
    runtime = {"runtime": more.pop("runtime")} if "runtime" in more else {}
    return prove(path, model, listing, CheckOptions(say=say, **more), left_out=left_out, **runtime)


def prover(
    run: str | Path,
    model: Model,
    *,
    data: str | Path | None = None,
    images: int = IMAGES,
    **more: Any,
) -> Callable[[Path], None]:
    """What a file that was just written has to pass: `prove` of `patchform.export.writing.export_model`.

    Args:
        run: the folder that is exported.
        model: of it, loaded.
        data: as of `check`.
        images: likewise.
        more: fields of `patchform.export.check.CheckOptions`: `allow`, `unproved`, `workers`, `progress`, `say`.

    Raises:
        UsageError: there are no pictures.
        DataError: pictures that cannot be used.
    """
    from patchform.export.check import CheckOptions
    from patchform.export.proving import prove, refuse
    from patchform.runtime.sessions import RuntimeOptions

    own = RuntimeOptions(trust=True)  # it was written just now, by this process
    checking = CheckOptions(**more)
    try:
        listing, left_out = _pictures(Path(run), model, data, images)
    except UsageError as error:
        if not checking.unproved:
            raise
        checking.say(f"{error.what}: nothing is proved")
        listing, left_out = None, 0
    return lambda file: refuse(prove(file, model, listing, checking, left_out=left_out, runtime=own))


def sentence(file: Path) -> str:
    """What became of a file that was proved, in a line."""
    from patchform.export.proving import report_path

    report = json.loads(report_path(file).read_text(encoding="utf-8"))
    if not report["proved"]:
        return f"not proved: {'; '.join(report['warnings'])}"
    name = report["metric"]
    metric = f", {name} {100 * report['before'][name]:.2f} -> {100 * report['after'][name]:.2f}" if name else ""
    apart = ", ".join(f"{output} {value:.1e}" for output, value in report["images"]["apart"].items())
    return "; ".join([f"proved on {report['pictures']} pictures: {apart} apart{metric}", *report["warnings"]])


def _pictures(folder: Path, model: Model, data: str | Path | None, images: int) -> tuple[Listing, int]:
    """What a file is proved on, and how many more there are."""
    from patchform.export.pictures import of_run, some
    from patchform.tasks.base import task_of

    recipe = recipes.resolve(folder) if (folder / "recipe.yaml").is_file() else None
    listing = of_run(model, task_of(model.architecture, model.head), recipe, data)
    picked = some(listing, images, model, 0.0 if recipe is None else recipe.data.skip_bad)
    return picked, len(listing) - len(picked)


def _home(file: Path) -> Path:
    """The run folder that a file lies in."""
    from patchform.weights.stopped import find_model

    for folder in (file.absolute().parent, file.absolute().parent.parent):
        try:
            find_model(folder)
        except ModelFileError:
            continue
        return folder
    raise UsageError("it does not lie in a run folder", where=file, remedy="name the one: --run RUN")
