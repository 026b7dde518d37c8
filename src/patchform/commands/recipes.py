"""From a recipe's name or file, with settings over it, to `Recipe`. Every wrong key or value stops here.

A recipe file is data and nothing else: YAML with plain keys, each once, no anchors, no tags, of bounded size and depth.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from patchform import lookup, schema
from patchform.errors import UsageError
from patchform.schema import DEEPEST
from patchform.settings import MOVED, MOVED_VALUES, ModelSettings, Origin, Recipe, check

PACKAGED = Path(__file__).parent.parent / "recipes"
DEFAULT = "small"
"""The recipe of a task that is only named."""
LARGEST_FILE = 100_000
"""Bytes of a recipe file."""
SIZES = {"patch", "patches", "width", "widths", "depth", "depths", "heads", "mlp_ratio", "mlp_ratios"}
"""Options that tell the variants of a family apart even where their rows leave them to the default of the class."""


def packaged() -> list[str]:
    """Names of the recipes that come with the package, such as "classification/small"."""
    return sorted(path.relative_to(PACKAGED).with_suffix("").as_posix() for path in PACKAGED.rglob("*.yaml"))


def tasks() -> list[str]:
    """Names of the tasks that have a default recipe."""
    return [name.removesuffix(f"/{DEFAULT}") for name in packaged() if name.endswith(f"/{DEFAULT}")]


def resolve(recipe: str | Path | Recipe, settings: Mapping[str, Any] | None = None) -> Recipe:
    """A complete recipe.

    Args:
        recipe: a YAML file, a run folder, a packaged name ("classification/small"), a task (its default recipe), or
            settings that are resolved already.
        settings: what goes over it, nested as in the file. Strings are read as the file would read them. Of a
            backbone or head that they replace, the recipe's options go: all of another family's or head's; of another
            variant of the family those that a variant is named for (`SIZES`, and what the row of either one states).

    Raises:
        UsageError: no such recipe, a file that is not one, an unknown setting (the nearest is named), one by both its
            earlier name and that of now, or a value of another type than the setting's or out of its range.
    """
    return traced(recipe, settings)[0]


def traced(recipe: str | Path | Recipe, settings: Mapping[str, Any] | None = None) -> tuple[Recipe, Origin]:
    """A complete recipe, and where it came from; arguments and errors as of `resolve`."""
    above = _renamed(settings or {}, None)
    path = None if isinstance(recipe, Recipe) else find(recipe)
    below = dataclasses.asdict(recipe) if path is None else _renamed(read(path), path)
    below, notes = _fitted(below, above)
    try:
        resolved = schema.build(Recipe, _plain(_merged(below, above)), parse=_parse)
    except schema.Misfit as misfit:
        where = None if misfit.key in dict(_flat(above)) else path
        raise UsageError(misfit.what, where=where, remedy=misfit.remedy) from None
    check(resolved)
    if resolved.task not in lookup.names("tasks"):
        raise lookup.no_such("task", resolved.task, lookup.names("tasks"))
    if notes and (note := _input_note(resolved, above)):
        notes.append(note)
    return resolved, Origin(_called(path), tuple(notes))


def nested(flags: Mapping[str, str]) -> dict[str, Any]:
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


def find(name: str | Path) -> Path:
    """The file of a recipe. Raises UsageError when there is none."""
    path = Path(name)
    if (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    recipes = packaged()
    for candidate in (str(name), f"{name}/{DEFAULT}"):
        if candidate in recipes:
            return PACKAGED / f"{candidate}.yaml"
    if path.is_file():
        return path
    near = difflib.get_close_matches(str(name), recipes, n=1, cutoff=0.5)
    hint = f'did you mean "{near[0]}"?' if near else f"give a YAML file, or one of {', '.join(recipes)}"
    raise UsageError(f'no recipe "{name}"', remedy=hint)


def _called(path: Path | None) -> str:
    """What a recipe is called: a packaged one by its name, another one by its file."""
    if path is None:
        return Origin().name
    packaged_file = path.is_relative_to(PACKAGED)
    return path.relative_to(PACKAGED).with_suffix("").as_posix() if packaged_file else str(path)


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
        for index, (key, _) in enumerate(node.value):
            if key.tag != "tag:yaml.org,2002:str":
                raise _Refused(f"the key {key.value!r}, which is not a plain word", key.start_mark)
            if key.value in keys[:index]:
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


# ------------------------------------------------------------------------------------------------ names and values


def names() -> list[str]:
    """Every setting by its dotted name."""
    return [field.name for field in schema.fields(Recipe())]


def _flat(values: Mapping[str, Any], kind: Any = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values, as deep as settings go; unknown sections come out as one name."""
    for key, value in values.items():
        hint = schema.hints(kind).get(key)
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            yield from _flat(value, hint, f"{prefix}{key}.")
        elif hint is None and isinstance(value, Mapping) and value:
            yield f"{prefix}{key}.{next(iter(value))}", value
        else:
            yield prefix + key, value


