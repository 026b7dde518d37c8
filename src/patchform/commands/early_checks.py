"""What is wrong with a command line and can be told before torch is imported: paths to nowhere, names that nothing has.

Each raises what the work itself would raise some seconds later, with the same exit code. What passes may still be
refused there.
"""

from __future__ import annotations

import difflib
import fnmatch
import glob
import os
from collections.abc import Sequence
from pathlib import Path

from patchform import foreign_names, lookup, model_table, own_parts, system
from patchform.commands import recipes
from patchform.errors import DataError, FolderError, ModelFileError, UsageError
from patchform.settings import Recipe

EXPORTED = (".onnx", ".xml", ".pt2")
"""Ends of names of exported files (`runtime.opening.KINDS`)."""
FETCHED = ("hub:", "https:", "http:")
"""Beginnings of names of what is fetched."""
NO_FILES = ("hf:", own_parts.PREFIX)
"""Beginnings of names of data that are no files (`data.hub_sets`, `data.python_sets`)."""
_OF_RUNS = ("model.json", "state.json", "checkpoints", "best", "recipe.yaml")
"""What a run folder, or a model's, has at least one of."""
_NEAR, _SEVERAL, _LONG = 0.6, 3, 160
_TRAIN = "train one first: patchform train classification --data DIR"


def trained(path: str, *, file: bool = True, published: bool = False) -> None:
    """Raise ModelFileError, or UsageError, where no trained model can be.

    Args:
        path: run folder, or as follows.
        file: an exported file will do.
        published: published weights will do.
    """
    if published and not os.path.lexists(path) and lookup.is_weights_name(path):
        lookup.check_weights_name(path)
    elif os.path.isdir(path):
        folder = Path(path)
        if not _is_run(folder):
            raise ModelFileError("not an intact model (no model.json)", where=path, remedy=_inside(folder) or _TRAIN)
    elif os.path.isfile(path):
        if not (file and path.lower().endswith(EXPORTED)):
            remedy = f"exported files end in {', '.join(EXPORTED)}" if file else "name the folder of the run"
            raise ModelFileError(f"no run folder{' or exported file' * file}", where=path, remedy=remedy)
    elif path.lower().endswith(EXPORTED) and file:
        raise ModelFileError(f'no such file "{_shown(path)}"', remedy=_near(Path(path)))
    else:
        *kinds, last = ["run folder", *["exported file"] * file, *["published weights"] * published]
        what = f"{', '.join(kinds)} or {last}" if kinds else last
        raise ModelFileError(f'no {what} "{_shown(path)}"', remedy=_near_run(path) or _meant(path, published) or _TRAIN)


def backbone(model: str, weights: str | None) -> None:
    """Raise ModelFileError, or UsageError, for MODEL and `--weights` of probe and features that name nothing."""
    if os.path.lexists(model):
        if os.path.isdir(model):
            trained(model)
        return
    if lookup.is_weights_name(model):
        lookup.check_weights_name(model)
    elif weights is None and ((near := _near_run(model)) or model.startswith((".", "~", os.sep))):
        raise ModelFileError(f'no run folder "{model}"', remedy=near or _TRAIN)
    else:
        lookup.check_backbone(model)
        if weights is None:
            files = ", ".join(_files_of(model))
            remedy = f"name a file, --weights FILE{f', or published ones: {files}' * bool(files)}"
            raise UsageError("a backbone without weights knows nothing", where=model, remedy=remedy)
    if weights is not None:
        source(weights)


def source(path: str) -> None:
    """Raise ModelFileError, or UsageError, for weights that are not there and are not fetched by their name."""
    if os.path.lexists(path) or path.startswith(FETCHED):
        return
    if lookup.is_weights_name(path):
        lookup.check_weights_name(path)
        return
    raise ModelFileError(f'no such file "{_shown(path)}"', remedy=_near_run(path) or _meant(path, published=True))


def file(path: str) -> None:
    """Raise ModelFileError where there is no such file."""
    if not os.path.isfile(path):
        raise ModelFileError(f'no such file "{_shown(path)}"', remedy=_near(Path(path)))


def data(path: str | None) -> None:
    """Raise DataError where there is no such data set; None: none was named."""
    if path is not None and not (path.startswith(NO_FILES) or os.path.lexists(os.path.expanduser(path))):
        raise DataError(f'no such file or folder "{_shown(path)}"', remedy=_near(Path(path)))


def sources(paths: Sequence[str]) -> None:
    """Raise DataError where nothing exists of what is to be looked at; members of tar shards do where these do."""
    if not any(one == "-" or glob.has_magic(one) or _leads_somewhere(os.path.expanduser(one)) for one in paths):
        data(paths[0])


