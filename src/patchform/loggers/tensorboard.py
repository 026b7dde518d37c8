"""TensorBoard events in the run folder: `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from patchform.loggers.base import LoggedRun, Logger


class TensorBoard(Logger):
    """Events of steps and epochs; those beyond the step that a run goes on from are purged."""

    def __init__(self, run: LoggedRun) -> None:
        super().__init__(run)
        from torch.utils.tensorboard import SummaryWriter  # a second to import

        self._events = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step + 1)

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """As curves."""
        for name, value in numbers.items():
            self._events.add_scalar(name, value, step)

    def picture(self, name: str, file: Path) -> None:
        """As an image of the last step."""
        import numpy as np
        from PIL import Image

        with Image.open(file) as image:
            self._events.add_image(name, np.asarray(image.convert("RGB")), self.run.step, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        """Write what waits."""
        self._events.close()
