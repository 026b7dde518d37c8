"""Every backbone's nano variant, trained from scratch by the ordinary loop with one recipe: does it learn, how fast?

Every family that `patchform.lookup` finds gets the same data, epochs, batch size, augmentation and learning rate; none
of it is tuned to a family. The model is judged once, after the last epoch. A backbone of clips gets each still picture
as all of its frames, from a hook that this script sets; the loop is as it is.

    python benchmarks/nano_training.py --write                  # all families, writes docs/nano-training.md
    python benchmarks/nano_training.py --families vit swin      # some

Exits with 1, names the families whose top-1 is not above 25 % (chance: 10 %) or that took more than 2 minutes, and
writes nothing then.
The data are a folder with train/ and val/: classification/cifar10_subset below $PATCHFORM_DATA.
"""

import argparse
import csv
import os
import platform
import statistics
import sys
import tempfile
import textwrap
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

import patchform
from patchform import lookup
from patchform.backbones.base import Backbone
from patchform.descriptions import Preprocessing
from patchform.errors import DivergedError
from patchform.evaluation import evaluate_run
from patchform.model import build_backbone
from patchform.settings import (
    AugmentationSettings,
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    Recipe,
    ScheduleSettings,
    TrainingSettings,
)

DATA = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[2] / "shared" / "data"))
PICTURES = DATA / "classification" / "cifar10_subset"
TABLE = Path(__file__).parents[1] / "docs" / "nano-training.md"
SIDE, EPOCHS, BATCH, LR, DECAY, CLIP, WARMUP_EPOCHS, CROP = 32, 10, 50, 2e-3, 0.05, 1.0, 1, (0.6, 1.0)
ABOVE_CHANCE, SECONDS = 0.25, 120
"""What a family has to reach, and in what time on the wall."""


class Row(NamedTuple):
    family: str
    parameters: int
    frames: int | None
    wall: float
    cpu: float
    speed: float
    """Training images a second, median of the epochs; the last one's time includes the validation."""
    top1: float
    classes: int


def recipe_of(family, a, runs):
    return Recipe(
        name=family,
        runs=str(runs),
        data=DataSettings(path=str(PICTURES)),
        preprocessing=Preprocessing(size=(SIDE, SIDE), crop_share=1.0),
        model=ModelSettings(backbone=f"{family}/nano"),
        augmentation=AugmentationSettings(crop_scale=CROP, flip=0.5),
        optimizer=OptimizerSettings(lr=LR, weight_decay=DECAY, clip=CLIP),
        schedule=ScheduleSettings(warmup_epochs=WARMUP_EPOCHS),
        training=TrainingSettings(
            epochs=a.epochs,
            batch_size=BATCH,
            validate_every=a.epochs,
            seed=a.seed,
            threads=a.threads,
            device="cpu",
            loggers=(),
        ),
    )


def in_words(a):
    return (
        f"AdamW, learning rate {LR:g} (cosine, {WARMUP_EPOCHS} epoch of warm-up), weight decay {DECAY:g}, gradients"
        f" clipped at {CLIP:g}, batch {BATCH}, {a.epochs} epochs, {SIDE} px, random crops of {percent(CROP[0])} to"
        f" {percent(CROP[1])} of the area, flips, float32, seed {a.seed}"
    )


def percent(share, digits=0):
    return f"{100 * share:.{digits}f} %"


@contextmanager
def stills_as_clips():
    """Meanwhile a backbone of clips that is given pictures (B, C, H, W) sees each one as all of its frames."""

    def repeat(module, inputs):
        if isinstance(module, Backbone) and module.frames and inputs[0].dim() == 4:
            return (inputs[0][:, None].expand(-1, module.frames, -1, -1, -1),)
        return None

    hook = torch.nn.modules.module.register_module_forward_pre_hook(repeat)
    try:
        yield
    finally:
        hook.remove()


def measure(family, a):
    frames = build_backbone(f"{family}/nano").frames
    with tempfile.TemporaryDirectory() as runs, stills_as_clips() if frames else nullcontext():
        wall, cpu = time.perf_counter(), time.process_time()
        run = patchform.train(recipe_of(family, a, runs), progress=False)
        scores = evaluate_run(run.folder, PICTURES)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        with open(run.folder / "metrics.csv", encoding="utf-8", newline="") as file:
            speeds = [float(row["images_per_second"]) for row in csv.DictReader(file)]
    return Row(
        family=family,
        parameters=sum(parameter.numel() for parameter in run.model.parameters()),
        frames=frames,
        wall=wall,
        cpu=cpu,
        speed=statistics.median(speeds),
        top1=scores.numbers["top1"],
        classes=len(run.model.classes),
    )


