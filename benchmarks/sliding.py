"""Windows against the whole picture: what is held in memory, and what is said of each pixel.

* memory: peak resident memory above that of the process with its model and its picture, each way and each size in a
  process of its own, in which freed memory goes back at once. The answer itself, 8 bytes a pixel, is in it.
* labels: how many pixels windows decide otherwise than the whole, and how sure the whole was there at most (its best
  score less its second best).

Models have random weights and 19 classes: a local one (two stages of the smallest ResNet, under a head that looks at
single cells) and global ones.

    python benchmarks/sliding.py                        # windows of 512 pixels, every 384
"""

import argparse
import json
import os
import subprocess
import sys
import time

import torch

from patchform.inference import SlidingWindow
from patchform.model import Model, build_model
from patchform.records import Batch, Preprocessing

MODELS = {
    "local": ("resnet/nano", {"depths": (1, 1), "widths": (4, 8)}),
    "pvt": ("pvt/nano", {}),
    "vit": ("vit/nano", {"patch": 16}),
}
SIZES = ((1024, 512), (2048, 1024), (4096, 1024), (8192, 1024), (4096, 2048))
"""Width and height."""
MARGIN = 32
"""Pixels of a window's edges that do not count; the local model looks less far."""


def model_of(name: str, window: int) -> Model:
    torch.manual_seed(0)
    backbone, options = MODELS[name]
    model = build_model(
        "semantic_segmentation",
        backbone=backbone,
        head="setr",
        classes=[f"class {number}" for number in range(19)],
        preprocessing=Preprocessing(size=(window, window)),
        backbone_options=options,
        head_options={"channels_inside": 32},
    )
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            values = 0.5 * torch.randn(tensor.shape, generator=generator)
            tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return model.eval()


def picture(width: int, height: int) -> Batch:
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, height // 16, width // 16, generator=draw)
    image = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    image += 0.1 * torch.rand(image.shape, generator=draw)
    return Batch((image * 255).clamp(0, 255).byte(), (), ("",), ((height, width),))


def resident(field: str) -> int:
    """Bytes: VmRSS, now, or VmHWM, the most so far."""
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def memory(a) -> dict:
    model, batch = model_of(a.model, a.window), picture(*a.size)
    with torch.inference_mode():
        model.predict(picture(64, 64))  # what a first call loads
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")  # the most so far is now's
    before, began = resident("VmRSS"), time.perf_counter()
    infer = way(a, 0) if a.way == "windows" else Model.predict
    with torch.inference_mode():
        infer(model, batch)
    return {"megabytes": round((resident("VmHWM") - before) / 1e6, 1), "seconds": round(time.perf_counter() - began, 2)}


def labels(a) -> dict:
    model, batch = model_of(a.model, a.window), picture(*a.size)
    with torch.inference_mode():
        whole = model.predict(batch)[0]
        best = whole.scores.topk(2, 0).values
        found = {}
        for margin in (0, MARGIN):
            other = way(a, margin)(model, batch)[0].classes != whole.classes
            sure = float((best[0] - best[1])[other].max()) if other.any() else 0.0
            found[str(margin)] = [int(other.sum()), sure]
    return found


def way(a, margin: int) -> SlidingWindow:
    return SlidingWindow((a.window, a.window), (a.stride, a.stride), margin=margin)


def child(a, **options) -> dict:
    words = [sys.executable, __file__, "--window", str(a.window), "--stride", str(a.stride)]
    words += [word for key, value in options.items() for word in (f"--{key}", *map(str, value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--stride", type=int, default=384)
    parser.add_argument("--model", choices=MODELS, help="of one measurement, in this process")
    parser.add_argument("--size", type=int, nargs=2)
    parser.add_argument("--way", choices=["windows", "whole", "labels"])
    a = parser.parse_args()
    if a.way:
        print(json.dumps(labels(a) if a.way == "labels" else memory(a)))
        return
    print("| picture | MB: answer | windows | whole | seconds: windows | whole |\n|---|--:|--:|--:|--:|--:|")
    for size in SIZES:
        windows, whole = (child(a, model=["local"], size=size, way=[one]) for one in ("windows", "whole"))
        row = [f"{each.get(key, 'out of memory')}" for key in ("megabytes", "seconds") for each in (windows, whole)]
        print(f"| {size[0]} x {size[1]} | {8 * size[0] * size[1] / 1e6:.1f} | {' | '.join(row)} |", flush=True)
    print(
        f"\n| model | pixels that differ, no margin | how sure | margin of {MARGIN} | how sure |\n|---|--:|--:|--:|--:|"
    )
    for name in MODELS:
        found = child(a, model=[name], size=SIZES[1], way=["labels"])
        row = [f"{number:,} | {sure:.1e}" for number, sure in found.values()]
        print(f"| {name} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
