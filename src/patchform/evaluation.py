"""How good a model is on pictures whose truth is known. Nothing that is evaluated is changed by it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from patchform import drawing
from patchform.data.checks import check
from patchform.data.collate import split, to_device
from patchform.data.dataset import open_evaluation
from patchform.data.loader import evaluation_loader
from patchform.device import pick_device
from patchform.errors import ResourceError
from patchform.inference import Inference, MultiView, preparation, views_of
from patchform.metrics.base import Metric, Scores
from patchform.model import Model, load
from patchform.records import Batch
from patchform.settings import DataSettings
from patchform.tasks.base import Task, task_of
from patchform.weights import files

REPORT, CONFUSION, CURVES = "evaluation.json", "confusion.png", "pr.png"
"""What `evaluate_run` writes."""

Precision = Literal["float32", "bfloat16"]


def evaluate(
    model: Model,
    loader: Iterable[Batch],
    task: Task,
    *,
    infer: Inference = Model.predict,
    metric: Metric | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
    pixels: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Score a model on the batches of a loader, each sample once.

    The model is in evaluation mode meanwhile and afterwards as it was, module by module; its weights and buffers and
    the global random numbers are left alone.

    Args:
        model: lies on `device` already.
        loader: batches with targets.
        task: what the targets mean.
        infer: the way the model is asked.
        metric: an empty one; default: the task's quick one.
        device: where the batches go.
        precision: bfloat16 runs the model under autocast.
        pixels: that go through the model at once, padding included; 0: whole batches.
        progress: called with the number of images done, after each batch.

    Raises:
        DataError: a picture that cannot be read, or one without a target.
        DivergedError: predictions that are not finite.
    """
    device = torch.device(device)
    metric = metric or task.metric(model.classes)
    modes = [(module, module.training) for module in model.modules()]
    done = 0
    try:
        model.eval()
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"),
        ):
            for batch in loader:
                for part in split(batch, 0, pixels):
                    answers = infer(model, to_device(part._replace(targets=()), device))
                    metric.update(answers, part.targets)
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
    out: str | Path | None = None,
    batch_size: int = 32,
    workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    skip_bad: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Scores:
    """Evaluate the model of a run folder on a folder or CSV list and write `evaluation.json` and `confusion.png`.

    Objects are judged by all that the model says of them, whatever its thresholds, and their curves are in `pr.png`.

    Classes are matched by name. Those that the data lack are None in the scores and not in any mean.

    Args:
        run: run folder.
        data: what the task's formats know, or a folder with such a val/ inside.
        settings: how the format reads it (what the numbers in masks mean); default: as usual.
        infer: the way the model is asked (`patchform.inference`).
        out: folder for the files, made if need be; default: the run folder. Earlier ones are replaced.
        batch_size: images that go through the model at once; changes no score.
        workers: processes that decode.
        device: "auto" takes the accelerator if there is one.
        precision: of the model's arithmetic.
        skip_bad: highest share of unreadable pictures that are left out, in [0, 1); their number is then `skipped`
            among the numbers. With 0 the first one stops the evaluation.
        progress: called with (done, all) images after each batch.
        say: called with each remark on the data, a sentence.

    Returns:
        The scores, as in `evaluation.json`. With several views of videos those of the one in the middle are there too:
        "clip_top1" beside "top1".

    Raises:
        ModelFileError: the run folder holds no intact model.
        DataError: nothing to read, a class the model does not know, or more unreadable pictures than allowed.
        ResourceError: the files cannot be written.
    """
    model, folder = load(run), Path(run if out is None else out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot be made ({error.strerror})", where=folder) from error
    task = task_of(model.architecture, model.head)
    listing = open_evaluation(data, settings_for(model, settings), model.classes, task.name)
    task.refuse(listing)
    notes, before = list(listing.notes), len(listing)
    if skip_bad:
        listing, faulty = check(listing, model.preprocessing, skip_bad=skip_bad)
        notes += faulty.notes + tuple(f"left out {fault.where}: {fault.what}" for fault in faulty.faults)
    if say:
        for note in notes:
            say(note)
    where = pick_device(device)
    model.to(where)

    def judged(infer: Inference, metric: Metric, tell: Callable[[int], None] | None) -> Scores:
        samples = task.evaluation_samples(listing, preparation(infer, model.preprocessing), views=views_of(infer))
        loader = evaluation_loader(samples, batch_size, workers)
        return evaluate(
            model, loader, task, infer=infer, metric=metric, device=where, precision=precision, progress=tell
        )

    metric = task.full_metric(model.classes, thresholds=model.thresholds)
    scores = judged(infer, metric, (lambda done: progress(done, len(listing))) if progress else None)
    if isinstance(infer, MultiView):
        clips = judged(Model.predict, task.metric(model.classes), None).numbers
        scores = scores._replace(numbers=scores.numbers | {f"clip_{name}": value for name, value in clips.items()})
    if skip_bad:
        scores = scores._replace(numbers={**scores.numbers, "skipped": before - len(listing)})
    report = {"data": str(data), "notes": notes, **scores.as_json()}
    files.replace_text(folder / REPORT, json.dumps(report, indent=1, allow_nan=False) + "\n")
    if "confusion" in scores.tables:
        table = scores.tables["confusion"]
        drawing.save(drawing.confusion(table.values, table.rows), folder / CONFUSION)
    if "precision_recall" in scores.tables:
        table = scores.tables["precision_recall"]
        drawing.save(drawing.precision_recall(table.values, table.rows), folder / CURVES)
    return scores


def settings_for(model: Model, settings: DataSettings | None = None) -> DataSettings:
    """How data are read for a model: its own kind of labels, classes that may be absent, and no names but its own."""
    multi = getattr(model.head, "labels", "single") == "multi"
    return replace(
        settings or DataSettings(),
        labels="multi" if multi else "single",
        allow_empty_class=True,
        frames=model.preprocessing.frames,
    )
