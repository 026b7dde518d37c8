"""One training run in a process of its own, to be killed: python child.py '{"path": ..., "runs": ..., ...}'.

A mutant forgets one part of a run's state on resume: each must make the comparison fail, or it compares nothing. Or it
does not listen to the other processes, or cannot read a batch, or begins float16 with a scale far too large.
"""

import json
import sys

import tiny

from patchform import distributed
from patchform.errors import DataError, PatchformError
from patchform.training import batches, checkpoint, loop, scaling, schedule

load = checkpoint._load


class RestartedEpoch(batches.TrainingBatches):
    """Begins its epoch anew."""

    def __iter__(self):
        behind = self.start_step % self.steps_per_epoch
        self.start_step, self.steps = self.start_step - behind, self.steps - behind
        return super().__iter__()


MUTANTS = {
    "no_rng": lambda: setattr(checkpoint, "_set_random_state", lambda *_: None),
    "no_ema": lambda: setattr(checkpoint, "_load", lambda model, path, name: load(model, path, "model")),
    "no_optimizer": lambda: setattr(checkpoint, "_load_optimizer", lambda *_: None),
    "no_schedule": lambda: setattr(schedule, "multiplier", forgetful(schedule.multiplier)),
    "restart_epoch": lambda: setattr(batches, "TrainingBatches", RestartedEpoch),
    "deaf": lambda: setattr(distributed, "all_reduce_sum", lambda tensors: None),
    "large_scale": lambda: setattr(scaling, "FIRST_SCALE", 2.0**23),
    "unreadable": lambda: setattr(batches, "training_loader", unreadable(batches.training_loader)),
}


def forgetful(multiplier):
    first = []

    def counted_from_here(settings, step, length):
        first.append(step)
        return multiplier(settings, max(step - first[0], 0), length)

    return counted_from_here


def unreadable(loader):
    def up_to_the_fifth(*arguments, **named):
        for number, batch in enumerate(loader(*arguments, **named)):
            if number == 5:
                raise DataError("the picture is damaged")
            yield batch

    return up_to_the_fifth


if __name__ == "__main__":
    wish = json.loads(sys.argv[1])
    mutant, resume, sections = wish.pop("mutant", None), wish.pop("resume", False), wish.pop("sections", {})
    if mutant:
        MUTANTS[mutant]()
    try:
        loop.train(tiny.recipe(**wish, **sections), resume=resume, progress=False)
    except PatchformError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
