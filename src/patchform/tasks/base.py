"""The contract of a task: all that is of one kind of target, from the samples to the sections of a report."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from patchform import drawing, lookup, page
from patchform.data.checks import copies, names
from patchform.data.checks.base import Check, Subject, look
from patchform.data.checks.examination import Report
from patchform.data.faults import Faults
from patchform.data.listing import Listing
from patchform.data.results import Writer
from patchform.data.samples import Samples
from patchform.descriptions import Architecture, Preprocessing
from patchform.errors import UsageError, printable
from patchform.heads.base import Head
from patchform.metrics import agreement
from patchform.metrics.agreement import Agreement
from patchform.metrics.base import Metric, Scores
from patchform.outputs import Outputs
from patchform.records import Batch, Target
from patchform.settings import AugmentationSettings

DIGITS = 6
"""Of written scores; float32 has no more."""
CURVES = "pr.png"
"""Precision over recall, which an evaluation draws beside its numbers where a metric gives them."""
SAME_OBJECT = 0.99
"""Overlap of two boxes from which they are those of one object that two models see alike."""

WORDS = 120
"""Letters of a line on a prediction."""


class Mix(Protocol):
    """What becomes of a batch on the device before the model sees it."""

    def mix(self, batch: Batch, generator: torch.Generator) -> Batch:
        """All that is drawn is drawn from `generator`, which is on the CPU."""
        ...


class Unmixed:
    """Batches stay as they are."""

    def mix(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch."""
        return batch


class Example(NamedTuple):
    """A picture of a report, and what the model says of it."""

    number: int
    """Its index in the listing."""
    name: str
    image: Tensor
    """(C, H, W) decoded pixels, or (T, C, H, W)."""
    prediction: Target


