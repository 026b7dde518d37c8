"""What a run leaves on paper: metrics.csv (a row an epoch), steps.jsonl (a line a step), TensorBoard events."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from patchform.weights.files import replace_text

METRICS, STEPS, EVENTS = "metrics.csv", "steps.jsonl", "tensorboard"


class MetricsLog:
    """The log of a run folder, going on after a given step: what a killed run wrote beyond it is cut.

    Numbers in steps.jsonl are hexadecimal: a resumed run repeats them bit for bit.

    Args:
        folder: the run's.
        step: the last optimizer step that counts; 0 starts anew.
        reported: the last epoch end that counts, as a step.
        tensorboard: write events beside.
    """

    def __init__(self, folder: Path, step: int, reported: int, *, tensorboard: bool) -> None:
        self.folder = folder
        self.rows: list[Mapping[str, Any]] = []
        if (folder / METRICS).exists():
            with open(folder / METRICS, newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= reported]
        self._write_rows()
        self._cut_steps(step)
        self._steps = (folder / STEPS).open("a")
        self._events: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # a second to import

            self._events = SummaryWriter(str(folder / EVENTS), purge_step=step + 1)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._steps.close()
        if self._events is not None:
            self._events.close()

    def step(self, step: int, **numbers: float) -> None:
        """Note a step."""
        self._steps.write(json.dumps({"step": step} | {name: value.hex() for name, value in numbers.items()}) + "\n")
        self._steps.flush()
        self._plot("step", step, numbers)

    def epoch(self, epoch: int, step: int, numbers: Mapping[str, float | None]) -> None:
        """Note an epoch. A column that was not there before is empty in earlier rows."""
        self.rows.append({"epoch": epoch, "step": step, **numbers})
        self._write_rows()
        self._plot("epoch", step, numbers)

    def _plot(self, group: str, step: int, numbers: Mapping[str, float | None]) -> None:
        if self._events is not None:
            for name, value in numbers.items():
                if value is not None:
                    self._events.add_scalar(f"{group}/{name}", value, step)

    def _write_rows(self) -> None:
        text = io.StringIO()
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        table = csv.DictWriter(text, columns, lineterminator="\n")
        if self.rows:
            table.writeheader()
            table.writerows(self.rows)
        replace_text(self.folder / METRICS, text.getvalue())

    def _cut_steps(self, step: int) -> None:
        lines = []
        if (self.folder / STEPS).exists():
            for line in (self.folder / STEPS).read_text().splitlines(keepends=True):
                if not line.endswith("\n") or json.loads(line)["step"] > step:  # half a line was being written
                    break
                lines.append(line)
        replace_text(self.folder / STEPS, "".join(lines))
