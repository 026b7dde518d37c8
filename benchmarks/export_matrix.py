"""Every backbone under every head as one graph: torch.export and ONNX, with free batch, height and width.

    python benchmarks/export_matrix.py --out matrix.jsonl              every nano backbone under every head
    python benchmarks/export_matrix.py --random 500 --out random.jsonl models of random options, sizes and heads
    python benchmarks/export_matrix.py --table matrix.jsonl            what was written, as a table

Each model has random parameters and buffers. It goes the way of `patchform export`, is opened by the runtimes of
`patchform predict`, and is shown pictures at ten sizes, three at once and one, beside the model itself
(`export.numbers`): the largest difference is a share of the scale, decisions are the same but for those that noise of
1e-5 of a pixel changes in the model too. `--part 0/2` takes every second one, and what a file has is not done again.
"""

import argparse
import json
import random
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from patchform import lookup
from patchform.errors import PatchformError, UsageError
from patchform.export import numbers, onnx_file, writing
from patchform.export.graph import trace_file
from patchform.export.options import ExportOptions
from patchform.export.preparation import prepared
from patchform.model import build_backbone, build_model
from patchform.prediction import Predictor
from patchform.records import Preprocessing
from patchform.runtime.file_model import FileModel
from patchform.runtime.onnx_session import OnnxSession
from patchform.runtime.sessions import RuntimeOptions
from patchform.tasks.base import find_task, task_of

NANO = [
    f"{family}/{variant}"
    for family in lookup.names("backbones")
    for variant in lookup.module("backbones", family).VARIANTS
    if "nano" in variant
]
SMALL: dict[str, Any] = {"channels_inside": 16}
DETR: dict[str, Any] = {**SMALL, "queries": 10, "transformer": {"depths": (1, 2), "heads": 2, "hidden": 16}}
RCNN: dict[str, Any] = {
    **SMALL,
    "score_threshold": 0.3,
    "proposals": {"candidates": (100, 60), "kept": (50, 30)},
    "boxes": {"width": 32, "most": 20},
}
MASKS = {"masks": {"channels": 16}}
HEADS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "classification": [("linear", {}), ("linear", {"labels": "multi"}), ("token_label", {})],
    "video_classification": [("linear", {}), ("temporal_encoder", {})],
    "semantic_segmentation": [
        *(("setr", {**SMALL, "decoder": decoder}) for decoder in ("naive", "pup", "mla")),
        ("upernet", SMALL),
        ("semantic_fpn", {**SMALL, "channels_pyramid": 16}),
        ("segmenter", SMALL),
    ],
    "detection": [
        ("detr", DETR),
        ("retinanet", {**SMALL, "detections": 20}),
        *(("faster_rcnn", {**RCNN, "neck": neck}) for neck in ("fpn", "single", "simple")),
    ],
    "instance_segmentation": [("detr_masks", DETR), ("mask_rcnn", {**RCNN, **MASKS})],
}
"""By task: heads, narrow ones. Faster R-CNN with its "single" neck is ViT-FRCNN."""
BASE = (64, 96)
NO_MODEL = "no model"


class Case(NamedTuple):
    """A model to export."""

    task: str
    backbone: str
    head: str
    backbone_options: dict[str, Any]
    head_options: dict[str, Any]
    size: tuple[int, int]
    seed: int

    @property
    def key(self) -> str:
        """What tells it from others."""
        return json.dumps(self, default=list)


class Program:
    """A graph of torch.export as a session."""

    name, threads = "torch.export", 1

    def __init__(self, program, description):
        self.inputs, self.outputs = description.inputs, description.outputs
        self._module = program.module()

    def run(self, images, sizes):
        given = {"images": images, "sizes": sizes}
        with torch.no_grad():
            return self._module(*(given[name] for name in self.inputs))


def cases_of_the_matrix():
    for task, heads in HEADS.items():
        for head, options in heads:
            for backbone in NANO:
                if build_backbone(backbone).frames is None or find_task(task).frames:
                    yield Case(task, backbone, head, {}, options, BASE, 0)


def random_cases(number):
    draw = random.Random(0)
    while number:
        task = draw.choice(list(HEADS))
        head, options = draw.choice(HEADS[task])
        backbone = draw.choice(NANO)
        if build_backbone(backbone).frames is not None and not find_task(task).frames:
            continue
        size = tuple(draw.randrange(48, 160) for _ in range(2))
        yield Case(task, backbone, head, some_options(backbone, draw), options, size, draw.randrange(1000))
        number -= 1


