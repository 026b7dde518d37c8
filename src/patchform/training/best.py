"""The best model so far: `best/` for people, and a copy beside the checkpoints that speak of it.

    best/   checkpoints/best-00000004/   checkpoints/step-00000006/ (whose best is of step 4)

A run ends with its best model, which training cannot make again. So every checkpoint has the one that it speaks of,
with sums of its own: `training.keep` copies at most, and one more while a checkpoint is written, each of the size of
the model without its optimizer. `best/` may be damaged or deleted, or be of a step that a killed run takes again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from patchform.errors import ModelFileError
from patchform.model import Model, load, save
from patchform.training import run
from patchform.training.checkpoint import Counters
from patchform.weights import files
from patchform.weights.sources import DESCRIPTION, WEIGHTS

_PREFIX = "best-"
_FILES = (WEIGHTS, DESCRIPTION)


class BestModel:
    """Keeps the best model of a run folder.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._copies = folder / run.BEST, folder / run.CHECKPOINTS

    def save(self, model: Model, step: int, *, thresholds: Sequence[float] | None) -> None:
        """Keep the model of a step. Raises ResourceError; what was the best before is there until this one is."""
        save(model, self._copy_of(step), thresholds=thresholds)
        _duplicate(self._copy_of(step), self.folder)

    def check(self, counters: Counters) -> list[str]:
        """Look whether the best model of a checkpoint is there in every bit, and put it back where it can be.

        Args:
            counters: of the checkpoint; of no best model any more where that is lost.

        Returns:
            A line for what was damaged.
        """
        if counters.best is None:
            return []
        copy = self._copy_of(counters.best_step)
        fault, fault_of_copy = _fault(self.folder), _fault(copy)
        damaged = f"the best model is damaged ({run.BEST}/{fault})"
        if not fault_of_copy:
            if not fault and _manifest(copy) == _manifest(self.folder):
                return []
            _duplicate(copy, self.folder)
            return [f"{damaged}: put back from its copy in {run.CHECKPOINTS}/{copy.name}"] if fault else []
        if not fault:
            existed = copy.exists()  # not in runs of earlier versions
            _duplicate(self.folder, copy)
            return [f"the copy of the best model was damaged ({fault_of_copy}): made anew"] if existed else []
        lost = f"{damaged} and so is its copy: that of step {counters.best_step}, of score {counters.best:.4g}, is lost"
        counters.best, counters.best_step, counters.without_better = None, 0, 0
        return [f"{lost}; the best is looked for from here on"]

    def final(self, last: Model, counters: Counters, say: Callable[[str], None]) -> Model:
        """The model that a run ends with.

        Args:
            last: that of its last step.
            counters: of its end; of no best model any more where that is lost.
            say: called with a remark.
        """
        if counters.best is None:
            return last
        for folder in (self._copy_of(counters.best_step), self.folder):
            try:
                return load(folder)
            except ModelFileError as error:
                say(f"the best model: {error}")
        counters.best, counters.best_step = None, 0
        say("both copies of the best model are damaged: the run ends with its last one")
        return last

    def prune(self, spoken_of: set[int]) -> None:
        """Delete the copies that no checkpoint speaks of any more.

        Args:
            spoken_of: steps of the best models that are needed.
        """
        names = {self._copy_of(step).name for step in spoken_of}
        for path in self._copies.glob(f"{_PREFIX}*"):
            if path.name not in names:
                shutil.rmtree(path, ignore_errors=True)

    def _copy_of(self, step: int) -> Path:
        return self._copies / f"{_PREFIX}{step:08d}"


def _duplicate(source: Path, to: Path) -> None:
    """Another folder with the same model, flushed to the disk. No hard link: what damages a file damages its links."""
    with files.atomic_folder(to) as unfinished:
        for name in _FILES:
            files.write_bytes(unfinished / name, files.read_bytes(source / name, files.LARGEST_TENSORS))


def _fault(folder: Path) -> str:
    """What is wrong with a model's folder, "" if nothing."""
    return next(iter(files.verify(folder, _FILES)), "")


def _manifest(folder: Path) -> bytes:
    return (folder / files.MANIFEST).read_bytes()
