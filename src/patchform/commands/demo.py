"""Train, judge and use a small model on bundled real data, in minutes."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from patchform.commands import digits
from patchform.commands.evaluate import evaluate
from patchform.commands.predict import load
from patchform.commands.train import train
from patchform.errors import FolderError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from patchform.metrics.base import Scores

EXAMPLE = "patchform demo segmentation"
MARK = "demo.txt"
"""A folder with this file may be replaced by the next demo."""
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
"""Of the scans of each class. val chooses the epoch and the thresholds; test, whose numbers are given, nothing."""
SEED = 0
SCENES = {"train": 1600, "val": 160, "test": 160}
CLIPS = {"train": 800, "val": 100, "test": 100}
SHOWN = 3


class Demo(NamedTuple):
    """What the demo made."""

    folder: Path
    """With data/, the run folder, predictions/, evaluation.json and report.html."""
    run: Path
    """The run folder, digits/."""
    scores: Scores
    """On the test part, which chose nothing."""


class Kind(NamedTuple):
    """What is shown of a task."""

    folder: str
    """Below that of run folders."""
    recipe: str
    write: Callable[[Path], list[Path]]
    """Makes the data, returns pictures of the test part to predict."""
    test: str
    """Where the test part lies in the data."""
    reached: str
    """What `{best}` says of `{samples}` pictures."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What and where."""
    parser.add_argument(
        "task", metavar="TASK", nargs="?", default="classification", help=f"{' or '.join(KINDS)} (default: the first)"
    )
    parser.add_argument("--runs", metavar="DIR", default="runs", help="folder of run folders (default: runs)")


