"""Does learning without labels help where labels are few? Fine-tuning after MAE, and after DINO, against from scratch.

A trunk is trained on the 5000 pictures of cifar10_subset/train without their labels, for so many seconds of one core
(as many epochs as fit, by short runs before). Then it learns from 500 of them, 50 a class, with labels. Beside it the
same trunk learns from the same 500 from scratch: the same epochs, order, crops and learning rate, and once more with
another learning rate; the better of the two counts. All are judged once, after their last epoch, on val/ (1000).

    python benchmarks/pretraining.py                    # both methods, three seeds: about 40 minutes on two cores
    python benchmarks/pretraining.py --seconds 3 3 --epochs 1 --seeds 1        # does it run?

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
from side_by_side import Clock, fitted, together

import patchform
from patchform.commands import recipes
from patchform.data.order import derive

DATA = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[2] / "shared" / "data"))
PICTURES = DATA / "classification" / "cifar10_subset"
SHARE, AHEAD = 0.1, 5.0
RATES = (1e-3, 3e-3)
"""Learning rates with labels; a trunk that was trained before has the first."""
VIT = {"backbone": "vit/nano", "options": {"patch": 4, "width": 96, "depth": 4, "heads": 3, "summary": "mean"}}
METHODS = {
    "mae": {
        "recipe": "pretraining/small",
        "trunk": VIT,
        "head_options": {"width": 64, "depth": 1, "heads": 4},
        "precision": "bfloat16",
    },
    "dino": {
        "recipe": "pretraining/small_dino",
        "precision": "float32",
        "trunk": {"backbone": "pvt/nano", "options": {}},
        "head_options": {"outputs": 512, "momentum": 0.99, "teacher_temperature": [0.04, 0.07], "warm_epochs": 5},
    },
}
"""Trunks that so little time can teach something: with its six crops DINO takes 15 epochs of the ViT, 50 of the PVT,
whose arithmetic is quicker in float32 at this size."""


def usual(a, epochs):
    return {"epochs": epochs, "seed": a.seed, "threads": 1, "device": "cpu", "tensorboard": False}


def trained(name, settings, model):
    """A run of a recipe, with some of the model's settings in place of its own."""
    recipe = recipes.resolve(name, settings)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **model))
    return patchform.train(recipe, progress=False)


def pretrained(a, runs):
    """Folder, epochs, time and k-NN accuracy of a run without labels."""
    method = METHODS[a.method]

    def run(name, epochs):
        settings = {
            "name": name,
            "runs": str(runs),
            "data": {"path": str(PICTURES)},
            "schedule": {"warmup_epochs": min(5.0, epochs / 10)},
            "training": {**usual(a, epochs), "precision": method["precision"], "validate_every": epochs},
        }
        model = {**method["trunk"], "head_options": method["head_options"]}
        return trained(method["recipe"], settings, model)

    done, epochs, spent = fitted(run, a.seconds)
    with (done.folder / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    return done.folder, epochs, spent, {name: float(last[name]) for name in ("knn", "effective_rank", "spread")}


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
        "schedule": {"warmup_epochs": min(3.0, a.epochs / 10)},
        "training": {
            **usual(a, a.epochs),
            "batch_size": 50,
            "validate_every": a.epochs,
            "precision": METHODS[a.method]["precision"],
            "ema": 0.0,
        },
    }
    model = {**METHODS[a.method]["trunk"], "init_from": start, "drop_path": 0.0}
    done = trained("classification/small", settings, model)
    return 100 * done.best, round(clock.since().core)


def one(a):
    """A method and a seed, in this process."""
    torch.set_num_threads(1)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        runs, data = Path(folder) / "runs", few_labels(Path(folder) / "data", a.seed)
        start, epochs, spent, numbers = pretrained(a, runs)
        tuned = labelled(a, runs, data, "tuned", lr=RATES[0], start=str(start))
        scratch = [labelled(a, runs, data, f"scratch{number}", lr=rate) for number, rate in enumerate(RATES)]
    return {
        "epochs": epochs,
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
    parser.add_argument("--seconds", type=float, nargs=2, default=(400, 700), metavar=("MAE", "DINO"))
    parser.add_argument("--epochs", type=int, default=40, help="with labels")
    parser.add_argument("--here", nargs=2, metavar=("METHOD", "SEED"), help="one of them, in this process")
    a = parser.parse_args()
    if not PICTURES.is_dir():
        print("no data: set PATCHFORM_DATA to a folder that has classification/cifar10_subset")
        return
    seconds = dict(zip(METHODS, a.seconds))
    if a.here:
        a.method, a.seed = a.here[0], int(a.here[1])
        a.seconds = seconds[a.method]
        print(json.dumps(one(a)), flush=True)
        return
    clock = Clock()
    words = ["--seconds", *map(str, a.seconds), "--epochs", str(a.epochs)]
    jobs = sorted(((method, seed) for method in a.methods for seed in range(a.seeds)), key=lambda job: -seconds[job[0]])
    found, cores = [], os.cpu_count() or 1
    for start in range(0, len(jobs), cores):  # the long ones together
        part = jobs[start : start + cores]
        found += together(__file__, [[*words, "--here", method, str(seed)] for method, seed in part])
    rates = " | ".join(f"from scratch, {rate:g}" for rate in RATES)
    print(f"| method | seed | epochs | core s | k-NN | effective rank | {rates} | fine-tuned | ahead |")
    print("|---|--:|--:|--:|--:|--:|" + "--:|" * (len(RATES) + 2))
    ahead = {method: [] for method in a.methods}
    for (method, seed), row in sorted(zip(jobs, found), key=lambda pair: (list(METHODS).index(pair[0][0]), pair[0][1])):
        scratch = [top1 for top1, _ in row["scratch"]]
        ahead[method].append((row["tuned"][0], *scratch))
        cells = [
            method,
            seed,
            row["epochs"],
            row["seconds"],
            f"{100 * row['knn']:.1f} %",
            f"{row['effective_rank']:.1f}",
        ]
        cells += [f"{top1:.1f} %" for top1 in (*scratch, row["tuned"][0])]
        print("|", " | ".join(map(str, cells)), f"| {row['tuned'][0] - max(scratch):+.1f} |")
        print(
            f"{method} {seed}: {row['core']} s of a core, {row['wall']} s on the wall; with labels",
            end=" ",
            file=sys.stderr,
        )
        print(", ".join(str(spent) for _, spent in (row["tuned"], *row["scratch"])), "s", file=sys.stderr)
    points = {}
    for method, rows in ahead.items():
        tuned, *scratch = (statistics.mean(column) for column in zip(*rows, strict=True))
        points[method] = tuned - max(scratch)
        print(f"{method}, mean of the seeds: {tuned:.1f} % against {max(scratch):.1f} %, {points[method]:+.1f} points")
    print(f"{clock.since().wall / 60:.0f} minutes")
    if min(points.values()) < AHEAD:
        sys.exit(f"less than {AHEAD:g} points ahead")


if __name__ == "__main__":
    main()