def recipe(name: str) -> None:
    """Raise UsageError where there is no such recipe or run folder."""
    try:
        recipes.find(name)
    except UsageError:
        if near := _near_run(name):
            raise UsageError(f'no recipe or run folder "{name}"', remedy=near) from None
        raise


def training(recipe: Recipe, *, resume: bool = False, planned: bool = False) -> None:
    """Raise PatchformError for what a recipe names and is not there.

    Args:
        recipe: of the run.
        resume: it goes on, so its folder must be there.
        planned: nothing is trained, so data may lack.
    """
    lookup.check_backbone(recipe.model.backbone)
    heads = [*lookup.names("heads"), *lookup.names("pretraining"), "none"]
    if recipe.model.head not in heads:
        raise lookup.no_such("head", recipe.model.head, heads)
    _check_folder(recipe, resume=resume, planned=planned)
    own_parts.check(recipe)
    for path in (recipe.data.path, recipe.data.validation):
        data(path)
    if recipe.model.init_from is not None and not resume:
        source(recipe.model.init_from)
    if recipe.data.path is None and not planned:
        raise UsageError("no data given", remedy="name a folder or a list: --data DIR")


def _check_folder(recipe: Recipe, *, resume: bool, planned: bool) -> None:
    """Raise FolderError for a run that goes on and is not there, or a new one that is."""
    folder = Path(recipe.runs, recipe.name or "")
    there = recipe.name is not None and os.path.lexists(folder)
    if resume and not (there and folder.is_dir()):
        raise FolderError("no run to resume", where=folder, remedy=_near_run(str(folder)) or "name a run folder")
    if there and not (resume or planned):
        from patchform.training.standing import owner_of

        again = f"choose another name, or go on with it: patchform train {system.quoted(str(folder))} --resume"
        owner = owner_of(folder)
        remedy = "choose another name" if owner else again
        raise FolderError(f"the run exists already{owner}", where=folder, remedy=remedy)


def _leads_somewhere(path: str) -> bool:
    return os.path.lexists(path) or any(os.path.isfile(above) for above in Path(path).parents)


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in _OF_RUNS)


def _folders(path: Path) -> list[Path]:
    """Folders inside one; none where that cannot be looked into."""
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError:
        return []


def _near_run(path: str) -> str:
    """Words on the run that was meant, "" where there is none."""
    given = Path(path)
    for folder in (given.parent, Path("runs")):
        runs = {run.name: run for run in _folders(folder) if _is_run(run)}
        if near := difflib.get_close_matches(given.name, runs, n=1, cutoff=_NEAR):
            return f'did you mean "{runs[near[0]]}"?'
    return ""


def _inside(folder: Path) -> str:
    """Words on a run in a folder, "" where there is none."""
    run = next(filter(_is_run, _folders(folder)), None)
    return f'did you mean "{run}"?' if run else ""


def _meant(name: str, published: bool) -> str:
    """Words on the model that was meant by a name that is no path, "" where there is none."""
    known = lookup.backbone_names()
    meant = foreign_names.backbone(name, known, model_table.weights_places())
    own = meant.backbone if meant else name if name in known else ""
    if not (own and published):
        return f"{own} is a backbone: it is trained first" if own else ""
    files = [meant.weights] if meant and meant.weights else _files_of(own)
    return f"did you mean {' or '.join(files)}?" if files else ""


def _files_of(name: str) -> list[str]:
    """Published files of a backbone, the first few."""
    row = model_table.rows().get(name)
    return row.weights_names[:_SEVERAL] if row else []


def _near(path: Path) -> str:
    """Words on the file or folder that was meant, "" where there is none."""
    path = path.expanduser()
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        names = []
    if near := difflib.get_close_matches(path.name, names, n=1, cutoff=_NEAR):
        return f'did you mean "{path.with_name(near[0])}"?'
    from patchform.data.listed_names import nearest

    return nearest(path)


def _shown(path: str) -> str:
    if len(path) < _LONG:
        return path
    from patchform.data.listing import shortened

    return shortened(path)


def published(pattern: str) -> None:
    """Raise UsageError where no published weights have such a name, as far as the package's are known."""
    known = model_table.weights_places()
    wanted = pattern if "/" in pattern else f"{pattern}/*"
    names = {*known, *(name.partition(".")[0] for name in known)}
    if not (lookup.plugins() or any(fnmatch.fnmatch(name, wanted) for name in names)):
        meant = foreign_names.backbone(pattern, lookup.backbone_names(), known)
        files = _files_of(meant.backbone) if meant else []
        if files:
            raise UsageError(f'no published weights "{pattern}"', remedy=f"did you mean {' or '.join(files)}?")
        raise lookup.no_such("published weights", pattern, known)
