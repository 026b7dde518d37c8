"""Videos from scratch on two cores: clips against single frames, and from weights of pictures against from nothing.

* clips: `patchform.train` with a recipe of videos; frames: the same with one frame of each clip. What a frame does not
  tell, a model of frames cannot know.
* --inflated: a ViT of the same width and depth learns letters from single frames; the model of clips then learns
  motions from its weights (its kernels in the central frame of a tubelet), and from nothing. Accuracy by epoch.

Accuracy is of the videos of val/, one clip of each. Every run is a process of one thread; two run at once.

    python benchmarks/videos.py                                  # both sets, three seeds
    python benchmarks/videos.py --sets asl_motion --seeds 0 --sides clips
    python benchmarks/videos.py --inflated

The data are video_classification/ below $PATCHFORM_DATA.
"""

import argparse
import csv
import json
import os
import tempfile
from pathlib import Path

import torch
from side_by_side import Clock, together

import patchform
from patchform.commands import recipes
from patchform.training.metrics_log import METRICS

DATA = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "video_classification"
SETS = ("asl_motion", "asl_letters")
SIDES = ("clips", "frames")
LEARNT_FROM = "asl_letters"
"""Whose frames a backbone of pictures learns, before it is made one of clips."""


def trained(a, name, runs, *, frames=None, model=None, every=None, epochs=None):
    """A run, and what it took."""
    training = {"seed": a.seed, "threads": 1, "device": "cpu", "loggers": ()}
    training |= {"epochs": epochs} if epochs else {}
    settings: dict = {"preprocessing": {"frames": frames}} if frames else {}
    settings |= {"data": {"path": str(DATA / name)}, "runs": str(runs), "training": training}
    settings |= {"model": model} if model else {}
    recipe = recipes.resolve(a.recipe, settings)
    every = every or recipe.training.epochs
    clock = Clock()
    done = patchform.train(recipe, training={"validate_every": every}, progress=False)
    return done, clock.since()


def curve_of(folder):
    """Accuracy by epoch."""
    with (folder / METRICS).open() as lines:
        return {int(row["epoch"]): round(float(row["top1"]), 4) for row in csv.DictReader(lines) if row.get("top1")}


def one_side(a, name):
    with tempfile.TemporaryDirectory() as runs:
        done, spent = trained(a, name, runs, frames=1 if a.side == "frames" else None)
        (top1,) = curve_of(done.folder).values()
        parameters = sum(parameter.numel() for parameter in done.model.parameters())
        made = f"{done.model.architecture.backbone} under {done.model.architecture.head}"
        return {"model": made, "parameters": parameters, "top1": top1, "core": spent.core, "wall": spent.wall}


def inflated(a, name):
    """Accuracy by epoch, with or without a start from a backbone of pictures."""
    options = dict(recipes.resolve(a.recipe).model.options)
    picture = {name: value for name, value in options.items() if name != "tube"}
    with tempfile.TemporaryDirectory() as runs:
        model, took = None, 0.0
        if a.side == "inflated":
            backbone = {"backbone": "vit/nano", "options": picture, "head": "linear"}
            start, spent = trained(a, LEARNT_FROM, runs, frames=1, model=backbone, epochs=a.picture_epochs)
            took = spent.core
            model = {"init_from": str(start.folder), "transfer": {"frames": "central", "head": "reinit"}}
        done, spent = trained(a, name, runs, model=model, every=1, epochs=a.epochs)
        return {"curve": curve_of(done.folder), "pictures": took, "core": spent.core}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--recipe", default="video_classification/small")
    parser.add_argument("--inflated", action="store_true", help="from weights of pictures, against from nothing")
    parser.add_argument("--epochs", type=int, default=20, help="of --inflated")
    parser.add_argument("--picture-epochs", type=int, default=30, help="of the backbone of pictures")
    parser.add_argument("--side", help="one set, side and seed, in this process")
    a = parser.parse_args()
    if a.side:
        torch.set_num_threads(1)
        a.seed = a.seeds[0]
        print(json.dumps((inflated if a.inflated else one_side)(a, a.sets[0])), flush=True)
        return
    if not DATA.is_dir():
        print("no data: set PATCHFORM_DATA to a folder that has video_classification/")
        return
    usual = ["--recipe", a.recipe, "--epochs", str(a.epochs), "--picture-epochs", str(a.picture_epochs)]
    if a.inflated:
        sides = [
            [*usual, "--inflated", "--sets", a.sets[0], "--seeds", str(a.seeds[0]), "--side", side]
            for side in ("inflated", "scratch")
        ]
        start, nothing = together(__file__, sides)
        print(f"{a.sets[0]}; the backbone of pictures took {start['pictures']:.0f} s")
        print("| epoch | from pictures | from nothing |\n|--:|--:|--:|")
        for epoch, top1 in start["curve"].items():
            print(f"| {epoch} | {top1:.3f} | {nothing['curve'][epoch]:.3f} |")
        return
    print("| set | seen | seed | model | parameters | top-1 | core s | wall s |\n|---|---|--:|---|--:|--:|--:|--:|")
    for name in a.sets:
        pairs = [(side, seed) for seed in a.seeds for side in a.sides]
        for start in range(0, len(pairs), 2):
            part = pairs[start : start + 2]
            words = [[*usual, "--sets", name, "--seeds", str(seed), "--side", side] for side, seed in part]
            for (side, seed), row in zip(part, together(__file__, words)):
                cells = [name, side, seed, row["model"], f"{row['parameters']:,}", f"{row['top1']:.3f}"]
                print("|", " | ".join(map(str, [*cells, f"{row['core']:.0f}", f"{row['wall']:.0f}"])), "|", flush=True)


if __name__ == "__main__":
    main()
