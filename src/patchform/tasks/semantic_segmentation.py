"""Semantic segmentation: the class of every pixel."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchform import drawing, page
from patchform.data.checks import masks
from patchform.data.checks.base import Check
from patchform.data.listing import Listing
from patchform.data.pictures import MaskedPictures
from patchform.data.samples import Samples
from patchform.data.segmentation_transforms import evaluation_scene, training_scene
from patchform.descriptions import Preprocessing
from patchform.errors import UsageError
from patchform.metrics import agreement
from patchform.metrics.agreement import Agreement
from patchform.metrics.base import Metric, Together
from patchform.metrics.calibration import PixelCalibration
from patchform.metrics.intersection import BoundaryIntersection, Intersection
from patchform.records import IGNORED, Regions, Target
from patchform.settings import AugmentationSettings
from patchform.tasks.base import DIGITS, SAME_OBJECT, Evidence, Task

LEGEND = 12
"""Names below a picture, the largest areas first."""
SAID = 5
"""Classes in a line."""
SEARCHED, SHOWN = 60, 4
"""Pictures of a report that are searched for mistakes, and that are shown."""


class SemanticSegmentation(Task):
    """A class for every pixel of the picture as it was before resizing; `records.IGNORED` in a truth counts nowhere."""

    name: ClassVar[str] = "semantic_segmentation"
    target: ClassVar[type] = Regions
    head: ClassVar[str] = "setr"
    classes: ClassVar[int] = 150
    windows: ClassVar[Literal["none", "input", "picture"]] = "input"
    in_pixels: ClassVar[bool] = True
    unit: ClassVar[str] = "pixels"
    checks: ClassVar[tuple[Check, ...]] = (*Task.checks, masks.LABELLED, masks.ABSENT)
    better = "mean_iou"
    meaning = "how far predicted and true areas of a class agree (intersection over union), mean over the classes"
    suggested: ClassVar[str] = "pvt/v2_b0.in1k"

    def training_samples(
        self, listing: Listing, preprocessing: Preprocessing, augmentation: AugmentationSettings, seed: int
    ) -> Samples[Any]:
        """Pictures with masks."""
        if augmentation.views > 1:
            raise UsageError("augmentation.views is not for masks and objects", remedy="set it to 1")
        return MaskedPictures(listing, training_scene(preprocessing, augmentation), preprocessing, seed)

    def evaluation_samples(
        self, listing: Listing, preprocessing: Preprocessing, seed: int = 0, *, views: tuple[int, int] = (1, 1)
    ) -> Samples[Any]:
        """Pictures with masks, which stay in the pixels of the picture."""
        return MaskedPictures(listing, evaluation_scene(preprocessing), preprocessing, seed)

    def made_up(
        self, listing: Listing, size: tuple[int, int], augmentation: AugmentationSettings, generator: torch.Generator
    ) -> Target:
        """Any class at any pixel."""
        return Regions(torch.randint(len(listing.classes), size, dtype=torch.uint8, generator=generator))

    def metric(self, classes: Sequence[str]) -> Metric:
        """Intersection over union, from pixel counts over the whole data set."""
        return Intersection(classes)

    def full_metric(self, classes: Sequence[str], *, thresholds: Sequence[float] | None = None) -> Metric:
        """The same, that of the boundaries, and the calibration on a sample of pixels."""
        return Together(Intersection(classes), BoundaryIntersection(classes), PixelCalibration())

    def draw(self, image: Tensor, target: Target, classes: Sequence[str]) -> Image.Image:
        """The image under the colours of its classes, above a legend with the shares of their areas."""
        regions = cast("Regions", target)
        colors = drawing.palette()
        shares = _shares(regions)
        legend = [drawing.Line(classes[index], share, colors[index]) for index, share in shares[:LEGEND]]
        if len(shares) > LEGEND:
            legend.append(drawing.Line(f"and {len(shares) - LEGEND} more"))
        return drawing.caption(drawing.overlay(image, regions.classes), legend or [drawing.Line("nothing is labelled")])

    def agreement(self, reference: Target, answer: Target, *, overlap: float = SAME_OBJECT) -> Agreement:
        """Scores, and the class of each pixel."""
        return agreement.of_regions(cast("Regions", reference), cast("Regions", answer))

    def record(self, target: Target, classes: Sequence[str]) -> dict[str, Any]:
        """{"shares": {name: share}} of the labelled pixels, the largest first, without classes that do not occur."""
        return {"shares": {classes[index]: round(share, DIGITS) for index, share in _shares(cast("Regions", target))}}

    def words(self, target: Target, classes: Sequence[str]) -> str:
        """The largest five classes and their shares of the pixels."""
        shares = _shares(cast("Regions", target))
        said = [f"{classes[index]} {share:.1%}" for index, share in shares[:SAID]]
        more = [f"{len(shares) - SAID} more"] if len(shares) > SAID else []
        return ", ".join(said + more) or "nothing is labelled"

    def files(self, target: Target, *, scores: bool = False) -> dict[str, bytes]:
        """`.classes.png`: the numbers of the classes, 255 ignored, with colours for who looks at it.

        With `scores`: `.scores.npy`, (C, H, W) float16 probabilities.
        """
        regions = cast("Regions", target)
        contents = {".classes.png": drawing.to_png_bytes(drawing.index_picture(regions.classes))}
        if scores and regions.scores is not None:
            stream = io.BytesIO()
            np.save(stream, regions.scores.half().cpu().numpy())
            contents[".scores.npy"] = stream.getvalue()
        return contents

    def sections(self, evidence: Evidence) -> Iterable[page.Section]:
        """The pictures where the model is most and least wrong."""
        ranked = sorted(self._overlaps(evidence))
        scores = {index: f"IoU {score:.2f}" for score, index in ranked}
        worst = [index for _, index in ranked[:SHOWN]]
        best = [index for _, index in ranked[SHOWN:][: -SHOWN - 1 : -1]]
        for title, shown in (("Most wrong", worst), ("Most right", best)):
            note = "By the mean IoU of the classes of the picture; the true classes of its pixels beside the model's."
            yield page.Section(title, self.comparison(evidence, shown, scores), note)

    def _overlaps(self, evidence: Evidence) -> list[tuple[float, int]]:
        """(mean IoU, index) of pictures, evenly picked; those of which nothing is labelled are left out."""
        scores = []
        for example in evidence.examples(evidence.evenly(SEARCHED)):
            metric = Intersection(evidence.classes)
            metric.update([example.prediction], [evidence.truth(example.number)])
            score = metric.compute().best
            if score is not None:
                scores.append((score, example.number))
        return scores


def _shares(regions: Regions) -> list[tuple[int, float]]:
    """Classes that occur with their shares of the labelled pixels, the largest first."""
    counts = torch.bincount(regions.classes.flatten().cpu().long(), minlength=IGNORED + 1)[:IGNORED]
    shares, order = (counts / counts.sum().clamp(min=1)).sort(descending=True, stable=True)
    return [(index, share) for index, share in zip(order.tolist(), shares.tolist()) if share > 0]
