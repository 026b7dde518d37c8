"""Ours and timm's side by side: time and memory of a forward pass and a training step, float32 and bfloat16.

Both sides have the same architecture, the same weights and the same inputs. Their steps and a large matrix product take
turns, so a busy machine slows all three. For a family that timm lacks there is only the product to compare with.

    python benchmarks/speed.py                                  # ViT-S, ViT-B and Swin-T
    python benchmarks/speed.py --models swin/t --rounds 30      # one
    python benchmarks/speed.py --models all --batch 4           # every family

Columns of the table: images a second, ours and timm's; the median over rounds of timm's time over ours (above 1: ours
is faster) and its quartiles; peak memory of a step beyond what the process held before it, ours over timm's; the share
of the matrix product's rate that our multiply-adds (of a training step: three times those of a forward pass) reach.
"""

import argparse
import ctypes
import itertools
import json
import statistics
import time
from pathlib import Path

import timm
import torch
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import patchform
from patchform import lookup
from patchform.model import build_backbone
from patchform.weights.rules import recognise

PEERS = {
    "vit/s16": "vit_small_patch16_224",
    "vit/b16": "vit_base_patch16_224",
    "parallel_vit/deit3_s": "deit3_small_patch16_224",
    "swin/t": "swin_tiny_patch4_window7_224",
    "swin/v2_t_w8": "swinv2_tiny_window8_256",
    "cross_vit/15": "crossvit_15_240",
    "twins/svt_s": "twins_svt_small",
    "twins/pcpvt_s": "twins_pcpvt_small",
    "pvt/v2_b2": "pvt_v2_b2",
    "volo/d1": "volo_d1_224",
    "hybrid/r50_b16": "vit_base_r50_s16_224",
    "resnet/50": "resnet50",
    "botnet/50": "",  # built below
    "pvt/v1_s": None,
    "dual_vit/s": None,
    "region_vit/s": None,
    "axial/26s": None,
    "stand_alone/26": None,
    "sparse/s": None,
    "parnet/s": None,
    "timesformer/b": None,
}
OURS = {"hybrid/r50_b16": {"gelu": "none"}}
THEIRS = {"hybrid/r50_b16": {"num_classes": 1000}, "volo/d1": {"use_aux_head": False}}
FIRST = ("vit/s16", "vit/b16", "swin/t")
COLUMNS = ("model", "what", "precision", "ours img/s", "timm img/s", "ratio", "quartiles", "memory", "GEMM share")


class Classifier(nn.Module):
    def __init__(self, name, **options):
        super().__init__()
        self.backbone = build_backbone(name, **options)
        if self.backbone.prefers_channels_last:  # as a patchform.Model does
            self.backbone.to(memory_format=torch.channels_last)
        self.head = nn.ModuleDict({"classifier": nn.Linear(self.backbone.width, 1000)})

    def forward(self, images):
        return self.head["classifier"](self.backbone(images).summary)


def pair(name):
    """Ours and timm's model, or None, with equal weights."""
    ours = Classifier(name, **OURS.get(name, {}))
    if name == "botnet/50":  # of the same shapes; timm's has no relu behind the projection of a shortcut
        return ours, botnet50()
    if PEERS[name] is None:
        return ours, None
    theirs = timm.create_model(PEERS[name], **THEIRS.get(name, {}))
    layouts, published, own = lookup.published(name.partition("/")[0]).layouts, theirs.state_dict(), ours.state_dict()
    layout = layouts["timm"] if "timm" in layouts else layouts[recognise(layouts, published, own)]
    ours.load_state_dict(layout.load(published, own)[0])
    return ours, theirs


def botnet50():
    blocks = [
        ByoBlockCfg(type=kind, d=depth, c=256 << stage, s=1 if stage == 0 else 2, gs=0, br=0.25)
        for stage, (kind, depth) in enumerate((("bottle", 3), ("bottle", 4), ("bottle", 6), ("self_attn", 3)))
    ]
    attention = {"self_attn_layer": "bottleneck", "self_attn_kwargs": {"scale_pos_embed": True}}
    shape = ByoModelCfg(tuple(blocks), stem_type="7x7", stem_chs=64, fixed_input_size=True, **attention)
    return ByobNet(shape, img_size=224)


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


