"""List the packaged recipes: model, input, what each needs and what it reaches."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from patchform import lookup
from patchform.commands import recipes
from patchform.training.recipe_files import About, described

EXAMPLE = "patchform recipes detection"
WIDE = 140
"""Letters that a line takes; in a narrower terminal the name stands above the rest."""
HEADINGS = ("recipe", "model", "input", "needs", "reaches")
MACHINES = {"cpu": "CPU", "gpu": "GPU"}


class Row(NamedTuple):
    """A recipe, for people who choose one."""

    name: str
    model: str
    """Backbone and head."""
    input: str
    """Height and width in pixels, or the side; frames of clips in front."""
    epochs: int
    batch: int
    about: About | None
    """None where its file says nothing of itself."""

    @property
    def needs(self) -> str:
        """Weights and machine."""
        if self.about is None:
            return "-"
        start = "" if self.about.starts_from == "nothing" else f"{self.about.starts_from}; "
        return start + MACHINES[self.about.machine]

    @property
    def reaches(self) -> str:
        """A number and whose it is; "-" where none is known."""
        known = self.about and self.about.reaches
        return f"{known} ({self.about.source})" if self.about and known else "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A task."""
    parser.add_argument("task", metavar="TASK", nargs="?", help=f"one of {', '.join(recipes.tasks())} (default: all)")


def run(arguments: argparse.Namespace) -> int:
    """Print a table."""
    rows = recipe_rows(arguments.task)
    if arguments.json:
        print(json.dumps([_plain(row) for row in rows], indent=1))
        return 0
    table = [[row.name, row.model, row.input, row.needs, row.reaches] for row in rows]
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE
    for line in _lines(table) if columns >= WIDE else _pairs(rows):
        print(line)
    task = rows[0].name.partition("/")[0]
    print(
        f"patchform train {task} --data DIR fits {task}/{recipes.DEFAULT} to the data; patchform train NAME any other"
    )
    return 0


def _lines(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns side by side."""
    cells = [HEADINGS, *table]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()


def _pairs(rows: Sequence[Row]) -> Iterator[str]:
    """A name, and below it what is known of it."""
    for row in rows:
        purpose = f"{row.about.purpose}: " if row.about else ""
        reaches = f"; {row.reaches}" if row.reaches != "-" else ""
        yield row.name
        text = f"{purpose}{row.model}, {row.input} px; {row.needs}{reaches}"
        yield from textwrap.wrap(
            text, shutil.get_terminal_size().columns - 4, initial_indent="  ", subsequent_indent="  "
        )


def recipe_rows(task: str | None = None) -> list[Row]:
    """The packaged recipes of a task, or all. Raises UsageError for a task that has none."""
    names = [name for name in recipes.packaged() if task is None or name.startswith(f"{task}/")]
    if not names:
        raise lookup.no_such("task with recipes", str(task), recipes.tasks())
    return [_row(name) for name in names]


def _row(name: str) -> Row:
    path = recipes.find(name)
    recipe, about = described(path)
    height, width = recipe.preprocessing.size
    size = str(height) if height == width else f"{height} x {width}"
    frames = f"{recipe.preprocessing.frames} x " if recipe.preprocessing.frames else ""
    model, training = recipe.model, recipe.training
    return Row(
        name,
        f"{model.backbone} + {model.head}",
        f"{frames}{size}",
        training.epochs,
        training.batch_size,
        about,
    )


def _plain(row: Row) -> dict[str, object]:
    facts = row.about and vars(row.about)
    return {**row._asdict(), "about": facts}
