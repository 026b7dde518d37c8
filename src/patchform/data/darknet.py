"""Files that describe a data set for darknet, as CVAT writes them too: lists of pictures, and names of classes.

    obj.data        train = data/train.txt, valid = data/valid.txt, names = data/obj.names
    train.txt       data/obj_train_data/a.jpg, a line for each picture

Paths begin with "data/", the folder that all is copied to; here they also lead from the folder of the file itself.
"""

from __future__ import annotations

from pathlib import Path

from patchform.data.listed_names import inside, is_file
from patchform.data.listing import TRAIN, VALIDATION, is_hidden
from patchform.data.text_files import read_text

SUFFIX, USUAL = ".data", "obj.data"
NAMES = "obj.names"
_PREFIX = "data/"
_LARGEST = 1 << 16
"""Bytes of such a file."""


def is_data(path: Path) -> bool:
    """Whether it is a file that names lists of pictures and names of classes."""
    if path.suffix.lower() != SUFFIX or not path.is_file() or path.stat().st_size > _LARGEST:
        return False
    return {"names", "classes"} & set(_values(path)) != set()


def find_data(folder: Path) -> Path | None:
    """The file of a folder that describes what is in it: the usual one, else the only one."""
    files = [entry for entry in sorted(folder.iterdir()) if not is_hidden(entry.name) and is_data(entry)]
    usual = [file for file in files if file.name.lower() == USUAL]
    return usual[0] if usual else files[0] if len(files) == 1 else None


def lists_of(path: Path) -> tuple[Path, Path | None] | None:
    """The lists to learn from and to validate on, of such a file or beside a list of names. Raises DataError."""
    file = path if is_data(path) else find_data(path) if path.is_dir() else None
    if file is not None:
        lists = {key: found for key in (*TRAIN, *VALIDATION) if (found := named(file, key))}
    elif path.is_dir() and is_file(path / NAMES):
        texts = {entry.stem.lower(): entry for entry in sorted(path.iterdir()) if entry.suffix.lower() == ".txt"}
        lists = {key: texts[key] for key in (*TRAIN, *VALIDATION) if key in texts}
    else:
        return None
    train, validation = (next((lists[key] for key in keys if key in lists), None) for keys in (TRAIN, VALIDATION))
    return (train, validation) if train else None


def named(file: Path, key: str) -> Path | None:
    """The file that a key leads to, if it is there and in the folder of the file."""
    value = _values(file).get(key)
    name = inside(value, file.parent) if value else None
    found = resolved(name, file.parent) if name else None
    return found if found is not None and is_file(found) else None


def resolved(name: str, *folders: Path) -> Path:
    """The first file of this name, "data/" before it or not; one in the last folder where there is none."""
    names = (name, name.removeprefix(_PREFIX))
    candidates = (folder / one for one in dict.fromkeys(names) for folder in folders)
    return next((candidate for candidate in candidates if is_file(candidate)), folders[-1] / name)


def _values(file: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in read_text(file).splitlines())
    return {key.strip().lower(): value.strip() for key, _, value in pairs if value}
