"""What a recipe takes over from the weights that it starts from: their backbone, and how they see pictures."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Container, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from patchform import lookup, schema, system
from patchform.descriptions import Preprocessing
from patchform.errors import ModelFileError, UsageError
from patchform.training.recipe_files import parse

if TYPE_CHECKING:
    from patchform.commands.conversion import Look

SIZES = {"patch", "patches", "width", "widths", "depth", "depths", "heads", "mlp_ratio", "mlp_ratios"}
"""Options that tell the variants of a family apart even where their rows leave them to the default of the class."""
OF_PIXELS = ("channels", "bits", "background", "mean", "std")
"""Of preprocessing, what the first layer depends on."""
ONE_SIZE = ("crop", "squash")
"""Ways of resizing after which every picture has the size that is set."""
OF_THE_RUN = {"labels", "smoothing", "class_weights", "pixel_stride"}
"""Options of heads that sections of a recipe set, such as `loss`."""


class Taken(NamedTuple):
    """Settings and a recipe below them, once they agree on what is started from."""

    settings: dict[str, Any]
    recipe: dict[str, Any]
    """Without what weights have of their own."""
    notes: list[str]
    """A sentence on what was taken; none where nothing was."""


def from_weights(settings: Mapping[str, Any]) -> bool:
    """Whether settings say that a run starts from weights."""
    model = settings.get("model")
    if not isinstance(model, Mapping):
        return False
    backbone = model.get("backbone")
    return model.get("init_from") is not None or (backbone is not None and is_published(str(backbone)))


def is_published(name: str) -> bool:
    """Whether a name is meant as that of published weights, and nothing on the disk has it."""
    if "/" not in name or "." not in name:
        return False
    return not os.path.lexists(name) and lookup.is_weights_name(name)


def taken(settings: dict[str, Any], recipe: dict[str, Any], *, packaged: bool = False) -> Taken:
    """Settings in which weights are named that say of which backbone they are, with what they say.

    Published weights may be named as the backbone, or as what is started from; a folder with a model of our own as what
    is started from. Taken is the name of the backbone, its options and the statistics of pixels; of a folder also the
    size of pictures, and where its task is that of the recipe its head. Of weights of another backbone than the one
    that is named, which has to fit, the statistics alone are taken. Which backbone a file of tensors fits is looked for
    where nobody but a packaged recipe names one.

    Args:
        settings: nested as in a recipe; what they say stays.
        recipe: what they go over.
        packaged: the recipe is one of the package.

    Raises:
        UsageError: no such published weights, or a file that fits several backbones.
        ModelFileError: nothing is there, or the folder holds no intact model.
    """
    nothing = Taken(settings, recipe, [])
    model = settings.get("model")
    if not isinstance(model, Mapping):
        return nothing
    backbone, source = model.get("backbone"), model.get("init_from")
    named = [str(name) for name in (backbone, source) if name is not None and is_published(str(name))]
    if _typed_options(settings, "options") is None or _typed_options(settings, "head_options") is None:
        return nothing
    if named:
        return _from_published(settings, named[0], recipe)
    written = settings is recipe and backbone is not None  # a run that goes on need not have its folder any more
    if isinstance(source, str | Path) and not written and not str(source).startswith(("hub:", "http:", "https:")):
        return _from_disk(settings, Path(source), recipe, looked_for=packaged and backbone is None)
    return nothing


def _without(recipe: dict[str, Any], gone: Container[str]) -> dict[str, Any]:
    """A recipe without some options of its backbone, such as those of its sizes: weights have theirs."""
    model = recipe.get("model")
    options = model.get("options") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(options, dict):
        return recipe
    return {**recipe, "model": {**model, "options": {key: options[key] for key in options if key not in gone}}}


def _typed_options(settings: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Options of the backbone or head that are given, read; None where they are no mapping, which is refused later."""
    options = settings["model"].get(name, {})
    typed = parse(options) if isinstance(options, str) else options
    return typed if isinstance(typed, Mapping) else None


