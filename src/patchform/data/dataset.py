"""Folders and lists to training and validation sets, and items to samples."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from patchform import lookup
from patchform.data import python_sets
from patchform.data.faults import Faults
from patchform.data.foreign_formats import refuse_foreign
from patchform.data.formats.base import Format
from patchform.data.listed_names import exists, nearest
from patchform.data.listing import (
    SUFFIXES,
    TRAIN,
    VALIDATION,
    VIDEO_SUFFIXES,
    Listing,
    first_suffix,
    is_hidden,
    quoted,
    shortened,
)
from patchform.data.loader import derive
from patchform.data.writing import check_target
from patchform.descriptions import Preprocessing
from patchform.errors import DataError, UsageError
from patchform.settings import DataSettings

_LAYOUT_FOLDERS = frozenset(
    (
        "images",
        "labels",
        "masks",
        "annotations",
        "jpegimages",
        "imagesets",
        "leftimg8bit",
        "gtfine",
        "obj_train_data",
        "obj_valid_data",
    )
)
"""Names, in lower case, that folders of classes hardly have."""
_LOOKED_AT = 20
"""Folders, and files, inside that are looked into for what was meant."""
_LISTS = (".csv", ".tsv", ".json", ".yaml", ".yml")
"""Files that may say what pictures are."""
_TABLES = (".csv", ".tsv", ".xlsx")
"""Those that no layout has beside its parts."""


class Splits(NamedTuple):
    """Both parts of a data set, with the same classes."""

    train: Listing
    validation: Listing
    notes: tuple[str, ...]
    """What the user should know, those of both parts included."""


def digest(splits: Splits) -> str:
    """SHA-256 of what is listed in both parts, names and truth, by which a run knows its data."""
    sums = hashlib.sha256()
    for listing in (splits.train, splits.validation):
        sums.update(listing.as_bytes() + b"\0")
    return sums.hexdigest()


def open_data(
    settings: DataSettings,
    *,
    seed: int,
    preprocessing: Preprocessing,
    task: str = "classification",
    faults: Faults | None = None,
) -> Splits:
    """List the training and validation pictures. Opens none of them.

    Args:
        settings: `path`, `validation`, `validation_share`, and how formats are read.
        seed: of the split, when there is one to make: a pure function of it and the relative file names.
        preprocessing: channels and bits, for formats that must know them.
        task: only layouts that serve it are looked for.
        faults: where to note what is wrong with annotated objects; None: fatal faults are raised.

    Raises:
        UsageError: no path, or a share that is none.
        DataError: nothing there that is known, a class in validation alone, or whatever the format refuses.
    """
    listing, validation = open_training(settings, task=task, faults=faults)
    notes = listing.notes
    if validation is None:
        if not 0 < settings.validation_share < 1:
            raise UsageError(f"data.validation_share {settings.validation_share} is not between 0 and 1")
        first, second = split_listing(listing, settings.validation_share, seed)
        single = [name for name, number in zip(listing.classes, listing.counts()) if number == 1]
        noun = listing.thing
        notes += (f"no validation set: {len(second)} of {len(listing)} {noun}s are held out",)
        notes += (f"classes of one {noun}, which is trained on: {quoted(single)}",) if single else ()
        return Splits(first, second, notes)
    held_out = open_evaluation(validation, settings, listing.classes, task, faults=faults)
    if settings.validation is None and validation.stem.lower() == "test":
        notes += ("no val/ beside train/: validated on test/",)
    counts = () if any(item.mask is not None for item in held_out.items) else held_out.counts()
    absent = [name for name, number in zip(held_out.classes, counts) if number == 0]
    notes += (f"classes that are not in the validation set: {quoted(absent)}",) if absent else ()
    new_notes = tuple(f"validation: {note}" for note in held_out.notes if note not in listing.notes)
    return Splits(listing, held_out, notes + new_notes)


class Training(NamedTuple):
    """What is learnt from, and where the pictures to validate on lie."""

    listing: Listing
    validation: Path | None
    """None: there are none of their own."""


def open_training(settings: DataSettings, *, task: str = "classification", faults: Faults | None = None) -> Training:
    """List what is learnt from, before anything is held out. Arguments and errors as of `open_data`."""
    if settings.path is None:
        raise UsageError("no data given", remedy=f"set data.path to {_layouts(task)}")
    path = Path(settings.path).expanduser()
    _must_exist(path, task)
    train, beside = _parts(path, task)
    validation = Path(settings.validation).expanduser() if settings.validation else beside
    root = train if train and (validation or train.is_file() or _only(train)) else path
    try:
        listing = _read(root, settings, None, task, faults)
    except _UnknownLayout:
        raise unknown(path, task) from None
    return Training(replace(listing, notes=listing.notes + _unused(path, train, validation)), validation)


def serves(path: str | Path, task: str, *, sure: bool = False) -> bool:
    """Whether a folder, or a file, has a layout that serves a task; `sure`: and is meant for it, where layouts tell."""
    root = Path(path).expanduser()
    _must_exist(root, task)
    root = _parts(root, task)[0] or root
    return any(format_.recognises(root) and (not sure or format_.is_meant(root)) for format_ in formats(task).values())


def open_evaluation(
    path: str | Path,
    settings: DataSettings,
    classes: Sequence[str],
    task: str = "classification",
    *,
    faults: Faults | None = None,
) -> Listing:
    """List the pictures of a folder or CSV list whose classes are known: they are matched by name, some may lack.

    A folder with train/ and val/ inside gives val/. Only layouts that serve the task are looked for.

    Raises:
        DataError: nothing there that is known, an unknown class, or whatever the format refuses.
    """
    path = Path(path).expanduser()
    _must_exist(path, task)
    given = path if settings.path is None else Path(settings.path).expanduser()
    part_of_it = (exists(given) or python_sets.is_held(given)) and _parts(given, task)[1] == path
    settings = replace(settings, path=str(given if part_of_it else path))
    try:
        return _read(_parts(path, task)[1] or path, settings, tuple(classes), task, faults)
    except _UnknownLayout:
        raise unknown(path, task) from None


def open_pictures(path: str | Path) -> Listing:
    """List all pictures of a folder or tar shard, without labels and whatever its folders mean. Raises DataError."""
    path = Path(path).expanduser()
    try:
        return _read(path, DataSettings(), None, "pretraining", None)
    except _UnknownLayout:
        raise unknown(path, "pretraining") from None


def split_listing(listing: Listing, share: float, seed: int) -> tuple[Listing, Listing]:
    """Two parts, the second of about `share` of each class; depends on the seed and the relative names alone.

    A class of two or more pictures has at least one on either side. A picture of several classes is counted for its
    rarest.

    Raises:
        DataError: no class has two pictures.
    """
    counts = listing.counts()
    groups: dict[int, list[int]] = {}
    for index, item in enumerate(listing.items):
        rarest = min(item.classes, key=lambda class_: (counts[class_], class_), default=-1)
        groups.setdefault(rarest, []).append(index)
    chosen: set[int] = set()
    for members in groups.values():
        members.sort(key=lambda index: derive(seed, "split", listing.name(index)))
        number = min(max(1, round(share * len(members))), len(members) - 1)
        chosen.update(members[:number])
    if not chosen:
        raise DataError("too few pictures to hold some out", where=listing.root, remedy="set data.validation")

    def part(held_out: bool) -> Listing:
        items = (item for index, item in enumerate(listing.items) if (index in chosen) == held_out)
        return replace(listing, items=tuple(items))

    return part(False), part(True)


def formats(task: str | None = None) -> dict[str, Format]:
    """The formats that serve a task, or all, by name."""
    kinds = {name: lookup.the_class("data/formats", name, Format) for name in lookup.names("data/formats")}
    return {name: kind() for name, kind in kinds.items() if task is None or task in kind.tasks}


def _layouts(task: str) -> str:
    layouts = ", ".join(format_.layout for format_ in reversed(formats(task).values()) if format_.takes != "objects")
    return f"{layouts}; or such parts below train/ and val/"


def _must_exist(path: Path, task: str) -> None:
    if python_sets.is_held(path):
        return
    if python_sets.was_held(path):
        raise DataError("the data were a Python object, which is not here", where=path, remedy="give it: data=...")
    if not exists(path):
        remedy = nearest(path) or f"looked for {_layouts(task)}"
        raise DataError("no such file or folder", where=shortened(str(path)), remedy=remedy)
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise DataError("no permission to read", where=path)


def _read(
    path: Path, settings: DataSettings, classes: tuple[str, ...] | None, task: str, faults: Faults | None
) -> Listing:
    _must_exist(path, task)
    for format_ in formats(task).values():
        if format_.recognises(path) and format_.takes == "folders":
            return _read_folders(path, settings, classes, task, format_, faults)
        if format_.recognises(path):
            return format_.open(path, settings, classes, faults)
    raise _UnknownLayout


class _UnknownLayout(Exception):
    """No format of a task recognises what was given."""


def _read_folders(
    path: Path,
    settings: DataSettings,
    classes: tuple[str, ...] | None,
    task: str,
    format_: Format,
    faults: Faults | None,
) -> Listing:
    """What a format reads that takes any folders for classes, unless they are of another layout. Raises DataError."""
    if path.is_dir():
        if any(entry.name.lower() in _LAYOUT_FOLDERS for entry in path.iterdir()):
            _refuse_other_layout(path, path, task)
        only = path
        while (inside := _inside(only)) and len(inside) == 1 and inside[0] != only:
            only = inside[0]
            _refuse_other_layout(only, path, task)
        if only != path:
            refuse_foreign(path, by_content=True)
    try:
        return format_.open(path, settings, classes, faults)
    except DataError as error:
        refuse_foreign(path)
        others = tasks_of(path, task, "folders")
        remedy = "; ".join(part for part in (error.remedy, f"or are they data for {others}?" * bool(others)) if part)
        raise DataError(error.what, where=error.where, remedy=remedy) from None


def _refuse_other_layout(path: Path, given: Path, task: str) -> None:
    """Raise DataError where a folder is of a layout of other tasks."""
    for format_ in _of_layouts():
        if task not in format_.tasks and (format_.recognises(path) or _knows_parts(format_, path)):
            what = f"data for {' or '.join(format_.tasks)} ({format_.layout}), not class folders"
            remedy = "name that task" if path == given else f"name that task, and give {path.relative_to(given)}/"
            raise DataError(what, where=given, remedy=f"{remedy}; or give a folder of class folders")


def _of_layouts(task: str | None = None) -> list[Format]:
    return [format_ for format_ in formats(task).values() if format_.takes == "its layout"]


def _inside(folder: Path) -> list[Path]:
    """Folders inside one, in their order."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def _entries(folder: Path) -> list[Path]:
    """Folders and lists inside one, the first few."""
    if not folder.is_dir():
        return []
    files = (entry for entry in sorted(folder.iterdir()) if not is_hidden(entry.name) and entry.is_file())
    lists = [file for file in files if file.suffix.lower() in _LISTS]
    return [*_inside(folder)[:_LOOKED_AT], *lists[:_LOOKED_AT]]


