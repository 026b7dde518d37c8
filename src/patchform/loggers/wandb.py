"""Weights & Biases. Project, entity and mode are its own: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline, ...

Neither the code, nor the state of a git repository, nor what is printed is sent.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from patchform.loggers.base import LoggedRun, Logger, service
from patchform.weights.files import replace_text

IDENTITY = "wandb-id.txt"
"""In the run folder: which of its runs it is, so that a resumed one goes on there."""


class WandB(Logger):
    """Numbers over the step, settings as its config, files and pictures beside."""

    def __init__(self, run: LoggedRun) -> None:
        super().__init__(run)
        known = run.remembered(IDENTITY)
        identity = known or secrets.token_hex(8)
        with service("wandb"):
            import wandb

            self._package = wandb
            settings = wandb.Settings(console="off", save_code=False, disable_git=True, disable_job_creation=True)
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "patchform"),
                id=identity,
                name=run.name,
                config=dict(run.settings),
                dir=str(run.folder),
                resume="allow",
                settings=settings,
            )
            self._run.define_metric("*", step_metric="step")  # its own would refuse steps that come again
        replace_text(run.folder / IDENTITY, identity + "\n")

    @classmethod
    def check(cls) -> None:
        """Raise UsageError if its package is not installed."""
        with service("wandb"):
            import wandb  # noqa: F401

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Over `step`."""
        with service("wandb"):
            self._run.log({"step": step, **numbers})

    def picture(self, name: str, file: Path) -> None:
        """As an image."""
        with service("wandb"):
            self._run.log({name: self._package.Image(str(file))})

    def file(self, file: Path) -> None:
        """Beside the run, under its name in the run folder."""
        with service("wandb"):
            self._run.save(str(file), base_path=str(self.run.folder), policy="now")

    def close(self, *, failed: bool) -> None:
        """Wait until all was sent."""
        with service("wandb"):
            self._run.finish(exit_code=int(failed))
