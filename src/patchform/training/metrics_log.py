"""What a run leaves on paper: metrics.csv (a row an epoch), steps.jsonl (a line a step); and what its loggers take."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

from patchform.loggers.base import LoggedRun, Logger, LoggerLost, opened
from patchform.markup import Curve
from patchform.resources import writing
from patchform.training.standing import METRICS as METRICS
from patchform.weights.files import replace_text

STEPS = "steps.jsonl"
LARGEST = 1 << 32
"""Bytes of a log that are still read."""
_KEYS = ("epoch", "step")
"""Columns of metrics.csv in any case."""


History = list[dict[str, float | None]]
"""A row an epoch, each number by its name; None where it was not measured."""


class Lines(NamedTuple):
    """What can be read of a log."""

    kept: list[Any]
    bad: int
    """Lines that cannot be read."""


class MetricsLog:
    """The log of a run folder, going on after a given step: what a killed run wrote beyond it is cut.

    Numbers in steps.jsonl are hexadecimal: a resumed run repeats them bit for bit. Of a log that was damaged, as by a
    power cut, what can be read is kept, and the file as it was beside it.

    Args:
        folder: the run's.
        step: the last optimizer step that counts; 0 starts anew.
        reported: the last epoch end that counts, as a step.
        loggers: names of those that take the numbers, too.
        settings: of the run, for these, by dotted name.
        say: called with a line when one of them is lost.
        errors: what surrounds each writing of a line: it may swallow a ResourceError, and the line comes later then.

    Attributes:
        notes: a line for each log that is not whole.

    Raises:
        ResourceError: here and in all that writes, the disk is full or the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        reported: int,
        *,
        loggers: Sequence[str] = (),
        settings: Mapping[str, Any] = MappingProxyType({}),
        say: Callable[[str], None] = lambda line: None,
        errors: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.folder, self._errors = folder, errors
        self.notes: list[str] = []
        rows = self._read(METRICS, _rows)
        self.rows: list[Mapping[str, Any]] = [row for row in rows if int(row["step"]) <= reported]
        if reported and (not self.rows or int(self.rows[-1]["step"]) != reported):
            self.notes.append(f"{METRICS} lacks rows: the last one should be of step {reported}")
        self._write_rows()
        self._cut_steps(step)
        self._loggers, self._say = dict[str, Logger](), say
        run = LoggedRun(folder.name, folder, settings, step)
        for name in loggers:
            with self._listening(name):
                self._loggers |= opened([name], run)
        with writing(folder / STEPS):
            self._steps = (folder / STEPS).open("a", encoding="utf-8", newline="\n")

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            with writing(self.folder / STEPS):
                self._steps.close()
            for name, logger in list(self._loggers.items()):
                with self._listening(name):
                    logger.close(failed=error is not None)
        except Exception:
            if error is None:  # else that is what is to be said
                raise

    def step(self, step: int, **numbers: float) -> None:
        """Note a step."""
        line = json.dumps({"step": step} | {name: value.hex() for name, value in numbers.items()}) + "\n"
        with self._errors(), writing(self.folder / STEPS, len(line)):
            self._steps.write(line)
            self._steps.flush()
        self._plot("step", step, numbers)

    def epoch(self, epoch: int, step: int, numbers: Mapping[str, float | None]) -> None:
        """Note an epoch. A column that was not there before is empty in earlier rows."""
        self.rows.append({"epoch": epoch, "step": step, **numbers})
        with self._errors():
            self._write_rows()
        self._plot("epoch", step, numbers)

    def flush(self) -> None:
        """Put the steps so far onto the disk, so that a power cut leaves them."""
        with writing(self.folder / STEPS):
            self._steps.flush()
            os.fsync(self._steps.fileno())

    def _plot(self, group: str, step: int, numbers: Mapping[str, float | None]) -> None:
        named = {f"{group}/{name}": value for name, value in numbers.items() if value is not None}
        for name, logger in list(self._loggers.items()):
            with self._errors(), self._listening(name):
                logger.numbers(step, named)

    @contextmanager
    def _listening(self, name: str) -> Iterator[None]:
        """To a logger: one that is lost is left out from here on, and that is said."""
        try:
            with writing(self.folder / name):
                yield
        except LoggerLost as lost:
            self._loggers.pop(name, None)
            self._say(f"going on without the logger {name}: {lost}")

    def _write_rows(self) -> None:
        text = io.StringIO()
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        table = csv.DictWriter(text, columns, lineterminator="\n")
        if self.rows:
            table.writeheader()
            table.writerows(self.rows)
        replace_text(self.folder / METRICS, text.getvalue())

    def _cut_steps(self, step: int) -> None:
        lines = [line for line in self._read(STEPS, _steps) if line["step"] <= step]
        logged = {line["step"] for line in lines}
        if lacking := [number for number in range(1, step + 1) if number not in logged]:
            self.notes.append(f"{STEPS} lacks {len(lacking)} of the {step} steps so far, the first is {lacking[0]}")
        replace_text(self.folder / STEPS, "".join(json.dumps(line) + "\n" for line in lines))

    def _read(self, name: str, parse: Callable[[Sequence[bytes]], Lines]) -> list[Any]:
        """What can be read of a log. One that is damaged is kept beside, and said."""
        path = self.folder / name
        with writing(path):
            if not os.path.lexists(path):
                return []
            readable = path.is_file() and path.stat().st_size <= LARGEST  # no pipe, nor /dev/zero
            *lines, half = path.read_bytes().split(b"\n") if readable else [b""]
            read = parse(lines)
            being_written = name == STEPS and b"\0" not in half
            if readable and not read.bad and (being_written or not half):
                return read.kept
            aside = next(place for place in _places(path) if not os.path.lexists(place))
            os.replace(path, aside)
        self.notes.append(
            f"{name} is damaged: {len(read.kept)} of its {len(read.kept) + read.bad} lines can be read and are kept,"
            f" the file as it was is in {aside.name}"
        )
        return read.kept