def tasks_of(path: Path, but: str | None, takes: str) -> str:
    """The tasks other than one that formats of this kind have data for, in words; "" where there are none."""
    if path.is_dir() and first_suffix(path, (*SUFFIXES, *VIDEO_SUFFIXES)) is None:
        return ""
    for format_ in formats().values():
        if format_.takes != takes or but in format_.tasks:
            continue
        roots = [path, _part(_home(path, format_.tasks[0]), TRAIN)]
        if _knows_parts(format_, path) or any(
            format_.recognises(root) and format_.is_meant(root) for root in roots if root
        ):
            return f"{' or '.join(format_.tasks)} ({format_.layout})"
    return ""


def unknown(path: Path, task: str | None = None) -> DataError:
    """Why there is nothing to read: what the data are, and what to do.

    Args:
        path: what was given.
        task: what for; None: for any.
    """
    wanted = task or "any task that is known by its layout"
    try:
        if path.is_file():
            refuse_foreign(path)
        if others := tasks_of(path, task, "its layout"):
            return DataError(f"no data for {wanted}, but for {others}", where=path, remedy="name that task")
        refuse_foreign(path)
    except DataError as error:
        return error
    for entry in _entries(path):
        for format_ in _of_layouts(task):
            if (format_.recognises(entry) and format_.is_meant(entry)) or _knows_parts(format_, entry):
                what = f"no known layout of data, but {format_.layout} in {entry.name}{'/' * entry.is_dir()}"
                return DataError(what, where=path, remedy=f"give that {'folder' if entry.is_dir() else 'file'}")
    if others := tasks_of(path, task, "folders") or tasks_of(path, task, "anything"):
        return DataError(f"no data for {wanted}, but for {others}", where=path, remedy="name that task")
    layouts = (
        ", ".join(format_.layout for format_ in formats().values() if format_.takes != "objects")
        if task is None
        else _layouts(task)
    )
    return DataError("no known layout of data", where=path, remedy=f"looked for {layouts}")


