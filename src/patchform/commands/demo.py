"""Train, judge and use a small model on bundled real data, in minutes."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from patchform.commands.evaluate import evaluate
from patchform.commands.predict import load
from patchform.commands.train import train
from patchform.errors import FolderError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from patchform.metrics.base import Scores

EXAMPLE = "patchform demo"
MARK = "demo.txt"
"""A folder with this file may be replaced by the next demo."""
HELD_OUT = 0.2
SEED = 0
SHOWN = 3


class Demo(NamedTuple):
    """What the demo made."""

    folder: Path
    """With data/, digits/ (the run folder), predictions/, evaluation.json and report.html."""
    scores: Scores
    """On the held-out fifth."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where it goes."""
    parser.add_argument("--runs", metavar="DIR", default="runs", help="folder of run folders (default: runs)")


def run(arguments: argparse.Namespace) -> int:
    """Say what was reached and what to try next."""
    folder, scores = demo(arguments.runs, progress=not arguments.json)
    if arguments.json:
        print(json.dumps({"folder": str(folder), **scores.as_json()}, allow_nan=False))
        return 0
    print(f"{scores.best or 0:.1%} of {scores.samples} held-out pictures are recognised; some of them:")
    for line in (folder / "predictions" / "predictions.jsonl").read_text().splitlines()[:SHOWN]:
        answer = json.loads(line)
        print(f"  {answer['file']}: {answer['label']} ({answer['score']:.1%})")
    print(f"the page to look at: {folder / 'report.html'}")
    print(f"to go on: patchform predict {folder / 'digits'} {folder / 'data' / 'val' / '3'}")
    return 0


def demo(runs: str | Path = "runs", *, progress: bool = True, **settings: Any) -> Demo:
    """Train a small vision transformer on 1797 scanned digits, evaluate it, predict, and write a page.

    Args:
        runs: folder of run folders; `runs/demo` is replaced if an earlier demo made it.
        progress: show how it goes, on stderr.
        settings: over those of the recipe `classification/digits`, as in `train`.

    Raises:
        UsageError: scikit-learn is not installed.
        FolderError: `runs/demo` is not of a demo, or another demo is at work in it.
    """
    digits = load_digits()
    folder = Path(runs) / "demo"
    if folder.exists() and not (folder / MARK).is_file():
        raise FolderError("exists and is not of a demo", where=folder, remedy="name another place with --runs")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text("This folder was made by `patchform demo`; the next one replaces it.\n")

    from patchform.prediction import write
    from patchform.training.run import LOCK, lock

    with lock(folder):
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in (MARK, LOCK):
                entry.unlink()
        data = folder / "data"
        write_digits(data, *digits)
        if progress:
            print(f"{len(digits[0])} scanned digits are in {data}, a fifth of them held out", file=sys.stderr)
        finished = train("classification/digits", progress=progress, data=data, name="digits", runs=folder, **settings)
        scores = evaluate(finished.folder, data, out=folder)
        pictures = [next((data / "val" / str(digit)).iterdir()) for digit in range(10)]
        write(load(finished.folder), pictures, out=folder / "predictions")
    return Demo(folder, scores)


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """(N, 8, 8) uint8 in 0..255, ink bright, and (N,) int64: scikit-learn's copy of the UCI test set of digits.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise UsageError(
            "the demo needs scikit-learn for its pictures", remedy="pip install patchform[demo]"
        ) from error
    import numpy as np

    found = datasets.load_digits()
    return np.rint(found.images * (255 / 16)).astype(np.uint8), found.target


def write_digits(folder: Path, images: np.ndarray, classes: np.ndarray) -> None:
    """Write train/ and val/ with a folder a class. The same fifth of each class is held out every time."""
    import numpy as np
    from PIL import Image

    numbers = np.random.default_rng(SEED)
    for digit in range(10):
        members = numbers.permutation(np.flatnonzero(classes == digit))
        held_out = round(HELD_OUT * len(members))
        for part, chosen in (("val", members[:held_out]), ("train", members[held_out:])):
            place = folder / part / str(digit)
            place.mkdir(parents=True)
            for index in chosen:
                Image.fromarray(images[index]).save(place / f"{index:04d}.png")
