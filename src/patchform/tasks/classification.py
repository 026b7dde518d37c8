"""Classification: which class, or which classes, an image shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor

from patchform import drawing, page
from patchform.data.checks import amounts, folders
from patchform.data.checks.base import Check
from patchform.data.listing import Listing
from patchform.data.pictures import LabelledPictures
from patchform.data.samples import Samples, labels_of
from patchform.data.token_mixing import TokenMixing
from patchform.data.transforms import Mixing, evaluation_transform, training_transform
from patchform.descriptions import Preprocessing
from patchform.errors import UsageError
from patchform.heads.base import Head
from patchform.metrics import agreement
from patchform.metrics.accuracy import Accuracy
from patchform.metrics.agreement import Agreement
from patchform.metrics.average_precision import AveragePrecision
from patchform.metrics.base import Metric, Together
from patchform.metrics.calibration import Calibration
from patchform.outputs import LabelOutputs, Outputs
from patchform.records import Label, Target
from patchform.settings import AugmentationSettings
from patchform.tasks.base import DIGITS, SAME_OBJECT, Evidence, Example, Mix, Task, Unmixed

TOP = 5
"""How many of the best classes are written and drawn."""
SAID = 3
"""Of these, in a line."""
SEARCHED, SHOWN = 400, 6
"""Pictures of a report that are searched for mistakes; of right and of wrong ones that are shown."""
PAIRS, OF_PAIR = 4, 6
"""Pairs of classes that are mixed up, and pictures of each."""


class Classification(Task):
    """Labels of whole images.

    Args:
        labels: "single": one class an image, judged by accuracy; "multi": any number, judged by average precision.
    """

    name: ClassVar[str] = "classification"
    target: ClassVar[type] = Label
    head: ClassVar[str] = "linear"
    classes: ClassVar[int] = 1000
    suggested: ClassVar[str] = "vit/dinov2_reg_s14.lvd142m"
    recognised: ClassVar[Literal["by layout", "last", "named"]] = "last"

    checks: ClassVar[tuple[Check, ...]] = (*Task.checks, *folders.ALL, amounts.NOTHING, amounts.SINGLE, amounts.UNEVEN)

    def __init__(self, labels: Literal["single", "multi"] = "single") -> None:
        self.labels = labels
        self.better = "top1" if labels == "single" else "map"
        self.meaning = (
            f"share of {self.unit} whose best class is the right one"
            if labels == "single"
            else "average precision of a class, mean over the classes"
        )

    @classmethod
    def of(cls, head: Head) -> Task:
        """The task with the kind of labels that the head was made for."""
        return cls("multi" if getattr(head, "labels", "single") == "multi" else "single")

    def training_samples(
        self, listing: Listing, preprocessing: Preprocessing, augmentation: AugmentationSettings, seed: int
    ) -> Samples[Any]:
        """Pictures with labels."""
        return LabelledPictures(listing, training_transform(preprocessing, augmentation), preprocessing, seed)

    def evaluation_samples(
        self, listing: Listing, preprocessing: Preprocessing, seed: int = 0, *, views: tuple[int, int] = (1, 1)
    ) -> Samples[Any]:
        """Pictures with labels."""
        return LabelledPictures(listing, evaluation_transform(preprocessing), preprocessing, seed)

    def mixing(self, augmentation: AugmentationSettings, classes: int) -> Mix:
        """Mixup and CutMix."""
        return Mixing(augmentation, classes)

    def token_mixing(self, augmentation: AugmentationSettings, classes: int, stride: int, smoothing: float) -> Mix:
        """MixToken, of single labels."""
        if not augmentation.mix_token:
            return Unmixed()
        if self.labels == "multi":
            raise UsageError("augmentation.mix_token shares one label an image", remedy="set it to 0")
        return TokenMixing(augmentation, classes, stride, smoothing)

    def made_up(
        self, listing: Listing, size: tuple[int, int], augmentation: AugmentationSettings, generator: torch.Generator
    ) -> Target:
        """One class."""
        return Label(torch.randint(len(listing.classes), (1,), generator=generator))

    def metric(self, classes: Sequence[str]) -> Metric:
        """Accuracy for single labels, mean average precision for multiple ones."""
        return Accuracy(classes) if self.labels == "single" else AveragePrecision(classes)

    def full_metric(self, classes: Sequence[str], *, thresholds: Sequence[float] | None = None) -> Metric:
        """The same, and for single labels the calibration."""
        return Together(self.metric(classes), Calibration()) if self.labels == "single" else self.metric(classes)

    def derived(self, outputs: Outputs, thresholds: Tensor) -> dict[str, Tensor]:
        """`top_scores` (B, k) float32 and `top_classes` (B, k) int64 of the five best classes, falling."""
        scores = cast("LabelOutputs", outputs).scores
        best, classes = scores.topk(min(TOP, scores.shape[1]))
        return {"top_scores": best, "top_classes": classes}

    def options(self) -> dict[str, Any]:
        """The kind of labels."""
        return {"labels": self.labels}

    def draw(self, image: Tensor, target: Target, classes: Sequence[str]) -> Image.Image:
        """The image above the best classes with bars, or above the names of the true ones."""
        label = cast("Label", target)
        if label.scores is None:
            return drawing.caption(image, [drawing.Line(_names(label, classes) or "no class")])
        return drawing.caption(image, [drawing.Line(classes[index], score) for index, score in _best(label)])

    def agreement(self, reference: Target, answer: Target, *, overlap: float = SAME_OBJECT) -> Agreement:
        """Scores, and which classes are decided for."""
        return agreement.of_labels(cast("Label", reference), cast("Label", answer))

    def record(self, target: Target, classes: Sequence[str]) -> dict[str, Any]:
        """Names and scores.

        Returns:
            Single labels: `label`, and `score` of a prediction; multiple ones: `labels`, the best first. Predictions
            also have `top`: the five best as {"label", "score"}, whether decided for or not.
        """
        label = cast("Label", target)
        chosen = label.classes
        if label.scores is not None:
            chosen = chosen[label.scores[chosen].argsort(descending=True, stable=True)]
        names = [classes[index] for index in chosen.tolist()]
        if self.labels == "multi":
            record: dict[str, Any] = {"labels": names}
        else:
            record = {"label": names[0]} | (
                {} if label.scores is None else {"score": round(float(label.scores[chosen[0]]), DIGITS)}
            )
        if label.scores is not None:
            record["top"] = [{"label": classes[index], "score": round(score, DIGITS)} for index, score in _best(label)]
        return record

    def words(self, target: Target, classes: Sequence[str]) -> str:
        """The best three classes and their scores; of a truth its classes."""
        label = cast("Label", target)
        if label.scores is None:
            return _names(label, classes) or "no class"
        return ", ".join(f"{classes[index]} {score:.1%}" for index, score in _best(label)[:SAID])

    def sections(self, evidence: Evidence) -> Iterable[page.Section]:
        """Pictures whose label was wrong, those of the classes that are mixed up most first, and right."""
        judged = [_judge(evidence, example) for example in evidence.examples(evidence.evenly(SEARCHED))]
        judged.sort(key=lambda example: example.confidence, reverse=True)
        wrong, right = ([example for example in judged if example.right == right] for right in (False, True))
        if self.labels == "single":
            note = "The classes that are mixed up most, and of each pair the surest mistakes."
            yield page.Section("Mixed up", self._mixed_up(evidence, wrong), note)
        else:
            yield page.Section("Wrong", self._gallery(wrong[:SHOWN], evidence.classes), "The surest mistakes first.")
        yield page.Section("Right", self._gallery(right[::-1][:SHOWN], evidence.classes), "The least sure first.")

    def _mixed_up(self, evidence: Evidence, wrong: Sequence[_JudgedExample]) -> str:
        """Pictures of each pair of a true and a predicted class, the most frequent pair first."""
        pairs: dict[tuple[int, int], list[_JudgedExample]] = {}
        for example in wrong:
            decided = cast("Label", example.example.prediction).classes
            pairs.setdefault((int(example.truth.classes[0]), int(decided[0])), []).append(example)
        counts = evidence.evaluation["tables"]["confusion"]["values"]
        parts = []
        for true, predicted in sorted(pairs, key=lambda pair: -counts[pair[0]][pair[1]])[:PAIRS]:
            first, second = (page.escape(evidence.classes[index]) for index in (true, predicted))
            times = f"{counts[true][predicted]} of {sum(counts[true])}"
            shown = self._gallery(pairs[true, predicted][:OF_PAIR], evidence.classes)
            parts.append(f"<h3>{first} taken for {second}: {times}</h3>{shown}")
        return "".join(parts)

    def _gallery(self, shown: Sequence[_JudgedExample], classes: Sequence[str]) -> str:
        """Pictures with the truth and the best guesses."""
        figures = []
        for example, truth, *_ in shown:
            true = _names(truth, classes) or "nothing"
            best = self.record(example.prediction, classes)["top"][:3]
            bars = page.bars((guess["label"], guess["score"]) for guess in best)
            top = f"{best[0]['label']} at {best[0]['score']:.1%}"
            image = drawing.contact_sheet(example.image) if example.image.dim() == 4 else example.image
            picture = page.picture(image, f"{Path(example.name).name}: {true}, the model says {top}")
            figures.append(page.figure(picture, f"true: <b>{page.escape(true)}</b>{bars}"))
        return page.gallery(figures)


class _JudgedExample(NamedTuple):
    """A picture of a report."""

    example: Example
    truth: Label
    right: bool
    confidence: float
    """The score of the best guess."""


def _judge(evidence: Evidence, example: Example) -> _JudgedExample:
    truth, prediction = labels_of(evidence.listing.items[example.number]), cast("Label", example.prediction)
    right = set(truth.classes.tolist()) == set(prediction.classes.tolist())
    scores = prediction.scores
    return _JudgedExample(example, truth, right, float("-inf") if scores is None else float(scores.max()))


def _names(label: Label, classes: Sequence[str]) -> str:
    return ", ".join(classes[index] for index in label.classes.tolist())


def _best(label: Label) -> list[tuple[int, float]]:
    """Index and score of the best classes; equal scores in the order of the classes."""
    assert label.scores is not None
    scores, order = label.scores.float().cpu().sort(descending=True, stable=True)
    return list(zip(order[:TOP].tolist(), scores[:TOP].tolist()))
