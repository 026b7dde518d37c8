"""Does a student that has a teacher learn more in the same steps than the same student without one?

A ResNet of 32-pixel pictures learns the ten classes of cifar10_subset/train (5000); it is the teacher. Then students of
each kind learn the same pictures, with it and without it: the same epochs, order, crops and learning rate.

    vit          a small ViT: alone; by logits, by hard labels, by tokens
    dual_vit     Dual-ViT nano at 128 pixels under the head token_label, tokens mixed: with the picture's class as every
                 token's target, and with the teacher's token labels

All are judged after their last epoch, on val/ (1000).

    python benchmarks/distillation.py                                # three seeds: about three hours on two cores
    python benchmarks/distillation.py --folder there/                # the same, and goes on after it was stopped
    python benchmarks/distillation.py --pictures 4 --epochs 1 1 1 --seeds 1  # does it run?

Exits with 1 where a student with its teacher is not ahead on the mean of the seeds (of the ViT: by logits). The data
are classification/cifar10_subset below $PATCHFORM_DATA.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
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
TEACHER = {
    "backbone": "resnet/nano",
    "options": {"stem": "small", "depths": [2, 2, 2], "widths": [32, 64, 128], "block": "basic"},
    "head": "linear",
}
STUDENTS = {
    "vit": {
        "backbone": "vit/nano",
        "options": {"patch": 4, "width": 96, "depth": 4, "heads": 3, "summary": "mean"},
        "head": "linear",
    },
    "dual_vit": {"backbone": "dual_vit/nano", "options": {}, "head": "token_label"},
}
SIDES = {
    ("vit", "alone"): {},
    ("vit", "logits"): {"kind": "logits", "temperature": 2.0},
    ("vit", "labels"): {"kind": "labels"},
    ("vit", "tokens"): {"kind": "tokens"},
    ("dual_vit", "alone"): {},
    ("dual_vit", "token_labels"): {"kind": "token_labels"},
}
JUDGED = {"vit": "logits", "dual_vit": "token_labels"}
"""The side that is to be ahead of the student alone."""


def trained(settings, model):
    """Top-1 in per cent after the last epoch, and the folder, of a run of the small recipe."""
    shutil.rmtree(Path(settings["runs"], settings["name"]), ignore_errors=True)  # of one that was stopped
    recipe = recipes.resolve("classification/small", settings)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, drop_path=None, **model))
    done = patchform.train(recipe, progress=False)
    return 100 * done.best, done.folder


def usual(a, runs, name, epochs, seed):
    return {
        "name": name,
        "runs": str(runs),
        "data": {"path": str(a.data)},
        "schedule": {"warmup_epochs": min(3.0, epochs / 10)},
        "training": {
            **{"epochs": epochs, "seed": seed, "threads": 1, "device": "cpu", "loggers": ()},
            **{"precision": "float32", "validate_every": epochs},
        },
    }


def teacher(a):
    """Its folder, its top-1 and what it took."""
    clock = Clock()
    settings = usual(a, a.runs, "teacher", a.epochs[0], 100)
    top1, folder = trained(settings, TEACHER)
    return {"folder": str(folder), "top1": top1, "core": round(clock.since().core)}


def student(a, kind, side, seed):
    """Its top-1, and what it took."""
    clock, mixed = Clock(), kind == "dual_vit"
    settings = usual(a, a.runs, f"{kind}-{side}-{seed}", a.epochs[1 + mixed], seed)
    if mixed:
        settings |= {"preprocessing": {"size": [128, 128]}, "augmentation": {"mix_token": 1.0}}
    if side != "alone":
        settings["loss"] = {"teacher": {"model": a.teacher, **SIDES[kind, side]}}
    top1, _ = trained(settings, STUDENTS[kind])
    return {"top1": top1, "core": round(clock.since().core)}


def some_pictures(folder, number):
    """So many of each class to learn from, as links, beside a tenth as many to judge on."""
    for part, count in (("train", number), ("val", max(1, number // 5))):
        for class_ in sorted(path for path in (PICTURES / part).iterdir() if path.is_dir()):
            place = folder / part / class_.name
            place.mkdir(parents=True)
            for picture in sorted(class_.iterdir(), key=lambda path: derive(0, "few", path.name))[:count]:
                (place / picture.name).symlink_to(picture.resolve())
    return folder


def report(a, found):
    """Print a row for each side; whether each student is ahead where it is judged."""
    print("| student | learns from | " + " | ".join(f"seed {seed}" for seed in range(a.seeds)) + " | mean | core s |")
    print("|---|---" + "|--:" * (a.seeds + 2) + "|")
    means = {}
    for kind, side in SIDES:
        rows = [found[kind, side, seed] for seed in range(a.seeds)]
        means[kind, side] = statistics.fmean(row["top1"] for row in rows)
        cells = [f"{row['top1']:.1f} %" for row in rows]
        cells += [f"{means[kind, side]:.1f} %", f"{statistics.fmean(row['core'] for row in rows):.0f}"]
        print(f"| {kind} | {side} | " + " | ".join(cells) + " |")
    ahead = {kind: means[kind, side] - means[kind, "alone"] for kind, side in JUDGED.items()}
    for kind, points in ahead.items():
        print(f"{kind} by {JUDGED[kind]}: {points:+.1f} points at equal steps")
    return all(points > 0 for points in ahead.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    names = ("TEACHER", "VIT", "DUAL_VIT")
    parser.add_argument("--epochs", type=int, nargs=3, default=(30, 20, 12), metavar=names)
    parser.add_argument("--pictures", type=int, default=0, help="of each class; 0: all")
    parser.add_argument("--folder", help="for runs and answers, which stay: what is there is not done again")
    parser.add_argument("--here", help="one run, in this process, as JSON")
    a = parser.parse_args()
    if not PICTURES.is_dir():
        print("no data: set PATCHFORM_DATA to a folder that has classification/cifar10_subset")
        return
    if a.here:
        torch.set_num_threads(1)
        job = json.loads(a.here)
        a.data, a.runs, a.teacher = job["data"], job["runs"], job["teacher"]
        print(json.dumps(student(a, *job["side"]) if job["side"] else teacher(a)), flush=True)
        return
    clock, words = Clock(), ["--epochs", *map(str, a.epochs), "--here"]
    with contextlib.nullcontext(a.folder) if a.folder else tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data" if a.pictures else PICTURES
        if a.pictures and not data.exists():
            some_pictures(data, a.pictures)
        place = {"data": str(data), "runs": f"{folder}/runs", "teacher": None}
        (taught,) = in_turn(__file__, [[*words, json.dumps({**place, "side": None})]], keep=Path(folder) / "answers")
        print(f"the teacher has {taught['top1']:.1f} % after {taught['core']} s of a core", flush=True)
        place["teacher"] = taught["folder"]
        sides = [(*side, seed) for seed in range(a.seeds) for side in reversed(SIDES)]  # the long ones first
        jobs = [[*words, json.dumps({**place, "side": side})] for side in sides]
        answers = in_turn(__file__, jobs, keep=Path(folder) / "answers")
    ahead = report(a, dict(zip(sides, answers, strict=True)))
    print(f"{clock.since().wall / 60:.0f} minutes")
    sys.exit(0 if ahead else 1)


if __name__ == "__main__":
    main()
