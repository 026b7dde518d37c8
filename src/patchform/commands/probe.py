"""Judge a frozen backbone: how well its features, as they are, tell the classes of labelled pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from patchform.commands import early_checks, inference_options, terminal
from patchform.commands.inference_options import IMAGES
from patchform.errors import FolderError, UsageError

if TYPE_CHECKING:
    import torch

    from patchform.device import RunOptions
    from patchform.metrics.base import Scores
    from patchform.model import Model
    from patchform.probing.frozen import Frozen, Output

EXAMPLE = "patchform probe runs/first --data other-photos/ --method linear"
CACHE = "runs/features"
METHODS = ("knn", "linear", "attentive")


Progress = Callable[[str, int, int], None]
"""Called with (what is done, done, all)."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """What methods have of their own."""

    neighbours: int = 20
    """Of knn."""
    layers: int = 0
    """Of knn and linear: the class tokens of so many last blocks and the mean of the patch tokens are judged; 0: what a
    classifier sees."""


class Sets(NamedTuple):
    """Features of the training and of the validation pictures."""

    train: Frozen
    test: Frozen
    classes: tuple[str, ...]


class Probed(NamedTuple):
    """The outcome of a probe."""

    scores: Scores
    """On the validation pictures."""
    settings: dict[str, float]
    """knn: `neighbours` and `temperature`; linear: the `decay` that was chosen; attentive: `epochs`."""
    folder: Path | None
    """Of the classifier, if one was written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `probe` takes."""
    inference_options.add_backbone_arguments(parser)
    parser.add_argument("--data", metavar="DIR", required=True, help="folder of class folders or with train/ and val/")
    parser.add_argument(
        "--method", choices=METHODS, default="knn", help="neighbours, a linear layer, or a query to all tokens"
    )
    layers = "of knn and linear: class tokens of the last N blocks and the mean token, side by side, as in DINO"
    parser.add_argument("--layers", type=IMAGES, default=0, metavar="N", help=layers)
    cache, out = (
        f"keeps the features; '' keeps none (default: {CACHE})",
        "new folder for the backbone under the linear layer, as a run has it",
    )
    parser.add_argument("--cache", metavar="DIR", default=CACHE, help=cache)
    parser.add_argument("--out", metavar="DIR", help=out)
    parser.add_argument("--neighbours", type=IMAGES, default=20, metavar="K", help="of knn (default: 20)")
    inference_options.add_run_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the numbers."""
    early_checks.backbone(arguments.model, arguments.weights)
    early_checks.data(arguments.data)
    inference_options.constructor_options(arguments.option)
    console = terminal.stderr_console()
    with terminal.progress_bars(console) as progress:
        model, weights = chosen_backbone(arguments, say=terminal.above(console))
        probed = probe(
            model,
            arguments.data,
            method=arguments.method,
            layers=arguments.layers,
            weights=weights,
            cache=arguments.cache or None,
            out=arguments.out,
            neighbours=arguments.neighbours,
            progress=progress,
            say=terminal.above(console),
            **inference_options.run_options(arguments),
        )
    folder = None if probed.folder is None else str(probed.folder)
    if arguments.json:
        about = {"method": arguments.method, "settings": probed.settings, "folder": folder}
        print(json.dumps({**about, **probed.scores.as_json()}, allow_nan=False))
        return 0
    lines = {"images": str(probed.scores.samples), **{name: f"{value:g}" for name, value in probed.settings.items()}}
    lines |= {name: "-" if value is None else f"{value:.4f}" for name, value in probed.scores.numbers.items()}
    width = max(map(len, lines))
    for name, line in lines.items():
        print(f"{name:{width}}  {line}")
    if folder:
        print(f"the model is in {folder}")
    return 0


def chosen_backbone(
    arguments: argparse.Namespace, *, say: Callable[[str], None]
) -> tuple[str | Model, str | Path | None]:
    """What MODEL, `--weights` and `--option` say: names, or with options the backbone itself."""
    if not arguments.option:
        return arguments.model, arguments.weights
    options = inference_options.constructor_options(arguments.option)
    return open_backbone(arguments.model, arguments.weights, say, options=options), None


