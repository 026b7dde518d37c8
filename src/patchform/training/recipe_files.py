"""Recipe files: plain YAML, read strictly, and the names of settings in them, earlier ones too.

A recipe file is data and nothing else: YAML with plain keys, each once, no anchors, no tags, of bounded size and depth.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from patchform import schema
from patchform.descriptions import Preprocessing
from patchform.errors import UsageError
from patchform.schema import DEEPEST
from patchform.settings import Recipe

T = TypeVar("T")
ABOUT = "about"
"""What is no setting in a recipe file."""
LARGEST_FILE = 100_000
"""Bytes of a recipe file."""


MOVED = {
    "data.image_size": "preprocessing.size",
    "training.tensorboard": "training.loggers",
    **{
        f"data.{name}": f"preprocessing.{name}"
        for name in Preprocessing.__dataclass_fields__
        if name not in ("size", "background")
    },
}
"""Earlier names of settings, which are still read, and the names of now."""
MOVED_VALUES: dict[str, dict[str, Any]] = {
    "model.transfer.head": {"fill": "load", "new": "reinit"},
    "training.loggers": {"true": ["tensorboard"], "false": []},
}
"""Likewise of values, by the names of now."""


def load(path: Path) -> Recipe:
    """The recipe in a file, as it stands there. Raises UsageError for a file that is none."""
    return described(path)[0]


class _Strict(yaml.SafeLoader):
    """Refuses what a reader would not see: a key given twice, anchors and aliases, tags, infinities, great depth."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _Refused("an anchor or alias", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise _Refused("a tag", event.start_mark)
        self.depth += 1
        if self.depth > DEEPEST:
            raise _Refused(f"more than {DEEPEST} levels", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        for index, (key, _) in enumerate(node.value):
            if key.tag != "tag:yaml.org,2002:str":
                raise _Refused(f"the key {key.value!r}, which is not a plain word", key.start_mark)
            if key.value in keys[:index]:
                raise _Refused(f'the key "{key.value}" a second time', key.start_mark)
        return super().construct_mapping(node, deep)


class _Refused(yaml.MarkedYAMLError):
    def __init__(self, what: str, mark: Any) -> None:
        super().__init__(problem=f"there is {what}", problem_mark=mark)


@dataclass(frozen=True, kw_only=True)
class About:
    """What a recipe says of itself, for `patchform recipes`; nothing of it changes a run."""

    purpose: str
    """What it is for, in a few words."""
    starts_from: str = "nothing"
    """Weights that its user names."""
    machine: Literal["cpu", "gpu"] = "gpu"
    """What it is made for."""
    reaches: str | None = None
    """What was measured with it, or published for it."""
    source: str | None = None
    """Who says so: a document here, or a paper."""


def read(path: Path) -> dict[str, Any]:
    """The settings in a recipe file. Raises UsageError, with the line, when it is anything else."""
    values = _read(path)
    values.pop(ABOUT, None)
    return values


def described(path: Path) -> tuple[Recipe, About | None]:
    """The recipe in a file, and what the file says of itself, if anything. Raises UsageError as `load` does."""
    values = _read(path)
    about = values.pop(ABOUT, None)
    recipe = _built(Recipe, plain(renamed(values, path)), path)
    return recipe, None if about is None else _built(About, about, path, f"{ABOUT}.")


def _built(kind: type[T], values: Any, path: Path, prefix: str = "") -> T:
    """A record of a file. Raises UsageError."""
    try:
        return schema.build(kind, values, parse=parse)
    except schema.Misfit as misfit:
        raise UsageError(prefix + misfit.what, where=path, remedy=misfit.remedy) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror})", where=path) from error
    if len(text) > LARGEST_FILE:
        raise UsageError(f"more than {LARGEST_FILE} bytes", where=path, remedy="a recipe is short")
    try:
        loader = _Strict(text.decode())
        values = loader.get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "a value that is not one"
        where = f"{path}:{mark.line + 1}" if mark else path
        raise UsageError(f"not a recipe: {problem}", where=where, remedy="write plain YAML") from error
    if not isinstance(values, dict):
        raise UsageError("not a recipe: it has no settings", where=path)
    return values


# ------------------------------------------------------------------------------------------------ names and values


def names() -> list[str]:
    """Every setting by its dotted name."""
    return [field.name for field in schema.fields(Recipe())]


def flat(values: Mapping[str, Any], kind: Any = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values, as deep as settings go; unknown sections come out as one name."""
    for key, value in values.items():
        hint = schema.hints(kind).get(key)
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            yield from flat(value, hint, f"{prefix}{key}.")
        elif hint is None and isinstance(value, Mapping) and value:
            yield f"{prefix}{key}.{next(iter(value))}", value
        else:
            yield prefix + key, value


def renamed(values: Mapping[str, Any], where: Path | None) -> dict[str, Any]:
    """The values, with earlier names replaced by those of now. Raises UsageError for what is no setting."""
    known, given = names(), dict(flat(values))
    for name, value in given.items():
        if name not in known and name not in MOVED:
            if any(other.startswith(f"{name}.") for other in known):
                raise UsageError(f"{name} is a section, not {value!r}", where=where, remedy=f"set {name}.<setting>")
            raise UsageError(f"no such setting: {name}", where=where, remedy=_nearest(name, known))
    moved = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for old, new in MOVED.items():
        if old in given:
            if new in given:
                raise UsageError(f"{old} and {new} are the same setting", where=where, remedy=f"give {new} alone")
            (section, key), (other, name) = old.split("."), new.split(".")
            moved.setdefault(other, {})[name] = moved[section].pop(key)
    values = dict(flat(moved))
    for name, now in MOVED_VALUES.items():
        if (word := str(values.get(name)).lower()) in now:
            moved = merged(moved, nested({name: now[word]}))
    return moved


def _nearest(name: str, known: Iterable[str]) -> str:
    leaf = name.rpartition(".")[2]
    near = (
        difflib.get_close_matches(name, known, n=1, cutoff=0.85)  # a slip of the finger
        or [other for other in known if other.rpartition(".")[2] == leaf]  # the right word in the wrong section
        or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    )
    return f"did you mean {' or '.join(near)}?" if near else "patchform train --help lists them"


def merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The values below with those above over them, level by level."""
    both = [key for key in above if isinstance(below.get(key), dict) and isinstance(above[key], Mapping)]
    return {**below, **above, **{key: merged(below[key], above[key]) for key in both}}


def nested(flags: Mapping[str, Any]) -> dict[str, Any]:
    """{"optimizer.lr": "1e-3"} -> {"optimizer": {"lr": "1e-3"}}."""
    values: dict[str, Any] = {}
    for name, value in flags.items():
        *sections, key = name.split(".")
        level = values
        for section in sections:
            level = level.setdefault(section, {})
            if not isinstance(level, dict):
                raise UsageError(f"{name} lies below a setting that has a value")
        level[key] = value
    return values


def plain(value: Any) -> Any:
    """The value with paths as text."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def parse(text: str) -> Any:
    """Text of a command line, or of a recipe, that stands for something else: a number, true, null, a list, a mapping.

    Numbers are as people write them: YAML takes 1e-3 for text and 010 for eight.
    """
    if re.fullmatch(r"[+-]?\d{1,400}", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?\.?(inf|infinity)|\.?nan", text, re.IGNORECASE):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    try:
        return _Strict(text).get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(text) from error
