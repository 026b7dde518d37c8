"""Detectors from scratch in so many seconds of one core: ours, and torchvision's on a ResNet-18, side by side.

* ours: `patchform.train` with a recipe; as many epochs as fit into the time, by the speed of short runs before.
* torchvision: a plain loop around FasterRCNN, or MaskRCNN where there are masks, on resnet18 with a feature pyramid,
  all values random, batch norm trained: AdamW 5e-4, cosine over the time, batches of 4, flips; the same pictures at the
  same size as ours, without our loop.

Both are judged by COCO's average precision on the pictures of validation, at their native size. Each side is a process
of its own, on a core of its own (`side_by_side`).

    python benchmarks/detectors.py --sets bccd                              # both sides, 1000 seconds each
    python benchmarks/detectors.py --sets bccd --sides ours --seeds 1 2     # other seeds of ours alone
    python benchmarks/detectors.py --sets bccd --sides ours --recipe detection/small_detr --every 10    # with its curve

The data are detection/ and instance_segmentation/ below $PATCHFORM_DATA.
"""

import argparse
import csv
import json
import math
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from side_by_side import Clock, fitted, together
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import patchform
from patchform import lookup
from patchform.commands import recipes
from patchform.data.dataset import open_data
from patchform.evaluation import evaluate_run
from patchform.geometry import masks
from patchform.records import Instances, Preprocessing
from patchform.settings import AugmentationSettings, DataSettings
from patchform.tasks.base import Task
from patchform.tasks.detection import Detection
from patchform.training.metrics_log import METRICS

DATA = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[2] / "shared" / "data"))


class Set(NamedTuple):
    task: str
    side: int
    """Shorter side at which pictures are seen, pixels."""

    @property
    def size(self):
        return self.side, 2 * self.side


SETS = {
    "bccd": Set("detection", 240),
    "chess_pieces": Set("detection", 320),
    "five_objects": Set("instance_segmentation", 240),
    "dsb2018_nuclei": Set("instance_segmentation", 240),
}


def ours(a, name, set_, folder):
    usual = {"seed": a.seed, "threads": 1, "device": "cpu", "loggers": (), "precision": a.precision}
    given = {"data": {"path": str(folder)}, "preprocessing": {"size": list(set_.size), "resize": "fit"}}
    with tempfile.TemporaryDirectory() as runs:

        def run(run_name, epochs):
            every = min(a.every or epochs, epochs) if run_name == "whole" else epochs
            training = {**usual, "epochs": epochs, "validate_every": every}
            settings = {**given, "runs": runs, "name": run_name, "training": training}
            return patchform.train(recipes.resolve(a.recipe or f"{set_.task}/small", settings), progress=False)

        done, epochs, spent = fitted(run, a.seconds)
        scores = evaluate_run(done.folder, folder, device="cpu")
        curve = curve_of(done.folder) if a.every else []
    made = f"{done.model.architecture.backbone} under {done.model.architecture.head}"
    return report(name, made, done.model, scores, epochs, spent) | {"curve": curve}


def curve_of(folder):
    """Average precision after so many epochs, as text."""
    with (folder / METRICS).open() as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("ap")]
    return [f"{row['epoch']}: {float(row['ap']):.3f}" for row in rows]


def torchvisions(a, name, set_, folder):
    torch.manual_seed(a.seed)
    preprocessing = Preprocessing(size=set_.size, resize="fit", interpolation="bilinear")
    splits = open_data(DataSettings(path=str(folder)), seed=a.seed, preprocessing=preprocessing, task=set_.task)
    change = AugmentationSettings(scale=(1.0, 1.0), flip=0.5)
    pictures = Detection().training_samples(splits.train, preprocessing, change, a.seed)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    build = FasterRCNN if set_.task == "detection" else MaskRCNN
    model = build(
        backbone, num_classes=len(splits.train.classes) + 1, min_size=set_.side, max_size=2 * set_.side
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)
    began, epoch, share = Clock(), 0, 0.0
    while share < 1:
        order = torch.randperm(len(pictures)).tolist()
        for start in range(0, len(order) - 3, 4):
            share = began.since().core / a.seconds
            if share >= 1:
                break
            optimizer.param_groups[0]["lr"] = 5e-4 * (1 + math.cos(math.pi * share)) / 2
            samples = [pictures[epoch, index] for index in order[start : start + 4]]
            losses = model([sample.image / 255 for sample in samples], [truth(sample.target) for sample in samples])
            optimizer.zero_grad(set_to_none=True)
            sum(losses.values()).backward()
            optimizer.step()
        epoch += min(1.0, (start + 4) / len(order)) if share >= 1 else 1
    spent = began.since()
    model.eval()
    task = lookup.the_class("tasks", set_.task, Task)()
    metric = task.full_metric(splits.train.classes)
    held_out = Detection().evaluation_samples(splits.validation, preprocessing)
    with torch.inference_mode():
        for index in range(len(held_out)):
            sample = held_out[0, index]
            metric.update([found(model([sample.image / 255])[0], sample)], [sample.target])
    made = f"torchvision {build.__name__} on resnet18"
    return report(name, made, model, metric.compute(), round(epoch, 1), spent)


