"""Average precision and recall of objects, as the COCO tools define them.

Lin et al., "Microsoft COCO: common objects in context" (2014), and the evaluation that came with it: precision is
interpolated at 101 levels of recall, at ten overlaps from 0.5 to 0.95, and averaged over both and over the classes.
Crowds count for nothing. At most 100 answers a picture and class count. The size of an object is its annotated area:
small below 32 x 32 pixels, large above 96 x 96.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from patchform.errors import DataError
from patchform.metrics import operating_points
from patchform.metrics.base import Metric, Scores, Table, same_number
from patchform.metrics.overlap import Kind, ObjectArrays, Pair, areas_of, count, pair
from patchform.records import Target

SIZES = ("", "_small", "_medium", "_large")
MOST = (1, 10, 100)
"""Answers a picture and class that count; all but the recall `ar_1` and `ar_10` are of the last."""
PREFIX: dict[Kind, str] = {"boxes": "box_", "masks": "mask_"}
"""Of the numbers of a second kind."""


class Curves(NamedTuple):
    """What the numbers are means of; NaN where there is no object."""

    precision: np.ndarray
    """(10 overlaps, 101 recalls, classes, 4 sizes, 3 numbers of answers)."""
    recall: np.ndarray
    """(10 overlaps, classes, 4 sizes, 3 numbers of answers)."""


class ObjectPrecision(Metric):
    """Average precision and recall of boxes, of masks, or of both; and what a threshold on the scores gives.

    All objects are kept until the end, masks as run lengths. Among equal scores in different pictures, the picture that
    came first ranks first, as the one with the lower number does in the COCO tools: only there the order matters.

    Numbers: `ap`; `ap50` and `ap75` at one overlap; `ap_small`, `ap_medium`, `ap_large`; recall `ar_1`, `ar_10`,
    `ar_100`, `ar_small`, `ar_medium`, `ar_large`; `f1` and `ece` (`metrics.operating_points`). Those of a second kind
    begin with its name: `box_ap`. Tables: `classes`; `precision_recall`, the curves at an overlap of 0.5;
    `operating_points`, `reliability`, `confusion`.

    Args:
        classes: names in the order of the ids.
        kinds: "boxes", "masks" or both; the first gives the number to compare by.
        thresholds: scores from which a prediction counts, one a class, for `f1` and `confusion`; None: those with the
            best F1 on these very data.
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        kinds: Sequence[Kind] = ("boxes",),
        thresholds: Sequence[float] | None = None,
    ) -> None:
        self.classes, self.kinds, self.thresholds = tuple(classes), tuple(kinds), thresholds
        self._pairs: list[Pair] = []

    def update(self, predictions: Sequence[Target], targets: Sequence[Target]) -> None:
        """Take in a batch of `Instances`; prediction and target of an image are in the same pixels.

        Raises:
            DataError: a prediction without scores, no masks where they are judged, or an id that is not of a class.
            DivergedError: a score or a box that is not finite.
        """
        same_number(predictions, targets)
        for prediction, target in zip(predictions, targets):
            both = pair(prediction, target, kinds=self.kinds)
            for objects in both:
                if ((objects.classes < 0) | (objects.classes >= len(self.classes))).any():
                    raise DataError(f"an object beyond the {len(self.classes)} classes", remedy="check the class list")
            self._pairs.append(both)

    def compute(self) -> Scores:
        """The scores of all that was taken in."""
        numbers: dict[str, float | None] = {}
        curves = [measured(self._pairs, len(self.classes), kind) for kind in self.kinds]
        for kind, curve in zip(self.kinds, curves):
            before = "" if kind == self.kinds[0] else PREFIX[kind]
            numbers |= {before + name: value for name, value in _numbers(curve).items()}
        first = curves[0]
        last = first.precision[..., -1]
        rows = [
            [_mean(last[:, :, index, 0]), _mean(last[0, :, index, 0]), _mean(first.recall[:, index, 0, -1]), number]
            for index, number in enumerate(count(self._pairs, len(self.classes)).tolist())
        ]
        levels = tuple(f"{level / 100:.2f}" for level in range(101))
        shown = [[_defined(value) for value in last[0, :, index, 0].tolist()] for index in range(len(self.classes))]
        tables = {
            "classes": Table(("ap", "ap50", "ar_100", "objects"), self.classes, rows),
            "precision_recall": Table(levels, self.classes, shown),
        }
        operating = operating_points.judge(self._pairs, self.classes, self.kinds[0], self.thresholds)
        return Scores(len(self._pairs), "ap", numbers | operating.numbers, tables | operating.tables)


def measured(pairs: Sequence[Pair], classes: int, kind: Kind) -> Curves:
    """Precision and recall at all settings, of pictures in the order of `pairs`."""
    if not pairs:
        return Curves(np.full((10, 101, classes, 4, 3), np.nan), np.full((10, classes, 4, 3), np.nan))
    from faster_coco_eval import COCOeval_faster

    truth, answers = (_coco([both[side] for both in pairs], classes, kind) for side in (0, 1))
    tool = COCOeval_faster(truth, answers, "segm" if kind == "masks" else "bbox", rle_iou_max_workers=1)
    tool.params.maxDets = list(MOST)
    tool.evaluate()
    tool.accumulate()
    shape = (10, 101, classes, 4, 3)
    precision = np.asarray(tool.eval["precision"], np.float64).reshape(shape)
    recall = np.asarray(tool.eval["recall"], np.float64).reshape(10, *shape[2:])
    return Curves(np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall))


def _coco(pictures: Sequence[ObjectArrays], classes: int, kind: Kind) -> Any:
    """Objects as the COCO tools hold them in memory. Their ids begin at 1: 0 means "none" to the tools."""
    from faster_coco_eval import COCO

    annotations: list[dict[str, Any]] = []
    for image, objects in enumerate(pictures):
        fields = zip(
            objects.boxes.tolist(),
            objects.classes.tolist(),
            objects.scores.tolist(),
            objects.crowd.tolist(),
            areas_of(objects, kind).tolist(),
            objects.masks if kind == "masks" and objects.masks else [None] * len(objects.classes),
        )
        annotations += [
            {
                "id": len(annotations) + number,
                "image_id": image,
                "category_id": class_,
                "bbox": box,
                "score": score,
                "iscrowd": int(crowd),
                "area": area,
                **({"segmentation": mask} if mask is not None else {}),
            }
            for number, (box, class_, score, crowd, area, mask) in enumerate(fields, start=1)
        ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image, **_size(objects)} for image, objects in enumerate(pictures)],
        "categories": [{"id": class_} for class_ in range(classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _size(objects: ObjectArrays) -> dict[str, int]:
    height, width = objects.masks[0]["size"] if objects.masks else (0, 0)
    return {"height": height, "width": width}


def _numbers(curves: Curves) -> dict[str, float | None]:
    precision, recall = curves.precision[..., -1], curves.recall
    numbers = {f"ap{size}": _mean(precision[..., index]) for index, size in enumerate(SIZES)}
    numbers |= {"ap50": _mean(precision[0, ..., 0]), "ap75": _mean(precision[5, ..., 0])}
    numbers |= {f"ar_{most}": _mean(recall[:, :, 0, index]) for index, most in enumerate(MOST)}
    return numbers | {f"ar{size}": _mean(recall[:, :, index, -1]) for index, size in enumerate(SIZES) if size}


def _mean(values: np.ndarray) -> float | None:
    """Of those that are not NaN; None when none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def _defined(value: float) -> float | None:
    return None if value != value else value
