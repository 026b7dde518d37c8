"""Ours and timm's side by side: the same small ViT trained from scratch, as well as it gets and as fast.

Both sides have the same architecture (the script checks the parameter counts), data, number of epochs, batch size,
AdamW, learning rate at every step, weight decay, augmentation, label smoothing, precision and number of threads.

* ours: `patchform.training.loop.train` with its defaults: checks of the data, checkpoints, metrics, TensorBoard.
* timm: a plain loop around timm's model with its initial values, data set, transforms, loader, mixup, loss, optimizer
  and schedule; it validates after each epoch as ours does, and saves nothing.

Each run is a process of its own; at even seeds ours goes first, at odd ones timm. Wall time is from the first touch of
the data to the last accuracy, without imports; with one thread, the processor time tells what it would be on a machine
that does nothing else. At the end of each run its weights are moved into the other side's
model and judged by the other side's evaluation: "crossed" has to be the final accuracy.

    python benchmarks/cifar_against_timm.py                     # three seeds, about 25 minutes on two cores
    python benchmarks/cifar_against_timm.py --quick             # one seed, one epoch: does it run?

The data are a folder with train/ and val/: classification/cifar10_subset below $PATCHFORM_DATA.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
import timm.data
import timm.loss
import timm.optim
import timm.scheduler
import torch
from timm.models import VisionTransformer
from torch.utils.tensorboard import SummaryWriter  # noqa: F401  imports are not timed on either side

import patchform
from patchform.data.dataset import open_data
from patchform.data.loader import evaluation_loader
from patchform.data.pictures import LabelledPictures
from patchform.data.transforms import evaluation_transform
from patchform.descriptions import Preprocessing
from patchform.evaluation import evaluate
from patchform.model import build_model
from patchform.published import vit
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
from patchform.tasks.base import task_of
from patchform.training.loop import train

DATA = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[2] / "shared" / "data"))
SIDE, PATCH, WIDTH, DEPTH, HEADS = 32, 4, 96, 6, 3
CROP, RATIO, SMOOTHING = (0.6, 1.0), (0.75, 1.3333), 0.1
LR, DECAY, WARMUP_EPOCHS, WARMUP_START = 1e-3, 0.05, 2, 1e-3
MEAN, STD = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD


def clocks():
    """Seconds now: on the wall, and of this process on all its threads."""
    return time.perf_counter(), time.process_time()


# ------------------------------------------------------------------------------------------------------------- ours


def recipe_of(a, runs):
    return Recipe(
        name="run",
        runs=str(runs),
        data=DataSettings(path=str(a.data), workers=a.workers),
        preprocessing=Preprocessing(size=(SIDE, SIDE), crop_share=1.0, mean=MEAN, std=STD),
        model=ModelSettings(
            backbone="vit/nano", options={"patch": PATCH, "width": WIDTH, "depth": DEPTH, "heads": HEADS}
        ),
        augmentation=AugmentationSettings(crop_scale=CROP, crop_ratio=RATIO, flip=0.5, mixup=a.mixup),
        loss=LossSettings(smoothing=SMOOTHING),
        optimizer=OptimizerSettings(lr=LR, weight_decay=DECAY),
        schedule=ScheduleSettings(warmup_epochs=min(WARMUP_EPOCHS, a.epochs / 2), warmup_start=WARMUP_START),
        training=TrainingSettings(
            epochs=a.epochs, batch_size=a.batch, seed=a.seed, threads=a.threads, device="cpu", precision=a.precision
        ),
    )


def run_ours(a, runs):
    start = clocks()
    run = train(recipe_of(a, runs), progress=False)
    wall, cpu = (now - then for now, then in zip(clocks(), start))
    with open(run.folder / "metrics.csv", encoding="utf-8", newline="") as file:
        scores = [float(row["top1"]) for row in csv.DictReader(file)]
    layout = vit.LAYOUTS["timm"]
    theirs = their_model(len(run.model.classes))
    theirs.load_state_dict(layout.dump(run.model.state_dict(), sizes={"channels": 3, "patch": PATCH}))
    return {
        "wall": wall,
        "cpu": cpu,
        "scores": scores,
        "judged": max(scores),  # the best model is the one that is kept
        "crossed": their_accuracy(theirs, their_loader(a, "val", training=False), a.precision),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "images": a.epochs * len(list(a.data.glob("train/*/*"))),
    }


def our_accuracy(model, recipe, listing):
    pictures = LabelledPictures(listing, evaluation_transform(model.preprocessing), model.preprocessing)
    loader = evaluation_loader(pictures, recipe.training.batch_size)
    task = task_of(model.architecture, model.head)
    return evaluate(model, loader, task, precision=recipe.training.precision).numbers["top1"]


# ------------------------------------------------------------------------------------------------------------- timm


def their_model(classes):
    return VisionTransformer(
        img_size=SIDE, patch_size=PATCH, num_classes=classes, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS
    )


def their_loader(a, split, *, training):
    return timm.data.create_loader(
        timm.data.create_dataset("", root=str(a.data / split)),
        input_size=(3, SIDE, SIDE),
        batch_size=a.batch,
        is_training=training,
        scale=CROP,
        ratio=RATIO,
        hflip=0.5,
        color_jitter=None,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        crop_pct=1.0,
        num_workers=a.workers,
        device=torch.device("cpu"),
    )


@torch.inference_mode()
def their_accuracy(model, loader, precision):
    model.eval()
    right = seen = 0
    for images, labels in loader:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(images)
        right, seen = right + (logits.argmax(1) == labels).sum().item(), seen + len(labels)
    return right / seen


def run_timm(a, runs):
    start = clocks()
    torch.set_num_threads(a.threads)
    timm.utils.random_seed(a.seed)
    incoming = their_loader(a, "train", training=True)
    validation = their_loader(a, "val", training=False)
    classes = len(incoming.dataset.reader.class_to_idx)
    model = their_model(classes)
    mixup = loss_of = None
    if a.mixup:
        mixup = timm.data.Mixup(mixup_alpha=a.mixup, label_smoothing=SMOOTHING, num_classes=classes)
        loss_of = timm.loss.SoftTargetCrossEntropy()
    else:
        loss_of = timm.loss.LabelSmoothingCrossEntropy(SMOOTHING)
    mover = timm.optim.create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=DECAY)
    warmup = round(min(WARMUP_EPOCHS, a.epochs / 2) * len(incoming))
    schedule = timm.scheduler.CosineLRScheduler(
        mover,
        t_initial=a.epochs * len(incoming) - 1 - warmup,
        warmup_t=warmup,
        warmup_lr_init=LR * WARMUP_START,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    scores, step, seen = [], 0, 0
    for _ in range(a.epochs):
        model.train()
        for images, labels in incoming:
            seen += len(images)
            if mixup:
                images, labels = mixup(images, labels)
            schedule.step_update(step)
            with torch.autocast("cpu", torch.bfloat16, enabled=a.precision == "bfloat16"):
                loss = loss_of(model(images), labels)
            loss.backward()
            mover.step()
            mover.zero_grad()
            step += 1
        scores.append(their_accuracy(model, validation, a.precision))
    wall, cpu = (now - then for now, then in zip(clocks(), start))
    recipe = recipe_of(a, runs)
    splits = open_data(recipe.data, seed=0, preprocessing=recipe.preprocessing)
    ours = build_model(
        recipe.task,
        backbone=recipe.model.backbone,
        head=recipe.model.head,
        classes=splits.train.classes,
        preprocessing=recipe.preprocessing,
        backbone_options=recipe.model.options,
    )
    ours.load_state_dict(vit.LAYOUTS["timm"].load(model.state_dict(), ours.state_dict())[0])
    return {
        "wall": wall,
        "cpu": cpu,
        "scores": scores,
        "judged": scores[-1],
        "crossed": our_accuracy(ours, recipe, splits.validation),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "images": seen,
    }


# ------------------------------------------------------------------------------------------------------- comparison


def one(a):
    """A run in this process; its numbers go to stdout as the last line."""
    with tempfile.TemporaryDirectory() as runs:
        found = {"ours": run_ours, "timm": run_timm}[a.run](a, Path(runs))
    print(json.dumps(found))


def compare(a):
    print(
        f"patchform {patchform.__version__}, timm {timm.__version__}, torch {torch.__version__}, {platform.machine()}"
    )
    print(
        f"{a.threads} of {os.cpu_count()} threads, {a.precision}, {a.epochs} epochs, batch {a.batch}, mixup {a.mixup:g}"
    )
    print("seed side    final    best  judged crossed  wall s   cpu s images/s  load")
    rows = {"ours": [], "timm": []}
    for seed in range(a.seeds):
        for side in sorted(rows, reverse=seed % 2 == 1):
            load = os.getloadavg()[0]
            options = ["--run", side, "--seed", str(seed)]
            options += [f"--{name}={getattr(a, name)}" for name in ("epochs", "batch", "threads", "workers", "mixup")]
            options += ["--precision", a.precision, "--data", str(a.data)]
            done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            row = json.loads(done.stdout.splitlines()[-1])
            rows[side].append(row)
            told = [row["scores"][-1], max(row["scores"]), row["judged"], row["crossed"]]
            speed = f"{row['wall']:7.1f} {row['cpu']:7.1f} {row['images'] / row['wall']:8.0f}"
            print(f"{seed:4} {side:5} {' '.join(f'{score:7.1%}' for score in told)} {speed}  {load:4.1f}", flush=True)
    for fact in ("parameters", "images"):
        values = {row[fact] for side in rows.values() for row in side}
        print(f"{fact}: {', '.join(map(str, values))}" + (" DIFFER" if len(values) > 1 else " on both sides"))
    finals = {side: [row["scores"][-1] for row in each] for side, each in rows.items()}
    bests = {side: [max(row["scores"]) for row in each] for side, each in rows.items()}
    for name, scores in (("final", finals), ("best", bests)):
        told = [f"{side} {statistics.mean(each):.2%} +- {_deviation(each):.2%}" for side, each in scores.items()]
        difference = statistics.mean(scores["ours"]) - statistics.mean(scores["timm"])
        print(f"{name} top-1: {', '.join(told)}, difference {100 * difference:+.2f} points")
    for clock in ("wall", "cpu"):
        times = {side: [row[clock] for row in each] for side, each in rows.items()}
        told = [f"{side} {statistics.mean(each):.1f} s +- {_deviation(each):.1f}" for side, each in times.items()]
        listed = ", ".join(f"{theirs / ours:.3f}" for ours, theirs in zip(times["ours"], times["timm"]))
        ratio = sum(times["timm"]) / sum(times["ours"])
        print(f"{clock} time: {', '.join(told)}; timm / ours {ratio:.3f} (above 1: ours is faster; by seed {listed})")


def _deviation(values):
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch")
    parser.add_argument("--batch", type=int, default=100, help="a divisor of the pictures: timm drops a short batch")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, default=0, help="processes that decode")
    parser.add_argument("--mixup", type=float, default=0.0, help="alpha")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--data", type=Path, default=DATA / "classification" / "cifar10_subset")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--run", choices=["ours", "timm"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.epochs = arguments.seeds = 1
    one(arguments) if arguments.run else compare(arguments)


if __name__ == "__main__":
    main()