CHOICES: dict[str, dict[str, list[Any]]] = {
    "vit": {
        "position": ["none", "learned_1d", "sinusoid_1d", "learned_2d", "sincos_2d", "relative_bias", "relative_2d"],
        "summary": ["class", "mean"],
        "registers": [0, 1, 4],
        "layer_scale": [None, 0.1],
        "maps_from": [(1, 2), (2,)],
        "patch": [4, 7, 8, 16],
        "gelu": ["none", "tanh"],
    },
    "swin": {"windows": ["masked", "zeros", "zeros_rolled"], "patch": [2, 4], "window": [3, 4, 7]},
    "twins": {"windows": ["masked", "zeros"]},
    "resnet": {"dilated": [0, 1, 2]},
    "axial": {"dilated": [0, 1]},
}
"""By family: options of a constructor and some of their values."""


def some_options(backbone, draw):
    """Some options that the constructor takes."""
    options = {}
    for name, values in CHOICES.get(backbone.partition("/")[0], {}).items():
        if draw.random() < 0.5:
            options[name] = draw.choice(values)
            try:
                build_backbone(backbone, **options)
            except PatchformError:
                del options[name]
    return options


def randomised(model, seed):
    """Random numbers in all parameters and buffers: such that what depends on a picture is seen in what comes out.

    Anchors move little: boxes of random moves all end as the whole picture, of which NMS leaves one.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            if parameter.dim() > 1:
                parameter.copy_(noise * (1.5 / max(1, parameter[0].numel()) ** 0.5))
            else:
                parameter.copy_(1 + 0.3 * noise if parameter.mean() > 0.5 else 0.3 * noise)
        for name, parameter in model.head.named_parameters():
            if "shift" in name:
                parameter.mul_(0.05)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=draw))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=draw))
    return model.eval()


LAST = ("classifier", "classify", "classify.output", "proposals.objectness")
"""Layers that give a head's numbers of classes: how their names end."""
LOGITS = 3.0


def calmed(model, shown):
    """Numbers of classes as spread as a trained model's: of hundreds, softmax and sigmoid make ones, among which no
    picture, box or rounding decides anything."""
    spread: dict[Any, float] = {}

    def note(layer, _, logits):
        spread[layer] = max(spread.get(layer, 0.0), float(logits.std()))

    layers = [
        layer for name, layer in model.head.named_modules() if f".{name}".endswith(tuple(f".{end}" for end in LAST))
    ]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    Predictor(model)(shown)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for layer, deviation in spread.items():
            for parameter in layer.parameters():
                parameter.div_(max(1.0, deviation / LOGITS))


def pictures(preprocessing, seed):
    """Smooth random pictures, or clips, of several sizes."""
    draw = torch.Generator().manual_seed(seed)
    for number in range(4):
        frames = (preprocessing.frames,) if preprocessing.frames else ()
        coarse = torch.rand(*(frames or (1,)), preprocessing.channels, 5 + number, 6, generator=draw)
        size = (90 + 17 * number, 120 - 11 * number)
        smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
        noisy = (smooth + 0.05 * torch.randn(smooth.shape, generator=draw)).clamp(0, 1)
        yield (noisy * 255).to(torch.uint8).reshape(*frames, preprocessing.channels, *size)


