"""One HTML page of a run: curves, numbers, mistakes, and what the model has learnt. No link leads out of it."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from patchform import drawing, lookup
from patchform.data.collate import collate
from patchform.data.dataset import evaluation_pictures, open_evaluation
from patchform.data.listing import Listing
from patchform.errors import ModelFileError, ResourceError
from patchform.evaluation import CONFUSION, CURVES, REPORT, settings_for
from patchform.inspect.base import Picture, to_png
from patchform.metrics.overlap import RIGHT, WRONG, judged, overlaps, pair
from patchform.model import Model
from patchform.prediction import Predictor, load
from patchform.records import Embedding, Instances, Label, Target
from patchform.settings import DataSettings
from patchform.tasks.base import ObjectTask
from patchform.training.metrics_log import METRICS

PAGE = "report.html"
LOOKED_AT, SHOWN, EXAMPLES = 400, 12, 6
"""Pictures that are searched for mistakes; of right and of wrong ones that are shown; that are looked into."""
NEAREST = 5
"""Neighbours of a picture that are shown."""
LARGEST = 256
"""Pixels of the longer side of a picture in the page."""


class Example(NamedTuple):
    """A picture of known truth and what the model says of it."""

    image: Tensor
    """(C, H, W) decoded pixels, or (T, C, H, W)."""
    name: str
    truth: Target
    says: Target
    right: bool


def write_report(
    run: str | Path, data: str | Path, *, settings: DataSettings | None = None, out: str | Path | None = None
) -> Path:
    """Write `report.html` for a run that was evaluated.

    Args:
        run: run folder.
        data: what it was evaluated on.
        settings: how the format reads it; default: as usual.
        out: folder of evaluation.json and of the page; default: the run folder.

    Returns:
        The page.

    Raises:
        ModelFileError: no intact model, or it was not evaluated.
        DataError: nothing to read, or a class the model does not know.
        ResourceError: the page cannot be written.
    """
    folder, place = Path(run), Path(run if out is None else out)
    predictor = load(run)
    try:
        evaluation = json.loads((place / REPORT).read_text())
    except (OSError, ValueError) as error:
        raise ModelFileError("the run was not evaluated", where=place / REPORT, remedy="patchform evaluate") from error
    listing = open_evaluation(data, settings_for(predictor.model, settings), predictor.classes, predictor.task.name)
    shown: Iterable[str]
    if isinstance(predictor.task, ObjectTask):
        shown = objects(predictor, predictor.task, listing, evaluation, place)
    elif predictor.task.target is Embedding:
        shown = embedded(predictor, listing)
    else:
        shown = labelled(predictor, listing) if predictor.task.target is Label else scenes(predictor, listing)
    sections = [
        _section("Numbers", numbers(evaluation)),
        _section("Learning", learning(folder)),
        _section("Confusion", confusion(place)),
        *shown,
        *inspections(predictor, listing),
    ]
    page = place / PAGE
    try:
        page.write_text(_page(f"{folder.resolve().name}: {_made_of(predictor.model)}", sections), encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot be written ({error.strerror})", where=page) from error
    return page


# ------------------------------------------------------------------------------------------------------------ content


def numbers(evaluation: Mapping[str, Any]) -> str:
    """A table of the scores."""
    rows = [("images", str(evaluation["samples"]))]
    rows += [(name, "-" if value is None else f"{value:.4f}") for name, value in evaluation["numbers"].items()]
    return "<table>" + "".join(f"<tr><th>{html.escape(n)}</th><td>{v}</td></tr>" for n, v in rows) + "</table>"


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
    return _image(to_png(figure), f"Curves over {len(rows)} epochs; at the end {last}", kind="chart")


def confusion(place: Path) -> str:
    """The matrix that the evaluation drew."""
    path = place / CONFUSION
    if not path.exists():
        return "<p>This task has no confusion matrix.</p>"
    return _image(path.read_bytes(), "Confusion matrix: rows are true classes, columns predicted ones", kind="chart")


def labelled(predictor: Predictor, listing: Listing) -> Iterable[str]:
    """Sections of pictures whose label was wrong, and right."""
    found = answers(predictor, listing)
    yield _section("Wrong", gallery(predictor, _surest(found, right=False)), "The surest mistakes first.")
    yield _section("Right", gallery(predictor, _surest(found, right=True)[::-1]), "The least sure first.")


def scenes(predictor: Predictor, listing: Listing) -> Iterable[str]:
    """A section of pictures with the true classes of their pixels above what the model says."""
    chosen = _evenly(range(len(listing)), EXAMPLES)
    yield _section("Pictures", comparison(predictor, listing, chosen), "The truth above, what the model says below.")


def embedded(predictor: Predictor, listing: Listing) -> Iterable[str]:
    """A section of pictures, each with those of which the model thinks most alike."""
    items = _evenly(listing.items, LOOKED_AT)
    predictions = predictor.predict([item.path for item in items], keep_images=True)
    known = [one for one in predictions if one.target is not None and one.image is not None]
    rows = []
    if len(known) > 1:
        directions = torch.stack([one.target.scores for one in known if one.target and one.target.scores is not None])
        directions = torch.nn.functional.normalize(directions, dim=1)
        for first in _evenly(range(len(known)), EXAMPLES):
            nearest = (directions @ directions[first]).topk(min(NEAREST + 1, len(known))).indices.tolist()
            shown = [known[index] for index in (first, *(one for one in nearest if one != first))][: NEAREST + 1]
            pictures = [(one.image, Path(one.name).name) for one in shown if one.image is not None]
            figures = (_image(_small(image), name, kind="picture") for image, name in pictures)
            rows.append("".join(f"<figure>{figure}</figure>" for figure in figures))
    galleries = "".join(f'<div class="gallery">{row}</div><br>' for row in rows) or "<p>None.</p>"
    said = f"The first of each row, and the {NEAREST} pictures whose embeddings are most similar, the nearest first."
    yield _section("Neighbours", galleries, said)


def objects(
    predictor: Predictor, task: ObjectTask, listing: Listing, evaluation: Mapping[str, Any], place: Path
) -> Iterable[str]:
    """Sections of the classes, the curves, and the pictures where the model is most and least wrong."""
    yield _section("Classes", by_class(evaluation["tables"]))
    if (path := place / CURVES).exists():
        curves = _image(path.read_bytes(), "Precision over recall, a line a class", kind="chart")
        yield _section("Precision and recall", curves, "At an overlap of one half.")
    ranked = [index for _, index in sorted(found_share(predictor, task, listing))]
    said = "By F1 at the thresholds of the model. The truth above, what the model says below."
    yield _section("Most wrong", comparison(predictor, listing, ranked[:EXAMPLES]), said)
    yield _section("Most right", comparison(predictor, listing, ranked[EXAMPLES:][: -EXAMPLES - 1 : -1]), said)


def by_class(tables: Mapping[str, Any]) -> str:
    """Rows of `classes` beside those of `operating_points`."""
    parts = [tables["classes"], tables["operating_points"]]
    head = "".join(f"<th>{html.escape(name)}</th>" for part in parts for name in part["columns"])
    rows = []
    for name, *values in zip(parts[0]["rows"], *(part["values"] for part in parts)):
        cells = [value for part in values for value in part]
        rows.append(f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{_number(cell)}</td>' for cell in cells)}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def found_share(predictor: Predictor, task: ObjectTask, listing: Listing) -> list[tuple[float, int]]:
    """(F1, index) of pictures, evenly picked; 1 where nothing is there and nothing is said."""
    chosen = _evenly(range(len(listing)), LOOKED_AT)
    pictures = evaluation_pictures(listing, predictor.model.preprocessing)
    found = []
    for index, prediction in zip(chosen, predictor.predict([listing.items[index].path for index in chosen])):
        truth = pictures[0, index].target
        if not isinstance(truth, Instances) or prediction.target is None:
            continue
        both = pair(prediction.target, truth, kinds=task.kinds[:1])
        verdict = judged(both, overlaps(both, task.kinds[0]))
        right, wrong = (int((verdict == one).sum()) for one in (RIGHT, WRONG))
        counted = right + wrong + int((~both.truth.crowd).sum())
        found.append((2 * right / counted if counted else 1.0, index))
    return found


def comparison(predictor: Predictor, listing: Listing, chosen: Sequence[int]) -> str:
    """Pictures with their truth above what the model says."""
    if not chosen:
        return "<p>None.</p>"
    pictures = evaluation_pictures(listing, predictor.model.preprocessing)
    predictions = predictor.predict([listing.items[index].path for index in chosen], keep_images=True, batch_size=1)
    figures = []
    for index, prediction in zip(chosen, predictions):
        truth = pictures[0, index].target
        if prediction.image is None or truth is None:
            continue
        drawn = (predictor.task.draw(prediction.image, truth, predictor.classes), predictor.draw(prediction))
        shown = [
            _image(drawing.to_png_bytes(picture), f"{listing.name(index)}: {what}", kind="chart")
            for picture, what in zip(drawn, ("the truth", "the model"))
        ]
        figures.append(f"<figure>{''.join(shown)}<figcaption>{html.escape(listing.name(index))}</figcaption></figure>")
    return f'<div class="gallery wide">{"".join(figures)}</div>' if figures else "<p>None.</p>"


def answers(predictor: Predictor, listing: Listing) -> list[Example]:
    """Predictions on pictures of known truth, evenly picked; unreadable ones are left out."""
    items = _evenly(listing.items, LOOKED_AT)
    predictions = predictor.predict([item.path for item in items], keep_images=True)
    found = []
    for item, prediction in zip(items, predictions):
        if isinstance(prediction.target, Label) and prediction.image is not None:
            right = set(item.classes) == set(prediction.target.classes.tolist())
            truth = Label(torch.tensor(item.classes, dtype=torch.int64))
            found.append(Example(prediction.image, item.path.name, truth, prediction.target, right))
    return found


def gallery(predictor: Predictor, shown: Sequence[Example]) -> str:
    """Pictures with the truth and the best guesses."""
    if not shown:
        return "<p>None.</p>"
    figures = []
    for answer in shown:
        truth = ", ".join(_names(predictor, answer.truth)) or "nothing"
        best = predictor.task.record(answer.says, predictor.classes)["top"][:3]
        bars = "".join(
            f'<li><meter min="0" max="1" value="{one["score"]:.4f}"></meter> {html.escape(one["label"])}'
            f" {one['score']:.1%}</li>"
            for one in best
        )
        says = f"{best[0]['label']} at {best[0]['score']:.1%}"
        image = drawing.contact_sheet(answer.image) if answer.image.dim() == 4 else answer.image
        picture = _image(_small(image), f"{answer.name}: {truth}, the model says {says}", kind="picture")
        figures.append(
            f"<figure>{picture}<figcaption>true: <b>{html.escape(truth)}</b><ol>{bars}</ol></figcaption></figure>"
        )
    return f'<div class="gallery">{"".join(figures)}</div>'


def inspections(predictor: Predictor, listing: Listing) -> Iterable[str]:
    """A section for each picture of `inspect/`."""
    model = predictor.model
    pictures = evaluation_pictures(listing, model.preprocessing)
    chosen = _evenly(range(len(listing)), EXAMPLES)
    images = collate([pictures[0, index] for index in chosen]).images.to(predictor.device)
    for name in lookup.names("inspect"):
        picture: Picture = lookup.the_class("inspect", name, Picture)()
        values = picture.measure(model, images)
        if values is None:
            yield _section(picture.title, "<p>This model has no such part.</p>")
        else:
            yield _section(
                picture.title, _image(picture.draw(values, images), picture.title, kind="chart"), picture.meaning
            )


def _surest(found: Sequence[Example], *, right: bool) -> list[Example]:
    """The first few, by falling probability of the best guess."""
    return sorted((one for one in found if one.right == right), key=_sureness, reverse=True)[:SHOWN]


def _sureness(answer: Example) -> float:
    assert isinstance(answer.says, Label)
    return float("-inf") if answer.says.scores is None else float(answer.says.scores.max())


def _names(predictor: Predictor, target: Target) -> list[str]:
    return [predictor.classes[index] for index in target.classes.tolist()]


def _evenly(items: Sequence[Any], number: int) -> list[Any]:
    step = max(1, -(-len(items) // number))
    return list(items[::step])


def _number(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def _made_of(model: Model) -> str:
    made = model.architecture
    return "a model" if made is None else f"{made.backbone} under {made.head}"


# --------------------------------------------------------------------------------------------------------------- page


def _small(image: Tensor) -> bytes:
    """PNG of a small picture, JPEG of a large one."""
    picture = drawing.thumbnail(image, LARGEST)
    if max(picture.size) <= LARGEST // 4:
        return drawing.to_png_bytes(picture)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _image(data: bytes, alt: str, *, kind: str) -> str:
    size = Image.open(io.BytesIO(data))
    mime = "image/png" if size.format == "PNG" else "image/jpeg"
    text = base64.b64encode(data).decode()
    return (
        f'<img class="{kind}" alt="{html.escape(alt)}" width="{size.width}" height="{size.height}"'
        f' src="data:{mime};base64,{text}">'
    )


def _section(title: str, content: str, meaning: str = "") -> str:
    words = f"<p>{html.escape(meaning)}</p>" if meaning else ""
    return f"<section><h2>{html.escape(title)}</h2>{words}{content}</section>"


def _page(title: str, sections: Iterable[str]) -> str:
    return _FRAME.replace("TITLE", html.escape(title)).replace("SECTIONS", "\n".join(sections))


_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
:root { color-scheme: light dark; --line: light-dark(#d8d8d8, #444); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem;
  color: light-dark(#1a1a1a, #e6e6e6); background: light-dark(#fff, #161616); }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .2rem 1.5rem .2rem 0; border-bottom: 1px solid var(--line); }
td { font-variant-numeric: tabular-nums; text-align: right; }
img.chart { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
img.picture { width: 100%; height: auto; image-rendering: pixelated; border-radius: 4px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; }
.gallery.wide { grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); }
figure { margin: 0; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
ol { list-style: none; margin: 0; padding: 0; }
meter { width: 3rem; }
</style>
</head>
<body>
<h1>TITLE</h1>
SECTIONS
</body>
</html>
"""
