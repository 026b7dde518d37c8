"""Judge a frozen backbone: how well its features, as they are, tell the classes of labelled pictures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from patchform.commands import inference_options
from patchform.errors import FolderError, UsageError

if TYPE_CHECKING:
    from patchform.metrics.base import Scores
    from patchform.model import Model
    from patchform.probing.frozen import Frozen

EXAMPLE = "patchform probe runs/first --data other-photos/ --method linear"
CACHE = "runs/features"


class Probed(NamedTuple):
    """The outcome of a probe."""

    scores: Scores
    """On the validation pictures."""
    settings: dict[str, float]
    """knn: `neighbours` and `temperature`; linear: the `decay` that was chosen."""
    folder: Path | None
    """Of the classifier, if one was asked for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `probe` takes."""
    parser.add_argument("model", metavar="MODEL", help="run folder, or name of a backbone (with --weights)")
    parser.add_argument("--data", metavar="DIR", required=True, help="folder of class folders or with train/ and val/")
    parser.add_argument("--method", choices=("knn", "linear"), default="knn", help="neighbours, or a linear layer")
    parser.add_argument("--weights", metavar="FILE", help="weights of the backbone that MODEL names")
    parser.add_argument(
        "--cache", metavar="DIR", default=CACHE, help=f"keeps the features; '' keeps none (default: {CACHE})"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="new folder for the backbone under the linear layer, as a run has it"
    )
    parser.add_argument(
        "--neighbours", type=inference_options.IMAGES, default=20, metavar="K", help="of knn (default: 20)"
    )
    parser.add_argument(
        "--batch-size", type=inference_options.IMAGES, default=32, metavar="N", help="images at once; changes no score"
    )
    parser.add_argument(
        "--workers", type=inference_options.WORKERS, default=0, metavar="N", help="processes that decode"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument(
        "--skip-bad",
        type=inference_options.SKIPPED,
        default=0.0,
        metavar="SHARE",
        help="unreadable pictures to put up with",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the numbers."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    to_people = Console(file=sys.stderr, soft_wrap=True, highlight=False, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=to_people, transient=True) as live:
        bars: dict[str, Any] = {}

        def progress(what: str, done: int, count: int) -> None:
            if what not in bars:
                bars[what] = live.add_task(what, total=count)
            live.update(bars[what], completed=done)

        found = probe(
            arguments.model,
            arguments.data,
            method=arguments.method,
            weights=arguments.weights,
            cache=arguments.cache or None,
            out=arguments.out,
            neighbours=arguments.neighbours,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            device=arguments.device,
            skip_bad=arguments.skip_bad,
            progress=progress,
            say=to_people.print,
        )
    folder = None if found.folder is None else str(found.folder)
    if arguments.json:
        about = {"method": arguments.method, "settings": found.settings, "folder": folder}
        print(json.dumps({**about, **found.scores.as_json()}, allow_nan=False))
        return 0
    lines = {"images": str(found.scores.samples), **{name: f"{value:g}" for name, value in found.settings.items()}}
    lines |= {name: "-" if value is None else f"{value:.4f}" for name, value in found.scores.numbers.items()}
    width = max(map(len, lines))
    for name, line in lines.items():
        print(f"{name:{width}}  {line}")
    if folder:
        print(f"the model is in {folder}")
    return 0


def probe(
    model: str | Path,
    data: str | Path,
    *,
    method: Literal["knn", "linear"] = "knn",
    weights: str | Path | None = None,
    cache: str | Path | None = CACHE,
    out: str | Path | None = None,
    neighbours: int = 20,
    batch_size: int = 32,
    workers: int = 0,
    device: str = "auto",
    skip_bad: float = 0.0,
    progress: Callable[[str, int, int], None] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Probed:
    """Judge the features of a backbone that is not trained further.

    Args:
        model: run folder; its classes need not be those of the data. Or a backbone's name, with `weights`.
        data: folder of class folders (a fifth of each class is then held out), or with train/ and val/ inside, or CSV
            list; one class an image.
        method: "knn", neighbours that vote, or "linear", a logistic regression.
        weights: of the backbone, in one of its family's layouts.
        cache: folder that keeps the features; None keeps none.
        out: of "linear": a new folder for the classifier, which `evaluate` and `predict` take.
        neighbours: of "knn".
        batch_size: images that go through the backbone at once.
        workers: processes that decode.
        device: "auto" takes the accelerator if there is one.
        skip_bad: highest share of unreadable pictures that are left out, in [0, 1).
        progress: called with (what is done, done, all).
        say: called with each remark, a sentence.

    Raises:
        UsageError: neither a run folder nor a backbone with weights; `out` with "knn".
        FolderError: `out` is there already and not empty.
        PatchformError: whatever loading a model, opening data, `features` and the probes raise.
    """
    place = None if out is None else Path(out)
    if place is not None and method != "linear":
        raise UsageError("neighbours make no model to write", remedy="use the linear method, or give no folder")
    if neighbours < 1:
        raise UsageError(f"{neighbours} neighbours", remedy="ask at least one")
    if place is not None and place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise FolderError("exists already", where=place, remedy="name a new folder")

    from patchform.data.checks import check
    from patchform.data.dataset import open_data
    from patchform.device import pick_device
    from patchform.model import save
    from patchform.probing import linear
    from patchform.probing import neighbours as nearest
    from patchform.probing.frozen import features, scored
    from patchform.settings import DataSettings

    where = pick_device(device)
    backbone = open_backbone(model, weights)
    splits = open_data(DataSettings(path=str(data)), seed=0, preprocessing=backbone.preprocessing)
    for note in splits.notes:
        say(note)
    frozen: list[Frozen] = []
    for name, listing in (("training pictures", splits.train), ("validation pictures", splits.validation)):
        if skip_bad:
            listing, report = check(listing, backbone.preprocessing, skip_bad=skip_bad)
            for note in (*report.notes, *(f"left out {fault.where}: {fault.what}" for fault in report.faults)):
                say(note)
        frozen.append(
            features(
                backbone,
                listing,
                cache=cache,
                batch_size=batch_size,
                workers=workers,
                device=where,
                progress=partial(progress, name) if progress else None,
                say=say,
            )
        )
    train, test = frozen
    classes = splits.train.classes
    shown = partial(progress, "neighbours") if progress else None
    if method == "knn":
        vote = partial(nearest.vote, train, classes=len(classes), k=neighbours, device=where)
        used = {"neighbours": neighbours, "temperature": nearest.TEMPERATURE}
        return Probed(scored(vote, test, classes, progress=shown), used, None)
    found = linear.fit(train, classes, device="cpu" if where.type == "mps" else where)  # mps has no float64
    if place is not None:
        save(found.into(backbone), place)
    return Probed(scored(found.scores, test, classes), {"decay": found.decay}, place)


def open_backbone(model: str | Path, weights: str | Path | None) -> Model:
    """The model of a run folder, or a backbone under a head without meaning."""
    from patchform.loading import load_weights
    from patchform.model import build_model, load

    if Path(model).is_dir():
        if weights is not None:
            raise UsageError("a run folder has its own weights", where=model, remedy="give no other ones")
        return load(model)
    built = build_model("classification", backbone=str(model), head="linear", classes=("?",))
    if weights is None:
        raise UsageError("a backbone without weights knows nothing", where=model, remedy="name a file: --weights FILE")
    load_weights(built.backbone, weights)
    return built.eval()
