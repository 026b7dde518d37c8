"""Parts of a training that are the user's own: a loss, a change of pictures, an optimizer, a schedule, a logger.

A recipe names one, as it names a backbone: a file of a plug-in folder, such as losses/focal.py, with one public class
or function. Or it is a Python object that is handed to `patchform.train`; the recipe then says `python:NAME`, and a run
that goes on wants the object again. docs/own-parts.md has an example of each.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

from patchform import lookup
from patchform.errors import UsageError
from patchform.settings import OptimizerSettings, Recipe, ScheduleSettings

PREFIX = "python:"
"""Of what a recipe calls an object of Python: a part of a training, or data (`data.python_sets`)."""


class Slot(NamedTuple):
    """A setting that may name a part."""

    folder: str
    """Of a plug-in; a kind of `lookup`."""
    word: str
    """What it is called."""
    packaged: tuple[str, ...] = ()
    """Names that need no file."""


def _literals(settings: type) -> tuple[str, ...]:
    """The names of the package, as the type of the setting has them."""
    return tuple(name for part in get_args(get_type_hints(settings)["name"]) for name in get_args(part))


SLOTS = {
    "loss": Slot("losses", "loss"),
    "augmentation": Slot("augmentations", "augmentation"),
    "optimizer": Slot("optimizers", "optimizer", _literals(OptimizerSettings)),
    "schedule": Slot("schedules", "schedule", _literals(ScheduleSettings)),
}
"""By section of a recipe, which has `name` and `options`."""
LOGGERS = Slot("loggers", "logger")
"""Of training.loggers, which are a list."""
_held: dict[tuple[str, str], Any] = {}


def hold(slot: Slot, part: Any) -> str:
    """Hold an object for as long as the process lasts.

    Returns:
        The name by which a recipe knows it. Another one of that name takes its place.

    Raises:
        UsageError: what cannot be called.
    """
    if not callable(part):
        what = f"{type(part).__name__} is no {slot.word}"
        raise UsageError(what, remedy="give a name, a class, or what can be called (docs/own-parts.md)")
    name = PREFIX + re.sub(r"\W", "", getattr(part, "__name__", type(part).__name__))
    _held[slot.folder, name] = part
    return name


def named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run as names and numbers: objects are held, `optimizer=Lion` is `optimizer={"name": Lion}`."""
    changed = dict(settings)
    for section, slot in SLOTS.items():
        given = settings.get(section)
        if isinstance(given, Mapping):
            part = given.get("name")
            if part is not None and not isinstance(part, str):
                changed[section] = {**given, "name": hold(slot, part)}
        elif given is not None and not isinstance(given, str):
            changed[section] = {"name": hold(slot, given)}
    training = settings.get("training")
    if isinstance(training, Mapping) and isinstance(training.get("loggers"), list | tuple):
        loggers = [one if isinstance(one, str) else hold(LOGGERS, one) for one in training["loggers"]]
        changed["training"] = {**training, "loggers": loggers}
    return changed


def check(recipe: Recipe) -> None:
    """Raise UsageError for a part that is not there, without importing any."""
    for section, slot in SLOTS.items():
        settings = getattr(recipe, section)
        if settings.name is not None and settings.name not in slot.packaged:
            _check_there(slot, settings.name)
        elif settings.options:
            what = f"{section}.options are {settings.options}, and there is no {slot.word} of your own"
            raise UsageError(what, remedy=f"name it: {section}.name")
    for name in recipe.training.loggers:
        _check_there(LOGGERS, name)


def _check_there(slot: Slot, name: str) -> None:
    if name.startswith(PREFIX):
        if (slot.folder, name) not in _held:
            own, key = name.removeprefix(PREFIX), slot.word
            argument = f"training={{'loggers': [{own}]}}" if slot is LOGGERS else f"{key}={own}"
            what = f"the {slot.word} {own} of this run was a Python object, which no file holds"
            raise UsageError(what, remedy=f"hand it over again: patchform.train(..., {argument})")
    elif name not in (names := lookup.names(slot.folder)):
        if slot.packaged or names:
            raise lookup.no_such(slot.word, name, [*slot.packaged, *names])
        remedy = f"name the folder that has {slot.folder}/{name}.py: --plugin DIR, patchform.add_plugin"
        raise UsageError(f'no {slot.word} "{name}"', remedy=remedy)


def look(recipe: Recipe) -> None:
    """As `check`; then import what is named, and see that it takes its options. **Its code is executed.**"""
    check(recipe)
    for section, slot in SLOTS.items():
        settings = getattr(recipe, section)
        if settings.name is not None and settings.name not in slot.packaged:
            constructor(section, settings) if section == "optimizer" else made(section, settings)


def find(slot: Slot, name: str) -> Any:
    """The object, or the one public class or function of the file of that name. **A file's code is executed.**

    Raises:
        UsageError: there is none, or not one.
    """
    _check_there(slot, name)
    if name.startswith(PREFIX):
        return _held[slot.folder, name]
    entry = lookup.module(slot.folder, name)
    public = [
        value
        for key, value in vars(entry).items()
        if not key.startswith("_") and callable(value) and getattr(value, "__module__", "") == entry.__name__
    ]
    if len(public) != 1:
        remedy = "begin the names of the others with _"
        where = f"{slot.folder}/{name}.py"
        raise UsageError(f"{len(public)} public classes and functions, expected one", where=where, remedy=remedy)
    return public[0]


def constructor(section: str, settings: Any) -> Any:
    """The class of a section, or whatever else is called there, whose options were looked at.

    Args:
        section: of the recipe, in `SLOTS`.
        settings: its `name`, and the `options` of a class's constructor.

    Raises:
        UsageError: there is none, or options that it does not take.
    """
    slot = SLOTS[section]
    part = find(slot, settings.name)
    if reserved := _RESERVED & set(settings.options):
        name = reserved.pop()
        raise UsageError(f"{section}.options has {name}", remedy=f"that is {section}.{name}")
    if inspect.isclass(part) and settings.options:
        lookup.check_options(part, settings.options, of=f"the {slot.word} {settings.name}")
    return part


_RESERVED = {"lr", "weight_decay"}
"""Arguments of an optimizer that are settings."""


def made(section: str, settings: Any) -> Any:
    """What is called in a run: of a class an instance, anything else as it is.

    Raises:
        UsageError: as `constructor`; or options, and no class that takes them.
    """
    part = constructor(section, settings)
    if inspect.isclass(part):
        return part(**settings.options)
    if settings.options:
        what = f"{section}.options, and the {SLOTS[section].word} {settings.name} is no class"
        raise UsageError(what, remedy="make it a class, whose constructor takes them")
    return part


def in_words(section: str, settings: Any) -> str | None:
    """Name and place of an own part of a section; None where it is the package's, or there is none."""
    slot, name = SLOTS[section], settings.name
    if name is None or name in slot.packaged:
        return None
    if name.startswith(PREFIX):
        return f"{name.removeprefix(PREFIX)}, a Python object: a run that goes on wants it again"
    return f"{name}, of {Path(inspect.getfile(lookup.module(slot.folder, name)))}"
