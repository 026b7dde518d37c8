"""What a metric is and what it gives: counts are gathered batch by batch, numbers are made once at the end.

A number that the data do not define (no image, a class that never occurs) is None: never 0, never NaN, and it is left
out of every mean.
"""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchform.errors import DataError, DivergedError, printable
from patchform.metrics.showing import class_table, confusion_table, number_table
from patchform.records import Label, Target

BY_CLASS = ("classes", "operating_points")
"""Tables whose rows are the classes."""
ALL = "(all)"
"""In the column of class names: the whole."""


class Table(NamedTuple):
    """Named rows of numbers; None where a number is not defined."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: list[list[float | None]]
    """values[row][column]."""

    def as_json(self) -> dict[str, Any]:
        """{"columns": [...], "rows": [...], "values": [[...]]}."""
        return {"columns": list(self.columns), "rows": list(self.rows), "values": self.values}


class Scores(NamedTuple):
    """The outcome of an evaluation."""

    samples: int
    """Over how many samples, each counted once."""
    better: str | None
    """Name of the number by which models are compared, higher is better; None: these numbers do not compare them."""
    numbers: dict[str, float | None]
    """One line of metrics.csv. Shares are in 0..1."""
    tables: dict[str, Table]
    """Such as "classes" (one row a class) and "confusion" (rows: truth, columns: prediction)."""
    notes: tuple[str, ...] = ()
    """What the user should know, a sentence each."""

    @property
    def best(self) -> float | None:
        """The number by which models are compared."""
        return None if self.better is None else self.numbers[self.better]

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.numbers.items() if value is not None)
        return f"Scores({self.samples} images: {numbers})"

    def _repr_html_(self) -> str:
        parts = [self.tables[name] for name in BY_CLASS if name in self.tables]
        shown = number_table(self.samples, self.numbers) + class_table(parts)
        if counts := self.tables.get("confusion"):
            known = parts[0].rows if parts else counts.rows
            shown += confusion_table(counts, [name for name in counts.rows if name not in known])
        return shown

    def as_csv(self) -> str:
        """A line a class, and a last one, "(all)", with the numbers of the whole; what is not defined is empty."""
        parts = [self.tables[name] for name in BY_CLASS if name in self.tables]
        whole = {"images": self.samples, **self.numbers}
        columns = dict.fromkeys([*(name for part in parts for name in part.columns), *whole])
        text = io.StringIO()
        lines = csv.DictWriter(text, ["class", *columns], lineterminator="\n")
        lines.writeheader()
        for row, name in enumerate(parts[0].rows if parts else ()):
            own = {column: value for part in parts for column, value in zip(part.columns, part.values[row])}
            lines.writerow({"class": printable(name)} | own)
        lines.writerow({"class": ALL} | whole)
        return text.getvalue()

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, without NaN."""
        tables = {name: table.as_json() for name, table in self.tables.items()}
        return {"samples": self.samples, "better": self.better, "numbers": self.numbers, "tables": tables}


class Metric(ABC):
    """Gathers predictions and targets. The result does not depend on the order or the size of the batches."""

    @abstractmethod
    def update(self, predictions: Sequence[Target], targets: Sequence[Target]) -> None:
        """Take in a batch: one prediction and one target an image, on any device."""

    @abstractmethod
    def compute(self) -> Scores:
        """The scores of all that was taken in."""


class Together(Metric):
    """Several metrics over the same predictions; the first names the number to compare by."""

    def __init__(self, *metrics: Metric) -> None:
        self.metrics = metrics

    def update(self, predictions: Sequence[Target], targets: Sequence[Target]) -> None:
        """Hand the batch to each."""
        for metric in self.metrics:
            metric.update(predictions, targets)

    def compute(self) -> Scores:
        """Numbers and tables of all."""
        parts = [metric.compute() for metric in self.metrics]
        return parts[0]._replace(
            numbers={name: value for part in parts for name, value in part.numbers.items()},
            tables={name: table for part in parts for name, table in part.tables.items()},
        )


def share(part: float, whole: float) -> float | None:
    """`part / whole`, None when there is no whole."""
    return part / whole if whole else None


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are defined, None when none is."""
    defined = [value for value in values if value is not None]
    return share(sum(defined), len(defined))


def same_number(predictions: Sequence[Target], targets: Sequence[Target]) -> None:
    """Raise DataError unless there is one prediction for each target."""
    if len(predictions) != len(targets):
        raise DataError(f"{len(predictions)} predictions for {len(targets)} targets", remedy="give one for each image")


def finite(scores: Tensor) -> Tensor:
    """`scores`; raises DivergedError when one is NaN or infinite, which no ranking can place."""
    if not scores.isfinite().all():
        raise DivergedError("the model predicts scores that are not finite", remedy="go back to an earlier checkpoint")
    return scores


def class_scores(predictions: Sequence[Label]) -> Tensor:
    """(B, C) float32 on the CPU. Raises DataError for a prediction without scores, and as `finite`."""
    scores = [prediction.scores for prediction in predictions if prediction.scores is not None]
    if len(scores) != len(predictions):
        raise DataError("a prediction without scores")
    return finite(torch.stack(scores).float().cpu())
