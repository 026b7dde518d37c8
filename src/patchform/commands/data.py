"""Look after a data set: find its faults, show it, write it in another format. Nothing in it is ever changed."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from patchform import lookup
from patchform.commands import check_report, early_checks, inference_options, recipes
from patchform.errors import DataError, FolderError, ResourceError, UsageError, printable
from patchform.settings import DataSettings, Recipe

if TYPE_CHECKING:
    from PIL import Image

    from patchform.data.listing import Listing
    from patchform.doctor import Diagnosis

EXAMPLE = "patchform data check holiday-photos/"
FAULTY = DataError.exit_code
COUNT = 16
"""Pictures of a sheet."""
PATIENCE = 2.0
"""Seconds before a bar is shown."""


class Action(NamedTuple):
    """One of the things that can be done."""

    purpose: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is to be done."""
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--json", action="store_true", help="speak JSON, errors too")
    common.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    common.add_argument("--plugin", metavar="DIR", action="append", help="folder with own data/formats/: runs its code")
    common.add_argument("data", metavar="DIR", help="folder, list or annotation file, as train takes it")
    common.add_argument("--task", help="what it is for (default: as its layout says)")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, action in ACTIONS.items():
        subparser = actions.add_parser(
            name,
            help=action.purpose,
            description=f"{action.purpose} How data are read is set as in train: --data.zero ignore.",
            epilog=f"example: patchform data {name} {action.example}",
            parents=[common],
            allow_abbrev=False,
        )
        action.arguments(subparser)


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    arguments.task = getattr(arguments, "task", None)
    if arguments.task is not None and arguments.task not in lookup.names("tasks"):
        raise lookup.no_such("task", arguments.task, lookup.names("tasks"))
    early_checks.data(arguments.data)
    _recipe(arguments.data, _settings(arguments), getattr(arguments, "augmented", None))
    return ACTIONS[arguments.action].run(arguments)


# -------------------------------------------------------------------------------------------------------------- check


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="new folder for pictures of the faults and a page of them")
    parser.add_argument("--strict", action="store_true", help="hints are faults too")


def _check(arguments: argparse.Namespace) -> int:
    with _bar() as progress:
        more = _settings(arguments)
        diagnosis = check_data(arguments.data, task=arguments.task, out=arguments.out, progress=progress, **more)
    bad = diagnosis.fatal + (diagnosis.hints if arguments.strict else 0)
    if arguments.json:
        print(json.dumps(diagnosis.as_json(), allow_nan=False))
    else:
        for line in check_report.lines(diagnosis):
            print(printable(line))
        if arguments.out:
            print(f"pictures of them are in {arguments.out}")
    return FAULTY if bad else 0


def check_data(
    data: str | Path,
    *,
    task: str | None = None,
    out: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **settings: Any,
) -> Diagnosis:
    """Find all that is wrong with a data set.

    Args:
        data: folder, list or annotation file.
        task: what it is for; default: as its layout says.
        out: new folder for index.html, and pictures of the first few faults of each kind.
        progress: called with (part, done, all) after each picture.
        settings: how it is read, `DataSettings`' own: `zero="ignore"`; `preprocessing={"channels": 1}` beside.

    Raises:
        DataError: nothing there, or nothing that is known.
        UsageError: a layout that serves several tasks, or settings that do not go with the data.
        FolderError: `out` lies in the data set or is not empty.
        ResourceError: `out` cannot be written to.
    """
    from patchform import doctor

    target = None if out is None else _new_folder(out, Path(data))
    recipe = _recipe(data, settings)
    diagnosis = doctor.diagnose(recipe.data, task=task, preprocessing=recipe.preprocessing, progress=progress)
    if target is not None:
        with _atomic_folder(target) as folder:
            check_report.write_page(diagnosis, folder)
    return diagnosis


# --------------------------------------------------------------------------------------------------------------- show


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FILE", default="sheet.png", help="new picture (default: sheet.png)")
    count = f"pictures (default: {COUNT})"
    parser.add_argument("--count", type=inference_options.VIEWS, default=COUNT, metavar="N", help=count)
    parser.add_argument("--part", choices=("train", "validation"), default="train", help="which (default: train)")
    parser.add_argument("--augmented", metavar="RECIPE", help="as a training by this recipe sees them")