# ----------------------------------------------------------------------------------------------------------- the table


def table(rows, a):
    lines = [
        "| family | parameters | wall s | CPU s | epochs | images/s | top-1 | times chance |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        name = row.family + (f" ({row.frames} equal frames)" if row.frames else "")
        lines.append(
            f"| {name} | {row.parameters:,} | {row.wall:.0f} | {row.cpu:.0f} | {a.epochs} | {row.speed:.0f} |"
            f" {percent(row.top1, 1)} | {row.top1 * row.classes:.1f} |"
        )
    return "\n".join(lines)


def page(rows, a):
    options = "".join(
        f" --{name} {value}"
        for name, value, usual in (("epochs", a.epochs, EPOCHS), ("threads", a.threads, 2), ("seed", a.seed, 0))
        if value != usual
    )
    total = sum(row.wall for row in rows)
    recipe = textwrap.fill(f"The recipe, the same for all and tuned to none: {in_words(a)}.", 120)
    return f"""# Nano variants, trained from scratch

Written by `python benchmarks/nano_training.py{options} --write`: every backbone's nano variant on 5000 pictures of
32 px in ten classes, a subset of CIFAR-10 (Krizhevsky 2009), judged once on 1000 others after the last epoch. Chance is
10 %; the script fails when a family is not above {percent(ABOVE_CHANCE)} or takes more than {SECONDS} s.

{recipe}

The machine: {a.machine}.
All families together took {total / 60:.1f} minutes. The variants are as small as tests want them and trained for
few epochs: these are no scores of the architectures.

{table(rows, a)}

Seconds cover the check of the data, training, saving and judging, on the wall and of the processor on all threads;
images/s is the median over the epochs, of which only the last one validates. "Equal frames": a backbone of clips, which
sees a still picture as every frame.
"""


def machine(a):
    """The processor's name, cores and versions."""
    name = platform.machine()
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in told if line.startswith("model name")), name)
    except OSError:  # no such file outside Linux
        pass
    return (
        f"{name}, {os.cpu_count()} cores, {a.threads} threads, torch {torch.__version__.partition('+')[0]},"
        f" Python {platform.python_version()}, patchform {patchform.__version__}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    families = lookup.names("backbones")
    parser.add_argument("--families", nargs="+", choices=families, default=families, metavar="FAMILY")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine", help="its description (default: found)")
    parser.add_argument("--write", action="store_true", help="write docs/nano-training.md")
    a = parser.parse_args()
    if a.write and a.families != families:
        parser.error("--write is for all families")
    if not PICTURES.is_dir():
        print("no data: set PATCHFORM_DATA to a folder that has classification/cifar10_subset", file=sys.stderr)
        return
    a.machine = a.machine or machine(a)
    print(a.machine, in_words(a), sep="\n", file=sys.stderr)

    rows, faults, began = [], [], time.perf_counter()
    for number, family in enumerate(a.families, 1):
        try:
            row = measure(family, a)
        except DivergedError as error:
            said = str(error)
            faults.append(f"{family}: {error}")
        else:
            rows.append(row)
            said = f"top-1 {percent(row.top1, 1)} in {row.wall:.0f} s (processor {row.cpu:.0f} s)"
            if row.top1 <= ABOVE_CHANCE:
                faults.append(f"{family}: top-1 {percent(row.top1, 1)} is not above {percent(ABOVE_CHANCE)}")
            if row.wall > SECONDS:
                faults.append(f"{family}: {row.wall:.0f} s are more than {SECONDS}")
        left = (time.perf_counter() - began) / number * (len(a.families) - number)
        print(f"{number}/{len(a.families)} {family}: {said}; about {left:.0f} s left", file=sys.stderr)
    print(table(rows, a))
    if faults:
        sys.exit("\n".join(faults))
    if a.write:
        TABLE.write_text(page(rows, a))


if __name__ == "__main__":
    main()