def probe(
    model: str | Path | Model,
    data: str | Path,
    *,
    method: Literal["knn", "linear", "attentive"] = "knn",
    weights: str | Path | None = None,
    cache: str | Path | None = CACHE,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Probed:
    """Judge the features of a backbone that is not trained further.

    Args:
        model: run folder; its classes need not be those of the data. Or a name of published weights, or of a backbone,
            with `weights`. Or a model, such as `pf.load_backbone` gives.
        data: folder of class folders (a fifth of each class is then held out), or with train/ and val/ inside, or CSV
            list; one class an image.
        method: "knn", neighbours that vote, "linear", a logistic regression, or "attentive", a query to all tokens.
        weights: of the backbone, in one of its family's layouts.
        cache: folder that keeps the features; None keeps none.
        out: of "linear": a new folder for the classifier, which `evaluate` and `predict` take.
        progress: called with (what is done, done, all).
        options: of `ProbeOptions`: neighbours, layers; and of `patchform.device.RunOptions`: batch_size, workers,
            device, precision, skip_bad, say.

    Raises:
        UsageError: neither a run folder nor a backbone with weights; `out` with another method than "linear", or with
            `layers`; `layers` with "attentive".
        FolderError: `out` is there already and not empty, or it or the cache would lie in the data set.
        PatchformError: whatever loading a model, opening data, `features` and the probes raise.
    """
    folder = None if out is None else Path(out)
    own = ProbeOptions(**{name: options.pop(name) for name in ("neighbours", "layers") if name in options})
    _refuse(method, own, folder)

    from patchform.data.dataset import check_before

    for written in (folder for folder in (out, cache) if folder is not None):
        check_before(Path(written), data, "classification")

    from patchform.device import RunOptions, pick_device
    from patchform.model import save
    from patchform.probing import linear
    from patchform.probing.frozen import scored

    run_options = RunOptions(**options)
    device = pick_device(run_options.device)
    backbone = open_backbone(model, weights, run_options.say)
    output: Output = "sequence" if method == "attentive" else "blocks" if own.layers else "summary"
    sets = _features(backbone, data, (output, own.layers), cache, run_options, progress)
    if method == "knn":
        return _neighbours(sets, own.neighbours, device, progress)
    if method == "attentive":
        return _attentive(sets, device, progress)
    train, test, classes = sets
    classifier = linear.fit(train, classes, device="cpu" if device.type == "mps" else device)  # mps has no float64
    if folder is not None:
        save(classifier.into(backbone), folder)
    return Probed(scored(classifier.scores, test, classes), {"decay": classifier.decay}, folder)


def _neighbours(sets: Sets, k: int, device: torch.device, progress: Progress | None) -> Probed:
    from patchform.probing import neighbours
    from patchform.probing.frozen import scored

    train, test, classes = sets
    vote = partial(neighbours.vote, train, classes=len(classes), k=k, device=device)
    scores = scored(vote, test, classes, progress=partial(progress, "neighbours") if progress else None)
    return Probed(scores, {"neighbours": k, "temperature": neighbours.TEMPERATURE}, None)


def _attentive(sets: Sets, device: torch.device, progress: Progress | None) -> Probed:
    from patchform.probing import attentive
    from patchform.probing.frozen import scored

    train, test, classes = sets
    probe = attentive.fit(train, classes, device=device, progress=partial(progress, "epochs") if progress else None)
    return Probed(scored(probe.scores, test, classes), {"epochs": probe.epochs}, None)


def _refuse(method: str, own: ProbeOptions, folder: Path | None) -> None:
    """Raise UsageError or FolderError for what could not be done in the end."""
    layers, neighbours = own.layers, own.neighbours
    if folder is not None and method != "linear":
        what = "neighbours make no model to write" if method == "knn" else "no head is an attentive probe"
        raise UsageError(what, remedy="use the linear method, or give no folder")
    if layers and (method == "attentive" or folder is not None):
        what = (
            "an attentive probe sees the tokens of the last block" if folder is None else "no head sees several blocks"
        )
        raise UsageError(f"{what}, not {layers} layers", remedy="leave out the number of layers")
    if layers < 0:
        raise UsageError(f"{layers} layers", remedy="ask for at least one")
    if neighbours < 1:
        raise UsageError(f"{neighbours} neighbours", remedy="ask at least one")
    if folder is not None and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FolderError("exists already", where=folder, remedy="name a new folder")


def _features(
    backbone: Model,
    data: str | Path,
    asked: tuple[Output, int],
    cache: str | Path | None,
    options: RunOptions,
    progress: Progress | None,
) -> Sets:
    """An output and a number of layers, of both."""
    from patchform.data.checks.examination import without_bad
    from patchform.data.dataset import open_data
    from patchform.probing.frozen import features
    from patchform.settings import DataSettings

    splits = open_data(DataSettings(path=str(data)), seed=0, preprocessing=backbone.preprocessing)
    for note in splits.notes:
        options.say(note)
    frozen: list[Frozen] = []
    for name, listing in (("training pictures", splits.train), ("validation pictures", splits.validation)):
        usable, notes = without_bad(listing, backbone.preprocessing, options.skip_bad)
        for note in notes:
            options.say(note)
        of_these = partial(progress, name) if progress else None
        output, layers = asked
        frozen.append(
            features(backbone, usable, output=output, layers=layers, cache=cache, options=options, progress=of_these)
        )
    return Sets(frozen[0], frozen[1], splits.train.classes)


def open_backbone(
    model: str | Path | Model,
    weights: str | Path | None,
    say: Callable[[str], None],
    *,
    options: Mapping[str, Any] | None = None,
) -> Model:
    """The model of a run folder, or a backbone by itself (`load_backbone`); `say` as of `model.load`."""
    from patchform.model import Model, load
    from patchform.published_models import load_backbone

    if isinstance(model, Model):
        return model.eval()
    if Path(model).is_dir():
        if weights is not None or options:
            what = "weights" if weights is not None else "options"
            raise UsageError(f"a run folder has its own {what}", where=model, remedy="give no other ones")
        return load(model, say=say)
    if Path(model).is_file():
        what = "a file gives predictions, not the features of its backbone"
        remedy = "use the run folder that it was exported from, or name its backbone: NAME --weights FILE"
        raise UsageError(what, where=model, remedy=remedy)
    return load_backbone(str(model), weights=weights, options=options, say=say)