def truth(target):
    """An `Instances` as torchvision wants it: classes from 1 on."""
    words = {"boxes": target.boxes, "labels": target.classes + 1}
    return words if target.masks is None else {**words, "masks": masks.to_dense(target.masks).byte()}


def found(answer, sample):
    """An answer of torchvision's, in pixels of the input, as `Instances` in those of the picture."""
    (height, width), (tall, wide) = sample.size, sample.image.shape[-2:]
    boxes = answer["boxes"] * torch.tensor([width / wide, height / tall] * 2)
    bitmaps = None
    if "masks" in answer:
        dense = nn.functional.interpolate(answer["masks"], size=sample.size, mode="bilinear")[:, 0] > 0.5
        bitmaps = masks.from_dense(dense)
    return Instances(boxes, answer["labels"] - 1, answer["scores"], bitmaps)


def report(name: str, made: str, model: nn.Module, scores, epochs, spent):
    wanted = [key for key in ("ap", "ap50", "box_ap", "box_ap50") if key in scores.numbers]
    return {
        "set": name,
        "model": made,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": epochs,
        "core_seconds": round(spent.core, 1),
        "wall_seconds": round(spent.wall, 1),
        "scores": {key: round(scores.numbers[key] or 0.0, 4) for key in wanted},
    }


SIDES = {"ours": ours, "torchvision": torchvisions}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--seconds", type=float, default=1000)
    parser.add_argument("--recipe", help="of ours; default: the task's small one")
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"], help="of ours")
    parser.add_argument("--every", type=int, help="epochs between validations of ours, for a curve; in its time")
    parser.add_argument("--here", action="store_true", help="one set, side and seed, in this process")
    a = parser.parse_args()
    places = {name: DATA / SETS[name].task / name for name in a.sets}
    for name in [name for name, place in places.items() if not place.is_dir()]:
        print(f"no data of {name}: set PATCHFORM_DATA to a folder that has {SETS[name].task}/{name}")
        del places[name]
    if a.here:
        torch.set_num_threads(1)
        a.seed = a.seeds[0]
        for name, place in places.items():
            print(json.dumps(SIDES[a.sides[0]](a, name, SETS[name], place)), flush=True)
        return
    usual = ["--here", "--seconds", str(a.seconds), "--precision", a.precision]
    usual += ["--recipe", a.recipe] if a.recipe else []
    usual += ["--every", str(a.every)] if a.every else []
    print("| set | model | seed | parameters | epochs | core s | wall s | scores |\n|---|---|--:|--:|--:|--:|--:|---|")
    for name in places:
        pairs = [(side, seed) for seed in a.seeds for side in a.sides]
        sides = [[*usual, "--sets", name, "--sides", side, "--seeds", str(seed)] for side, seed in pairs]
        for (_, seed), row in zip(pairs, together(__file__, sides)):
            cells = [name, row["model"], seed, f"{row['parameters']:,}", row["epochs"]]
            numbers = ", ".join(f"{key} {value:.3f}" for key, value in row["scores"].items())
            print(
                "|", " | ".join(map(str, [*cells, row["core_seconds"], row["wall_seconds"], numbers])), "|", flush=True
            )
            if row.get("curve"):
                print(f"AP of {row['model']} after epochs:", ", ".join(row["curve"]), flush=True)


if __name__ == "__main__":
    main()
