"""One HTML page of a run: curves, numbers, what the task shows, and what the model has learnt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from patchform import drawing, lookup, own_parts, system
from patchform.bench.machine import machine
from patchform.data.checks.examination import without_bad
from patchform.data.collate import collate
from patchform.data.listing import Listing
from patchform.errors import ModelFileError, unheard
from patchform.evaluation import CONFUSION, REPORT, listed, results_of
from patchform.inspect.base import Picture
from patchform.markup import Curve, chart, table, terms
from patchform.metrics.base import BY_CLASS, Table
from patchform.metrics.meanings import meaning
from patchform.metrics.showing import class_table, confusion_table, number_table
from patchform.model import Model
from patchform.page import Section, render
from patchform.page import chart as picture_of_chart
from patchform.prediction import Predictor, load
from patchform.records import Target
from patchform.resources import writing
from patchform.runtime.opening import DEFAULT
from patchform.runtime.sessions import RuntimeOptions
from patchform.settings import DataSettings
from patchform.tasks.base import CURVES, Evidence, Example
from patchform.training.metrics_log import curve, history
from patchform.training.run import RECIPE
from patchform.training.saving import with_plugins
from patchform.training.summary import SUMMARY

PAGE = "report.html"
EXAMPLES = 6
"""Pictures that are looked into."""
PICTURES, SIDE = 8, 360
"""That loggers get, and pixels of each half at most."""
LOSSES = ("train_loss", "val_loss")
"""Of one figure."""
NOT_DRAWN = ("epoch", "step", "images_per_second", "seconds", "log_loss")
"""Of the epochs: what is no curve, or is one already."""
CHARTS = 6
"""That are shown at once."""
NOT_SAID = ("run folder", "parameters")
"""Of what a run said at its start: places, and what is counted anew."""
CALIBRATION = (
    "Whether a score says how often it is right: of the answers with a score near 0.8 four in five should be. Below the"
    " straight line the model is too sure, above it too modest."
)


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
        for index, prediction in zip(indices, predictions):
            if prediction.target is not None and prediction.image is not None:
                yield Example(index, self.listing.name(index), prediction.image, prediction.target)


def write_report(
    run: str | Path,
    data: str | Path | Listing,
    *,
    settings: DataSettings | None = None,
    runtime: RuntimeOptions = DEFAULT,
    out: str | Path | None = None,
    skip_bad: float = 0.0,
) -> Path:
    """Write `report.html` for a run, or an exported file, that was evaluated.

    Args:
        run: run folder, or file.
        data: what it was evaluated on.
        settings: how the format reads it; default: as usual.
        runtime: how a file is run.
        out: folder of evaluation.json and of the page; default: `evaluation.results_of`.
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
        evaluation = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError("the run was not evaluated", where=folder / REPORT, remedy="patchform evaluate") from error
    listing = listed(data, predictor.model, settings, predictor.task.name)
    usable, _ = without_bad(listing, predictor.model.preprocessing, skip_bad)
    findings = Findings(predictor, usable, evaluation, folder)
    tables = {
        name: Table(tuple(parts["columns"]), tuple(parts["rows"]), parts["values"])
        for name, parts in evaluation["tables"].items()
    }
    sections = [
        Section("Numbers", number_table(evaluation["samples"], evaluation["numbers"])),
        Section("The run", table(facts(run_folder, predictor.model, evaluation), kind="words")),
        Section("Learning", learning(run_folder)),
        Section("Classes", class_table([tables[name] for name in BY_CLASS if name in tables])),
        Section("Confusion", confusion(folder, tables)),
        *predictor.task.sections(findings),
        Section("Calibration", reliability(tables), CALIBRATION),
        *inspections(findings),
    ]
    page = folder / PAGE
    text = render(f"{run_folder.resolve().name}: {_name_of(predictor.model)}", sections)
    with writing(page, len(text)):
        page.write_text(text, encoding="utf-8")
    return page


def write_pictures(run: str | Path, data: Listing, out: str | Path, *, number: int = PICTURES) -> dict[str, Path]:
    """Write a few small pictures of a run that was evaluated, as files for its loggers.

    Args:
        run: run folder.
        data: what it was evaluated on.
        out: folder that is there.
        number: pictures of `data` at most, evenly picked: on the left the truth, on the right what the model says.

    Returns:
        Files by name: "validation/a.jpg", ..., and the charts of the evaluation.
    """
    predictor, folder = load(run, say=unheard), Path(out)
    findings = Findings(predictor, data, {}, Path(run))
    task, shown = predictor.task, dict[str, Path]()
    chosen = findings.evenly(number) if task.labelled else []  # else nothing is true of them
    for index, name, image, prediction in findings.examples(chosen, at_once=1):
        sides = [
            task.draw(image, target, predictor.classes).convert("RGB") for target in (findings.truth(index), prediction)
        ]
        path = shown[f"validation/{name}"] = folder / f"validation-{len(shown) + 1}.png"
        drawing.side_by_side(sides, SIDE).save(path)
    for chart_file in (CONFUSION, CURVES):
        if (Path(run) / chart_file).is_file():
            shown[Path(chart_file).stem] = Path(run) / chart_file
    return shown