def _show(arguments: argparse.Namespace) -> int:
    names = show_data(
        arguments.data,
        arguments.out,
        task=arguments.task,
        count=arguments.count,
        part=arguments.part,
        augmented=arguments.augmented,
        **_settings(arguments),
    )
    if arguments.json:
        print(json.dumps({"sheet": arguments.out, "pictures": names}))
    else:
        print(f"{len(names)} pictures are in {arguments.out}")
    return 0


def show_data(
    data: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    count: int = COUNT,
    part: Literal["train", "validation"] = "train",
    augmented: str | Path | Recipe | None = None,
    **settings: Any,
) -> tuple[str, ...]:
    """Draw pictures of a data set with their truth, evenly picked, on one sheet.

    Args:
        data: folder, list or annotation file.
        out: new PNG file.
        task: what it is for; default: as its layout says.
        count: how many pictures.
        part: of which part.
        augmented: a recipe: pictures are then as its first epoch sees them, at the size of the model's input.
        settings: how it is read, `DataSettings`' own.

    Returns:
        The names of the pictures, in rows.

    Raises:
        UsageError: no picture asked for, no such recipe, or a layout that serves several tasks.
        DataError: data that cannot be used.
        FolderError: `out` lies in the data set or exists.
        ResourceError: `out` cannot be written.
    """
    if count < 1:
        raise UsageError(f"{count} pictures are none", remedy="give --count a number above 0")
    file = _outside(Path(out), Path(data))
    if os.path.lexists(file):
        raise FolderError("exists already", where=file, remedy="name a new file")

    from patchform import doctor, drawing
    from patchform.tasks.base import find_task

    recipe = _recipe(data, settings, augmented)
    chosen, parts = _listed(recipe.data, task or (None if augmented is None else recipe.task))
    if part not in parts:
        raise DataError("no validation part of its own", where=data, remedy="show train")
    listing, kind = parts[part], find_task(chosen)
    pictures = kind.evaluation_samples(listing, doctor.whole(recipe.preprocessing, chosen))
    if augmented is not None:
        pictures = kind.training_samples(listing, recipe.preprocessing, recipe.augmentation, recipe.training.seed)
    number = min(count, len(listing))
    indices = [index * len(listing) // number for index in range(number)]
    drawn: list[Image.Image] = []
    for index in indices:
        picture = doctor.draw_sample(kind, pictures[0, index], listing.classes)
        picture.thumbnail((doctor.CELL, doctor.CELL))
        drawn.append(picture)
    drawing.save(drawing.to_png_bytes(doctor.sheet(drawn)), file)
    return tuple(listing.name(index) for index in indices)


# ------------------------------------------------------------------------------------------------------------ convert


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", metavar="FORMAT", required=True, help="coco, voc or yolo")
    parser.add_argument("--out", metavar="DIR", required=True, help="new folder")
    parser.add_argument(
        "--pictures", choices=("link", "copy", "none"), default="link", help="what is done about them (default: link)"
    )


def _convert(arguments: argparse.Namespace) -> int:
    lost = convert_data(
        arguments.data,
        arguments.out,
        to=arguments.to,
        task=arguments.task,
        pictures=arguments.pictures,
        **_settings(arguments),
    )
    if arguments.json:
        print(json.dumps({"folder": arguments.out, "lost": lost}))
        return 0
    for sentence in lost:
        print(f"lost: {sentence}")
    print(f"the data are in {arguments.out}")
    return 0


def convert_data(
    data: str | Path,
    out: str | Path,
    *,
    to: str,
    task: str | None = None,
    pictures: Literal["none", "copy", "link"] = "link",
    **settings: Any,
) -> tuple[str, ...]:
    """Write annotated objects in another format, as a new data set.

    Args:
        data: folder, list or annotation file.
        out: new folder; it appears whole or not at all.
        to: "coco", "voc" or "yolo".
        task: what it is for; default: as its layout says.
        pictures: links to them, copies, or nothing but the annotations.
        settings: how it is read, `DataSettings`' own.

    Returns:
        What was lost, a sentence each.

    Raises:
        UsageError: no such format, or data without objects.
        DataError: data that cannot be used, or that the format has no place for.
        FolderError: `out` lies in the data set or is not empty.
        ResourceError: `out` cannot be written to.
    """
    from patchform.data.dataset import formats
    from patchform.data.formats.base import WritableFormat

    writers = {name: format_ for name, format_ in formats().items() if isinstance(format_, WritableFormat)}
    if to not in writers:
        raise lookup.no_such("format to write", to, writers)
    target = _new_folder(out, Path(data))
    chosen, parts = _listed(_recipe(data, settings).data, task)
    if not any(chosen in format_.tasks for format_ in writers.values()):
        raise UsageError("no annotated objects", where=data, remedy="only boxes and outlines are converted")
    lost: list[str] = []
    with _atomic_folder(target) as folder:
        for part, listing in parts.items():
            name = "val" if part == "validation" else part
            lost += [f"{part}: {loss}" for loss in writers[to].write(listing, folder, part=name, pictures=pictures)]
    return tuple(lost)


ACTIONS = {
    "check": Action(
        "Find all that is wrong with a data set; exit with 3 if it cannot be used.",
        "holiday-photos/ --out faults/",
        _check_arguments,
        _check,
    ),
    "show": Action(
        "Draw pictures with their truth on one sheet.",
        "holiday-photos/ --augmented classification/small --out sheet.png",
        _show_arguments,
        _show,
    ),
    "convert": Action(
        "Write annotated objects in another format, as a new data set.",
        "cells/ --to yolo --out cells-yolo/",
        _convert_arguments,
        _convert,
    ),
}


# ----------------------------------------------------------------------------------------------------- what all share


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those below `--data.`, and of `--preprocessing.` as one."""
    for name in arguments.settings:
        if not name.startswith(("data.", "preprocessing.")):
            raise UsageError(f"no such option: --{name}", remedy=f"patchform data {arguments.action} --help")
    nested = recipes.nested(arguments.settings)
    return {**nested.pop("data", {}), **nested}


def _recipe(path: str | Path, settings: Mapping[str, Any], recipe: str | Path | Recipe | None = None) -> Recipe:
    """A recipe, or the usual one, with settings of how data are read."""
    data = {**settings, "path": path}
    beside = {name: data.pop(name) for name in ("preprocessing",) if name in data}
    return recipes.resolve(recipe or Recipe(), {**beside, "data": data})


def _listed(settings: DataSettings, task: str | None) -> tuple[str, dict[str, Listing]]:
    """The task, and the parts that there are. Raises DataError for data that cannot be used."""
    from patchform import doctor
    from patchform.data.dataset import open_evaluation, open_training
    from patchform.tasks.base import find_task

    chosen = task or doctor.task_of(settings.path or "")
    kind = find_task(chosen)
    listing, validation = open_training(settings, task=chosen)
    if task is None:
        chosen = kind.refined(listing)
    parts = {"train": listing}
    if validation is not None:
        parts["validation"] = open_evaluation(validation, settings, listing.classes, chosen)
    for each in parts.values():
        find_task(chosen).refuse(each)
    return chosen, parts


def _outside(path: Path, data: Path) -> Path:
    from patchform.data.writing import check_target

    check_target(path, data.expanduser())
    return path.expanduser()


def _new_folder(out: str | Path, data: Path) -> Path:
    """A folder that is empty or not there, outside the data set."""
    folder = _outside(Path(out), data)
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise FolderError("exists already", where=folder, remedy="name a new folder")
    return folder


@contextmanager
def _atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name when all is well and else is removed."""
    unfinished = folder.parent / f".tmp-{os.getpid()}-{folder.name}"
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        if folder.is_dir():
            folder.rmdir()
        os.rename(unfinished, folder)
    except OSError as error:
        raise ResourceError(f"cannot be written ({error.strerror})", where=folder) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """Progress, and how long it will take, once it takes long."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    live = Progress(*columns, console=console, transient=True)
    begun, bars, shown = time.monotonic(), dict[str, Any](), False

    def progress(what: str, done: int, count: int) -> None:
        nonlocal shown
        if what not in bars:
            bars[what] = live.add_task(what, total=count)
        live.update(bars[what], completed=done)
        if not shown and console.is_terminal and time.monotonic() - begun > PATIENCE:
            shown = True
            live.start()

    try:
        yield progress
    finally:
        if shown:
            live.stop()
