"""Train a model by a recipe."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from patchform import own_parts, system
from patchform.commands import automatic, early_checks, handing_over, inference_options, recipes, short_forms, terminal
from patchform.errors import UsageError, unheard
from patchform.settings import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from patchform.device import Precision
    from patchform.training.loop import Run
    from patchform.training.plan import Option, Plan

EXAMPLE = "patchform train classification --data photos/ --name first --lr 5e-4"

RESUME = (
    "go on with a run that was stopped, or further: settings that changed are listed with what that does;"
    " more epochs stretch the schedule, from the step on that was reached"
)
TIME = f"such as 90s, 15m or 2h: so many epochs as fit into it (default where a task is named: {automatic.TIME})"

HOW_IT_ENDS = """
how it ends: SIGTERM, Ctrl-C, SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU save the step and stop, with exit code 128 + the
number of the signal; a second Ctrl-C or SIGTERM stops at once. Processes that train together (torchrun) wait two
minutes for one another at the start.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Any setting of a recipe, `--section.key value`, is taken too."""
    recipe = "YAML file, packaged recipe (patchform recipes lists them), run folder, or a task's name"
    parser.add_argument("recipe", metavar="RECIPE", help=recipe)
    short_forms.add_arguments(parser)
    option = f"{inference_options.OPTION}: short for --model.options.K V"
    parser.add_argument("--option", metavar="K=V", action="append", default=[], help=option)
    parser.add_argument("--time", metavar="TIME", help=TIME)
    parser.add_argument("--name", help="run folder below --runs")
    parser.add_argument("--runs", metavar="DIR", help="folder of run folders (default: runs)")
    parser.add_argument("--resume", action="store_true", help=RESUME)
    no_page = "end without evaluation.json and report.html, which patchform evaluate writes as well"
    parser.add_argument("--no-page", action="store_true", help=no_page)
    parser.add_argument("--plan", action="store_true", help="train nothing: say what it would take of memory, and fit")


def more_help(words: Sequence[str]) -> str:
    """The settings, with the defaults of the packaged recipe that the command line names."""
    known = recipes.packaged()
    named = next((word for word in words if word in known or f"{word}/{recipes.DEFAULT}" in known), None)
    if named is None:
        title = f"settings (patchform train {recipes.tasks()[0]} --help shows those of a task)"
        return f"\n{title}:\n{recipes.help_text()}{HOW_IT_ENDS}"
    return f"\nsettings, as in the recipe {named}:\n{recipes.help_text(recipes.resolve(named))}{HOW_IT_ENDS}"


def run(arguments: argparse.Namespace) -> int:
    """Train and say where the model is, or what memory it would take."""
    options = {"name": arguments.name, "runs": arguments.runs}
    flags = {name: value for name, value in options.items() if value is not None} | short_forms.settings(arguments)
    for name, value in inference_options.constructor_options(arguments.option).items():
        flags["model.drop_path" if name == "drop_path" else f"model.options.{name}"] = value
    _look_early(arguments, recipes.nested(flags))
    if arguments.plan:
        return _run_plan(arguments, recipes.nested(flags))
    from patchform import distributed

    began = time.monotonic()
    with distributed.process_group() as rank:
        finished = train(
            arguments.recipe,
            resume=arguments.resume,
            time=arguments.time,
            page=not arguments.no_page,
            **recipes.nested(flags),
        )
    if rank.is_main:
        _say_end(finished, time.monotonic() - began, as_json=arguments.json)
    return 0


def _say_end(finished: Run, seconds: float, *, as_json: bool) -> None:
    """What was reached, where it lies, and what to type next."""
    from patchform.report import PAGE
    from patchform.training.ending import WIDE, ending

    page = finished.folder / PAGE
    found = str(page) if page.is_file() else None
    if as_json:
        numbers = {"step": finished.step, "best": finished.best, "best_step": finished.best_step}
        score = {"metric": None if finished.best is None else finished.task.better, "meaning": finished.task.meaning}
        print(
            json.dumps({"run": str(finished.folder), **numbers, **score, "page": found, "seconds": round(seconds, 1)})
        )
        return
    for name, text in ending(finished, page=found, seconds=seconds):
        print(f"{name:{WIDE}}{text}")


def _look_early(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Raise PatchformError for what can be told before torch is imported."""
    if os.environ.get("WORLD_SIZE", "1") != "1":  # what one of several processes cannot find is said when they have met
        return
    recipe, time = arguments.recipe, arguments.time
    early_checks.recipe(recipe)
    source = settings.get("model", {}).get("init_from")
    if arguments.resume:
        recipe, settings = _resumed(recipe, settings, time)
    elif source is not None:
        early_checks.source(source)
    if time is not None:
        automatic.limit(time, settings)
    resolved = recipes.resolve(recipe, settings)
    early_checks.training(resolved, resume=arguments.resume, planned=arguments.plan)


