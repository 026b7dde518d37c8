"""List the runs in a folder: task, model, score, how far they are, the newest first."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from patchform import system
from patchform.errors import UsageError
from patchform.training.pace import in_words
from patchform.training.standing import Row, look

EXAMPLE = "patchform runs"
DEFAULT = "runs"
DAY, MINUTE = 86_400, 60
"""Seconds."""
HEADINGS = ("run", "task", "model", "best score", "epoch", "age", "state")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where."""
    help_ = f"folder of run folders, or one of them (default: {DEFAULT})"
    parser.add_argument("folder", metavar="DIR", nargs="?", default=DEFAULT, help=help_)


def run(arguments: argparse.Namespace) -> int:
    """Print a table."""
    rows = list_runs(arguments.folder)
    if arguments.json:
        print(json.dumps([row._asdict() for row in rows], indent=1, allow_nan=False))
        return 0
    if not rows:
        print(f"no runs in {arguments.folder}; begin one: patchform train classification --data photos/ --name first")
        return 0
    now = time.time()
    table = [HEADINGS, *(_cells(row, now) for row in rows)]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(HEADINGS))]
    for cells in table:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths)).rstrip())
    folder = Path(arguments.folder)
    first = system.quoted(str(folder if rows[0].name == folder.name and look(folder) else folder / rows[0].name))
    if rows[0].state in ("stopped", "failed", "diverged"):
        print(f"to go on: patchform train {first} --resume")
    elif rows[0].state == "finished":
        print(f"to look closer: patchform evaluate {first}")
    return 0


def list_runs(folder: str | Path = DEFAULT) -> list[Row]:
    """What is known of the runs in a folder, or of the one that it is; the newest first. Only small files are read.

    Args:
        folder: of run folders, as of `train`; what else lies in it is passed over. The default may be missing.

    Raises:
        UsageError: there is no such folder, or it cannot be read.
    """
    place = Path(folder)
    try:
        if (row := look(place)) is not None:
            return [row._replace(name=place.resolve().name)]
        places = [path for path in place.iterdir() if path.is_dir()]
    except OSError as error:
        if isinstance(error, FileNotFoundError) and str(folder) == DEFAULT:
            return []
        remedy = "name a folder of runs: patchform runs DIR"
        raise UsageError(f"cannot be read ({error.strerror})", where=folder, remedy=remedy) from error
    rows = [row for row in map(look, places) if row is not None]
    return sorted(rows, key=lambda row: (-row.changed, row.name))


def _cells(row: Row, now: float) -> tuple[str, ...]:
    score = "-" if row.score is None else f"{row.metric} {row.score:.4f}"
    epochs = f"{row.epoch}/{'?' if row.epochs is None else row.epochs}"
    state = row.state + f" ({row.why})" * bool(row.why)
    return (row.name, row.task or "?", row.model or "?", score, epochs, _age(now - row.changed), state)


def _age(seconds: float) -> str:
    days = int(seconds // DAY)
    if days >= 2:
        return f"{days} days"
    return in_words(max(seconds, 0)) if seconds < MINUTE else in_words(seconds // MINUTE * MINUTE)
