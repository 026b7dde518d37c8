"""Does a backbone that has looked at a set's pictures, without their masks, learn to segment them in fewer steps?

A backbone is trained by MAE on the pictures of camvid/images/training alone. Then the recipe
`semantic_segmentation/small` starts from it, and beside it, from nothing; the same seed, order, crops and learning
rates. Both are judged every few epochs, and the steps are counted that each takes to the mean IoU that the run from
nothing has at its end, and to some below it.

    python benchmarks/fewer_steps.py                             # three seeds: about an hour on two cores
    python benchmarks/fewer_steps.py --seeds 0 --pictures 1 --epochs 2 --every 1             # does it run?

The data are semantic_segmentation/camvid below $PATCHFORM_DATA.
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

DATA = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[2] / "shared" / "data"))
SCENES = DATA / "semantic_segmentation" / "camvid"
DECODER = {"width": 96, "depth": 1, "heads": 4, "ratio": 0.6}
SHARES = (0.5, 0.75, 0.9, 1.0)
"""Of the mean IoU that is reached from nothing."""
SIDES = ("pictures", "nothing")


def course(a, epochs, every):
    training = {"epochs": epochs, "seed": a.seed, "threads": 1, "device": "cpu", "loggers": ()}
    return training | {"precision": "bfloat16", "validate_every": every}


def looked(a, runs):
    """The folder of a run on the pictures alone, with the backbone of the recipe for masks."""
    segments = recipes.resolve("semantic_segmentation/small").model
    settings = {
        "name": "pictures",
        "runs": runs,
        "data": {"path": str(SCENES / "images" / "training"), "validation_share": 0.05},
        "preprocessing": {"size": [192, 256]},
        "training": {**course(a, a.pictures, a.pictures), "batch_size": 16},
        "schedule": {"warmup_epochs": min(5.0, a.pictures / 10)},
        "optimizer": {"lr": a.rate},
        "model": {"backbone": segments.backbone, "options": segments.options, "head_options": DECODER},
    }
    return patchform.train(recipes.resolve("pretraining/small", settings), progress=False).folder


def one(a):
    """Mean IoU by step, and what it took."""
    with tempfile.TemporaryDirectory() as runs:
        clock, start, before = Clock(), None, 0.0
        if a.side == "pictures":
            start = str(looked(a, runs))
            before = clock.since().core
        settings = {
            "name": "masks",
            "runs": runs,
            "data": {"path": str(SCENES)},
            "model": {"init_from": start},
            "training": course(a, a.epochs, a.every),
        }
        done = patchform.train(recipes.resolve("semantic_segmentation/small", settings), progress=False)
        with (done.folder / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("mean_iou")]
        curve = {int(row["step"]): float(row["mean_iou"]) for row in rows}
        return {"curve": curve, "before": before, "core": clock.since().core}


def reached(curve, wanted):
    """The first step at which it is, by a straight line between two that were judged; None: never."""
    last = (0, 0.0)
    for step, value in curve.items():
        if value >= wanted:
            return last[0] + (step - last[0]) * (wanted - last[1]) / (value - last[1])
        last = (step, value)
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=60, help="epochs without masks")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate without masks")
    parser.add_argument("--epochs", type=int, default=20, help="with masks")
    parser.add_argument("--every", type=int, default=2, help="epochs between two judgements")
    parser.add_argument("--here", choices=SIDES, dest="side", help="one side of the first seed, in this process")
    a = parser.parse_args()
    if a.side:
        torch.set_num_threads(1)
        a.seed = a.seeds[0]
        print(json.dumps(one(a)), flush=True)
        return
    if not SCENES.is_dir():
        print("no data: set PATCHFORM_DATA to a folder that has semantic_segmentation/camvid")
        return
    usual = ["--pictures", str(a.pictures), "--rate", str(a.rate)]
    usual += ["--epochs", str(a.epochs), "--every", str(a.every)]
    for seed in a.seeds:
        after, nothing = together(__file__, [[*usual, "--seeds", str(seed), "--here", side] for side in SIDES])
        print(
            f"seed {seed}: {after['before']:.0f} s on pictures alone, then {after['core'] - after['before']:.0f} s;",
            end=" ",
        )
        print(f"from nothing {nothing['core']:.0f} s")
        print("| step | after pictures | from nothing |\n|--:|--:|--:|")
        for step, value in after["curve"].items():
            print(f"| {step} | {value:.3f} | {nothing['curve'][step]:.3f} |")
        curves = [{int(step): value for step, value in side["curve"].items()} for side in (after, nothing)]
        for share in SHARES:
            wanted = share * list(curves[1].values())[-1]
            steps = [reached(curve, wanted) for curve in curves]
            print(
                f"mean IoU {wanted:.3f}: " + " and ".join("never" if step is None else f"{step:.0f}" for step in steps)
            )
        print(flush=True)


if __name__ == "__main__":
    main()