def _from_published(settings: dict[str, Any], name: str, recipe: dict[str, Any]) -> Taken:
    from patchform.published_models import computing_options

    row, model = lookup.weights_file(name), settings["model"]
    own, _, tag = name.partition(".")
    asked = str(model.get("backbone") or own).partition(".")[0]
    theirs = computing_options(own, row.layout) | row.backbone_options if asked == own else {}
    statistics = {key: getattr(row.preprocessing, key) for key in ("mean", "std") if getattr(row.preprocessing, key)}
    above = settings.get("preprocessing", {})
    statistics = {key: list(value) for key, value in statistics.items() if key not in above}
    said = [f"{key} {schema.shown(value)}" for key, value in {**theirs, **statistics}.items()]
    options, source = {**theirs, **(_typed_options(settings, "options") or {})}, model.get("init_from") or name
    taken = {**model, "backbone": asked, "init_from": source, "options": options}
    known = settings is recipe and taken == {"options": {}, **model}  # as a run that goes on has it
    if not statistics and (asked != own or known):
        return Taken(settings, recipe, [])
    settings = {**settings, "model": taken}
    if statistics:
        settings["preprocessing"] = {**above, **statistics}
    recipe = _without(recipe, SIZES) if asked == own else recipe
    return Taken(settings, recipe, [f"{own} as {tag} of it was published{': ' * bool(said)}{', '.join(said)}"])


def _from_disk(settings: dict[str, Any], source: Path, recipe: dict[str, Any], *, looked_for: bool) -> Taken:
    """What a run folder or model folder says, or of a file what it fits, if that is to be looked for."""
    if not os.path.lexists(source):
        tagged = list(lookup.weights_files(f"{source.as_posix()}.*")) if len(source.parts) == 2 else []
        remedy = "name a run folder, a file, or published weights: patchform weights list"
        if tagged:
            remedy = f"published are {', '.join(tagged[:4])}{' ...' * (len(tagged) > 4)}"
        raise ModelFileError("nothing to start from: there is no such file or folder", where=source, remedy=remedy)
    from patchform.weights import sources

    folder = sources.model_folder(source)
    if folder is not None:
        return _from_folder(settings, source, sources.read_description(folder), recipe)
    return _from_file(settings, source, recipe) if looked_for else Taken(settings, recipe, [])


def _from_file(settings: dict[str, Any], source: Path, recipe: dict[str, Any]) -> Taken:
    """The backbone that a file of tensors fits. It does not say what its pixels were like."""
    from patchform.published_models import computing_options

    model = settings["model"]
    transfer = model.get("transfer")
    prefix = transfer.get("prefix") if isinstance(transfer, Mapping) else None
    status = source.stat()
    looked = _looked(source, prefix, status.st_mtime_ns, status.st_size)
    fits = {fit.architecture.backbone: fit for fit in looked.fits}
    if not fits:
        remedy = f"patchform weights show {system.quoted(str(source))} says what is near"
        raise ModelFileError(looked.why or "it fits no backbone that is built here", where=source, remedy=remedy)
    if len(fits) > 1:
        remedy = f"name the one that it is of: --model.backbone {next(iter(fits))}"
        raise UsageError(f"it fits {', '.join(fits)}", where=source, remedy=remedy)
    ((name, fit),) = fits.items()
    theirs = computing_options(name, fit.report.layout) | fit.architecture.backbone_options
    said = [f"{key} {schema.shown(value)}" for key, value in theirs.items()]
    options = {**theirs, **(_typed_options(settings, "options") or {})}
    note = f"{source} fits {name}{': ' * bool(said)}{', '.join(said)}"
    if not {"mean", "std"} & set(_section(settings, "preprocessing")):
        note += (
            "; how its pixels were scaled it does not say: the recipe's way (--preprocessing.mean, --preprocessing.std)"
        )
    model = {**model, "backbone": name, "options": options}
    return Taken({**settings, "model": model}, _without(recipe, SIZES), [note])


@lru_cache(maxsize=4)
def _looked(source: Path, prefix: str | None, *_: int) -> Look:
    """Which backbones a file fits, which takes seconds to find out; `_` is how the file is known again."""
    from patchform.commands.conversion import look

    return look(source, prefix=prefix)


