"""Does MAE's encoder skip what is hidden? Time of a training step with three in four patches hidden, and with one.

ViT-S/16 at 224 px: forward, backward, AdamW, one thread. Steps of both kinds take turns in one process, so that a busy
machine slows both; times are those of the processor. The backbone is timed alone, under the authors' decoder (512 wide,
8 blocks: for a backbone as narrow as ViT-S it works more than the backbone, and sees all patches whatever is hidden),
and under a narrow one (192 wide, 4 blocks), which is the share of work that the paper has with ViT-L.

    python benchmarks/mae_speed.py              # a few minutes
    python benchmarks/mae_speed.py --rounds 1 --batch 2

Exits with 1 if the backbone, or the step under the narrow decoder, takes more than half at 75 %.
"""

import argparse
import statistics
import sys
import time

import torch

from patchform.model import build_model
from patchform.pretraining.base import random_mask
from patchform.records import Batch, Label, Preprocessing
from patchform.settings import OptimizerSettings
from patchform.training import optimizer
from patchform.training.step import gradients

SIDE, PATCHES = 224, 196
DECODERS = {"narrow": {"width": 192, "depth": 4, "heads": 6}, "authors'": {"width": 512, "depth": 8, "heads": 16}}
RATIOS = {"one": 1 / PATCHES, "three in four": 0.75}


class Steps:
    """Training steps of one kind."""

    def __init__(self, backbone, ratio, batch, decoder):
        torch.manual_seed(0)
        self.model = build_model(
            "pretraining",
            backbone=backbone,
            head="mae",
            classes=(),
            preprocessing=Preprocessing(size=(SIDE, SIDE)),
            backbone_options={"position": "sincos_2d"},
            head_options={"ratio": ratio, **DECODERS[decoder or "narrow"]},
        ).train()
        self.alone, self.batch = decoder is None, batch
        self.mover = optimizer.build(self.model, OptimizerSettings(lr=1e-5))

    def one(self):
        """Seconds of the processor."""
        began = time.process_time()
        if self.alone:
            images = self.model.normalise(self.batch.images)
            hidden = random_mask(torch.rand(len(images), PATCHES), self.model.ratio)
            self.model.backbone.seen(images, hidden.order[:, : hidden.visible]).square().mean().backward()
        else:
            gradients(self.model, [self.batch])
        self.mover.step()
        self.mover.zero_grad(set_to_none=True)
        return time.process_time() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit/s16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    images = torch.randint(256, (a.batch, 3, SIDE, SIDE), dtype=torch.uint8)
    nothing = Label(torch.empty(0, dtype=torch.int64))
    batch = Batch(images, (nothing,) * a.batch, ("",) * a.batch, ((SIDE, SIDE),) * a.batch)
    print(f"{a.backbone}, {a.batch} pictures of {SIDE} px, {a.threads} thread, torch {torch.__version__}")
    print("| what | all but one patch seen, s | a quarter seen, s | ratio |\n|---|--:|--:|--:|")
    ratios = {}
    for decoder in (None, *DECODERS):
        kinds = [Steps(a.backbone, ratio, batch, decoder) for ratio in RATIOS.values()]
        for steps in kinds:
            steps.one()
        times = [[steps.one() for steps in kinds] for _ in range(a.rounds)]
        all_seen, quarter = (statistics.median(column) for column in zip(*times, strict=True))
        what = "the backbone alone" if decoder is None else f"the {decoder} decoder"
        ratios[decoder] = statistics.median(some / whole for whole, some in times)
        print(f"| {what} | {all_seen:.3f} | {quarter:.3f} | {ratios[decoder]:.2f} |", flush=True)
    if max(ratios[None], ratios["narrow"]) > 0.5:
        sys.exit("more than half")


if __name__ == "__main__":
    main()