def run(arguments: argparse.Namespace) -> int:
    """Say what was reached and what to try next."""
    folder, run_folder, scores = demo(arguments.runs, task=arguments.task, progress=not arguments.json)
    if arguments.json:
        print(json.dumps({"folder": str(folder), **scores.as_json()}, allow_nan=False))
        return 0
    print(f"{KINDS[arguments.task].reached.format(best=scores.best or 0, samples=scores.samples)},")
    print("none of which was learnt from or chose the epoch; some of them:")
    for line in (folder / "predictions" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[:SHOWN]:
        answer = json.loads(line)
        print(f"  {answer['file']}: {_answer_text(answer)}")
    print(f"the page to look at: {folder / 'report.html'}")
    print(f"to go on: patchform predict {run_folder} {answer['file']} --out somewhere")
    return 0


def demo(runs: str | Path = "runs", *, task: str = "classification", progress: bool = True, **settings: Any) -> Demo:
    """Train a small model on 1797 scanned digits, or on scenes of them, evaluate it, predict, and write a page.

    The scans are dealt out to three parts: the model learns from one, the second chooses the best epoch and thresholds,
    and all numbers are of the third, which chose nothing.

    Args:
        runs: folder of run folders; `runs/demo` (`runs/demo-segmentation`, ...) is replaced if an earlier demo made it.
        task: "classification" of single digits; "segmentation" of scenes, or "detection" in them; "video": clips in
            which one moves.
        progress: show how it goes, on stderr.
        settings: over those of the task's recipe "digits", as in `train`.

    Raises:
        UsageError: no such task, or scikit-learn, or for videos PyAV, is not installed.
        FolderError: the folder is not of a demo, or another demo is at work in it.
    """
    if task not in KINDS:
        raise UsageError(f'no demo "{task}"', remedy=f"there are: {', '.join(KINDS)}")
    kind = KINDS[task]
    folder = Path(runs) / kind.folder
    if folder.exists() and not (folder / MARK).is_file():
        raise FolderError("exists and is not of a demo", where=folder, remedy="name another place with --runs")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text(
        "This folder was made by `patchform demo`; the next one replaces it.\n", encoding="utf-8"
    )

    from patchform.prediction import write
    from patchform.training.run import LOCK, lock

    with lock(folder):
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in (MARK, LOCK):
                entry.unlink()
        data = folder / "data"
        pictures = kind.write(data)
        if progress:
            print(
                f"scanned digits are in {data}: train to learn from, val chooses the epoch, test nothing",
                file=sys.stderr,
            )
        finished = train(kind.recipe, progress=progress, page=False, data=data, name="digits", runs=folder, **settings)
        scores = evaluate(finished.folder, data / kind.test, out=folder)
        write(load(finished.folder), pictures, out=folder / "predictions")
    return Demo(folder, finished.folder, scores)


def _answer_text(answer: dict[str, Any]) -> str:
    if "objects" in answer:
        return ", ".join(f"{item['name']} ({item['score']:.1%})" for item in answer["objects"]) or "nothing"
    if "shares" in answer:
        return ", ".join(f"{name} {share:.1%}" for name, share in answer["shares"].items())
    return f"{answer['label']} ({answer['score']:.1%})"


# --------------------------------------------------------------------------------------------------------------- data


def write_digits(folder: Path) -> list[Path]:
    """Write train/, val/ and test/ with a folder a class; returns a picture of each from the last."""
    from PIL import Image

    for part, scans, _ in _parts():
        for number, (image, digit) in enumerate(zip(*scans)):
            class_folder = folder / part / str(digit)
            class_folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(class_folder / f"{number:04d}.png")
    return [min((folder / "test" / str(digit)).iterdir()) for digit in range(10)]


def write_scenes(folder: Path) -> list[Path]:
    """Write images/ and masks/ of train/, val/ and test/; returns pictures of the last. No scan is in two parts."""
    from PIL import Image

    for part, scans, generator in _parts():
        targets = [folder / kind / part for kind in ("images", "masks")]
        for target in targets:
            target.mkdir(parents=True)
        for index in range(SCENES[part]):
            scene = digits.scene(scans, generator)
            for target, picture in zip(targets, (scene.image, scene.mask())):
                Image.fromarray(picture).save(target / f"{index:04d}.png")
    (folder / "classes.txt").write_text("\n".join(["ground", *map(str, range(10))]) + "\n", encoding="utf-8")
    return sorted((folder / "images" / "test").iterdir())[:10]


def write_objects(folder: Path) -> list[Path]:
    """Write train/, val/ and test/ with COCO's json of the digits in them; returns pictures of the last.

    No scan is in two parts.
    """
    import numpy as np
    from PIL import Image

    (folder / "annotations").mkdir(parents=True)
    for part, scans, generator in _parts():
        (folder / part).mkdir()
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for index in range(SCENES[part]):
            scene, name = digits.scene(scans, generator), f"{index:04d}.png"
            Image.fromarray(scene.image).save(folder / part / name)
            images.append({"id": index, "file_name": name, "width": digits.SIDE, "height": digits.SIDE})
            for owner, digit in enumerate(scene.classes.tolist(), 1):
                rows, columns = np.nonzero(scene.owners == owner)
                corner = int(columns.min()), int(rows.min())
                sides = int(columns.max()) + 1 - corner[0], int(rows.max()) + 1 - corner[1]
                record = {"id": len(objects) + 1, "image_id": index, "category_id": digit, "iscrowd": 0}
                objects.append({**record, "bbox": [*corner, *sides], "area": len(rows)})
        names = [{"id": digit, "name": str(digit)} for digit in range(10)]
        written = json.dumps({"images": images, "annotations": objects, "categories": names})
        (folder / "annotations" / f"instances_{part}.json").write_text(written, encoding="utf-8")
    return sorted((folder / "test").iterdir())[:10]


def write_clips(folder: Path) -> list[Path]:
    """Write train/, val/ and test/ with a folder of MP4 files a motion; returns a clip of each from the last."""
    from patchform.data.encoded import write

    for part, scans, generator in _parts():
        for index in range(CLIPS[part]):
            name = list(digits.MOTIONS)[index % len(digits.MOTIONS)]
            path = folder / part / name / f"{index:04d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, digits.motion(scans, generator, name))
    return [min((folder / "test" / name).iterdir()) for name in digits.MOTIONS]


def _parts() -> Iterator[tuple[str, digits.Digits, np.random.Generator]]:
    """Names and scans of three parts, the same every time; and random numbers for each."""
    import numpy as np

    for number, (part, scans) in enumerate(zip(SHARES, digits.split(digits.load(), tuple(SHARES.values()), SEED))):
        yield part, scans, np.random.default_rng([SEED, number])


KINDS = {
    "classification": Kind(
        "demo", "classification/digits", write_digits, "test", "{best:.1%} of {samples} test pictures are recognised"
    ),
    "segmentation": Kind(
        "demo-segmentation",
        "semantic_segmentation/digits",
        write_scenes,
        "images/test",
        "mean intersection over union {best:.1%} on {samples} test scenes",
    ),
    "detection": Kind(
        "demo-detection",
        "detection/digits",
        write_objects,
        "annotations/instances_test.json",
        "average precision {best:.1%} (COCO's) on {samples} test scenes",
    ),
    "video": Kind(
        "demo-video",
        "video_classification/digits",
        write_clips,
        "test",
        "of {best:.1%} of {samples} test clips it is known where the digit goes",
    ),
}
"""The first is the default."""