class Evidence(ABC):
    """A run that was evaluated: what the sections of its report are made of.

    Args:
        listing: what it was evaluated on.
        classes: of the model.
        evaluation: content of evaluation.json.
        folder: where that lies, and the charts beside it.
    """

    def __init__(self, listing: Listing, classes: Sequence[str], evaluation: Mapping[str, Any], folder: Path) -> None:
        self.listing, self.classes, self.evaluation, self.folder = listing, tuple(classes), evaluation, folder

    def evenly(self, number: int) -> list[int]:
        """Indices of so many pictures at most."""
        return list(range(len(self.listing)))[:: max(1, -(-len(self.listing) // number))]

    @abstractmethod
    def truth(self, index: int) -> Target:
        """What is known of a picture, in its own pixels."""

    @abstractmethod
    def examples(self, indices: Sequence[int], *, at_once: int = 16) -> Iterator[Example]:
        """Pictures and predictions in the order of the indices; those that cannot be used are left out.

        Args:
            indices: of pictures in the listing.
            at_once: how many go through the model together.
        """


class Task(ABC):
    """The meaning of one type of target. A file of this folder holds one; its name is the name of the task.

    As a prediction has the type of a target, one `draw`, one `record` and one metric serve both.
    """

    name: ClassVar[str]
    target: ClassVar[type]
    """Type of predictions, and of targets but where nothing is known (pre-training)."""
    head: ClassVar[str]
    """The head that is taken when none is named."""
    models: ClassVar[Literal["heads", "pretraining"]] = "heads"
    """Where a recipe's `model.head` is looked up: heads over any backbone, or methods that are models themselves."""
    labelled: ClassVar[bool] = True
    """Whether targets name classes: a model then has at least one, and there is a number that tells which is better."""
    classes: ClassVar[int] = 80
    """As many are made up where there are no data to plan for."""
    frames: ClassVar[int] = 0
    """Of a clip, by default; 0: the data are pictures."""
    recognised: ClassVar[Literal["by layout", "last", "named"]] = "by layout"
    """How data are recognised. last: if their layout is of no other task, as many folders look like it. named: only if
    the task is named, as its layouts serve another task too."""
    windows: ClassVar[Literal["none", "input", "picture"]] = "none"
    """Of what predictions are put together window by window: of the model's input (`inference.SlidingWindow`), or of
    the picture itself (`inference.SlicedObjects`)."""

    in_pixels: ClassVar[bool] = False
    """Whether predictions are in pixels of the picture, so that its size has to be known."""
    unit: ClassVar[str] = "pictures"
    """What `numbers` count."""
    checks: ClassVar[tuple[Check, ...]] = (names.ENCODING, names.CONTROL, *names.OF_CLASSES, copies.REPEATED)
    """What may be wrong with data for this task, in the order of reports."""

    better: str
    """Name of the number, higher is better, that selects the best checkpoint."""
    meaning: str = ""
    """What that number is, in words."""
    suggested: ClassVar[str] = ""
    """Published weights for few data of one's own, of the backbone of the recipe "fine_tune": free to use, and not
    large; none for a task without that recipe."""

    @classmethod
    def of(cls, head: Head) -> Task:
        """The task as a head understands it. The default has no variants."""
        return cls()

    # ------------------------------------------------------------------------------------------------- data

    @abstractmethod
    def training_samples(
        self, listing: Listing, preprocessing: Preprocessing, augmentation: AugmentationSettings, seed: int
    ) -> Samples[Any]:
        """The samples of a training set, changed at random.

        Raises:
            UsageError: settings that are not for these data.
        """

    @abstractmethod
    def evaluation_samples(
        self, listing: Listing, preprocessing: Preprocessing, seed: int = 0, *, views: tuple[int, int] = (1, 1)
    ) -> Samples[Any]:
        """The samples as the model is judged on them. Predictions are made of nothing else.

        Args:
            listing: what there is.
            preprocessing: of the model.
            seed: changes nothing that is not drawn.
            views: of videos, the number of clips and of crops of each: see `clips.evaluation_clips`.

        Raises:
            UsageError: settings that are not for these data.
        """

    def mixing(self, augmentation: AugmentationSettings, classes: int) -> Mix:
        """How images of a batch are mixed. Raises UsageError for mixing that the task does not have."""
        if augmentation.mix_probability > 0 and (augmentation.mixup > 0 or augmentation.cutmix > 0):
            raise UsageError(
                "mixup and cutmix mix labels of whole images",
                remedy="set augmentation.mixup and augmentation.cutmix to 0",
            )
        return Unmixed()

    def token_mixing(self, augmentation: AugmentationSettings, classes: int, stride: int, smoothing: float) -> Mix:
        """How tokens of a batch are mixed, in cells of `stride` pixels. Raises UsageError for a task without it."""
        if augmentation.mix_token > 0:
            what = "augmentation.mix_token shares labels of whole images"
            raise UsageError(what, remedy="set augmentation.mix_token to 0")
        return Unmixed()

    @abstractmethod
    def made_up(
        self, listing: Listing, size: tuple[int, int], augmentation: AugmentationSettings, generator: torch.Generator
    ) -> Target:
        """A target as large as training may meet one, for an input of (height, width): to measure what a step takes."""

    def refined(self, listing: Listing) -> str:
        """Name of the task that data are for whose layout is of this one; objects with outlines may be for another."""
        return self.name

    def numbers(self, listing: Listing) -> tuple[int, ...]:
        """How much there is of each class, where no pixels were counted: pictures."""
        return listing.counts()

    def subject(self, listing: Listing, *, training: bool, report: Report | None = None) -> Subject:
        """A listing as checks look at it; with `report`, after its files were opened."""
        numbers = (report.pixels if report is not None else None) or self.numbers(listing)
        return Subject(listing, numbers, training, report)

    def refuse(self, listing: Listing, *, training: bool = False) -> tuple[str, ...]:
        """Make the checks that need no file. Raises DataError for what is fatal, and gives a sentence for each hint."""
        faults = Faults()
        look(self.checks, self.subject(listing, training=training), faults, "listed")
        faults.refuse(listing.root)
        return faults.hints()

    def refuse_opened(self, listing: Listing, report: Report, *, training: bool) -> tuple[str, ...]:
        """Likewise the checks of what was found in the files."""
        faults = Faults()
        look(self.checks, self.subject(listing, training=training, report=report), faults, "opened")
        faults.extend(report.hints)
        faults.refuse(listing.root)
        return faults.hints()

    # --------------------------------------------------------------------------------------------- judgement

    @abstractmethod
    def metric(self, classes: Sequence[str]) -> Metric:
        """What is measured at each validation: quick, and `better` among its numbers."""

    def full_metric(self, classes: Sequence[str], *, thresholds: Sequence[float] | None = None) -> Metric:
        """What is measured when a trained model is judged: `metric`, and more.

        Args:
            classes: names.
            thresholds: `Model.thresholds`, where a task has such: numbers at a threshold are then at these.
        """
        return self.metric(classes)

    def thresholds(self, scores: Scores) -> tuple[float, ...] | None:
        """What `metric` chose as `Model.thresholds`, one a class; None where the task has none."""
        return None

    def agreement(self, reference: Target, answer: Target, *, overlap: float = SAME_OBJECT) -> Agreement:
        """How far one prediction is from another for the same picture.

        Args:
            reference: what it should be.
            answer: what it is.
            overlap: of the boxes of an object that both have, at least.
        """
        return agreement.of_fields(reference, answer)

    def confident(self, prediction: Target, thresholds: Sequence[float]) -> Target:
        """What of a prediction counts, by thresholds one a class; scores that are not finite stay, to be found."""
        return prediction

    def derived(self, outputs: Outputs, thresholds: Tensor) -> dict[str, Tensor]:
        """What else an exported file gives by name, made of the tensors of a batch: nothing.

        Args:
            outputs: of the model's head.
            thresholds: (C,) float32, those of `confident`.
        """
        return {}

    def options(self) -> dict[str, Any]:
        """Arguments of its constructor, with which it is built again."""
        return {}

    def sections(self, evidence: Evidence) -> Iterable[page.Section]:
        """What a report shows of this task: examples, and what is beside the numbers."""
        return ()

    # ------------------------------------------------------------------------------------------------ output

    @abstractmethod
    def draw(self, image: Tensor, target: Target, classes: Sequence[str]) -> Image.Image:
        """A picture of a target or a prediction on its image, (C, H, W) uint8 in 0..255 or floating point in 0..1."""

    @abstractmethod
    def record(self, target: Target, classes: Sequence[str]) -> dict[str, Any]:
        """A target or a prediction as plain JSON values, with names instead of numbers."""

    def words(self, target: Target, classes: Sequence[str]) -> str:
        """A target or a prediction in a short line, with names instead of numbers."""
        text = json.dumps(self.record(target, classes), ensure_ascii=False)
        return text if len(text) <= WORDS else f"{text[:WORDS]}..."

    def files(self, target: Target, *, scores: bool = False) -> dict[str, bytes]:
        """What of a target or a prediction is too large for a record: endings of file names, and contents.

        Args:
            target: what to write.
            scores: with the probabilities of a prediction, which are larger still.
        """
        return {}

    def writers(self) -> dict[str, type[Writer]]:
        """Formats of other tools that predictions can be written in, by name."""
        return {}

    def comparison(self, evidence: Evidence, indices: Sequence[int], scores: Mapping[int, str] | None = None) -> str:
        """For a report: pictures with their truth beside what the model says.

        Args:
            evidence: what they are of.
            indices: which pictures.
            scores: what is said of each, by its index: its score, in words.
        """
        figures = []
        for number, name, image, prediction in evidence.examples(indices, at_once=1):
            with drawing.sharp():
                pair = [
                    page.drawn(self.draw(image, target, evidence.classes), f"{name}: {source}")
                    for target, source in ((evidence.truth(number), "the truth"), (prediction, "the model"))
                ]
            score = "" if scores is None else f"<b>{page.escape(scores[number])}</b> "
            caption = f"{score}{page.escape(name)}"
            figures.append(page.figure(f'<div class="pair">{"".join(pair)}</div>', caption, above=True))
        return page.gallery(figures, wide=True)


class Prediction(NamedTuple):
    """The prediction for one picture, or why there is none. It shows itself in a notebook, and in a line elsewhere."""

    name: str
    target: Target | None
    """With scores; None where there is an error."""
    error: str | None = None
    image: Tensor | None = None
    """(C, H, W) decoded pixels, if they are kept; of a video (T, C, H, W), the frames that were looked at."""
    task: Task | None = None
    """What the target means."""
    classes: tuple[str, ...] = ()
    """Names in the order of its numbers."""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values with names for numbers: `file`, and `error` or the task's record."""
        if self.target is None or self.task is None:
            return {"file": self.name, "error": self.error}
        return {"file": self.name, **self.task.record(self.target, self.classes)}

    def draw(self) -> Image.Image:
        """On its picture, which must have been kept. Raises UsageError."""
        if self.image is None or self.target is None or self.task is None:
            raise UsageError("nothing to draw", where=self.name, remedy="predict with keep_images=True")
        return self.task.draw(self.image, self.target, self.classes)

    def __str__(self) -> str:
        if self.target is None or self.task is None:
            return f"error: {self.error}"
        return self.task.words(self.target, self.classes)

    def __repr__(self) -> str:
        return printable(f"Prediction({self.name}: {self})")

    def _repr_html_(self) -> str:
        words = f"<p><b>{page.escape(self.name)}</b>: {page.escape(str(self))}</p>"
        if self.image is None or self.target is None or self.task is None:
            return words
        with drawing.sharp():
            return words + page.drawn(self.draw(), f"{self.name}: {self}")


def find_task(name: str) -> Task:
    """The task of a name. Raises UsageError with the nearest name when there is none."""
    return lookup.the_class("tasks", name, Task)()


def task_of(architecture: Architecture | None, head: Head) -> Task:
    """The task that a model of this architecture and head was made for.

    Raises:
        UsageError: a model that was put together by hand names no task.
    """
    if architecture is None:
        raise UsageError("this model was put together by hand and has no task", remedy="name one")
    return find_task(architecture.task).of(head)