def _from_folder(
    settings: dict[str, Any], source: Path, description: Mapping[str, Any], recipe: dict[str, Any]
) -> Taken:
    names, model = description["architecture"], dict(settings["model"])
    same_task = names.get("task") == settings.get("task", recipe.get("task"))
    if str(model.get("backbone", names.get("backbone"))) != names.get("backbone"):
        return _pixels_alone(settings, source, recipe, description)
    options = {key: value for key, value in dict(names.get("backbone_options") or {}).items() if key != "drop_path"}
    said = [f"{key} {schema.shown(value)}" for key, value in options.items()]
    model["backbone"] = str(names.get("backbone"))
    model["options"] = {**options, **(_typed_options(settings, "options") or {})}
    recipe = _without(recipe, set(_section(recipe, "model").get("options") or {}) if same_task else SIZES)
    if same_task and "head" not in model and names["head"] in lookup.names("heads"):
        kept = {key: value for key, value in dict(names.get("head_options") or {}).items() if key not in OF_THE_RUN}
        model["head"] = names["head"]
        model["head_options"] = {**kept, **(_typed_options(settings, "head_options") or {})}
        recipe = {**recipe, "model": {**_section(recipe, "model"), "head": names["head"], "head_options": {}}}
        said.append(f"head {names['head']}")
    preprocessing = _preprocessing(settings, recipe, description, same_task=same_task)
    said += [f"{key} {schema.shown(value)}" for key, value in preprocessing.items()]
    settings = {**settings, "model": model}
    if preprocessing:
        settings["preprocessing"] = {**settings.get("preprocessing", {}), **preprocessing}
    return Taken(settings, recipe, [f"{model['backbone']} as it is in {source}{': ' * bool(said)}{', '.join(said)}"])


def _pixels_alone(
    settings: dict[str, Any], source: Path, recipe: dict[str, Any], description: Mapping[str, Any]
) -> Taken:
    """What is taken where another backbone was named."""
    taken = _preprocessing(settings, recipe, description, same_task=False)
    statistics = {key: value for key, value in taken.items() if key in OF_PIXELS}
    if not statistics:
        return Taken(settings, recipe, [])
    said = ", ".join(f"{key} {schema.shown(value)}" for key, value in statistics.items())
    settings = {**settings, "preprocessing": {**settings.get("preprocessing", {}), **statistics}}
    return Taken(settings, recipe, [f"pixels as they are for {source}: {said}"])


def _preprocessing(
    settings: Mapping[str, Any], recipe: Mapping[str, Any], description: Mapping[str, Any], *, same_task: bool
) -> dict[str, Any]:
    """How pictures are prepared for the model of a folder, as far as that goes with the recipe and nobody says else."""
    theirs, typed = description.get("preprocessing"), settings.get("preprocessing", {})
    if not isinstance(theirs, Mapping):
        return {}
    usual = Preprocessing()
    ours = {**dataclasses.asdict(usual), **_section(recipe, "preprocessing")}
    ours["size"] = [ours["size"]] * 2 if isinstance(ours["size"], int) else ours["size"]
    if ours["channels"] == usual.channels:
        ours |= {key: ours[key] or getattr(usual.resolved(), key) for key in ("mean", "std")}
    keys = list(ours) if same_task else list(OF_PIXELS)
    if not same_task and {**ours, **typed}["resize"] in ONE_SIZE and theirs.get("resize") in ONE_SIZE:
        keys.append("size")
    if "channels" in typed:  # of another number of channels the statistics say nothing
        keys = [key for key in keys if key not in OF_PIXELS]
    return {key: theirs[key] for key in keys if key in theirs and key not in typed and theirs[key] != _plain(ours[key])}


def _section(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = recipe.get(name)
    return section if isinstance(section, Mapping) else {}


def _plain(value: Any) -> Any:
    """Lists for tuples, as files have them."""
    return list(value) if isinstance(value, tuple) else value
