"""Does a backbone that was trained on one set of pictures help on another? Fine-tuning against training from scratch.

A small backbone learns ten classes of 5000 pictures of 32 px (cifar10_subset). Its run folder then starts a run on 244
pictures of ants and bees (hymenoptera, 96 px): `model.init_from`, with a new head. Beside it the same recipe starts
from nothing: the same epochs, order, crops and learning rate, and once more with a higher learning rate. All models are
judged once, after their last epoch, on hymenoptera's val/ (153 pictures).

    python benchmarks/transfer.py                 # three seeds

Exits with 1 if the fine-tuned backbone is not ahead of both runs from scratch on the mean of the seeds.
The data are classification/cifar10_subset and classification/hymenoptera below $PATCHFORM_DATA.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import patchform
from patchform.descriptions import Preprocessing
from patchform.evaluation import evaluate_run
from patchform.settings import (
    AugmentationSettings,
    DataSettings,
    LossSettings,
    ModelSettings,
    OptimizerSettings,
    Recipe,
    ScheduleSettings,
    TrainingSettings,
)

DATA = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "classification"
FIRST, SECOND = DATA / "cifar10_subset", DATA / "hymenoptera"


def recipe(a, name, runs, seed, *, data, side, epochs, lr, start=None, batch=50):
    return Recipe(
        name=name,
        runs=str(runs),
        data=DataSettings(path=str(data)),
        preprocessing=Preprocessing(size=(side, side), crop_share=1.0 if data == FIRST else 0.875),
        model=ModelSettings(backbone=a.backbone, init_from=start),
        augmentation=AugmentationSettings(crop_scale=(0.5, 1.0), flip=0.5),
        loss=LossSettings(smoothing=0.1),
        optimizer=OptimizerSettings(lr=lr, weight_decay=0.05, clip=1.0),
        schedule=ScheduleSettings(warmup_epochs=1),
        training=TrainingSettings(
            epochs=epochs,
            batch_size=batch,
            validate_every=epochs,
            seed=seed,
            threads=a.threads,
            device="cpu",
            loggers=(),
        ),
    )


def trained(recipe):
    """(run folder, top-1 on val/, seconds)."""
    began = time.perf_counter()
    run = patchform.train(recipe, progress=False)
    top1 = evaluate_run(run.folder, Path(recipe.data.path)).numbers["top1"]
    return run.folder, top1, time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="pvt/nano")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, nargs=2, default=(20, 30), metavar=("FIRST", "SECOND"))
    parser.add_argument("--side", type=int, default=96, help="pixels of the second set's pictures")
    parser.add_argument("--rates", type=float, nargs=2, default=(1e-3, 2e-3), help="learning rates on the second set")
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    if not FIRST.is_dir() or not SECOND.is_dir():
        print("no data: set PATCHFORM_DATA to a folder that has classification/{cifar10_subset,hymenoptera}")
        return
    second = {"data": SECOND, "side": a.side, "epochs": a.epochs[1], "batch": 16}
    print(f"| seed | {a.backbone} on cifar10_subset | fine-tuned |", *(f"from scratch, {lr:g} |" for lr in a.rates))
    print("|--:|--:|--:|" + "--:|" * len(a.rates))
    scores = []
    for seed in range(a.seeds):
        with tempfile.TemporaryDirectory() as runs:
            start, first, _ = trained(recipe(a, "first", runs, seed, data=FIRST, side=32, epochs=a.epochs[0], lr=2e-3))
            tuned = recipe(a, "tuned", runs, seed, lr=a.rates[0], start=str(start), **second)
            plain = [recipe(a, f"scratch{i}", runs, seed, lr=lr, **second) for i, lr in enumerate(a.rates)]
            results = [trained(each) for each in (tuned, *plain)]
        row = [first, *(top1 for _, top1, _ in results)]
        seconds = ", ".join(f"{wall:.0f}" for _, _, wall in results)
        scores.append(row)
        print(f"| {seed} |", " ".join(f"{100 * top1:.1f} % |" for top1 in row), flush=True)
        print(f"seed {seed}: seconds on the second set {seconds}", file=sys.stderr)
    columns = list(zip(*scores, strict=True))
    mean = [statistics.mean(column) for column in columns]
    spread = [statistics.stdev(column) if a.seeds > 1 else 0.0 for column in columns]
    print("| mean |", " ".join(f"{100 * m:.1f} ± {100 * s:.1f} % |" for m, s in zip(mean, spread, strict=True)))
    if not mean[1] > max(mean[2:]):
        sys.exit("the fine-tuned backbone is not ahead")


if __name__ == "__main__":
    main()
