"""Folders whose names are classes: what formats of them have in common, whatever lies in the folders."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from patchform.data.known_classes import with_unknown
from patchform.data.listing import (
    Item,
    Listing,
    Medium,
    by_name,
    check_names,
    is_hidden,
    mapping_note,
    ordered,
    quoted,
    walk,
)
from patchform.errors import DataError
from patchform.settings import DataSettings


def read_folders(path: Path, settings: DataSettings, classes: tuple[str, ...] | None, medium: Medium) -> Listing:
    """List the items of all class folders.

    Args:
        path: the folder.
        settings: `allow_empty_class` is used, when the folders say which classes there are.
        classes: names that give the indices (training's, or the model's); None: those of the folders found.
        medium: what is looked for in them.

    Raises:
        DataError: no class folder, no item, an empty or unknown class, or names that differ by case or spaces only.
    """
    folders, hidden = _folders(path)
    names = ordered(folder.name for folder in folders)
    check_names(names, path)
    if not names:
        raise DataError("no class folder", where=path, remedy="put each class into a folder of its own")

    noun = medium.thing
    files = {name: tuple(walk(path / name)) for name in names}
    chosen = {name: medium.among(path / name, files[name]) for name in names}
    empty = [name for name in names if not chosen[name]]
    if empty and classes is None and not settings.allow_empty_class:
        remedy = "remove the folder, or set data.allow_empty_class"
        raise DataError(f"no {noun} of class {quoted(empty)}", where=path, remedy=remedy)
    if len(empty) == len(names):
        raise DataError(f"no {noun}", where=path, remedy=f"known file names end in {', '.join(medium.suffixes)}")

    order = names if classes is None else with_unknown(names, classes)
    indices = by_name(names, order, path)
    used = {item for items in chosen.values() for item in items}
    ignored = Counter(
        file.suffix.lower() or "no suffix"
        for group in files.values()
        for file in group
        if file not in used and file.parent not in used
    )
    loose = sorted(entry.name for entry in path.iterdir() if entry.is_file() and not is_hidden(entry.name))
    notes = (
        *((f"ignored folders: {quoted(hidden)}",) if hidden else ()),
        *((f"ignored {len(loose)} files beside the class folders: {quoted(loose)}",) if loose else ()),
        *((f"ignored files that are no {noun}s: {dict(ignored.most_common(5))}",) if ignored else ()),
        *((f"classes without a {noun}: {quoted(empty)}",) if empty else ()),
        *(mapping_note(order) if classes is None else ()),
    )
    items = tuple(Item(item, (indices[name],)) for name in names for item in chosen[name])
    return Listing(classes=order, items=items, root=path, notes=notes, medium=medium)


def has_folders(path: Path) -> bool:
    """Whether `path` is a folder with at least one folder that could be a class."""
    return path.is_dir() and bool(_folders(path)[0])


def _folders(path: Path) -> tuple[list[Path], list[str]]:
    """Class folders, and names of hidden and system folders."""
    folders = [entry for entry in path.iterdir() if entry.is_dir()]
    return (
        [entry for entry in folders if not is_hidden(entry.name)],
        sorted(entry.name for entry in folders if is_hidden(entry.name)),
    )
