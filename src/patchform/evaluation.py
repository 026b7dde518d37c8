"""How good a model is on pictures whose truth is known. Nothing that is evaluated is changed by it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from patchform import drawing
from patchform.data.checks.examination import without_bad
from patchform.data.collate import split, to_device
from patchform.data.dataset import check_before, open_evaluation
from patchform.data.listing import Listing
from patchform.data.loader import evaluation_loader, input_sizes
from patchform.data.writing import check_apart
from patchform.device import Precision, RunOptions, autocast
from patchform.errors import ResourceError
from patchform.inference import Inference, MultiView, preparation, views_of
from patchform.metrics.base import Metric, Scores
from patchform.model import Model
from patchform.records import Batch
from patchform.runtime.opening import DEFAULT, is_exported, open_model
from patchform.runtime.sessions import RuntimeOptions
from patchform.settings import DataSettings
from patchform.tasks.base import CURVES, Task, task_of
from patchform.weights import files

REPORT, CONFUSION = "evaluation.json", "confusion.png"
"""What `evaluate_run` writes."""


def evaluate(
    model: Model,
    loader: Iterable[Batch],
    task: Task,
    *,
    infer: Inference = Model.predict,
    metric: Metric | None = None,
    precision: Precision = "float32",
    pixels: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Score a model on the batches of a loader, each sample once.

    The model is in evaluation mode meanwhile and afterwards as it was, module by module; its weights and buffers and
    the global random numbers are left alone.

    Args:
        model: on its device, where the batches go.
        loader: batches with targets.
        task: what the targets mean.
        infer: how predictions are made (`patchform.inference`).
        metric: an empty one; default: the task's quick one.
        precision: bfloat16 and float16 run the model under autocast.
        pixels: that go through the model at once, padding included; 0: whole batches.
        progress: called with the number of images done, after each batch.

    Raises:
        DataError: a picture that cannot be read, or one without a target.
        DivergedError: predictions that are not finite.
    """
    device, metric = model.mean.device, metric or task.metric(model.classes)
    modes = [(module, module.training) for module in model.modules()]
    done = 0
    try:
        model.eval()
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            autocast(device, precision),
        ):
            for batch in loader:
                for part in split(batch, 0, pixels):
                    metric.update(infer(model, to_device(part._replace(targets=()), device)), part.targets)
                done += len(batch.names)
                if progress:
                    progress(done)
    finally:
        for module, training in modes:
            module.training = training
    return metric.compute()


def evaluate_run(
    run: str | Path,
    data: str | Path,
    *,
    settings: DataSettings | None = None,
    infer: Inference = Model.predict,
    runtime: RuntimeOptions = DEFAULT,
    out: str | Path | None = None,
    listing: Listing | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Scores:
    """Evaluate a run or an exported file on a folder or CSV list and write `evaluation.json` and `confusion.png`.

    Objects are judged by all that the model predicts, whatever its thresholds, and their curves are in `pr.png`.
    Classes are matched by name. Those that the data lack are None in the scores and not in any mean.

    Args:
        run: run folder, or exported file.
        data: what the task's formats know, or a folder with such a val/ inside.
        settings: how the format reads it (what the numbers in masks mean); default: as usual.
        infer: how predictions are made (`patchform.inference`).
        runtime: how an exported file is run (`runtime.opening.open_model`).
        out: folder for the files, made if need be; default: `results_of`. Earlier ones are replaced.
        listing: what of the data is looked at, where that is open already.
        progress: called with (done, all) images after each batch.
        options: fields of `device.RunOptions`; with `skip_bad` the number of those left out is `skipped`.

    Returns:
        The scores, as in `evaluation.json`; with several views of videos "clip_top1" of the middle one beside "top1".

    Raises:
        ModelFileError: no intact model, or a file that is damaged or not patchform's.
        DataError: nothing to read, a class that the model does not know, or more unreadable pictures than allowed.
        FolderError: `out` lies in the data set.
        ResourceError: the files cannot be written.
    """
    run_options, folder = RunOptions(**options), results_of(run) if out is None else Path(out)
    model = open_model(run, runtime, say=run_options.say)
    task = task_of(model.architecture, model.head)
    if not (own := folder == Path(run)):
        check_before(folder, data, task.name)
    if listing is None:
        listing = open_evaluation(data, settings_for(model, settings), model.classes, task.name)
    task.refuse(listing)
    _make(folder, data, listing, own=own)
    usable, remarks = without_bad(listing, model.preprocessing, run_options.skip_bad)
    notes = [*listing.notes, *remarks]
    for note in notes:
        run_options.say(note)
    model.to(model.pick_device(run_options.device))
    metric = task.full_metric(model.classes, thresholds=model.thresholds)
    scores = _score(model, task, usable, infer, metric, run_options, progress)
    if isinstance(infer, MultiView):
        clips = _score(model, task, usable, Model.predict, task.metric(model.classes), run_options).numbers
        scores = scores._replace(numbers=scores.numbers | {f"clip_{name}": value for name, value in clips.items()})
    if run_options.skip_bad:
        scores = scores._replace(numbers={**scores.numbers, "skipped": len(listing) - len(usable)})
    _write(folder, {"data": str(data), "notes": notes}, scores)
    return scores


def results_of(run: str | Path) -> Path:
    """Where an evaluation is written unless another place is named: in the run folder, or beside an exported file."""
    path = Path(run)
    return path.with_name(f"{path.name}.evaluation") if is_exported(path) else path


def _make(folder: Path, data: str | Path, listing: Listing, *, own: bool) -> None:
    """Make the folder for the files, unless it would lie in the data; `own`: it is that of the run."""
    if not own:
        check_apart(folder, data, listing)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot be made ({error.strerror})", where=folder) from error


def _score(
    model: Model,
    task: Task,
    listing: Listing,
    infer: Inference,
    metric: Metric,
    options: RunOptions,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    preprocessing = preparation(infer, model.preprocessing)
    samples = task.evaluation_samples(listing, preprocessing, views=views_of(infer))
    sizes = input_sizes(listing, preprocessing)
    loader = evaluation_loader(samples, options.batch_size, options.workers, sizes=sizes)
    of_all = (lambda done: progress(done, len(listing))) if progress else None
    return evaluate(model, loader, task, infer=infer, metric=metric, precision=options.precision, progress=of_all)


def _write(folder: Path, about: dict[str, Any], scores: Scores) -> None:
    """The report, and a chart of each table that has one; those of an earlier evaluation go."""
    earlier = (folder / REPORT).exists()
    text = json.dumps(about | scores.as_json(), indent=1, allow_nan=False) + "\n"
    files.replace_text(folder / REPORT, text)
    for name, draw, file in (
        ("confusion", drawing.confusion, CONFUSION),
        ("precision_recall", drawing.precision_recall, CURVES),
    ):
        if table := scores.tables.get(name):
            drawing.save(draw(table.values, table.rows), folder / file)
        elif earlier:
            (folder / file).unlink(missing_ok=True)


def settings_for(model: Model, settings: DataSettings | None = None) -> DataSettings:
    """How data are read for a model: its own kind of labels, classes that may be absent, and no names but its own."""
    multi = getattr(model.head, "labels", "single") == "multi"
    return replace(settings or DataSettings(), labels="multi" if multi else "single", allow_empty_class=True)