def examined(case):
    """What became of a model: by route the largest difference, decisions, and the first fault."""
    preprocessing = Preprocessing(size=case.size, frames=frames_of(case))
    model = build_model(
        case.task,
        backbone=case.backbone,
        head=case.head,
        classes=[f"c{number}" for number in range(7)],
        preprocessing=preprocessing,
        backbone_options=case.backbone_options,
        head_options=case.head_options,
    )
    model = randomised(model, case.seed)
    task, options, start = task_of(model.architecture, model.head), ExportOptions(), time.monotonic()
    found: dict[str, Any] = {}
    shown = list(pictures(model.preprocessing, case.seed))
    try:
        calmed(model, shown)
    except UsageError as error:
        reason = f"{NO_MODEL}: {error}"
        return {"torch.export": {"fault": reason}, "onnx": {"fault": reason}}
    try:
        ready, description = prepared(model), writing.describe(model, options, None)
        program = trace_file(ready, task, options, None)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return {"torch.export": {"fault": reason}, "onnx": {"fault": reason}}
    with tempfile.TemporaryDirectory() as folder:
        for route in ("torch.export", "onnx"):
            path = Path(folder) / "model.onnx"
            try:
                if route == "onnx":
                    onnx_file.write(onnx_file.convert(program, description, opset=options.opset), path)
                    session = OnnxSession(path, RuntimeOptions(threads=1))
                else:
                    session = Program(program, description)
                found[route] = compared(FileModel(session, description, path), model, task, shown)
            except Exception as error:
                found[route] = {"fault": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
            found[route]["seconds"] = round(time.monotonic() - start, 1)
    return found


def frames_of(case):
    """Of a clip."""
    return find_task(case.task).frames and (build_backbone(case.backbone, **case.backbone_options).frames or 3)


def compared(file, model, task, shown):
    """Over all sizes and batches."""
    tolerance, whole, tied, fault, sizes = numbers.TOLERANCES["float32"], numbers.NOTHING, 0, "", 0
    for trial in numbers.trials(file, model, task, shown, tolerance):
        whole, tied, fault, sizes = whole | trial.agreement, tied + trial.tied, fault or trial.fault, sizes + 1
    decisions = {name: count.all for name, count in whole.decisions.items()}
    if not fault and not any(decisions.values()):
        fault = "nothing was found that could differ"
    return {"worst": whole.worst, "tied": tied, "fault": fault, "trials": sizes, "decisions": decisions}


def written(path):
    """Results by the key of their case."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["case"]: line["found"] for line in lines}


def table(paths):
    """Rows of heads, columns of backbones: the larger difference of both routes, or what is wrong."""
    results: dict[str, Any] = {}
    for path in paths:
        results |= written(Path(path))
    refused = [key for key, found in results.items() if found["onnx"]["fault"].startswith(NO_MODEL)]
    for key in refused:  # such as frames' summaries of a backbone that looks at clips
        del results[key]
    print(f"{len(refused)} combinations answer no picture, exported or not, and are left out here")
    good = sum(all(not route["fault"] for route in found.values()) for found in results.values())
    print(f"{good} of {len(results)} models are free and right on both routes ({good / max(1, len(results)):.1%})\n")
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for key, found in results.items():
        case = Case(*json.loads(key))
        forms = {name: value for name, value in case.head_options.items() if name in ("neck", "decoder", "labels")}
        label = " ".join([case.head, *forms.values()])
        fault = next((f"{route}: {of['fault']}" for route, of in found.items() if of["fault"]), "")
        worst = max(of.get("worst", 0.0) for of in found.values())
        rows.setdefault((case.task, label), {})[case.backbone] = fault or f"{worst:.0e}"
    for (task, label), cells in rows.items():
        values = " ".join(f"{name}={value}" if len(value) < 9 else f"{name}=FAULT" for name, value in cells.items())
        print(f"{task:22} {label:20} {values}")
    for (task, label), cells in rows.items():
        for backbone, value in cells.items():
            if len(value) >= 9:
                print(f"\n{task}, {label} over {backbone}: {value}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="matrix.jsonl", help="results, a line each")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th from the I-th on")
    parser.add_argument("--random", type=int, default=0, help="so many random models in place of the matrix")
    parser.add_argument("--table", nargs="+", help="files of results")
    parser.add_argument("only", nargs="*", help="parts of names of backbones or heads")
    arguments = parser.parse_args()
    if arguments.table:
        return table(arguments.table)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    part, parts = map(int, arguments.part.split("/"))
    cases = list(random_cases(arguments.random) if arguments.random else cases_of_the_matrix())
    done = written(Path(arguments.out))
    for case in cases[part::parts]:
        names = f"{case.task} {case.backbone} {case.head}"
        if case.key in done or not all(word in names for word in arguments.only):
            continue
        found = examined(case)
        with open(arguments.out, "a", encoding="utf-8") as file:
            file.write(json.dumps({"case": case.key, "found": found}) + "\n")
        print(
            names, case.backbone_options, {route: of["fault"] or of["worst"] for route, of in found.items()}, flush=True
        )


if __name__ == "__main__":
    main()
