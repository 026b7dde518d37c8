"""What a new user types for each task and what is shown, from a folder of data to a file that predicts.

python docs/make_transcripts.py writes docs/transcripts/TASK.md for every task; --tasks and --time choose some of it,
and --out another folder. Each task takes what --time says and about ten minutes more, where nothing else is done.
The data lie in the folder that PATCHFORM_DATA names, the tests' own; nothing is fetched.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from patchform import __version__
from patchform.bench.machine import machine
from patchform.system import cores

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("PATCHFORM_DATA", ROOT.parent / "shared" / "data"))
COLUMNS = 80
MOST_LINES, FIRST, LAST = 48, 24, 16
"""Of what a command shows: so many lines are kept whole, else these of its beginning and its end."""
MOST_LETTERS = 400
"""Of a line."""
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])")


class Tour(NamedTuple):
    """One task's."""

    task: str
    data: str
    """Below `DATA`."""
    folder: str
    """What the user calls it."""
    new: tuple[str, ...]
    """Patterns below the data; the first file of each is what is predicted."""
    title: str


TOURS = (
    Tour("classification", "classification/hymenoptera", "insects", ("val/*/*.jpg",), "Photographs of two insects"),
    Tour("detection", "detection/bccd", "cells", ("val/*.jpg",), "Blood cells with boxes"),
    Tour("instance_segmentation", "instance_segmentation/dsb2018_nuclei", "nuclei", ("val/*.jpg",), "Nuclei, outlined"),
    Tour(
        *("semantic_segmentation", "semantic_segmentation/camvid", "streets", ("images/validation/*",)),
        "Streets, each pixel labelled",
    ),
    Tour("video_classification", "video_classification/asl_motion", "signs", ("val/*/*",), "Films of signs"),
    Tour("pretraining", "classification/cifar10_subset", "pictures", (), "Pictures without labels"),
)
COMMANDS = (
    "patchform data check {folder}",
    "patchform data show {folder} --out sheet.png",
    "patchform train {task} --data {folder} --time {time} --name first",
    "patchform runs",
    "patchform evaluate runs/first",
    "patchform predict runs/first new --out answers",
    "patchform export runs/first --format onnx",
    "patchform predict runs/first/model.onnx new --out answers-of-the-file",
    "patchform bench runs/first",
)
UNLABELLED = (
    "patchform data check {folder}",
    "patchform train {task} --data {folder} --time {time} --name first",
    "patchform runs",
    "patchform probe runs/first --data {folder}",
    "patchform train classification --data {folder} --from runs/first --time {time} --name second",
    "patchform runs",
)
"""Of a task whose result is a backbone."""


def commands(tour: Tour, length: str) -> list[str]:
    """What is typed, in order."""
    lines = COMMANDS if tour.new else UNLABELLED
    return [line.format(folder=tour.folder, task=tour.task, time=length) for line in lines]


def shown(text: str, home: str) -> str:
    """What is left on a terminal, with short paths.

    Args:
        text: all that was printed.
        home: the folder that it was printed in.
    """
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in ESCAPES.sub("", text).split("\n")]
    places = {home + os.sep: "", home: ".", str(ROOT) + os.sep: "", str(Path.home()): "~"}
    short = [functools.reduce(lambda text, place: text.replace(*place), places.items(), line) for line in lines]
    short = [line if len(line) <= MOST_LETTERS else f"{line[:MOST_LETTERS]} [...]" for line in short]
    while short and not short[-1]:
        short.pop()
    if len(short) > MOST_LINES:
        left = len(short) - FIRST - LAST
        short = [*short[:FIRST], f"[... {left} lines ...]", *short[-LAST:]]
    return "\n".join(short)


def lay_out(tour: Tour, home: Path) -> None:
    """The data under the user's name for them, and a few of their pictures or films as new ones."""
    source = DATA / tour.data
    (home / tour.folder).symlink_to(source.resolve())
    found = [sorted(path for path in source.glob(pattern) if path.name[0] != ".") for pattern in tour.new]
    for path in [each for paths in found for each in (paths[:1] + paths[len(paths) // 2 :][:1] + paths[-1:])]:
        into = home / "new" / path.name
        into.parent.mkdir(exist_ok=True)
        shutil.copytree(path, into) if path.is_dir() else shutil.copyfile(path, into)


def typed(line: str, home: Path) -> tuple[int, str, float]:
    """Run a command line in a folder: its exit code, what it shows in a pipe, and its seconds."""
    words = [sys.executable, "-m", "patchform", *shlex.split(line)[1:]]
    settings = {"COLUMNS": str(COLUMNS), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    source = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    environment = os.environ | settings | {"PYTHONPATH": source}
    begun = time.monotonic()
    done = subprocess.run(
        words, cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.returncode, done.stdout.decode("utf-8", "replace"), time.monotonic() - begun


def write(tour: Tour, length: str, page: Path) -> bool:
    """Write the page of a task, command by command, and return whether each did what it was to do."""
    here = machine(cores())
    parts = [
        f"# {tour.title}",
        f"All that is typed, and what is shown in a pipe of {COLUMNS} columns. Made by `docs/make_transcripts.py --time"
        f" {length} --tasks {tour.task}` on {datetime.now(UTC):%Y-%m-%d} with patchform {__version__}, Python"
        f" {platform.python_version()}, on {here.processor}: {here.cores} cores, {here.system}. `{tour.folder}` is"
        f" `{tour.data}`" + ("; `new` holds three pictures or films of it." if tour.new else "."),
    ]
    well = True
    with tempfile.TemporaryDirectory(prefix="patchform-tour-") as place:
        home = Path(place).resolve()
        lay_out(tour, home)
        for line in commands(tour, length):
            print(f"{tour.task}: {line}", file=sys.stderr, flush=True)
            code, text, seconds = typed(line, home)
            well = well and code == 0
            ended = f"*{seconds:.0f} s*" if code == 0 else f"*{seconds:.0f} s, exit code {code}*"
            parts.append(f"```console\n$ {line}\n{shown(text, str(home))}\n```\n{ended}")
            page.write_text("\n\n".join(parts) + "\n", encoding="utf-8", newline="\n")
    return well


def main() -> int:
    """Write the pages; 1 if a command of them did not end well."""
    names = [tour.task for tour in TOURS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--time", default="15m", help="of each training (default: 15m)")
    parser.add_argument("--tasks", nargs="+", choices=names, default=names, metavar="TASK", help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "transcripts", help="folder of the pages")
    options = parser.parse_args()
    all_well = True
    options.out.mkdir(parents=True, exist_ok=True)
    for tour in TOURS:
        if tour.task in options.tasks:
            all_well = write(tour, options.time, options.out / f"{tour.task}.md") and all_well
    return 0 if all_well else 1


if __name__ == "__main__":
    sys.exit(main())
