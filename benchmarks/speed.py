"""Ours and timm's side by side: forward and training step, float32 and bfloat16, interleaved in one run.

Both sides have the same architecture, the same weights and the same inputs. The steps of the two alternate, so a busy
machine slows both. Prints images a second of each, the ratio of medians (above 1: ours is faster), and the share of
the matrix-product rate measured in the same run that our multiply-adds reach.

    python benchmarks/speed.py                                  # ViT-S, ViT-B and Swin-T
    python benchmarks/speed.py --models swin/t --rounds 30      # one
    python benchmarks/speed.py --models all                     # every family that timm has
"""

import argparse
import itertools
import json
import statistics
import time

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import patchform
from patchform import lookup
from patchform.model import build_backbone
from patchform.weights.rules import recognise

PAIRS = {
    "vit/s16": "vit_small_patch16_224",
    "vit/b16": "vit_base_patch16_224",
    "swin/t": "swin_tiny_patch4_window7_224",
    "swin/v2_t_w8": "swinv2_tiny_window8_256",
    "cross_vit/15": "crossvit_15_240",
    "twins/svt_s": "twins_svt_small",
    "twins/pcpvt_s": "twins_pcpvt_small",
    "pvt/v2_b2": "pvt_v2_b2",
    "hybrid/r50_b16": "vit_base_r50_s16_224",
    "resnet/50": "resnet50",
}
FIRST = ("vit/s16", "vit/b16", "swin/t")


class Classifier(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.backbone = build_backbone(name)
        self.head = nn.ModuleDict({"classifier": nn.Linear(self.backbone.width, 1000)})

    def forward(self, images):
        return self.head["classifier"](self.backbone(images).summary)


def pair(name):
    theirs = timm.create_model(PAIRS[name])
    ours = Classifier(name)
    layouts, published = lookup.published(name.partition("/")[0]).layouts, theirs.state_dict()
    layout = layouts["timm"] if "timm" in layouts else layouts[recognise(layouts, published)]
    ours.load_state_dict(layout.load(published, ours.state_dict())[0])
    return ours, theirs


def step(model, images, labels, *, training, precision):
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        if not training:
            with torch.inference_mode():
                return model(images)
        for parameter in model.parameters():
            parameter.grad = None
        loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    return loss


def matrix_rate(precision, size=1536, repeats=8):
    """Multiply-adds a second of one large matrix product."""
    dtype = getattr(torch, precision)
    a, b = torch.randn(2, size, size).to(dtype)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return size**3 / statistics.median(times)


def measure(name, *, batch, rounds, training, precision):
    torch.manual_seed(0)
    ours, theirs = pair(name)
    side = lookup.backbone(name)[1].image_size
    images, labels = torch.randn(batch, 3, side, side), torch.randint(1000, (batch,))
    sides = {"ours": ours.train(training), "timm": theirs.train(training)}
    with torch.no_grad():
        gap = (ours.eval()(images) - theirs.eval()(images)).abs().max().item()
    ours.train(training), theirs.train(training)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ours.eval()(images[:1])
    ours.train(training)
    work = counter.get_total_flops() / 2 * batch * (3 if training else 1)
    times = {side: [] for side in sides}
    for round_ in range(rounds + 2):
        for side, model in sorted(sides.items(), reverse=round_ % 2 == 1):
            start = time.perf_counter()
            step(model, images, labels, training=training, precision=precision)
            if round_ > 1:
                times[side].append(time.perf_counter() - start)
    median = {side: statistics.median(values) for side, values in times.items()}
    ratios = sorted(b / a for a, b in zip(times["ours"], times["timm"]))
    return {
        "model": name,
        "what": "training step" if training else "forward",
        "precision": precision,
        "ours_images_s": batch / median["ours"],
        "timm_images_s": batch / median["timm"],
        "ratio": median["timm"] / median["ours"],
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "share_of_gemm": work / median["ours"] / matrix_rate(precision),
        "share_of_gemm_timm": work / median["timm"] / matrix_rate(precision),
        "largest_difference": gap,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=FIRST, choices=[*PAIRS, "all"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--what", nargs="+", default=["forward", "training"], choices=["forward", "training"])
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"patchform {patchform.__version__}, timm {timm.__version__}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, batch {arguments.batch}, {arguments.rounds} rounds")  # fmt: skip
    models = list(PAIRS) if "all" in arguments.models else arguments.models
    for name, what, precision in itertools.product(models, arguments.what, arguments.precision):
        row = measure(
            name, batch=arguments.batch, rounds=arguments.rounds, training=what == "training", precision=precision
        )
        if arguments.json:
            print(json.dumps(row), flush=True)
            continue
        low, high = row["ratio_quartiles"]
        print(
            f"{row['model']:8} {row['what']:13} {row['precision']:8}  ours {row['ours_images_s']:7.1f} img/s  "
            f"timm {row['timm_images_s']:7.1f} img/s  ratio {row['ratio']:.3f} (quartiles {low:.3f} to {high:.3f})  "
            f"GEMM share {row['share_of_gemm']:.0%} (timm {row['share_of_gemm_timm']:.0%})  "
            f"largest difference {row['largest_difference']:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
