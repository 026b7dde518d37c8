"""From a recipe's name or file, with settings over it, to `Recipe`. Every wrong key or value stops here."""

from __future__ import annotations

import dataclasses
import difflib
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchform import lookup, own_parts, schema
from patchform.commands import starting
from patchform.errors import UsageError
from patchform.settings import UNKNOWN, LossSettings, ModelSettings, Origin, Recipe, check
from patchform.training.recipe_files import flat, merged, names, nested, parse, plain, read, renamed

__all__ = ["find", "help_text", "names", "nested", "packaged", "read", "resolve", "tasks", "traced"]

PACKAGED = Path(__file__).parent.parent / "recipes"
RUN = "recipe.yaml"
"""In a run folder."""
DEFAULT = "small"
"""The recipe of a task that is only named."""
LONGEST = 160
"""Letters of a name that are said."""
STARTING = "fine_tune"
"""Likewise, where weights are named that it starts from."""
LEVELWISE = {"anchor_sizes"}
"""Options of heads that are lists with a value for each level of the recipe's backbone."""


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
            variant of the family those that a variant is named for (`starting.SIZES`, and what the row of either one
            states). Of weights that it starts from is taken what `starting.taken` says.

    Raises:
        UsageError: no such recipe, a file that is not one, an unknown setting (the nearest is named), one by both its
            earlier name and that of now, or a value of another type than the setting's or out of its range.
    """
    return traced(recipe, settings)[0]


def traced(recipe: str | Path | Recipe, settings: Mapping[str, Any] | None = None) -> tuple[Recipe, Origin]:
    """A complete recipe, and where it came from; arguments and errors as of `resolve`."""
    above = renamed(settings or {}, None)
    if isinstance(recipe, Recipe):
        path, below = None, dataclasses.asdict(recipe)
    else:
        path = find(recipe, from_weights=starting.from_weights(above))
        below = renamed(read(path), path)
    above, below, origin_notes = starting.taken(
        above, below, packaged=path is not None and path.is_relative_to(PACKAGED)
    )
    asked = dict(flat(above)).get("model.backbone")
    other = asked is not None and str(asked) != dict(flat(below)).get("model.backbone", ModelSettings.backbone)
    typed = above.get("model")
    if not origin_notes and not (isinstance(typed, Mapping) and {"backbone", "init_from"} & set(typed)):
        below, _, origin_notes = starting.taken(below, below)
    below, notes = _fitted(below, above)
    below, loss_notes = _under_own_loss(below, above)
    notes += loss_notes
    try:
        resolved = schema.build(Recipe, plain(merged(below, above)), parse=parse)
    except schema.Misfit as misfit:
        where = None if misfit.key in dict(flat(above)) else path
        raise UsageError(misfit.what, where=where, remedy=misfit.remedy) from None
    check(resolved)
    if path is None or path.name != RUN:  # of a run, who does not train needs no part of its training
        own_parts.check(resolved)
    if resolved.task not in lookup.names("tasks"):
        raise lookup.no_such("task", resolved.task, lookup.names("tasks"))
    if other and (note := _input_note(resolved, above)):
        notes.append(note)
    return resolved, Origin(_called(path), (*origin_notes, *notes))


def find(name: str | Path, *, from_weights: bool = False) -> Path:
    """The file of a recipe; of a task that is only named its default, or the one for a run that is started
    `from_weights`. Raises UsageError when there is none.
    """
    path = Path(name)
    if os.path.isfile(path / RUN):  # a name may be too long for Path.is_file
        return path / RUN
    recipes = packaged()
    for candidate in (str(name), *([f"{name}/{STARTING}"] * from_weights), f"{name}/{DEFAULT}"):
        if candidate in recipes:
            return PACKAGED / f"{candidate}.yaml"
    if os.path.isfile(path):
        return path
    near = difflib.get_close_matches(str(name), [*tasks(), *recipes], n=1, cutoff=0.5)
    listed = f"give a YAML file, or a task: {', '.join(tasks())} (patchform recipes lists more)"
    hint = f'did you mean "{near[0]}"?' if near else listed
    raise UsageError(f'no recipe "{str(name)[:LONGEST]}"', remedy=hint)


def _called(path: Path | None) -> str:
    """What a recipe is called: a packaged one by its name, another one by its file."""
    if path is None:
        return UNKNOWN.name
    packaged_file = path.is_relative_to(PACKAGED)
    return path.relative_to(PACKAGED).with_suffix("").as_posix() if packaged_file else str(path)


# ------------------------------------------------------------------------------- what goes with a backbone, or a head


def _under_own_loss(below: dict[str, Any], above: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A recipe without what the head's loss alone reads, where another one is named, and a sentence on that."""
    old, new = below.get("loss"), above.get("loss")
    if not isinstance(old, dict) or not isinstance(new, Mapping) or not new.get("name") or old.get("name"):
        return below, []
    gone = {name: old[name] for name in LossSettings.of_heads if name in old}
    set_there = [
        f"{name} {schema.shown(value)}" for name, value in gone.items() if value != getattr(LossSettings, name)
    ]
    fate = f": {', '.join(set_there)} went with it" * bool(set_there)
    left = {name: value for name, value in old.items() if name not in gone}
    return {**below, "loss": left}, [f"loss {new['name']} in place of the head's{fate}"]