def _renamed(values: Mapping[str, Any], where: Path | None) -> dict[str, Any]:
    """The values, with earlier names replaced by those of now. Raises UsageError for what is no setting."""
    known, flat = names(), dict(_flat(values))
    for name, value in flat.items():
        if name not in known and name not in MOVED:
            if any(other.startswith(f"{name}.") for other in known):
                raise UsageError(f"{name} is a section, not {value!r}", where=where, remedy=f"set {name}.<setting>")
            raise UsageError(f"no such setting: {name}", where=where, remedy=_nearest(name, known))
    moved = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for old, new in MOVED.items():
        if old in flat:
            if new in flat:
                raise UsageError(f"{old} and {new} are the same setting", where=where, remedy=f"give {new} alone")
            (section, key), (other, name) = old.split("."), new.split(".")
            moved.setdefault(other, {})[name] = moved[section].pop(key)
    for name, now in MOVED_VALUES.items():
        if str(flat.get(name)) in now:
            moved = _merged(moved, nested({name: now[flat[name]]}))
    return moved


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


def _fitted(below: dict[str, Any], above: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A recipe without the options of a backbone and a head that are replaced, and a sentence on each of these."""
    before, after, notes = below.get("model", {}), above.get("model"), list[str]()
    if not isinstance(before, dict) or not isinstance(after, Mapping):
        return below, notes
    left = dict(before)
    for part, key, replaced in (("backbone", "options", _replaced_sizes), ("head", "head_options", _all_options)):
        old, new = str(before.get(part, getattr(ModelSettings, part))), str(after.get(part))
        if part not in after or old == new:
            continue
        options = before.get(key) if isinstance(before.get(key), dict) else {}
        gone = replaced(old, new, options)
        left[key] = {name: value for name, value in options.items() if name not in gone}
        notes.append(f"{part} {new} in place of the recipe's {old}: " + _fate(options, gone))
    return {**below, "model": left}, notes


def _all_options(old: str, new: str, options: Mapping[str, Any]) -> set[str]:
    return set(options)


def _replaced_sizes(old: str, new: str, options: Mapping[str, Any]) -> set[str]:
    """The options that go with a backbone: all with its family, with a variant those that make it one.

    Raises:
        UsageError: there is no such backbone.
    """
    _, row = lookup.backbone(new)
    (family, _, size), rows = old.partition("/"), lookup.module("backbones", new.partition("/")[0]).VARIANTS
    if family != new.partition("/")[0]:
        return set(options)
    stated = set(row.options) | (set(rows[size].options) if size in rows else set())
    return set(options) & (SIZES | stated)


def _fate(options: Mapping[str, Any], gone: set[str]) -> str:
    """What became of the options of a recipe, in words."""
    groups = ([name for name in options if (name in gone) == which] for which in (True, False))
    dropped, kept = (", ".join(f"{name} {schema.shown(options[name])}" for name in names) for names in groups)
    return "; ".join(
        [f"the recipe's {dropped} go with it" if dropped else "there were no options to go with it"]
        + [f"{kept} of the recipe stays"] * bool(kept)
    )


def _input_note(recipe: Recipe, above: Mapping[str, Any]) -> str | None:
    """A sentence where a backbone that was asked for sees smaller pictures, or other clips, than it was published at."""
    if "backbone" not in above.get("model", {}):
        return None
    _, row = lookup.backbone(recipe.model.backbone)
    p, frames = recipe.preprocessing, row.options.get("frames", 0)
    typed = above.get("preprocessing", {})
    notes = []
    if "size" not in typed and min(p.size) < row.image_size:
        notes.append((f"{p.size[0]} x {p.size[1]} pixels", f"{row.image_size}: --preprocessing.size {row.image_size}"))
    if "frames" not in typed and frames and p.frames != frames:
        notes.append((f"{p.frames} frames", f"{frames}: --preprocessing.frames {frames}"))
    if not notes:
        return None
    (stays, published) = (" and ".join(words) for words in zip(*notes))
    return f"input stays at the recipe's {stays}; {recipe.model.backbone} was published at {published}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _parse(text: str) -> Any:
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


# -------------------------------------------------------------------------------------------------------------- help


def help_text(recipe: Recipe | None = None) -> str:
    """Every setting with its meaning, what it may be, and its default: that of a recipe."""
    sections: dict[str, list[str]] = {}
    for field in schema.fields(recipe or Recipe()):
        about = f"{field.meaning} It is {schema.words(field.hint)}; default: {schema.shown(field.value)}"
        lines = sections.setdefault(field.section, ["", f"{field.section}:"])
        lines += [f"  --{field.name}", *textwrap.wrap(about, 72, initial_indent=" " * 8, subsequent_indent=" " * 8)]
    return "\n".join(line for lines in sections.values() for line in lines)
