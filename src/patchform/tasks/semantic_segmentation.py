"""Semantic segmentation: the class of every pixel."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchform import drawing
from patchform.metrics.base import Metric, Together
from patchform.metrics.calibration import PixelCalibration
from patchform.metrics.intersection import BoundaryIntersection, Intersection
from patchform.records import IGNORED, Regions, Target
from patchform.tasks.base import Task

LEGEND = 12
"""Names below a picture, the largest areas first."""
DIGITS = 6
"""Of written shares."""


class SemanticSegmentation(Task):
    """A class for every pixel of the picture as it was before resizing; `records.IGNORED` in a truth counts nowhere."""

    name: ClassVar[str] = "semantic_segmentation"
    target: ClassVar[type] = Regions
    head: ClassVar[str] = "setr"
    better = "mean_iou"

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

    def record(self, target: Target, classes: Sequence[str]) -> dict[str, Any]:
        """{"shares": {name: share}} of the labelled pixels, the largest first, without classes that do not occur."""
        return {"shares": {classes[index]: round(share, DIGITS) for index, share in _shares(cast("Regions", target))}}

    def files(self, target: Target, *, scores: bool = False) -> dict[str, bytes]:
        """`.classes.png`: the numbers of the classes, 255 ignored, with colours for who looks at it.

        With `scores`: `.scores.npy`, (C, H, W) float16 probabilities.
        """
        regions = cast("Regions", target)
        found = {".classes.png": drawing.to_png_bytes(drawing.index_picture(regions.classes))}
        if scores and regions.scores is not None:
            stream = io.BytesIO()
            np.save(stream, regions.scores.half().cpu().numpy())
            found[".scores.npy"] = stream.getvalue()
        return found


def _shares(regions: Regions) -> list[tuple[int, float]]:
    """Classes that occur with their shares of the labelled pixels, the largest first."""
    counts = torch.bincount(regions.classes.flatten().cpu().long(), minlength=IGNORED + 1)[:IGNORED]
    shares, order = (counts / counts.sum().clamp(min=1)).sort(descending=True, stable=True)
    return [(index, share) for index, share in zip(order.tolist(), shares.tolist()) if share > 0]