def _knows_parts(format_: Format, folder: Path) -> bool:
    """Whether a format says where the parts of a folder are."""
    try:
        return format_.parts(folder) is not None
    except DataError:
        return False


def has_validation(path: str | Path, task: str = "classification") -> bool:
    """Whether a folder has a part to learn from and a part to validate on."""
    return None not in _parts(Path(path), task)


def _parts(path: Path, task: str) -> tuple[Path | None, Path | None]:
    """What to learn from and what to validate on: as a format itself says, else by the names of folders.

    Without the first there is no second.
    """
    for format_ in formats(task).values():
        if parts := format_.parts(path):
            return parts
    home = _home(path, task)
    train = _part(home, TRAIN)
    return train, _part(home, VALIDATION) if train else None


def _home(path: Path, task: str) -> Path:
    """Where train/ and val/ lie: in `path`, or in a folder inside it in which a layout keeps them."""
    inside = (path / name for format_ in formats(task).values() for name in format_.inside)
    return next((folder for folder in (path, *inside) if _part(folder, TRAIN)), path)


def _part(path: Path, names: Sequence[str]) -> Path | None:
    """The folder or CSV list inside `path` that has the first of these names."""
    if not path.is_dir():
        return None
    entries = {entry.name.lower(): entry for entry in path.iterdir()}
    matches = (entries.get(name + suffix) for name in names for suffix in ("", ".csv"))
    return next((entry for entry in matches if entry is not None), None)


def _unused(path: Path, train: Path | None, validation: Path | None) -> tuple[str, ...]:
    """A note on folders and lists beside the parts that are neither: a third part, or labels that nobody reads."""
    if train is None or train.parent != path or validation is None or validation.parent != path:
        return ()
    beside = [entry for entry in path.iterdir() if entry not in (train, validation) and not is_hidden(entry.name)]
    names = sorted(f"{e.name}/" if e.is_dir() else e.name for e in beside if e.is_dir() or e.suffix.lower() in _TABLES)
    return (f"not used, beside {train.name} and {validation.name}: {quoted(names)}",) if names else ()


def _only(train: Path) -> bool:
    """Whether there is no other folder beside."""
    return not any(entry != train and entry.is_dir() and not is_hidden(entry.name) for entry in train.parent.iterdir())


def check_before(folder: Path, data: str | Path, task: str) -> None:
    """Raise FolderError for a folder inside a data set without parts of its own, before it is read or anything made.

    What is made there would be taken for a class, or its pictures for pictures.
    """
    path = Path(data).expanduser()
    if path.is_dir() and not has_validation(path, task):
        check_target(folder, path)