# ------------------------------------------------------------------------------------------------------------ content


def facts(run: Path, model: Model, evaluation: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What the run is, and what it was judged on: what it said at its start, how long it took, how to do it again."""
    rows = {"judged on": str(evaluation.get("data", "")), "judged at": _now(), "machine": machine_in_words()}
    rows |= {"parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}"}
    rows |= said_at_start(run)
    if seconds := [row["seconds"] for row in history(run) if row.get("seconds")]:
        rows["time taken"] = f"{duration(sum(filter(None, seconds)))} for {len(seconds)} epochs"
    if (run / RECIPE).is_file() and own_parts.PREFIX not in (run / RECIPE).read_text(
        encoding="utf-8", errors="replace"
    ):
        rows["the same again"] = with_plugins(
            system.joined(["patchform", "train", str(run / RECIPE), "--name", f"{run.name}-again"])
        )
    rows["try it"] = with_plugins(system.joined(["patchform", "predict", str(run), "PICTURES", "--out", "answers"]))
    return [(name, [text]) for name, text in rows.items() if text]


def learning(folder: Path) -> str:
    """A chart of both losses, and one for each number that was measured more than once; "" without a log."""
    epochs = history(folder)
    names = [name for name in dict.fromkeys(name for row in epochs for name in row) if name not in NOT_DRAWN]
    losses = chart("loss", [curve(epochs, name) for name in LOSSES])
    if not losses:
        return ""
    curves = [curve(epochs, name) for name in names if name not in LOSSES]
    charts = [losses, *(chart(line.name, [line]) for line in curves if len(line.points) > 1)]
    shown = f'<div class="grid">{"".join(charts[:CHARTS])}</div>'
    if more := "".join(charts[CHARTS:]):
        shown += f'<details><summary>more curves</summary><div class="grid">{more}</div></details>'
    return shown + terms({name: meaning(name) for name in LOSSES})


def confusion(folder: Path, tables: Mapping[str, Table]) -> str:
    """The matrix: as a table while it is small, as the picture that the evaluation drew beyond; "" without one."""
    if "confusion" not in tables:
        return ""
    counts, path = tables["confusion"], folder / CONFUSION
    known = tables["classes"].rows if "classes" in tables else counts.rows
    if shown := confusion_table(counts, [name for name in counts.rows if name not in known]):
        return shown
    about = "Confusion matrix: rows are true classes, columns predicted ones"
    return picture_of_chart(path.read_bytes(), about) if path.exists() else ""


def reliability(tables: Mapping[str, Table]) -> str:
    """How often answers are right over the score they have; "" without a table of that."""
    rows = tables["reliability"].values if "reliability" in tables else []
    points = [(score, right) for score, right, _ in rows if score is not None and right is not None]
    if not points:
        return ""
    curves = [Curve("right", points), Curve("as it should be", [(0, 0), (1, 1)])]
    return f'<div class="grid">{chart("share that is right", curves, x="score", most=1.0)}</div>'


def inspections(findings: Findings) -> Iterable[Section]:
    """A section for each picture of `inspect/` that the model has the parts for."""
    predictor = findings.predictor
    samples = [findings.samples[0, index] for index in findings.evenly(EXAMPLES)]
    images = collate(samples).images.to(predictor.device)
    for name in lookup.names("inspect"):
        picture = lookup.the_class("inspect", name, Picture)()
        values = picture.measure(predictor.model, images)
        if values is not None:
            shown = picture_of_chart(picture.draw(values, images), picture.title)
            yield Section(picture.title, shown, picture.meaning)


def said_at_start(run: Path) -> dict[str, str]:
    """What the run said of itself when it was last started, by name: the last paragraph of its summary."""
    try:
        text = (run / SUMMARY).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    lines = (line.partition("  ") for line in text.strip().split("\n\n")[-1].splitlines())
    return {name.strip(): said.strip() for name, _, said in lines if said.strip() and name.strip() not in NOT_SAID}


def duration(seconds: float) -> str:
    """In words: 45 s, 12 min 5 s, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def machine_in_words() -> str:
    """The processor, or the GPU beside it, and the system."""
    here = machine(torch.get_num_threads())
    gpu = f"{torch.cuda.get_device_name()}; " if torch.cuda.is_available() else ""
    versions = ", ".join(f"{name} {version}" for name, version in here.versions.items())
    return f"{gpu}{here.processor}, {here.threads} of {here.cores} cores; {here.system}; {versions}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _name_of(model: Model) -> str:
    names = model.architecture
    return "a model" if names is None else f"{names.backbone} under {names.head}"
