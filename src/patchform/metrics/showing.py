"""Scores as HTML, for the page of a run and for notebooks: each number beside what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from patchform.markup import matrix, table, terms
from patchform.metrics.meanings import meaning

ROWS, MATRIX = 40, 24
"""Classes that are shown at once, and that a table of their confusion is legible of."""
Rows = tuple[Sequence[str], Sequence[str], Sequence[Sequence[float | None]]]
"""Columns, rows and values, as of `base.Table`."""


def number_table(samples: int, numbers: Mapping[str, float | None]) -> str:
    """A row a number, with a line on what it means; those that are not defined are left out."""
    rows = [("images", str(samples))]
    rows += [(name, f"{value:.4f}") for name, value in numbers.items() if value is not None]
    return table([(name, [value, meaning(name)]) for name, value in rows], kind="words")


def class_table(parts: Sequence[Rows]) -> str:
    """A row a class, of tables beside each other, and what the columns mean; "" without one, or if rows differ."""
    if not parts or any(tuple(part[1]) != tuple(parts[0][1]) for part in parts):
        return ""
    columns = [name for part in parts for name in part[0]]
    rows = [
        (name, [in_words(value) for part in values for value in part])
        for name, *values in zip(parts[0][1], *(part[2] for part in parts))
    ]
    shown = table(rows[:ROWS], columns)
    if len(rows) > ROWS:
        more = f"{len(rows) - ROWS} more classes"
        shown += f"<details><summary>{more}</summary>{table(rows[ROWS:], columns)}</details>"
    return shown + terms({name: meaning(name) for name in columns if meaning(name)})


def confusion_table(counts: Rows, beside: Sequence[str] = ()) -> str:
    """The counts, shaded, while their names are legible, else ""; `beside` are rows that are no class, explained."""
    if len(counts[1]) > MATRIX:
        return ""
    return matrix(counts[2], counts[1]) + terms({name: meaning(name) for name in beside})


def in_words(value: float | None) -> str:
    """A cell: counts whole, shares with three digits, "-" where nothing is defined."""
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"
