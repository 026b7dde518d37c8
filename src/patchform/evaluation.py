"""How good a model is on pictures whose truth is known. Nothing that is evaluated is changed by it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from patchform import drawing
from patchform.data.checks.examination import without_bad
from patchform.data.collate import split, to_device
from patchform.data.dataset import check_before, open_evaluation
from patchform.data.listing import Listing
from patchform.data.loader import evaluation_loader, input_sizes
from patchform.data.writing import check_apart
from patchform.device import Precision, RunOptions, autocast
from patchform.errors import FolderError, ResourceError, printable
from patchform.inference import Inference, MultiView, preparation, views_of
from patchform.metrics.base import Metric, Scores, Together
from patchform.model import Model
from patchform.records import Batch, Loss, Target
from patchform.runtime.opening import DEFAULT, is_exported, open_model
from patchform.runtime.sessions import RuntimeOptions
from patchform.settings import DataSettings
from patchform.tasks.base import CURVES, Task, task_of
from patchform.weights import files

REPORT, CONFUSION = "evaluation.json", "confusion.png"
"""What `evaluate_run` writes."""
TOP = "top"
"""Of a record: the best classes, decided for or not, which are no list of what is there."""


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
    done = 0
    with judging(model, precision):
        for batch in loader:
            for part in split(batch, 0, pixels):
                metric.update(infer(model, to_device(part._replace(targets=()), device)), part.targets)
            done += len(batch.names)
            if progress:
                progress(done)
    return metric.compute()


@contextmanager
def judging(model: Model, precision: Precision) -> Iterator[None]:
    """The model in evaluation mode, and afterwards as it was, the global random numbers too."""
    device = model.mean.device
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            autocast(device, precision),
        ):
            yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def loss_of(
    model: Model,
    loader: Iterable[Batch],
    *,
    precision: Precision = "float32",
    pixels: int = 0,
    progress: Callable[[int], None] | None = None,
    losses: Callable[[Batch], Mapping[str, Loss]] | None = None,
) -> float | None:
    """The loss that the model is trained by, over the batches of a loader; None without one, or where it is not finite.

    What is drawn at random for it (proposals, say) is the same each time. Arguments as of `evaluate`; the targets are
    those of training, in the model's input; `losses`: of a batch, by name, where they are not those of the head.
    """
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    done = 0
    with judging(model, precision):
        torch.manual_seed(0)
        for batch in loader:
            for part in split(batch, 0, pixels):
                for name, loss in (losses or model)(to_device(part, model.mean.device)).items():
                    sums[name] = sums.get(name, 0.0) + float(loss.sum)
                    counts[name] = counts.get(name, 0.0) + float(loss.count)
            done += len(batch.names)
            if progress:
                progress(done)
    total = sum(part / counts[name] for name, part in sums.items() if counts[name] > 0)
    return total if sums and math.isfinite(total) else None


def evaluate_run(
    run: str | Path,
    data: str | Path | Listing,
    *,
    settings: DataSettings | None = None,
    infer: Inference = Model.predict,
    runtime: RuntimeOptions = DEFAULT,
    out: str | Path | None = None,
    per_picture: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Scores:
    """Evaluate a run or an exported file on a folder or CSV list and write `evaluation.json` and `confusion.png`.

    Objects are judged by all that the model predicts, whatever its thresholds, and their curves are in `pr.png`.
    Classes are matched by name. Those that the data lack are None in the scores and not in any mean.

    Args:
        run: run folder, or exported file.
        data: what the task's formats know, or a folder with such a val/ inside; or a listing.
        settings: how the format reads it (what the numbers in masks mean); default: as usual.
        infer: how predictions are made (`patchform.inference`).
        runtime: how an exported file is run (`runtime.opening.open_model`).
        out: folder for the files, made if need be; default: `results_of`. Earlier ones are replaced.
        per_picture: file of comma-separated values, which must not be there yet: a line for each picture.
        progress: called with (done, all) images after each batch.
        options: fields of `device.RunOptions`; with `skip_bad` the number of those left out is `skipped`.

    Returns:
        The scores, as in `evaluation.json`; with several views of videos "clip_top1" of the middle one beside "top1".

    Raises:
        ModelFileError: no intact model, or a file that is damaged or not patchform's.
        DataError: nothing to read, a class that the model does not know, or more unreadable pictures than allowed.
        FolderError: `out` lies in the data set.
        ResourceError, FolderError: the files cannot be written; `per_picture` is there already.
    """
    table = None if per_picture is None else check_table(per_picture)
    run_options, folder = RunOptions(**options), results_of(run) if out is None else Path(out)
    model = open_model(run, runtime, say=run_options.say)
    task = task_of(model.architecture, model.head)
    given = data.root if isinstance(data, Listing) else data
    if not (own := folder == Path(run)):
        check_before(folder, given, task.name)
    listing = listed(data, model, settings, task.name)
    task.refuse(listing)
    _make(folder, given, listing, own=own)
    usable, notes = _usable(listing, model, run_options)
    model.to(model.pick_device(run_options.device))
    metric = task.full_metric(model.classes, thresholds=model.thresholds)
    each = None if table is None else EachPicture(task, model.classes)
    judged = Judged(model, task, usable, infer)
    scores = _score(judged, metric, run_options, progress, each)
    if table is not None and each is not None:
        files.replace_text(table, each.as_csv())
    scores = _with_more(scores, judged, run_options, len(listing) - len(usable))
    _write(folder, {"data": str(given), "notes": notes}, scores)
    return scores


def listed(data: str | Path | Listing, model: Model, settings: DataSettings | None, task: str) -> Listing:
    """Pictures that a model is judged by: as they are listed, or what lies in a folder or list (`open_evaluation`)."""
    if isinstance(data, Listing):
        return data
    return open_evaluation(data, settings_for(model, settings), model.classes, task)


def _usable(listing: Listing, model: Model, options: RunOptions) -> tuple[Listing, list[str]]:
    """What can be read, and remarks, which are said."""
    usable, remarks = without_bad(listing, model.preprocessing, options.skip_bad)
    notes = [*listing.notes, *remarks]
    for note in notes:
        options.say(note)
    return usable, notes


def _with_more(scores: Scores, judged: Judged, options: RunOptions, left_out: int) -> Scores:
    """Beside the numbers of several clips those of one, and how many pictures were left out, if that is allowed."""
    numbers = scores.numbers
    if isinstance(judged.infer, MultiView):
        metric = judged.task.metric(judged.model.classes)
        clips = _score(judged._replace(infer=Model.predict), metric, options).numbers
        numbers = numbers | {f"clip_{name}": value for name, value in clips.items()}
    if options.skip_bad:
        numbers = numbers | {"skipped": left_out}
    return scores._replace(numbers=numbers)


class EachPicture(Metric):
    """A row of plain values for each picture: what is known of it, what is predicted, and the numbers of it alone.

    Args:
        task: whose quick metric and whose words they are.
        classes: names.
    """

    def __init__(self, task: Task, classes: Sequence[str]) -> None:
        self.task, self.classes = task, tuple(classes)
        self.names: list[str] = []
        self.rows: list[dict[str, Any]] = []

    def noting(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, whose names are noted."""
        for batch in loader:
            self.names += batch.names
            yield batch

    def update(self, predictions: Sequence[Target], targets: Sequence[Target]) -> None:
        """Take in a batch."""
        for prediction, target in zip(predictions, targets, strict=True):
            metric = self.task.metric(self.classes)
            metric.update([prediction], [target])
            true, said = (_plain(self.task.record(one, self.classes)) for one in (target, prediction))
            self.rows.append({f"true_{name}": value for name, value in true.items()} | said | metric.compute().numbers)

    def compute(self) -> Scores:
        """No number of the whole."""
        return Scores(len(self.rows), None, {}, {})

    def as_csv(self) -> str:
        """A line a picture, by name."""
        text = io.StringIO()
        columns = dict.fromkeys(name for row in self.rows for name in row)
        lines = csv.DictWriter(text, ["picture", *columns], lineterminator="\n")
        lines.writeheader()
        rows = zip(self.names, self.rows, strict=True)
        lines.writerows({"picture": printable(name)} | row for name, row in sorted(rows, key=lambda row: row[0]))
        return text.getvalue()


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """What of a record fits into a cell: numbers and names; of objects how many there are."""
    cells: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, str | float | int):
            cells[name] = printable(value) if isinstance(value, str) else value
        elif isinstance(value, list) and all(isinstance(one, str) for one in value):
            cells[name] = "; ".join(map(printable, value))
        elif isinstance(value, list) and name != TOP:
            cells[name] = len(value)
    return cells


def check_table(path: str | Path) -> Path:
    """The place of a table to be written, which must be free: it may be a list of pictures that was typed by mistake.

    Raises:
        FolderError: there is such a file, or no such folder.
    """
    file = Path(path).expanduser()
    if file.exists():
        raise FolderError("the file exists already", where=file, remedy="choose another name, or take it away")
    if not file.parent.is_dir():
        raise FolderError("no such folder", where=file.parent, remedy="make it first")
    return file


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


class Judged(NamedTuple):
    """What is judged, and how it is asked."""

    model: Model
    task: Task
    listing: Listing
    infer: Inference


def _score(
    judged: Judged,
    metric: Metric,
    options: RunOptions,
    progress: Callable[[int, int], None] | None = None,
    each: EachPicture | None = None,
) -> Scores:
    model, task, listing, infer = judged
    preprocessing = preparation(infer, model.preprocessing)
    samples = task.evaluation_samples(listing, preprocessing, views=views_of(infer))
    sizes = input_sizes(listing, preprocessing)
    loader: Iterable[Batch] = evaluation_loader(samples, options.batch_size, options.workers, sizes=sizes)
    if each is not None:
        loader, metric = each.noting(loader), Together(metric, each)
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
