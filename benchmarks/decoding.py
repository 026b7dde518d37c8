"""Does training on videos wait for their decoding, and does its memory stay?

Batches of clips come from worker processes, decoded anew each time, and, in turns with that, from the same workers that
have all frames in memory already. Both are taken as fast as they come, and with a training step on each.

    python benchmarks/decoding.py                               # asl_motion, two workers
    python benchmarks/decoding.py --steps 5 --rounds 1 --epochs 2     # a look

Lines of the first table: batches a second, medians over rounds, and their ratio (1: nothing is waited for). The second
part: memory of this process and its workers after each epoch of nothing but decoding, what they share counted once.
The data are a folder of videos with train/: video_classification/asl_motion below $PATCHFORM_DATA.
"""

import argparse
import itertools
import multiprocessing
import os
import statistics
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from patchform.data import samples
from patchform.data.collate import to_device
from patchform.data.dataset import open_data
from patchform.data.loader import TrainingBatches, training_loader
from patchform.model import build_model
from patchform.records import Preprocessing
from patchform.settings import AugmentationSettings, DataSettings
from patchform.tasks.base import find_task

DATA = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[2] / "shared" / "data"))
TASK = "video_classification"
WARM = 4
"""Batches before the clock starts: workers have to be there."""


def opened(a):
    size = (a.size, a.size)
    preprocessing = Preprocessing(size=size, crop_share=1.0, frames=a.frames, frame_step=2, sampling=a.sampling)
    data = DataSettings(path=str(a.data))
    return open_data(data, seed=0, preprocessing=preprocessing, task=TASK).train, preprocessing


def clips(a, listing, preprocessing, kept):
    """The data set; with all frames in memory, or with none, now and later."""
    found = find_task(TASK).training_samples(listing, preprocessing, AugmentationSettings(flip=0), 0)
    if kept:
        samples.CACHE_BYTES = 1 << 40
        for index in range(len(listing)):
            found[0, index]
    else:
        found._cache = None
    return found


def step_of(a, listing, preprocessing):
    torch.manual_seed(0)
    model = build_model(
        TASK, backbone=a.backbone, head="linear", classes=listing.classes, preprocessing=preprocessing
    ).to(a.device)
    mover = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(batch):
        torch.stack(list(model(to_device(batch, a.device)).values())).sum().backward()
        mover.step()
        mover.zero_grad()
        return float(next(model.parameters()).detach().flatten()[0])  # waits for the device

    return step


@contextmanager
def loading(a, found, steps):
    """An iterator over batches; its workers end with it."""
    order = TrainingBatches(len(found), a.batch, 0, 0, steps)
    batches = iter(training_loader(found, order, a.workers, pin=a.device == "cuda"))
    try:
        yield batches
    finally:
        batches.close()


def rate(a, found, step):
    """Batches a second."""
    with loading(a, found, WARM + a.steps) as batches:
        for batch in itertools.islice(batches, WARM):
            step(batch)
        start = time.perf_counter()
        for batch in batches:
            step(batch)
    return a.steps / (time.perf_counter() - start)


def memory():
    """Bytes of this process and its workers, shared pages counted once."""
    total = 0
    for process in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def by_epoch(a, found):
    epoch = -(-len(found) // a.batch)
    with loading(a, found, epoch * a.epochs) as batches:
        for _ in range(a.epochs):
            for _ in itertools.islice(batches, epoch):
                pass
            yield memory()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA / "video_classification" / "asl_motion")
    parser.add_argument("--backbone", default="timesformer/nano")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--sampling", choices=("uniform", "dense"), default="uniform")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    listing, preprocessing = opened(a)
    anew, kept = (clips(a, listing, preprocessing, kept) for kept in (False, True))
    step = step_of(a, listing, preprocessing)
    print(f"{len(listing)} videos, {a.frames} frames of {a.size} px, batches of {a.batch}, {a.workers} workers")
    for name, work in (("batches alone", lambda batch: None), (f"with a step of {a.backbone}", step)):
        rates = [(rate(a, anew, work), rate(a, kept, work)) for _ in range(a.rounds)]
        decoded, ready = (statistics.median(column) for column in zip(*rates))
        ratio = statistics.median(one / other for one, other in rates)
        print(f"{name}: decoded {decoded:.2f} a second, from memory {ready:.2f}, ratio {ratio:.3f}", flush=True)
    del kept
    megabytes = [size / 1e6 for size in by_epoch(a, anew)]
    print("memory by epoch, MB: " + " ".join(f"{size:.0f}" for size in megabytes))
    if len(megabytes) > 2:
        print(f"from the second epoch to the last: {100 * (megabytes[-1] / megabytes[1] - 1):+.1f} %")


if __name__ == "__main__":
    main()
