"""MLflow. Where it tracks is its own: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME (here "patchform" by default)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchform.loggers.base import LoggedRun, Logger, service
from patchform.weights.files import replace_text

IDENTITY = "mlflow-id.txt"
"""In the run folder: which of its runs it is, so that a resumed one goes on there."""
AT_ONCE, PARAMETERS, LONGEST = 1000, 100, 6000
"""Numbers, and settings, that it takes at once, and letters of a setting."""


class MLflow(Logger):
    """Numbers in batches, settings as parameters, files and pictures as artifacts."""

    def __init__(self, run: LoggedRun) -> None:
        super().__init__(run)
        self._waiting: list[Any] = []
        known = run.remembered(IDENTITY)
        with service("mlflow"):
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param

            self._metric, self._client = Metric, MlflowClient()
            self._identity = known or self._created(run, Param)
        replace_text(run.folder / IDENTITY, self._identity + "\n")

    @classmethod
    def check(cls) -> None:
        """Raise UsageError if its package is not installed."""
        with service("mlflow"):
            import mlflow  # noqa: F401

    def _created(self, run: LoggedRun, parameter: Any) -> str:
        """A new run of the experiment, with the settings."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "patchform")
        experiment = self._client.get_experiment_by_name(name)
        home = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        identity = str(self._client.create_run(home, run_name=run.name).info.run_id)
        settings = [parameter(key, str(value)[:LONGEST]) for key, value in run.settings.items()]
        for start in range(0, len(settings), PARAMETERS):
            self._client.log_batch(identity, params=settings[start : start + PARAMETERS])
        return identity

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Kept until there are enough for a message, or an epoch ends."""
        now = int(time.time() * 1000)
        self._waiting += [self._metric(name, value, now, step) for name, value in numbers.items()]
        if len(self._waiting) >= AT_ONCE // 2 or any(name.startswith("epoch/") for name in numbers):
            self._send()

    def _send(self) -> None:
        with service("mlflow"):
            for start in range(0, len(self._waiting), AT_ONCE):
                self._client.log_batch(self._identity, metrics=self._waiting[start : start + AT_ONCE])
        self._waiting.clear()

    def picture(self, name: str, file: Path) -> None:
        """As an artifact."""
        self.file(file)

    def file(self, file: Path) -> None:
        """As an artifact."""
        with service("mlflow"):
            self._client.log_artifact(self._identity, str(file))

    def close(self, *, failed: bool) -> None:
        """Send what waits."""
        self._send()
        with service("mlflow"):
            self._client.set_terminated(self._identity, "FAILED" if failed else "FINISHED")
