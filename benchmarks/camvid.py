"""Semantic segmentation from scratch in so many seconds of one core: ours, and torchvision's LR-ASPP, side by side.

* ours: `patchform.train` with a recipe; as many epochs as fit into the time, by the speed of short runs before.
* torchvision: a plain loop around lraspp_mobilenet_v3_large with random initial values: AdamW 2e-3, polynomial decay
  over the time, crops of 192 x 256 at 0.75 to 1.5 times the size, flips, batches of 8; the same masks and transforms as
  ours, without our loop.

Both are judged by the mean intersection over union of the 11 classes on the 101 pictures of validation, whole, at
their native 240 x 320. Each side is a process of its own, on a core of its own (`side_by_side`).

    python benchmarks/camvid.py                                    # both sides, 1000 seconds each
    python benchmarks/camvid.py --sides ours --seeds 1 2           # other seeds of ours alone

The data are semantic_segmentation/camvid below $PATCHFORM_DATA.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch
from side_by_side import Clock, fitted, together
from torch import nn
from torch.nn import functional as F
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

import patchform
from patchform.commands import recipes
from patchform.data.collate import collate, to_device
from patchform.data.dataset import open_data
from patchform.data.loader import evaluation_loader
from patchform.evaluation import evaluate_run
from patchform.metrics.intersection import Intersection
from patchform.records import IGNORED, Preprocessing, Regions
from patchform.settings import AugmentationSettings, DataSettings
from patchform.tasks.semantic_segmentation import SemanticSegmentation

DATA = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[2] / "shared" / "data"))
SCENES = DATA / "semantic_segmentation" / "camvid"


def ours(a):
    usual = {"seed": a.seed, "threads": 1, "device": "cpu", "loggers": (), "precision": a.precision}
    with tempfile.TemporaryDirectory() as runs:

        def run(name, epochs):
            training = {**usual, "epochs": epochs, "validate_every": epochs}
            settings = {"data": {"path": str(SCENES)}, "runs": runs, "name": name, "training": training}
            return patchform.train(recipes.resolve(a.recipe, settings), progress=False)

        done, epochs, spent = fitted(run, a.seconds)
        scores = evaluate_run(done.folder, SCENES, settings=DataSettings(path=str(SCENES)), device="cpu")
    made = f"{done.model.architecture.backbone} under {done.model.architecture.head}"
    return report(made, done.model, scores, epochs, spent)


def torchvisions(a):
    torch.manual_seed(a.seed)
    preprocessing = Preprocessing(size=(192, 256), resize="native", interpolation="bilinear")
    splits = open_data(
        DataSettings(path=str(SCENES)), seed=a.seed, preprocessing=preprocessing, task="semantic_segmentation"
    )
    change = AugmentationSettings(scale=(0.75, 1.5), flip=0.5)
    pictures = SemanticSegmentation().training_samples(splits.train, preprocessing, change, a.seed)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=len(splits.train.classes))
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    began, epoch, share = Clock(), 0, 0.0
    while share < 1:
        order = torch.randperm(len(pictures)).tolist()
        for start in range(0, len(order) - 7, 8):
            share = began.since().core / a.seconds
            if share >= 1:
                break
            optimizer.param_groups[0]["lr"] = 2e-3 * (1 - share) ** 0.9
            batch = to_device(collate([pictures[epoch, index] for index in order[start : start + 8]]), "cpu")
            images = ((batch.images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
            wanted = torch.stack([target.classes for target in batch.targets])
            loss = F.cross_entropy(model(images)["out"], wanted, ignore_index=IGNORED)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        epoch += 1
    spent = began.since()
    model.eval()
    metric = Intersection(splits.train.classes)
    held_out = SemanticSegmentation().evaluation_samples(splits.validation, preprocessing)
    with torch.inference_mode():
        for batch in evaluation_loader(held_out, 8):
            logits = model((batch.images / 255 - mean) / std)["out"]
            metric.update([Regions(each.argmax(0)) for each in logits], batch.targets)
    return report("torchvision lraspp_mobilenet_v3_large", model, metric.compute(), epoch, spent)


def report(made: str, model: nn.Module, scores, epochs, spent):
    table = scores.tables["classes"]
    return {
        "model": made,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": epochs,
        "core_seconds": round(spent.core, 1),
        "wall_seconds": round(spent.wall, 1),
        "mean_iou": round(scores.numbers["mean_iou"], 4),
        "classes": {name: row[0] and round(row[0], 3) for name, row in zip(table.rows, table.values)},
    }


SIDES = {"ours": ours, "torchvision": torchvisions}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--seconds", type=float, default=1000)
    parser.add_argument("--recipe", default="semantic_segmentation/small", help="of ours")
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"], help="of ours")
    parser.add_argument("--here", action="store_true", help="one side and seed, in this process")
    a = parser.parse_args()
    if not SCENES.is_dir():
        print("no data: set PATCHFORM_DATA to a folder that has semantic_segmentation/camvid")
        return
    if a.here:
        torch.set_num_threads(1)
        a.seed = a.seeds[0]
        print(json.dumps(SIDES[a.sides[0]](a)), flush=True)
        return
    usual = ["--here", "--seconds", str(a.seconds), "--recipe", a.recipe, "--precision", a.precision]
    pairs = [(side, seed) for seed in a.seeds for side in a.sides]
    found = together(__file__, [[*usual, "--sides", side, "--seeds", str(seed)] for side, seed in pairs])
    print("| model | seed | parameters | epochs | core s | wall s | mIoU |\n|---|--:|--:|--:|--:|--:|--:|")
    for (_, seed), row in zip(pairs, found):
        cells = [row["model"], seed, f"{row['parameters']:,}", row["epochs"], row["core_seconds"], row["wall_seconds"]]
        print("|", " | ".join(map(str, [*cells, row["mean_iou"]])), "|")
    for row in found:
        print(f"{row['model']}: {', '.join(f'{name} {iou}' for name, iou in row['classes'].items())}")


if __name__ == "__main__":
    main()