def _fitted(below: dict[str, Any], above: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A recipe without the options of a backbone and a head that are replaced, and a sentence on these options."""
    before, after, notes = below.get("model", {}), above.get("model"), list[str]()
    if not isinstance(before, dict) or not isinstance(after, Mapping):
        return below, notes

    def part(name: str, key: str) -> tuple[str, str, dict[str, Any]]:
        old, options = str(before.get(name, getattr(ModelSettings, name))), before.get(key)
        return old, str(after.get(name, old)), options if isinstance(options, dict) else {}

    old, new, options = part("backbone", "options")
    old_head, new_head, head_options = part("head", "head_options")
    gone = _replaced_sizes(old, new, options) if old != new else set()
    other_levels = bool(gone) or old.partition("/")[0] != new.partition("/")[0]
    gone_head = set(head_options)
    if old_head == new_head:
        gone_head &= LEVELWISE if other_levels else set()
    if options and old != new:
        notes.append(f"backbone {new} in place of the recipe's {old}{_fate(options, gone)}")
    if head_options and old_head != new_head:
        notes.append(f"head {new_head} in place of the recipe's {old_head}{_fate(head_options, gone_head)}")
    elif gone_head:
        notes.append(
            f"head {new_head} has other levels{_fate({name: head_options[name] for name in gone_head}, gone_head)}"
        )
    left = dict(before)
    for key, values, dropped in (("options", options, gone), ("head_options", head_options, gone_head)):
        if dropped:
            left[key] = {name: value for name, value in values.items() if name not in dropped}
    return {**below, "model": left}, notes


def _replaced_sizes(old: str, new: str, options: Mapping[str, Any]) -> set[str]:
    """The options that go with a backbone: all with its family, with a variant those that make it one.

    Raises:
        UsageError: there is no such backbone.
    """
    _, row = lookup.backbone(new)
    family, _, size = old.partition("/")
    if family != new.partition("/")[0]:
        return set(options)
    rows = lookup.module("backbones", family).VARIANTS
    stated = set(row.options) | (set(rows[size].options) if size in rows else set())
    return set(options) & (starting.SIZES | stated)


def _fate(options: Mapping[str, Any], gone: set[str]) -> str:
    """What became of the options of a recipe, in words."""
    groups = ([name for name in options if (name in gone) == dropped] for dropped in (True, False))
    dropped, kept = (", ".join(f"{name} {schema.shown(options[name])}" for name in names) for names in groups)
    return "".join([f"; its {dropped} go with it"] * bool(dropped) + [f"; its {kept} stays"] * bool(kept))


def _input_note(recipe: Recipe, above: Mapping[str, Any]) -> str | None:
    """A sentence where a backbone that was asked for gets smaller pictures or other clips than it was published at."""
    _, row = lookup.backbone(recipe.model.backbone)
    p, frames = recipe.preprocessing, row.options.get("frames", 0)
    typed = above.get("preprocessing", {})
    stays, published, flags = list[str](), list[str](), list[str]()
    if "frames" not in typed and frames and p.frames != frames:
        stays, published, flags = [f"{p.frames} frames"], [f"{frames} frames"], [f"--preprocessing.frames {frames}"]
    if "size" not in typed and min(p.size) < row.image_size:
        stays.append(f"{p.size[0]} x {p.size[1]} pixels")
        published.append(f"{row.image_size} x {row.image_size}")
        flags.append(f"--preprocessing.size {row.image_size}")
    if not stays:
        return None
    return (
        f"the input stays the recipe's, {' of '.join(stays)}; {recipe.model.backbone} was published at"
        f" {' of '.join(published)} ({' '.join(flags)})"
    )


# -------------------------------------------------------------------------------------------------------------- help


def help_text(recipe: Recipe | None = None) -> str:
    """Every setting with its meaning, what it may be, and its default: that of a recipe."""
    sections: dict[str, list[str]] = {}
    for field in schema.fields(recipe or Recipe()):
        about = f"{field.meaning} It is {schema.words(field.hint)}; default: {schema.shown(field.value)}"
        lines = sections.setdefault(field.section, ["", f"{field.section}:"])
        lines += [f"  --{field.name}", *textwrap.wrap(about, 72, initial_indent=" " * 8, subsequent_indent=" " * 8)]
    return "\n".join(line for lines in sections.values() for line in lines)
