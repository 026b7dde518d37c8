"""Does learning without labels help where labels are few? Fine-tuning after MAE, and after DINO, against from scratch.

A backbone is trained on the 5000 pictures of cifar10_subset/train without their labels, for some epochs. Then it learns
from 500 of them, 50 a class, with labels. Beside it the same backbone learns from the same 500 from scratch: the same
epochs, order and crops, and the same two learning rates; of each side the better one counts, by the mean of the seeds.
All are judged after their last epoch, on val/ (1000).

    python benchmarks/pretraining.py                    # both methods, three seeds: about 40 minutes on two cores
    python benchmarks/pretraining.py --epochs 1 1 --labelled 1 --seeds 1       # does it run?

Exits with 1 if a method is less than 5 points ahead on the mean of the seeds. The data are
classification/cifar10_subset below $PATCHFORM_DATA.
"""

import argparse
import csv
import dataclasses
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from side_by_side import Clock, in_turn

import patchform
from patchform.commands import recipes
from patchform.data.loader import derive

DATA = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[2] / "shared" / "data"))
PICTURES = DATA / "classification" / "cifar10_subset"
SHARE, AHEAD = 0.1, 5.0
RATES = (1e-3, 3e-3)
"""Learning rates with labels."""
VIT = {"backbone": "vit/nano", "options": {"patch": 4, "width": 96, "depth": 4, "heads": 3, "summary": "mean"}}
PVT = {
    "backbone": "pvt/nano",
    "options": {"widths": [32, 48, 96, 128], "heads": [1, 2, 3, 4], "mlp_ratios": [4, 4, 4, 4]},
}
METHODS = {
    "mae": {
        "recipe": "pretraining/small",
        "backbone": VIT,
        "head_options": {"width": 64, "depth": 1, "heads": 4},
        "precision": "bfloat16",
    },
    "dino": {
        "recipe": "pretraining/small_dino",
        "backbone": PVT,
        "head_options": {
            "outputs": 512,
            "hidden": 256,
            "bottleneck": 64,
            "momentum": 0.99,
            "teacher_temperature": [0.04, 0.04],
        },
        "precision": "float32",
    },
}
"""Backbones that so little time can teach something: with its crops an epoch of DINO takes the ViT three times as long
as the PVT, whose arithmetic is quicker in float32 at this size."""


def usual(a, epochs):
    return {"epochs": epochs, "seed": a.seed, "threads": 1, "device": "cpu", "loggers": ()}


def trained(name, settings, model):
    """A run of a recipe, with some of the model's settings in place of its own."""
    recipe = recipes.resolve(name, settings)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **model))
    return patchform.train(recipe, progress=False)


