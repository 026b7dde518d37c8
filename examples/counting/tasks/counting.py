"""Counting: how many things a picture shows."""

import json
from typing import NamedTuple

import torch
from torch import Tensor

from patchform import drawing, page
from patchform.data.pictures import Changed, Pictures
from patchform.data.results import Writer
from patchform.data.transforms import evaluation_transform, training_transform
from patchform.metrics.base import Metric, Scores, finite, same_number
from patchform.tasks.base import DIGITS, Task

SHOWN = 6
"""Pictures of a report."""


class Count(NamedTuple):
    """What is known, or predicted, of a picture."""

    number: Tensor
    """() float32."""


class Counted(Pictures):
    """Pictures and how many things each shows, which no transform changes."""

    def truth(self, item, size):
        """The number that the data format found."""
        return Count(torch.tensor(float(item.truth)))

    def changed(self, pixels, truth):
        """The transform sees the pixels."""
        return Changed(self.transform(pixels), truth)


class Off(Metric):
    """How far off counts are: the mean absolute error, and less that, so that higher is better."""

    def __init__(self):
        self.errors = []

    def update(self, predictions, targets):
        """Take in a batch."""
        same_number(predictions, targets)
        self.errors += [abs(float(finite(p.number)) - float(t.number)) for p, t in zip(predictions, targets)]

    def compute(self):
        """The mean of all."""
        off = sum(self.errors) / len(self.errors) if self.errors else None
        return Scores(len(self.errors), "closeness", {"closeness": None if off is None else -off, "off": off}, {})


class Totals(Writer):
    """totals.json: numbers by file name."""

    def files(self, names):
        """One."""
        self.numbers = {}
        return [self.folder / "totals.json"]

    def add(self, name, target, size):
        """Take in a number."""
        self.numbers[name] = float(target.number)

    def finish(self):
        """Write all."""
        self.save(json.dumps(self.numbers).encode(), self.folder / "totals.json")


class Counting(Task):
    """One number a picture; pictures are not cropped, as that would change it."""

    name = "counting"
    target = Count
    head = "counter"
    better = "closeness"

    def training_samples(self, listing, preprocessing, augmentation, seed):
        """Augmented pictures."""
        return Counted(listing, training_transform(preprocessing, augmentation), preprocessing, seed)

    def evaluation_samples(self, listing, preprocessing, seed=0, *, views=(1, 1)):
        """Pictures."""
        return Counted(listing, evaluation_transform(preprocessing), preprocessing, seed)

    def made_up(self, listing, size, augmentation, generator):
        """Any number."""
        return Count(torch.rand((), generator=generator))

    def hints(self, listing, numbers, faults):
        """None: there are no classes of which some could be rare."""

    def metric(self, classes):
        """How far off."""
        return Off()

    def draw(self, image, target, classes):
        """The picture above its number."""
        return drawing.caption(image, [drawing.Line(f"{float(target.number):.1f} {classes[0]}")])

    def record(self, target, classes):
        """{"count": number}."""
        return {"count": round(float(target.number), DIGITS)}

    def writers(self):
        """A file of all numbers."""
        return {"totals": Totals}

    def sections(self, evidence):
        """Pictures with their truth above what the model says."""
        shown = self.comparison(evidence, evidence.evenly(SHOWN))
        yield page.Section("Counts", shown, "The truth above, what the model says below.")