def history(folder: Path) -> History:
    """The epochs of a run, from its metrics.csv: `epoch`, `step`, `train_loss`, `val_loss`, scores, `lr` and so on.

    `val_loss` is the log loss where that is what a head learns by and so was not computed twice. Of a log that is
    damaged, what can be read; an empty list without one.
    """
    path = folder / METRICS
    try:
        rows = _rows(path.read_bytes().splitlines()).kept
    except OSError:
        return []
    epochs = []
    for row in rows:
        numbers: dict[str, float | None] = {name: float(value) if value else None for name, value in row.items()}
        loss = numbers.pop("val_loss", numbers.get("log_loss"))
        keys: dict[str, float | None] = {name: int(row[name]) for name in _KEYS}
        losses = {"train_loss": numbers.pop("train_loss", None), "val_loss": loss}
        epochs.append(keys | losses | {name: value for name, value in numbers.items() if name not in keys})
    return epochs


def curve(epochs: History, name: str) -> Curve:
    """A number over the epochs in which it was measured."""
    points = [(row["epoch"], row.get(name)) for row in epochs]
    return Curve(name, [(x, y) for x, y in points if x is not None and y is not None and math.isfinite(y)])


def _places(path: Path) -> Any:
    """Names beside a file for what it was."""
    number = 1
    while True:
        yield path.with_name(f"{path.name}.damaged-{number}")
        number += 1


def _steps(lines: Sequence[bytes]) -> Lines:
    """The steps of steps.jsonl, each once and in their order, as they are written."""
    steps: dict[int, dict[str, Any]] = {}
    bad = 0
    for line in lines:
        try:
            values = json.loads(line.decode())
            number = values["step"]
            if type(number) is not int or number in steps or number < 1:
                raise ValueError
            for name, value in values.items():
                if name != "step":
                    float.fromhex(value)
            steps[number] = values
        except (ValueError, KeyError, TypeError, RecursionError):
            bad += 1
    return Lines([steps[number] for number in sorted(steps)], bad)


def _rows(lines: Sequence[bytes]) -> Lines:
    """The rows of metrics.csv; none without its first line, which names the columns."""
    if not lines:
        return Lines([], 0)
    columns = _cells(lines[0])
    whole = set(_KEYS) <= set(columns) and len(set(columns)) == len(columns) and all(map(str.isprintable, columns))
    if not whole:
        return Lines([], len(lines))
    rows, bad = [], 0
    for line in lines[1:]:
        row = dict(zip(columns, cells)) if len(cells := _cells(line)) == len(columns) else {}
        try:
            if not row or not all(row[key].isdecimal() for key in _KEYS):
                raise ValueError
            for value in row.values():
                float(value or 0)
            rows.append(row)
        except ValueError:
            bad += 1
    return Lines(rows, bad)


def _cells(line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode()]), [])
    except (UnicodeDecodeError, csv.Error):
        return []
