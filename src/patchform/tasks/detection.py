"""Detection: which objects a picture shows, and a box around each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from PIL import Image
from torch import Tensor

from patchform import drawing, page
from patchform.data.checks import amounts, boxes
from patchform.data.checks.base import Check
from patchform.data.detection_transforms import evaluation_objects, take, training_objects
from patchform.data.listing import Listing
from patchform.data.pictures import ObjectPictures, outlined
from patchform.data.results import CocoResults, Writer, YoloLines
from patchform.data.samples import Samples
from patchform.descriptions import Preprocessing
from patchform.errors import UsageError
from patchform.geometry import masks
from patchform.markup import COLORS, Curve, chart
from patchform.metrics import agreement
from patchform.metrics.agreement import Agreement
from patchform.metrics.base import Metric, Scores
from patchform.metrics.objects import ObjectPrecision
from patchform.metrics.overlap import RIGHT, WRONG, Kind, judged, overlaps, pair
from patchform.outputs import ObjectOutputs, Outputs
from patchform.records import Bitmaps, Instances, Target
from patchform.settings import AugmentationSettings
from patchform.tasks.base import DIGITS, SAME_OBJECT, Evidence, Task

BOX_DIGITS = 2
"""Of written pixels."""
OBJECTS = 100
"""Of a picture that is made up, where there are no data."""
SEARCHED, SHOWN = 400, 4
"""Pictures of a report that are searched for mistakes, and that are shown."""


class Detection(Task):
    """Objects: boxes in pixels of the picture as it was before resizing; crowds in a truth count for nothing.

    What is judged of objects, boxes or masks too, is stated as `kinds`, the first for comparing models.
    """

    name: ClassVar[str] = "detection"
    target: ClassVar[type] = Instances
    head: ClassVar[str] = "retinanet"
    windows: ClassVar[Literal["none", "input", "picture"]] = "picture"
    in_pixels: ClassVar[bool] = True
    unit: ClassVar[str] = "objects"
    checks: ClassVar[tuple[Check, ...]] = (
        *(*Task.checks, amounts.NOTHING, amounts.UNEVEN),
        *(boxes.PERCENT, boxes.AROUND, boxes.CLOSE),
    )
    better = "ap"
    meaning = "average precision of boxes at overlaps of 0.5 to 0.95 (COCO's), mean over the classes"
    suggested: ClassVar[str] = "pvt/v2_b0.in1k"
    kinds: ClassVar[tuple[Kind, ...]] = ("boxes",)

    def training_samples(
        self, listing: Listing, preprocessing: Preprocessing, augmentation: AugmentationSettings, seed: int
    ) -> Samples[Any]:
        """Pictures with objects."""
        if augmentation.copy_paste and not outlined(listing):
            raise UsageError(
                "augmentation.copy_paste needs outlines, and the data have boxes alone", remedy="set it to 0"
            )
        if augmentation.views > 1:
            raise UsageError("augmentation.views is not for masks and objects", remedy="set it to 1")
        return ObjectPictures(listing, training_objects(preprocessing, augmentation), preprocessing, seed)

    def evaluation_samples(
        self, listing: Listing, preprocessing: Preprocessing, seed: int = 0, *, views: tuple[int, int] = (1, 1)
    ) -> Samples[Any]:
        """Pictures with objects, which stay in the pixels of the picture."""
        return ObjectPictures(listing, evaluation_objects(preprocessing), preprocessing, seed)

    def made_up(
        self, listing: Listing, size: tuple[int, int], augmentation: AugmentationSettings, generator: torch.Generator
    ) -> Target:
        """As many objects as any picture has; with masks, if there are outlines or they are what is learnt."""
        count = max((len(item.objects.boxes) for item in listing.items if item.objects), default=OBJECTS)
        count *= (4 if augmentation.mosaic else 1) * (2 if augmentation.copy_paste else 1)
        sides = torch.tensor([size[1], size[0]])
        low = (torch.rand(count, 2, generator=generator) * sides / 2).long()
        high = low + 1 + (torch.rand(count, 2, generator=generator) * (sides / 2 - 1).clamp(min=0)).long()
        boxes = torch.cat([low, high], 1)
        bitmaps = None
        if "masks" in self.kinds or outlined(listing):
            bitmaps = Bitmaps(torch.ones(int((high - low).prod(1).sum()), dtype=torch.bool), boxes, size)
        classes = torch.randint(len(listing.classes), (count,), generator=generator)
        return Instances(boxes.float(), classes, masks=bitmaps)

    def refined(self, listing: Listing) -> str:
        """Instance segmentation where every object has an outline."""
        rows = [item.objects for item in listing.items if item.objects is not None and len(item.objects.boxes)]
        outlines = bool(rows) and all(objects.segmentations and None not in objects.segmentations for objects in rows)
        return "instance_segmentation" if outlines else self.name

    def numbers(self, listing: Listing) -> tuple[int, ...]:
        """Objects."""
        return amounts.objects_of(listing)

    def metric(self, classes: Sequence[str]) -> Metric:
        """Average precision as COCO defines it, and the thresholds with the best F1."""
        return ObjectPrecision(classes, kinds=self.kinds)

    def full_metric(self, classes: Sequence[str], *, thresholds: Sequence[float] | None = None) -> Metric:
        """The same; F1 and confusion at thresholds that were chosen before."""
        return ObjectPrecision(classes, kinds=self.kinds, thresholds=thresholds)

    def thresholds(self, scores: Scores) -> tuple[float, ...] | None:
        """Of each class that with the best F1, between two scores."""
        return tuple(float(row[0] or 0) for row in scores.tables["operating_points"].values)

    def confident(self, prediction: Target, thresholds: Sequence[float]) -> Target:
        """Objects without those below the threshold of their class."""
        instances = cast("Instances", prediction)
        assert instances.scores is not None
        least = torch.tensor(thresholds, device=instances.scores.device)[instances.classes]
        return take(instances, ~(instances.scores < least))

    def derived(self, outputs: Outputs, thresholds: Tensor) -> dict[str, Tensor]:
        """`confident` (B, N) bool: what `confident` leaves."""
        objects = cast("ObjectOutputs", outputs)
        least = thresholds[objects.classes.clamp(min=0)]
        return {"confident": (objects.scores >= least) & (objects.classes >= 0)}

    def draw(self, image: Tensor, target: Target, classes: Sequence[str]) -> Image.Image:
        """The image with its objects, above their names and how many there are."""
        return drawing.objects(image, self._shown(target), classes)

    def agreement(self, reference: Target, answer: Target, *, overlap: float = SAME_OBJECT) -> Agreement:
        """Objects that both have, and their numbers."""
        return agreement.of_objects(cast("Instances", reference), cast("Instances", answer), overlap=overlap)

    def record(self, target: Target, classes: Sequence[str]) -> dict[str, Any]:
        """{"objects": [{"name", "class_id", "box": [x, y, width, height], "score"}, ...]}, boxes in pixels.

        A truth has no score. With masks each also has "segmentation", run lengths as COCO writes them.
        """
        instances = self._shown(target)
        boxes = instances.boxes.float().cpu()
        corners = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
        objects: list[dict[str, Any]] = [
            {"name": classes[index], "class_id": index, "box": [round(number, BOX_DIGITS) for number in box]}
            for index, box in zip(instances.classes.tolist(), corners)
        ]
        if instances.scores is not None:
            for record, score in zip(objects, instances.scores.tolist()):
                record["score"] = round(score, DIGITS)
        if instances.masks is not None:
            for record, counts in zip(objects, masks.to_runs(instances.masks)):
                record["segmentation"] = {"size": list(instances.masks.size), "counts": counts.decode()}
        return {"objects": objects}

    def words(self, target: Target, classes: Sequence[str]) -> str:
        """How many objects of which classes, the most frequent first."""
        counts = Counter(classes[index] for index in cast("Instances", target).classes.tolist())
        return ", ".join(f"{number} {name}" for name, number in counts.most_common()) or "no object"

    def writers(self) -> dict[str, type[Writer]]:
        """COCO's results and YOLO's lines."""
        return {"coco": CocoResults, "yolo": YoloLines}

    def sections(self, evidence: Evidence) -> Iterable[page.Section]:
        """The curves, and the pictures where the model is most and least wrong."""
        if table := evidence.evaluation["tables"].get("precision_recall"):
            note = "At an overlap of one half. The further up and to the right, the better; a line is a class."
            yield page.Section("Precision and recall", _precision_recall(table), note)
        ranked = sorted(self._f1(evidence))
        scores = {index: f"F1 {score:.2f}" for score, index in ranked}
        worst = [index for _, index in ranked[:SHOWN]]
        best = [index for _, index in ranked[SHOWN:][: -SHOWN - 1 : -1]]
        for title, shown in (("Most wrong", worst), ("Most right", best)):
            note = "By F1 of the picture at the thresholds of the model; the truth beside what the model says."
            yield page.Section(title, self.comparison(evidence, shown, scores), note)

    def _f1(self, evidence: Evidence) -> list[tuple[float, int]]:
        """(F1, index) of pictures, evenly picked; 1 where there is nothing and nothing is predicted."""
        scores = []
        for example in evidence.examples(evidence.evenly(SEARCHED)):
            truth = cast("Instances", evidence.truth(example.number))
            both = pair(cast("Instances", example.prediction), truth, kinds=self.kinds[:1])
            verdict = judged(both, overlaps(both, self.kinds[0]))
            right, wrong = (int((verdict == kind).sum()) for kind in (RIGHT, WRONG))
            counted = right + wrong + int((~both.truth.crowd).sum())
            scores.append((2 * right / counted if counted else 1.0, example.number))
        return scores

    def _shown(self, target: Target) -> Instances:
        """Without what the task does not speak of."""
        instances = cast("Instances", target)
        return instances if "masks" in self.kinds else instances._replace(masks=None)


def _precision_recall(table: Mapping[str, Any]) -> str:
    """A chart of the classes that occur, as many as there are colours."""
    levels = [float(level) for level in table["columns"]]
    curves = [
        Curve(name, list(zip(levels, row))) for name, row in zip(table["rows"], table["values"]) if None not in row
    ]
    drawn = chart("precision", curves[: len(COLORS)], x="recall", most=1.0)
    return f'<div class="grid">{drawn}</div>' if drawn else ""
