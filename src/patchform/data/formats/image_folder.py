"""A folder of class folders: `photos/cat/1.jpg`. The name of a folder is the name of its class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from patchform.data.listing import (
    SUFFIXES,
    Item,
    Listing,
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

TASKS = ("classification",)
LAYOUT = "a folder of class folders"
"""What is looked for, in words."""


def recognises(path: Path) -> bool:
    """Whether `path` is a folder with at least one folder that could be a class."""
    return path.is_dir() and bool(_folders(path)[0])


def read(path: Path, settings: DataSettings, classes: tuple[str, ...] | None) -> Listing:
    """List the pictures of all class folders, in deeper folders too.

    Args:
        path: the folder.
        settings: `allow_empty_class` is used, when the folders say which classes there are.
        classes: names that give the indices (training's, or the model's); None: those of the folders found.

    Raises:
        DataError: no class folder, no picture, an empty or unknown class, or names that differ by case or spaces only.
    """
    folders, hidden = _folders(path)
    names = ordered(folder.name for folder in folders)
    check_names(names, path)
    if not names:
        raise DataError("no class folder", where=path, remedy="put each class into a folder of its own")

    files = {name: tuple(walk(path / name)) for name in names}
    pictures = {name: [file for file in files[name] if file.suffix.lower() in SUFFIXES] for name in names}
    empty = [name for name in names if not pictures[name]]
    if empty and classes is None and not settings.allow_empty_class:
        remedy = "remove the folder, or set data.allow_empty_class"
        raise DataError(f"no picture of class {quoted(empty)}", where=path, remedy=remedy)
    if len(empty) == len(names):
        raise DataError("no picture", where=path, remedy=f"known file names end in {', '.join(SUFFIXES)}")

    order = names if classes is None else classes
    indices = by_name(names, order, path)
    ignored = Counter(
        file.suffix.lower() or "no suffix"
        for found in files.values()
        for file in found
        if file.suffix.lower() not in SUFFIXES
    )
    loose = sum(entry.is_file() and not is_hidden(entry.name) for entry in path.iterdir())
    notes = (
        *((f"ignored folders: {quoted(hidden)}",) if hidden else ()),
        *((f"ignored {loose} files beside the class folders",) if loose else ()),
        *((f"ignored files that are no pictures: {dict(ignored.most_common(5))}",) if ignored else ()),
        *((f"classes without a picture: {quoted(empty)}",) if empty else ()),
        *(mapping_note(order) if classes is None else ()),
    )
    items = tuple(Item(file, (indices[name],)) for name in names for file in pictures[name])
    return Listing(classes=order, items=items, root=path, notes=notes)


def _folders(path: Path) -> tuple[list[Path], list[str]]:
    """Class folders, and names of hidden and system folders."""
    folders = [entry for entry in path.iterdir() if entry.is_dir()]
    return (
        [entry for entry in folders if not is_hidden(entry.name)],
        sorted(entry.name for entry in folders if is_hidden(entry.name)),
    )
