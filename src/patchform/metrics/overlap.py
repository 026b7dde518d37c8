"""Objects of a picture as metrics see them, how much two of them overlap, and which answer is right.

Overlaps are those of the COCO tools: |A and B| / |A or B| of boxes with exact borders, or of masks; with a crowd, that
stands for any number of objects, |A and B| / |A|.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
from torch import Tensor

from patchform.errors import DataError, DivergedError
from patchform.geometry import masks
from patchform.metrics.base import finite
from patchform.records import Instances, Target

Kind: TypeAlias = Literal["boxes", "masks"]
ENOUGH = 0.5
"""Overlap from which an answer is right."""
RIGHT, WRONG, UNJUDGED = 1, 0, -1


class ObjectArrays(NamedTuple):
    """Objects of one picture, on the CPU."""

    boxes: np.ndarray
    """(N, 4) float64: x, y, width, height."""
    classes: np.ndarray
    """(N,) int64."""
    scores: np.ndarray
    """(N,) float64, falling; 1 for a truth."""
    crowd: np.ndarray
    """(N,) bool."""
    areas: np.ndarray | None
    """(N,) float64 of a truth, None for a prediction."""
    masks: list[dict[str, Any]] | None
    """Run lengths as the COCO tools have them: {"size": [height, width], "counts": bytes}."""


class Pair(NamedTuple):
    """What is there, and what a model says is there."""

    truth: ObjectArrays
    answer: ObjectArrays


def pair(prediction: Target, target: Target, *, kinds: Sequence[Kind]) -> Pair:
    """Two `Instances` of a picture, with what is needed to judge them.

    Raises:
        DataError: a prediction without scores; no masks, where they are judged; masks of two sizes.
        DivergedError: a score or a box that is not finite.
    """
    answer, truth = cast("Instances", prediction), cast("Instances", target)
    if answer.scores is None:
        raise DataError("a prediction without scores")
    both = Pair(_arrays(truth, kinds), _arrays(answer, kinds))
    if both.truth.masks and both.answer.masks and both.truth.masks[0]["size"] != both.answer.masks[0]["size"]:
        sizes = [tuple(objects.masks[0]["size"]) for objects in reversed(both) if objects.masks]
        raise DataError(f"predicted masks of {sizes[0]} pixels for true ones of {sizes[1]}")
    return both


def count(pairs: Sequence[Pair], classes: int) -> np.ndarray:
    """(C,) int64: objects of each class, crowds aside."""
    classes_of = [both.truth.classes[~both.truth.crowd] for both in pairs]
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *classes_of]), minlength=classes)


def areas_of(objects: ObjectArrays, kind: Kind) -> np.ndarray:
    """(N,) float64 pixels."""
    if objects.areas is not None:
        return objects.areas
    if kind == "boxes":
        return objects.boxes[:, 2] * objects.boxes[:, 3]
    from faster_coco_eval import mask as coco

    return np.asarray(coco.area(objects.masks or []), np.float64)


def overlaps(pair: Pair, kind: Kind) -> np.ndarray:
    """(answers, truths) float64 in 0..1."""
    truth, answer = ((objects.masks if kind == "masks" else objects.boxes) for objects in pair)
    shape = len(pair.answer.classes), len(pair.truth.classes)
    if 0 in shape:
        return np.zeros(shape)
    from faster_coco_eval import mask as coco

    return np.asarray(coco.iou(answer, truth, pair.truth.crowd.astype(int).tolist())).reshape(shape)


def judged(pair: Pair, overlap: np.ndarray) -> np.ndarray:
    """Whether each answer is right, as the COCO tools decide it at an overlap of `ENOUGH`.

    The surest answer chooses first, among the objects of its class that are still free, the one it overlaps most. A
    second answer to an object is wrong. One that has nothing but a crowd of its class is neither right nor wrong.

    Args:
        pair: answers and truths of a picture.
        overlap: `overlaps` of the two.

    Returns:
        (answers,) int8: RIGHT, WRONG or UNJUDGED.
    """
    verdict = np.full(len(overlap), WRONG, np.int8)
    fits = (overlap >= ENOUGH) & (pair.answer.classes[:, None] == pair.truth.classes)
    free = ~pair.truth.crowd
    for number in np.flatnonzero(fits.any(1)):
        candidates = np.flatnonzero(fits[number] & free)
        if len(candidates):
            free[candidates[overlap[number, candidates].argmax()]] = False
            verdict[number] = RIGHT
        elif (fits[number] & pair.truth.crowd).any():
            verdict[number] = UNJUDGED
    return verdict


def _arrays(objects: Instances, kinds: Sequence[Kind]) -> ObjectArrays:
    number = len(objects.classes)
    if not objects.boxes.isfinite().all():
        raise DivergedError("boxes that are not finite", remedy="go back to an earlier checkpoint")
    corners = _array(objects.boxes, np.float64).reshape(number, 4)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    outlines, areas = None, None
    if "masks" in kinds:
        if objects.masks is None:
            raise DataError("objects without masks", remedy="choose the task detection, which has boxes only")
        size = list(objects.masks.size)
        outlines = [{"size": size, "counts": counts} for counts in masks.to_runs(objects.masks)]
    if objects.scores is None:
        annotated = objects.areas
        if annotated is None and objects.masks is not None:
            annotated = masks.areas(objects.masks)
        areas = boxes[:, 2] * boxes[:, 3] if annotated is None else _array(annotated, np.float64)
        scores = np.ones(number)
    else:
        scores = _array(finite(objects.scores.float()), np.float64)
    order = np.argsort(-scores, kind="stable")
    crowd = np.zeros(number, bool) if objects.crowd is None else _array(objects.crowd, bool)
    return ObjectArrays(
        boxes[order],
        _array(objects.classes, np.int64)[order],
        scores[order],
        crowd[order],
        None if areas is None else areas[order],
        None if outlines is None else [outlines[index] for index in order],
    )


def _array(values: Tensor, kind: Any) -> np.ndarray:
    return values.detach().cpu().numpy().astype(kind)
