"""What a check is: one thing that may be wrong with a part of a data set, looked for by one function.

A task has a table of them (`tasks.base.Task.checks`). Each is made once, in the order of the table, at its stage:

* "listed": before a file is opened, and quick; a training, an evaluation and the doctor make them.
* "opened": once every file was looked at (`examination`); likewise.
* "searched": what takes longer; the doctor alone.

What a check finds is a fault that keeps the data from being used, or a hint (`data.faults.KINDS` says which).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from patchform.data.checks.examination import Report
from patchform.data.faults import Faults
from patchform.data.listing import Listing

Stage: TypeAlias = Literal["listed", "opened", "searched"]


class Subject(NamedTuple):
    """What is looked at."""

    listing: Listing
    """With the items that cannot be used."""
    numbers: tuple[int, ...]
    """Of each class: pictures, objects or pixels."""
    training: bool
    """Whether it is learnt from."""
    report: Report | None = None
    """From "opened" on."""

    @property
    def usable(self) -> Listing:
        """Without the items that cannot be used, as far as that is known."""
        return self.listing if self.report is None else self.report.usable(self.listing)


class Check(NamedTuple):
    """A line of a table."""

    look: Callable[[Subject, Faults], None]
    """Notes what it finds."""
    stage: Stage = "listed"
    training: bool = False
    """Only what is learnt from is looked at."""


def look(checks: Sequence[Check], subject: Subject, faults: Faults, *stages: Stage) -> None:
    """Make the checks of some stages."""
    for check in checks:
        if check.stage in stages and (subject.training or not check.training):
            check.look(subject, faults)
