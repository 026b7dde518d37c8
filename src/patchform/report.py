"""One HTML page of a run: curves, numbers, what the task shows, and what the model has learnt."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from patchform import lookup
from patchform.data.checks.examination import without_bad
from patchform.data.collate import collate
from patchform.data.dataset import open_evaluation
from patchform.data.listing import Listing
from patchform.errors import ModelFileError, unheard
from patchform.evaluation import CONFUSION, REPORT, results_of, settings_for
from patchform.inspect.base import Picture, to_png
from patchform.model import Model
from patchform.page import Section, chart, render, table
from patchform.prediction import Predictor, load
from patchform.records import Target
from patchform.resources import writing
from patchform.runtime.opening import DEFAULT
from patchform.runtime.sessions import RuntimeOptions
from patchform.settings import DataSettings
from patchform.tasks.base import Evidence, Example
from patchform.training.metrics_log import METRICS

PAGE = "report.html"
EXAMPLES = 6
"""Pictures that are looked into."""


class Findings(Evidence):
    """A run that was evaluated, as its model sees it."""

    def __init__(self, predictor: Predictor, listing: Listing, evaluation: Mapping[str, Any], folder: Path) -> None:
        super().__init__(listing, predictor.classes, evaluation, folder)
        self.predictor = predictor
        self.samples = predictor.task.evaluation_samples(listing, predictor.model.preprocessing)

    def truth(self, index: int) -> Target:
        """From the samples as they are evaluated."""
        target = self.samples[0, index].target
        assert target is not None
        return target

    def examples(self, indices: Sequence[int], *, at_once: int = 16) -> Iterator[Example]:
        """From the files."""
        paths = [self.listing.items[index].path for index in indices]
        if not paths:
            return
        predictions = self.predictor.predict(paths, batch_size=at_once, keep_images=True)
        for index, (_, target, _, image) in zip(indices, predictions):
            if target is not None and image is not None:
                yield Example(index, self.listing.name(index), image, target)


def write_report(
    run: str | Path,
    data: str | Path,
    *,
    settings: DataSettings | None = None,
    runtime: RuntimeOptions = DEFAULT,
    out: str | Path | None = None,
    listing: Listing | None = None,
    skip_bad: float = 0.0,
) -> Path:
    """Write `report.html` for a run, or an exported file, that was evaluated.

    Args:
        run: run folder, or file.
        data: what it was evaluated on.
        settings: how the format reads it; default: as usual.
        runtime: how a file is run.
        out: folder of evaluation.json and of the page; default: `evaluation.results_of`.
        listing: what of the data it was evaluated on, where that is open already; default: all that `data` leads to.
        skip_bad: as it was evaluated with: unreadable pictures are not looked into.

    Returns:
        The page.

    Raises:
        ModelFileError: no intact model, or it was not evaluated.
        DataError: nothing to read, or a class the model does not know.
        ResourceError: the page cannot be written.
    """
    run_folder, folder = Path(run), results_of(run) if out is None else Path(out)
    predictor = load(run, runtime=runtime, say=unheard)  # the evaluation has said it
    try:
        evaluation = json.loads((folder / REPORT).read_text())
    except (OSError, ValueError) as error:
        raise ModelFileError("the run was not evaluated", where=folder / REPORT, remedy="patchform evaluate") from error
    if listing is None:
        listing = open_evaluation(data, settings_for(predictor.model, settings), predictor.classes, predictor.task.name)
    usable, _ = without_bad(listing, predictor.model.preprocessing, skip_bad)
    findings = Findings(predictor, usable, evaluation, folder)
    sections = [
        Section("Numbers", numbers(evaluation)),
        Section("Learning", learning(run_folder)),
        Section("Confusion", confusion(folder)),
        *predictor.task.sections(findings),
        *inspections(findings),
    ]
    page = folder / PAGE
    text = render(f"{run_folder.resolve().name}: {_name_of(predictor.model)}", sections)
    with writing(page, len(text)):
        page.write_text(text, encoding="utf-8")
    return page


# ------------------------------------------------------------------------------------------------------------ content


def numbers(evaluation: Mapping[str, Any]) -> str:
    """A table of the scores."""
    rows = [("images", [str(evaluation["samples"])])]
    rows += [(name, ["-" if value is None else f"{value:.4f}"]) for name, value in evaluation["numbers"].items()]
    return table(rows)


def learning(folder: Path) -> str:
    """Curves of metrics.csv, losses beside scores."""
    path = folder / METRICS
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    if not rows:
        return "<p>This folder has no log of a training.</p>"
    from matplotlib.figure import Figure  # half a second

    curves = {
        name: [(int(row["epoch"]), float(row[name])) for row in rows if row[name]]
        for name in rows[0]
        if name not in ("epoch", "step", "lr", "images_per_second")
    }
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("loss", "score")):
        for name, points in curves.items():
            if ("loss" in name) == (kind == "loss") and points:
                axes.plot(*zip(*points), label=name, marker="." if len(points) < 3 else "")
        axes.set_xlabel("epoch")
        axes.set_title(kind, loc="left")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    last = ", ".join(f"{name} {points[-1][1]:.4g}" for name, points in curves.items() if points)
    return chart(to_png(figure), f"Curves over {len(rows)} epochs; at the end {last}")


def confusion(folder: Path) -> str:
    """The matrix that the evaluation drew."""
    path = folder / CONFUSION
    if not path.exists():
        return "<p>This task has no confusion matrix.</p>"
    return chart(path.read_bytes(), "Confusion matrix: rows are true classes, columns predicted ones")


def inspections(findings: Findings) -> Iterable[Section]:
    """A section for each picture of `inspect/`."""
    predictor = findings.predictor
    samples = [findings.samples[0, index] for index in findings.evenly(EXAMPLES)]
    images = collate(samples).images.to(predictor.device)
    for name in lookup.names("inspect"):
        picture = lookup.the_class("inspect", name, Picture)()
        values = picture.measure(predictor.model, images)
        if values is None:
            yield Section(picture.title, "<p>This model has no such part.</p>")
        else:
            yield Section(picture.title, chart(picture.draw(values, images), picture.title), picture.meaning)


def _name_of(model: Model) -> str:
    names = model.architecture
    return "a model" if names is None else f"{names.backbone} under {names.head}"