def pretrained(a, runs):
    """Folder, time and k-NN accuracy of a run without labels."""
    method, clock = METHODS[a.method], Clock()
    settings = {
        "name": "unlabelled",
        "runs": str(runs),
        "data": {"path": str(PICTURES)},
        "schedule": {"warmup_epochs": min(5.0, a.epochs / 10)},
        "training": {**usual(a, a.epochs), "precision": method["precision"], "validate_every": a.epochs},
    }
    done = trained(method["recipe"], settings, {**method["backbone"], "head_options": method["head_options"]})
    with (done.folder / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    return done.folder, clock.since(), {name: float(last[name]) for name in ("knn", "effective_rank", "spread")}


def few_labels(folder, seed):
    """A tenth of the pictures of each class, drawn by the seed, as links, beside the pictures to judge on."""
    for class_ in sorted(path for path in (PICTURES / "train").iterdir() if path.is_dir()):
        pictures = sorted(class_.iterdir(), key=lambda path: derive(seed, "labels", path.name))
        place = folder / "train" / class_.name
        place.mkdir(parents=True)
        for picture in pictures[: round(SHARE * len(pictures))]:
            (place / picture.name).symlink_to(picture.resolve())
    (folder / "val").symlink_to((PICTURES / "val").resolve())
    return folder


def labelled(a, runs, data, name, *, lr, start=None):
    """Top-1 in per cent, and seconds of the core, of learning with labels."""
    clock = Clock()
    settings = {
        "name": name,
        "runs": str(runs),
        "data": {"path": str(data)},
        "optimizer": {"lr": lr},
        "schedule": {"warmup_epochs": min(3.0, a.labelled / 10)},
        "training": {
            **usual(a, a.labelled),
            "batch_size": 50,
            "validate_every": a.labelled,
            "precision": METHODS[a.method]["precision"],
            "ema": 0.0,
        },
    }
    model = {**METHODS[a.method]["backbone"], "init_from": start, "drop_path": 0.0}
    done = trained("classification/small", settings, model)
    return 100 * done.best, round(clock.since().core)


def one(a):
    """A method and a seed, in this process."""
    torch.set_num_threads(1)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        runs, data = Path(folder) / "runs", few_labels(Path(folder) / "data", a.seed)
        start, spent, numbers = pretrained(a, runs)
        tuned = [labelled(a, runs, data, f"tuned-{rate:g}", lr=rate, start=str(start)) for rate in RATES]
        scratch = [labelled(a, runs, data, f"scratch-{rate:g}", lr=rate) for rate in RATES]
    return {
        "seconds": round(spent.core),
        **numbers,
        "tuned": tuned,
        "scratch": scratch,
        "core": round(clock.since().core),
        "wall": round(clock.since().wall),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, nargs=2, default=(80, 50), metavar=("MAE", "DINO"))
    parser.add_argument("--labelled", type=int, default=40, help="epochs with labels")
    parser.add_argument("--here", nargs=2, metavar=("METHOD", "SEED"), help="one of them, in this process")
    a = parser.parse_args()
    if not PICTURES.is_dir():
        print("no data: set PATCHFORM_DATA to a folder that has classification/cifar10_subset")
        return
    epochs = dict(zip(METHODS, a.epochs, strict=True))
    if a.here:
        a.method, a.seed = a.here[0], int(a.here[1])
        a.epochs = epochs[a.method]
        print(json.dumps(one(a)), flush=True)
        return
    clock = Clock()
    words = ["--epochs", *map(str, a.epochs), "--labelled", str(a.labelled)]
    jobs = [(method, seed) for method in reversed(METHODS) if method in a.methods for seed in range(a.seeds)]
    found = in_turn(__file__, [[*words, "--here", method, str(seed)] for method, seed in jobs])  # the long ones first
    rates = [f"{side}, {rate:g}" for side in ("from scratch", "fine-tuned") for rate in RATES]
    columns = ["method", "seed", "core s", "k-NN", "effective rank", *rates]
    print("| " + " | ".join(columns) + " |\n|---" + "|--:" * (len(columns) - 1) + "|")
    points = {}
    for method in a.methods:
        rows = [(seed, row) for (name, seed), row in zip(jobs, found, strict=True) if name == method]
        for seed, row in sorted(rows, key=lambda pair: pair[0]):
            numbers = [f"{100 * row['knn']:.1f} %", f"{row['effective_rank']:.1f}"]
            numbers += [f"{top1:.1f} %" for top1, _ in (*row["scratch"], *row["tuned"])]
            print("|", " | ".join(map(str, [method, seed, row["seconds"], *numbers])), "|")
            took = f"{method} {seed}: {row['core']} s of a core, {row['wall']} s on the wall"
            print(took, *(f"{spent}" for _, spent in (*row["scratch"], *row["tuned"])), file=sys.stderr)
        scratch, tuned = (
            max(statistics.mean(row[side][number][0] for _, row in rows) for number in range(len(RATES)))
            for side in ("scratch", "tuned")
        )
        points[method] = tuned - scratch
        print(f"{method}, mean of the seeds: {tuned:.1f} % against {scratch:.1f} %, {points[method]:+.1f} points")
    print(f"{clock.since().wall / 60:.0f} minutes")
    if min(points.values()) < AHEAD:
        sys.exit(f"less than {AHEAD:g} points ahead")


if __name__ == "__main__":
    main()
