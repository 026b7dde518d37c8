"""Short forms of settings that people type, a row each: `train --lr 1e-3` is `train --optimizer.lr 1e-3`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from patchform.commands.inference_options import picture_size
from patchform.errors import UsageError
from patchform.training.recipe_files import parse


def _as_typed(text: str) -> str:
    return text


def _side_or_sides(text: str) -> str:
    """A side as it is, "320x480" as the setting has it. Raises UsageError for other words."""
    if re.fullmatch(r"\d+|\[.*\]", text):
        return text
    try:
        return "[{}, {}]".format(*picture_size(text))
    except UsageError as error:
        raise UsageError(error.what, remedy="say a side, or height x width: 224 or 320x480") from None


class ShortForm(NamedTuple):
    """An option that is short for a setting."""

    option: str
    setting: str
    metavar: str
    meaning: str
    read: Callable[[str], str] = _as_typed
    """What was typed, as the setting would be written out."""


FROM = (
    "start from published weights by their name (fetched, as you name them: patchform weights list), a file, or a run:"
    " its backbone and its statistics of pixels are taken; a task's name alone then means the recipe TASK/fine_tune"
)
SHORT_FORMS = (
    ShortForm("--data", "data.path", "DIR", "folder or CSV list"),
    ShortForm("--from", "model.init_from", "WEIGHTS", FROM),
    ShortForm("--model", "model.backbone", "NAME", "backbone (patchform models)"),
    ShortForm("--size", "preprocessing.size", "N|HxW", "input in pixels, such as 224 or 320x480", _side_or_sides),
    ShortForm("--epochs", "training.epochs", "N", "passes over the pictures"),
    ShortForm("--batch", "training.batch_size", "N", "pictures of one step"),
    ShortForm("--lr", "optimizer.lr", "RATE", "highest learning rate"),
    ShortForm("--seed", "training.seed", "N", "of all that is drawn at random"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An option for each row."""
    for form in SHORT_FORMS:
        about = f"{form.meaning}: short for --{form.setting}"
        parser.add_argument(form.option, metavar=form.metavar, help=about)


def settings(arguments: argparse.Namespace) -> dict[str, str]:
    """All settings of a command line, those that were typed in short among them.

    Raises:
        UsageError: one that was typed both ways, with different values; a size that is none.
    """
    typed: Mapping[str, str] = arguments.settings
    short: dict[str, str] = {}
    for form in SHORT_FORMS:
        word = getattr(arguments, form.option.removeprefix("--"))
        if word is None:
            continue
        short[form.setting] = value = form.read(word)
        if form.setting in typed and not _same(value, typed[form.setting]):
            what = f"{form.option} {word} beside --{form.setting} {typed[form.setting]}, which it is short for"
            raise UsageError(what, remedy="give one of them")
    return {**short, **typed}


def _same(one: str, other: str) -> bool:
    """Whether two texts stand for one value."""
    try:
        return bool(parse(one) == parse(other))
    except ValueError:
        return one == other
