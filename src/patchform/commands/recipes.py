"""From a recipe's name or file, with settings over it, to `Recipe`. Every wrong key or value stops here.

A recipe file is data and nothing else: YAML with plain keys, each once, no anchors, no tags, of bounded size and depth.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from patchform.errors import UsageError
from patchform.settings import Recipe

PACKAGED = Path(__file__).parent.parent / "recipes"
DEFAULT = "small"
"""The recipe of a task that is only named."""
LARGEST_FILE, DEEPEST = 100_000, 12
"""Bytes and levels of a recipe file."""


def packaged() -> list[str]:
    """Names of the recipes that come with the package, such as "classification/small"."""
    return sorted(path.relative_to(PACKAGED).with_suffix("").as_posix() for path in PACKAGED.rglob("*.yaml"))


def resolve(recipe: str | Path | Recipe, settings: Mapping[str, Any] | None = None) -> Recipe:
    """A complete recipe.

    Args:
        recipe: a YAML file, a run folder, a packaged name ("classification/small"), a task (its default recipe), or
            settings that are resolved already.
        settings: what goes over it, nested as in the file. Strings are read as the file would read them.

    Raises:
        UsageError: no such recipe, a file that is not one, an unknown setting (the nearest is named), or a value of
            another type than the setting's.
    """
    above = dict(settings or {})
    _refuse_unknown(above, None)
    if isinstance(recipe, Recipe):
        return _typed(_merged(_of_others_left_out(dataclasses.asdict(recipe), above), above), {})
    path = find(recipe)
    values = read(path)
    _refuse_unknown(values, path)
    in_file = dict.fromkeys((name for name, _ in _flat(values)), path)
    on_top = dict.fromkeys(name for name, _ in _flat(above))
    return _typed(_merged(_of_others_left_out(values, above), above), {**in_file, **on_top})


def nested(flags: Mapping[str, str]) -> dict[str, Any]:
    """{"optimizer.lr": "1e-3"} -> {"optimizer": {"lr": "1e-3"}}."""
    values: dict[str, Any] = {}
    for name, value in flags.items():
        *sections, key = name.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise UsageError(f"{name} lies below a setting that has a value")
        place[key] = value
    return values


def find(name: str | Path) -> Path:
    """The file of a recipe. Raises UsageError when there is none."""
    path = Path(name)
    if (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    known = packaged()
    for candidate in (str(name), f"{name}/{DEFAULT}"):
        if candidate in known:
            return PACKAGED / f"{candidate}.yaml"
    if path.is_file():
        return path
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f'did you mean "{near[0]}"?' if near else f"give a YAML file, or one of {', '.join(known)}"
    raise UsageError(f'no recipe "{name}"', remedy=hint)


# ----------------------------------------------------------------------------------------------------------- the file


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
        for place, (key, _) in enumerate(node.value):
            if key.tag != "tag:yaml.org,2002:str":
                raise _Refused(f"the key {key.value!r}, which is not a plain word", key.start_mark)
            if key.value in keys[:place]:
                raise _Refused(f'the key "{key.value}" a second time', key.start_mark)
        return super().construct_mapping(node, deep)


class _Refused(yaml.MarkedYAMLError):
    def __init__(self, what: str, mark: Any) -> None:
        super().__init__(problem=f"there is {what}", problem_mark=mark)


def read(path: Path) -> dict[str, Any]:
    """The mapping in a recipe file. Raises UsageError, with the line, when it is anything else."""
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


# ------------------------------------------------------------------------------------------------ names and types


def names(kind: type = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted name, with its type."""
    for key, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from names(hint, f"{prefix}{key}.")  # type: ignore[arg-type]
        else:
            yield prefix + key, hint


