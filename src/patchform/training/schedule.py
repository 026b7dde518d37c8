"""How the learning rate moves: a pure function of the step, so that a resumed run needs no more than the step."""

from __future__ import annotations

import math
from typing import NamedTuple

from patchform import own_parts
from patchform.errors import UsageError
from patchform.settings import ScheduleSettings


class RunLength(NamedTuple):
    """How long a run is, in optimizer steps."""

    steps_per_epoch: int
    steps: int
    """In all."""

    def ends(self, step: int, period: int) -> bool:
        """Whether a period of so many steps ends at this one; none ends at step 0."""
        return step > 0 and step % period == 0


def multiplier(settings: ScheduleSettings, step: int, length: RunLength) -> float:
    """Share of the highest learning rate at a step.

    A line from `warmup_start` at step 0 to 1 at the end of the warm-up; then, with p running from 0 there to 1 at the
    last step, `floor` + (1 - `floor`) times

    * cosine: (1 + cos(pi p)) / 2 (Loshchilov and Hutter 2017, equation 5),
    * polynomial: (1 - p) ** `power`;

    or, without `floor`,

    * steps: `gamma` ** the number of `milestones` that have been reached,
    * constant: 1;

    or what a schedule of one's own says, which is called with `step` and `length`.

    Args:
        settings: the shape.
        step: optimizer steps taken so far, 0 .. steps - 1.
        length: of the run.

    Raises:
        UsageError: a schedule of one's own that is not there, or says what is no share.
    """
    epoch, steps = length
    warmup = min(round(settings.warmup_epochs * epoch), steps)
    if step < warmup:
        return settings.warmup_start + (1 - settings.warmup_start) * step / warmup
    if settings.name == "constant":
        return 1.0
    if settings.name == "steps":
        return settings.gamma ** sum(step >= round(milestone * epoch) for milestone in settings.milestones)
    if settings.name not in ("cosine", "polynomial"):
        return _own(settings, step, length)
    p = min((step - warmup) / max(steps - 1 - warmup, 1), 1.0)
    shape = (1 + math.cos(math.pi * p)) / 2 if settings.name == "cosine" else (1 - p) ** settings.power
    return settings.floor + (1 - settings.floor) * shape


def _own(settings: ScheduleSettings, step: int, length: RunLength) -> float:
    """What a schedule of one's own says. It is made anew each time, so that it can keep nothing a resume would lack."""
    share = own_parts.made("schedule", settings)(step, length)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
        what = f"the schedule {settings.name} says {share!r} at step {step}"
        raise UsageError(what, remedy="it is a share of optimizer.lr: a number, 0 or more")
    return float(share)