def peak(work):
    """Bytes that `work()` needs at its peak beyond what the process holds before it; Linux with glibc."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident()["VmHWM"]
    work()
    return resident()["VmHWM"] - before


def resident():
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {key: 1024 * int(value.split()[0]) for key, value in (line.split(":\t") for line in lines if "kB" in line)}


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def inputs(name, batch):
    row = lookup.backbone(name)[1]
    frames = (row.options["frames"],) if "frames" in row.options else ()
    return torch.randn(batch, *frames, 3, row.image_size, row.image_size), torch.randint(1000, (batch,))


def compare(ours, theirs, images):
    """Multiply-adds of one forward pass, and the largest difference between the two sides."""
    ours.requires_grad_(False)  # but gradients stay enabled: the counter does not know the kernels of the other case
    with FlopCounterMode(display=False) as counter:
        ours.eval()(images[:1])
    ours.requires_grad_(True)
    with torch.no_grad():
        gap = None if theirs is None else (ours(images) - theirs.eval()(images)).abs().max().item()
    return counter.get_total_flops() / 2 * len(images), gap


def measure(name, *, batch, rounds, training, precision, size=1536):
    torch.manual_seed(0)
    models = {side: model for side, model in zip(("ours", "timm"), pair(name)) if model is not None}
    images, labels = inputs(name, batch)
    work, gap = compare(models["ours"], models.get("timm"), images)
    matrix = torch.randn(size, size, dtype=getattr(torch, precision))
    works = {"matrix": lambda: matrix @ matrix} | {
        side: lambda model=model: step(model, images, labels, training=training, precision=precision)
        for side, model in models.items()
    }
    memory = {}
    for side, model in models.items():
        model.train(training)
        memory[side] = min(peak(works[side]) for _ in range(3))  # the first warms up
    times = {side: [] for side in works}
    for round_ in range(rounds):
        for side in sorted(works, reverse=round_ % 2 == 1):
            times[side].append(timed(works[side]))
    median = {side: statistics.median(values) for side, values in times.items()}
    row = {
        "model": name,
        "what": "training step" if training else "forward",
        "precision": precision,
        "ours_images_s": batch / median["ours"],
        "memory": memory["ours"],
        "share_of_gemm": work * (3 if training else 1) / median["ours"] / (size**3 / median["matrix"]),
    }
    if "timm" in models:
        ratios = sorted(b / a for a, b in zip(times["ours"], times["timm"]))
        row |= {
            "timm_images_s": batch / median["timm"],
            "ratio": statistics.median(ratios),
            "ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
            "memory_ratio": memory["ours"] / memory["timm"],
            "share_of_gemm_timm": row["share_of_gemm"] * median["ours"] / median["timm"],
            "largest_difference": gap,
        }
    return row


def cells(row):
    """A row as the table has it."""
    first = [row["model"], row["what"], row["precision"], f"{row['ours_images_s']:.1f}"]
    if "ratio" not in row:
        return [*first, "", "", "", f"{row['memory'] / 2**20:.0f} MiB", f"{row['share_of_gemm']:.0%}"]
    low, high = row["ratio_quartiles"]
    return [
        *first,
        f"{row['timm_images_s']:.1f}",
        f"{row['ratio']:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{row['memory_ratio']:.2f}",
        f"{row['share_of_gemm']:.0%} ({row['share_of_gemm_timm']:.0%})",
    ]


def show(row):
    print(f"| {' | '.join(row)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=FIRST, choices=[*PEERS, "all"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--what", nargs="+", default=["forward", "training"], choices=["forward", "training"])
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--json", action="store_true", help="a line of numbers for each row in place of the table")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if not arguments.json:
        print(f"patchform {patchform.__version__}, timm {timm.__version__}, torch {torch.__version__}, "
              f"{torch.get_num_threads()} threads, batch {arguments.batch}, {arguments.rounds} rounds\n")  # fmt: skip
        show(COLUMNS)
        show(["---"] * 3 + ["--:"] * 3 + ["---"] + ["--:"] * 2)
    models = list(PEERS) if "all" in arguments.models else arguments.models
    for name, what, precision in itertools.product(models, arguments.what, arguments.precision):
        batch = 1 if name.startswith("timesformer") else arguments.batch  # a clip is eight pictures
        row = measure(name, batch=batch, rounds=arguments.rounds, training=what == "training", precision=precision)
        if arguments.json:
            print(json.dumps(row), flush=True)
        else:
            show(cells(row))


if __name__ == "__main__":
    main()