def train(
    recipe: str | Path | Recipe = "classification",
    *,
    resume: bool = False,
    time: str | None = None,
    progress: bool = True,
    page: bool = True,
    **settings: Any,
) -> Run:
    """Train a model, or go on with a run.

    Of a task that is only named, what is not given is chosen to suit the data and the machine (`automatic`).

    Args:
        recipe: YAML file, packaged recipe, run folder, task, or a `Recipe`.
        resume: go on from the newest whole checkpoint.
        time: that it may take, such as "15m": so many epochs as fit into it.
        progress: show how it goes, on stderr.
        page: at the end look once more at what it was validated on, and write evaluation.json and report.html.
        settings: over the recipe's, nested as there: `name="first"`, `optimizer={"lr": 1e-3}`; `data="photos/"` is
            short for `data={"path": "photos/"}`. `data` may be a Python object with `__len__` and `__getitem__` of
            (picture, target), or two, (train, validation); `classes=[...]` then names its numbers
            (`patchform.data.python_lists` says what targets are). `optimizer`, `schedule`, `loss` and `augmentation`
            may be a class or a function of your own, and `training={"loggers": [...]}` classes (docs/own-parts.md).

    Returns:
        The finished run: its folder and its best model.

    Raises:
        UsageError: an unknown recipe or setting.
        PatchformError: whatever `training.loop.train` raises.
    """
    heard = terminal.say if progress else unheard
    settings, notes = own_parts.named(_with_path(settings, heard)), tuple[str, ...]()
    if resume:
        recipe, settings = _resumed(recipe, settings, time)
    else:
        recipe, settings, notes = automatic.choose(recipe, settings, time=time, say=heard)
    resolved, origin = recipes.traced(recipe, settings)
    origin = origin._replace(notes=(*notes, *origin.notes))

    from patchform import distributed
    from patchform.training import loop

    with distributed.process_group() as rank:
        finished = loop.train(resolved, resume=resume, progress=progress, origin=origin)
        if page and rank.is_main and _write_page(finished, heard):
            handing_over.hand_over(finished, heard)
    return finished


def _write_page(finished: Run, say: Callable[[str], None]) -> bool:
    """Evaluate on what the run has validated on, and write the page. What hinders that is said: the model is there.

    Returns:
        Whether it is written.
    """
    from patchform.evaluation import evaluate_run
    from patchform.report import write_report

    recipe, listing = finished.recipe, finished.data.splits.validation
    remedy = f"to write one: patchform evaluate {system.quoted(str(finished.folder))} --data DIR"
    say(f"looking once more at the {len(listing)} {listing.thing}s to validate on, for the page")
    try:
        evaluate_run(
            finished.folder,
            listing,
            device=recipe.training.device,
            batch_size=recipe.training.batch_size,
            precision=cast("Precision", recipe.training.precision),
        )
        write_report(finished.folder, listing)
    except KeyboardInterrupt:
        terminal.say(f"the run has ended, its model is in {finished.folder}; its page was not written: {remedy}")
        raise
    except Exception as error:
        terminal.say(f"the page was not written ({' '.join(str(error).split())}); {remedy}")
        return False
    return True


def plan(
    recipe: str | Path | Recipe = "classification",
    *,
    time: str | None = None,
    room: int | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, count: None,
    **settings: Any,
) -> Plan:
    """Predict the peak memory of a recipe, and of other settings for its batch size. Trains nothing, writes nothing.

    Args:
        recipe: as of `train`.
        time: likewise.
        room: bytes for tensors; default: what the device has left.
        progress: called with (what is measured, steps done, all steps).
        settings: as of `train`.

    Raises:
        UsageError: an unknown recipe or setting.
        PatchformError: whatever `training.plan.plan` raises.
    """
    recipe, settings, notes = automatic.choose(recipe, own_parts.named(_with_path(settings, unheard)), time=time)
    resolved, origin = recipes.traced(recipe, settings)

    from patchform.training import plan as planning

    planned = planning.plan(resolved, room=room, progress=progress)
    return planned._replace(notes=(*notes, *origin.notes, *planned.notes))


