"""Trained models as files: the metric before and after, sizes, and latency beside torch, for a set of each task.

    python benchmarks/exported.py --runs FOLDER --train          # five models, each a few minutes of one core
    python benchmarks/exported.py --runs FOLDER --threads 2      # every file of every one, and a table of it all

Each run is the recipe TASK/small with a few epochs. A file that `patchform export` does not keep is a line with the
reason. The metric is that of the whole validation set, by the runtime of the file; latency is of one picture, all files
and torch in turns, medians over rounds. The data are below $PATCHFORM_DATA.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import patchform
from patchform.commands import recipes

DATA = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[2] / "shared" / "data"))


class Set(NamedTuple):
    """A data set below the folder of its task."""

    task: str
    epochs: int


SETS = {
    "cifar10_subset": Set("classification", 14),
    "asl_motion": Set("video_classification", 22),
    "camvid": Set("semantic_segmentation", 12),
    "bccd": Set("detection", 10),
    "five_objects": Set("instance_segmentation", 7),
}
FILES: dict[str, dict[str, Any]] = {
    "model.onnx": {},
    "model_float16.onnx": {"dtype": "float16"},
    "model_int8.onnx": {"dtype": "int8"},
    "model.xml": {"format": "openvino"},
    "model_int8.xml": {"format": "openvino", "dtype": "int8"},
}
"""Options of `patchform.export_run` by the file."""


def train(runs, name, set_):
    """A run of a few epochs."""
    settings = {
        "data": {"path": str(DATA / set_.task / name)},
        "runs": str(runs),
        "name": name,
        "training": {"epochs": set_.epochs, "validate_every": set_.epochs, "threads": 1, "device": "cpu"},
    }
    patchform.train(recipes.resolve(f"{set_.task}/small", settings))


def export(run):
    """Write what is not there; by file, why it was not kept."""
    refused = {}
    for name, options in FILES.items():
        if (run / name).exists():
            continue
        try:
            patchform.export_run(run, out=run / name, **options)
        except patchform.PatchformError as error:
            refused[name] = str(error)
        print(run.name, name, refused.get(name, "kept"), flush=True)
    return refused


def rows(run, refused, threads):
    """Lines of a table: set, file, MB, metric, ms, times as fast as torch (quartiles)."""
    timed = {row.name: row for row in patchform.bench_run(run, batch=1, threads=threads, skip=["compiled"]).rows}
    eager = next(iter(timed.values()))
    megabytes = (run / "model.safetensors").stat().st_size / 1e6
    yield f"| {run.name} | torch | {megabytes:.2f} | | {milliseconds(eager)} | 1 |"
    for name in FILES:
        if name in refused:
            yield f"| | {name} | | not kept: {refused[name]} | | |"
            continue
        report = json.loads((run / f"{name}.check.json").read_text())
        metric = report["metric"]
        change = f"{metric} {100 * report['before'][metric]:.2f} -> {100 * report['after'][metric]:.2f}"
        for row in timed.values():
            if row.name.startswith(f"{name} ") or row.name == name:
                speed = (
                    "" if row.ratio is None else f"{row.ratio.median:.2f} ({row.ratio.low:.2f} to {row.ratio.high:.2f})"
                )
                size = report["bytes"] / 1e6
                yield f"| | {row.name} | {size:.2f} | {change} | {milliseconds(row)} | {speed} |"


def milliseconds(row):
    """Of one picture."""
    return f"{1000 * row.latency.median:.2f}" if row.latency else f"{'; '.join(row.skipped)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--train", action="store_true", help="train those that are missing, and end")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    for name in arguments.sets:
        run = arguments.runs / name
        if not arguments.train:
            print(*rows(run, export(run), arguments.threads), sep="\n", flush=True)
        elif not run.exists():
            train(arguments.runs, name, SETS[name])


if __name__ == "__main__":
    main()