def _flat(values: Mapping[str, Any], kind: type = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values, as deep as settings go; unknown sections come out as one name."""
    for key, value in values.items():
        hint = get_type_hints(kind).get(key)
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            yield from _flat(value, hint, f"{prefix}{key}.")  # type: ignore[arg-type]
        elif hint is None and isinstance(value, Mapping) and value:
            yield f"{prefix}{key}.{next(iter(value))}", value
        else:
            yield prefix + key, value


def _refuse_unknown(values: Mapping[str, Any], where: Path | None) -> None:
    known = dict(names())
    for name, value in _flat(values):
        if name not in known:
            if any(other.startswith(f"{name}.") for other in known):
                raise UsageError(f"{name} is a section, not {value!r}", where=where, remedy=f"set {name}.<setting>")
            raise UsageError(f"no such setting: {name}", where=where, remedy=_nearest(name, known))
        if value is None and NoneType not in get_args(known[name]):
            raise _wrong(name, value, known[name], where)
        if isinstance(value, float) and not math.isfinite(value):
            raise _wrong(name, value, known[name], where)


def _nearest(name: str, known: Iterable[str]) -> str:
    leaf = name.rpartition(".")[2]
    near = (
        difflib.get_close_matches(name, known, n=1, cutoff=0.85)  # a slip of the finger
        or [other for other in known if other.rpartition(".")[2] == leaf]  # the right word in the wrong section
        or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    )
    return f"did you mean {' or '.join(near)}?" if near else "patchform train --help lists them"


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = [key for key in above if isinstance(below.get(key), dict) and isinstance(above[key], Mapping)]
    return {**below, **above, **{key: _merged(below[key], above[key]) for key in both}}


def _of_others_left_out(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Without the options of a backbone whose family, or of a head whose name, is replaced: they are no one else's."""
    before, after = below.get("model"), above.get("model")
    if not isinstance(before, dict) or not isinstance(after, Mapping):
        return below
    left = dict(before)
    for part, options in (("backbone", "options"), ("head", "head_options")):
        names = [str(model.get(part, "")).partition("/")[0] for model in (before, after)]
        if part in after and part in before and names[0] != names[1]:
            left.pop(options, None)
    return {**below, "model": left}


def _typed(values: dict[str, Any], where: Mapping[str, Path | None]) -> Recipe:
    from patchform import lookup  # knows of torch, which takes a second

    parser = _parser("recipe")
    try:
        found = parser.instantiate(parser.parse_object({"recipe": _plain(values)})).recipe
    except argparse.ArgumentError as error:
        key = re.search(r'key "recipe\.([\w.]+)"', str(error))
        known, given = dict(names()), dict(_flat(values))
        if key is None or key[1] not in known:
            raise UsageError(" ".join(str(error).split())) from error
        name = key[1]
        raise _wrong(name, given.get(name), known[name], where.get(name)) from error
    lookup.module("tasks", found.task)
    return found


def _wrong(name: str, value: Any, hint: Any, where: Path | None) -> UsageError:
    return UsageError(f"{name} cannot be {value!r}", where=where, remedy=f"it is {_words(hint)}")


def _words(hint: Any) -> str:
    """A type as a person says it."""
    of, inner = get_origin(hint), get_args(hint)
    if of is Literal:
        return "one of " + ", ".join(map(str, inner))
    if of in (Union, UnionType):
        return " or ".join(_words(kind) for kind in inner)
    if of in (tuple, list):
        number = "" if inner[-1] is Ellipsis or of is list else f" of {len(inner)}"
        return f"a list{number}, each {_words(inner[0])}"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    return plain.get(hint, "a mapping of names to values")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _parser(key: str | None) -> Any:
    import jsonargparse  # a tenth of a second that `patchform --help` need not pay

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        exit_on_error=False, default_env=False, add_help=False, usage=argparse.SUPPRESS
    )
    parser.add_class_arguments(Recipe, key, as_group=True)
    return parser


def help_text() -> str:
    """Every setting with its meaning, type and default."""
    lines = _parser(None).format_help().splitlines()
    return "\n".join(line for line in lines if "CONFIG " not in line and "--help" not in line)
