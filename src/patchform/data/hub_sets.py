"""Data sets of the library `datasets` (Hugging Face): those in memory, and by their names on its hub.

Their items are columns, so it has to be clear which one is the picture and which one the class. Where it is not, the
columns are named and nothing is guessed. What is on the hub is fetched when its name is given, by that library.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from patchform.data.listing import TRAIN, VALIDATION, quoted
from patchform.errors import DataError, UsageError

PREFIX = "hf:"
"""In front of a name on the hub."""


class Columns:
    """The pictures and classes of a data set of columns, as a Python object of (picture, class).

    Args:
        rows: a `datasets.Dataset` with one column of pictures and one of classes.

    Attributes:
        classes: names of the classes.

    Raises:
        UsageError: it has not exactly one of either.
    """

    def __init__(self, rows: Any) -> None:
        kinds = {name: type(feature).__name__ for name, feature in rows.features.items()}
        pictures, labels = ([name for name, kind in kinds.items() if kind == wanted] for wanted in _WANTED)
        if len(pictures) != 1 or len(labels) != 1:
            what = f"columns {quoted(list(kinds))}, of which {len(pictures)} are pictures and {len(labels)} classes"
            raise UsageError(what, remedy="give an object whose items are (picture, target)")
        self.rows, self._picture, self._label = rows, pictures[0], labels[0]
        self.classes = tuple(rows.features[self._label].names)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self.rows[index]
        label = row[self._label]
        if label is None or label < 0:
            raise DataError("it has no class")
        return row[self._picture], label


_WANTED = ("Image", "ClassLabel")
"""Types of the library for pictures and for classes."""


class Parts(NamedTuple):
    """What to learn from, and what to validate on, if there is such."""

    train: Columns
    validation: Columns | None


def are_columns(data: Any) -> bool:
    """Whether an object is one of that library."""
    return hasattr(data, "features") and hasattr(data, "column_names") and hasattr(data, "__getitem__")


def load(name: str) -> Parts:
    """Both parts of a data set on the hub.

    Args:
        name: `hf:NAME`.

    Raises:
        UsageError: the library is missing, or columns that are not clear.
        DataError: no such data set, or no part to learn from.
    """
    try:
        import datasets
    except ImportError:
        remedy = 'pip install "patchform[datasets]"'
        raise UsageError(f"{name} needs the package datasets", remedy=remedy) from None
    try:
        parts = datasets.load_dataset(name.removeprefix(PREFIX))
    except Exception as error:  # of a network, a hub, or a script: it raises a dozen kinds
        line = (str(error).splitlines() or [""])[0][:200]
        raise DataError(f"the data set cannot be loaded ({type(error).__name__}: {line})", where=name) from error
    train, held_out = (next((parts[part] for part in names if part in parts), None) for names in (TRAIN, VALIDATION))
    if train is None:
        raise DataError(f"parts {quoted(list(parts))}, and none to learn from", where=name)
    return Parts(Columns(train), None if held_out is None else Columns(held_out))