def _resumed(
    recipe: str | Path | Recipe, settings: dict[str, Any], time: str | None
) -> tuple[str | Path | Recipe, dict[str, Any]]:
    """What a run is resumed by: its own recipe, where a task or the run itself is named, with settings over it."""
    if time is not None:
        raise UsageError("a time, of a run that goes on", remedy="set training.epochs, which stretches its schedule")
    model, began = settings.get("model") or {}, None
    if recipe in recipes.tasks() and settings.get("name"):  # the command that began it, with --resume
        began = Path(str(settings.get("runs", Recipe.runs))) / str(settings["name"])
        if not (began / "recipe.yaml").is_file():
            return recipe, settings
        recipe = began
    if not (isinstance(recipe, str | Path) and (Path(recipe) / "recipe.yaml").is_file()):
        return recipe, settings
    folder = Path(recipe).resolve()  # it may have been moved since
    if source := model.get("init_from"):
        if began is None or str(recipes.resolve(folder).model.init_from) != str(source):
            remedy = "leave out --from, or begin another run"
            raise UsageError("a run that goes on has its weights already", where=recipe, remedy=remedy)
        settings = settings | {"model": {name: value for name, value in model.items() if name != "init_from"}}
    return recipe, settings | {"name": folder.name, "runs": str(folder.parent)}


def _with_path(settings: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """The short forms of the data written out: a path, a Python object, or two, to learn from and to validate on."""
    data, classes = settings.get("data"), settings.get("classes")
    others = {name: value for name, value in settings.items() if name != "classes"}
    if not isinstance(data, dict):
        return settings if data is None else others | {"data": _paths_of(data, classes, say)}
    path = data.get("path")
    if path is None or (isinstance(path, str | Path) and not str(path).startswith("hf:")):
        return settings
    given = path if data.get("validation") is None else (path, data["validation"])
    return others | {"data": data | _paths_of(given, classes, say)}


def _paths_of(data: Any, classes: Sequence[str] | None, say: Callable[[str], None]) -> dict[str, Any]:
    from patchform.data import python_sets  # torch

    return python_sets.paths_of(data, classes, say)


def _run_plan(arguments: argparse.Namespace, settings: dict[str, Any]) -> int:
    """Print the options, and the first that fits. That none does is an answer too."""
    from rich.console import Console
    from rich.table import Table

    with terminal.progress_bars(terminal.stderr_console()) as progress:
        planned = plan(arguments.recipe, time=arguments.time, progress=progress, **settings)
    if arguments.json:
        ways = [option._asdict() for option in planned.ways]
        print(json.dumps(planned._asdict() | {"held": planned.held._asdict(), "ways": ways}, indent=1))
        return 0
    table = Table("settings", "pictures at once", "peak", "fits")
    table.columns[2].justify = "right"
    for option in planned.ways:
        (height, width), fits = option.size, "yes" if option.fits else "no"
        table.add_row(
            _words(option) or "(as it is)", f"{option.images} of {height} x {width}", _bytes(option.peak), fits
        )
    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)
    held = ", ".join(f"{name} {_bytes(size)}" for name, size in planned.held._asdict().items() if size)
    print(f"on {planned.device} there is room for {_bytes(planned.room)}; whatever the batch: {held}")
    for note in planned.notes:
        print(note)
    if planned.best is None:
        print("nothing fits: take smaller pictures or a smaller backbone")
    else:
        print(f"take {_words(planned.best)}" if planned.best.settings else "it fits")
    return 0


def _words(option: Option) -> str:
    """The settings as words of a command line."""
    values = {name: json.dumps(value, separators=(",", ":")) for name, value in option.settings.items()}
    return " ".join(f"--{name} {system.quoted(value)}" for name, value in values.items())


def _bytes(number: float) -> str:
    """Three digits and a unit."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1000 or unit == "GiB":
            return f"{number:.3g} {unit}"
        number /= 1024
    raise AssertionError
