"""How far an answer is from a reference: of two models, or two forms of one, that looked at the same picture.

Numbers are compared as shares of their scale, so that one tolerance is for all of them; decisions are counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from patchform.geometry import masks
from patchform.records import Bitmaps, Embedding, Instances, Label, Regions, Target, tensors_of

LEAST = 1e-2
"""Scores are compared as shares of the largest, which counts for at least this."""
RATIO = 1e-2
"""How much less strictly the ratio of two scores counts than their difference."""
FAINT = 1e-6
"""Score below which ratios do not count."""
SAME = 1e-4
"""Boxes are the same object's, however thin, where their corners are no further apart than this share of the side."""


class Count(NamedTuple):
    """Decisions that were compared."""

    all: int
    different: int

    @property
    def share(self) -> float:
        """Of those that differ."""
        return self.different / self.all if self.all else 0.0


class Agreement(NamedTuple):
    """How far answers are from references."""

    apart: Mapping[str, float]
    """By output: the largest difference as a share of the scale; inf where shapes differ or a number is not finite."""
    decisions: Mapping[str, Count]
    """By what was decided: images, objects, pixels."""

    @property
    def worst(self) -> float:
        """The largest difference of all."""
        return max(self.apart.values(), default=0.0)

    @property
    def different(self) -> int:
        """Decisions that differ."""
        return sum(count.different for count in self.decisions.values())

    def __or__(self, other: Agreement) -> Agreement:
        """Of both together."""
        apart = {
            name: max(self.apart.get(name, 0.0), other.apart.get(name, 0.0)) for name in {**self.apart, **other.apart}
        }
        decisions = dict(self.decisions)
        for name, count in other.decisions.items():
            mine = decisions.get(name, Count(0, 0))
            decisions[name] = Count(mine.all + count.all, mine.different + count.different)
        return Agreement(apart, decisions)


NOTHING = Agreement({}, {})
"""Where nothing was compared."""


def of_labels(reference: Label, answer: Label) -> Agreement:
    """One decision an image: the set of its classes."""
    differs = sorted(reference.classes.tolist()) != sorted(answer.classes.tolist())
    return Agreement(_scores(reference.scores, answer.scores), {"images": Count(1, int(differs))})


def of_embeddings(reference: Embedding, answer: Embedding) -> Agreement:
    """No decisions; `angle` is 1 - the cosine."""
    first, second = reference.scores.double(), answer.scores.double()
    if first.shape != second.shape:
        return Agreement({"scores": math.inf}, {})
    angle = 1 - torch.nn.functional.cosine_similarity(first, second, dim=0)
    return Agreement({"scores": _relative(first, second), "angle": _number(angle.clamp(min=0))}, {})


def of_regions(reference: Regions, answer: Regions) -> Agreement:
    """A decision a pixel."""
    pixels = reference.classes.numel()
    if reference.classes.shape != answer.classes.shape:
        return Agreement({}, {"pixels": Count(pixels, pixels)})
    different = int((reference.classes != answer.classes).sum())
    return Agreement(_scores(reference.scores, answer.scores), {"pixels": Count(pixels, different)})


def of_objects(reference: Instances, answer: Instances, *, overlap: float) -> Agreement:
    """A decision an object: whether the other has it too, of its class, at about its place.

    Numbers are those of objects that both have. Pixels of masks are decisions of their own. The scale of boxes is the
    largest coordinate of the reference, which is at most the side of the picture.

    Args:
        reference: with scores.
        answer: likewise.
        overlap: of the boxes of an object that both have, at least: |A and B| / |A or B|.
    """
    pairs = _matched(reference, answer, overlap)
    alone = len(reference.classes) + len(answer.classes) - 2 * len(pairs)
    decisions = {"objects": Count(len(pairs) + alone, alone)}
    first, second = (torch.tensor(index, dtype=torch.int64) for index in (zip(*pairs) if pairs else ((), ())))
    boxes = reference.boxes[first].double(), answer.boxes[second].double()
    apart = {"boxes": _number((boxes[0] - boxes[1]).abs().max() / _side(reference)) if pairs else 0.0}
    if reference.scores is not None and answer.scores is not None:
        apart |= _scores(reference.scores[first], answer.scores[second]) if pairs else {"scores": 0.0}
    if reference.masks is not None and answer.masks is not None:
        decisions["mask pixels"] = _mask_pixels(reference.masks, answer.masks, first, second)
    elif reference.masks is not None or answer.masks is not None:
        apart["masks"] = math.inf
    return Agreement(apart, decisions)


def of_fields(reference: Target, answer: Target) -> Agreement:
    """Of any record: its floating point numbers by their largest, all others as decisions."""
    first, second = list(tensors_of(reference)), list(tensors_of(answer))
    if [tensor.shape for tensor in first] != [tensor.shape for tensor in second]:
        return Agreement({"shapes": math.inf}, {})
    whole = NOTHING
    for one, other in zip(first, second):
        if one.is_floating_point():
            whole |= Agreement({"numbers": _relative(one.double(), other.double())}, {})
        else:
            whole |= Agreement({}, {"values": Count(one.numel(), int((one != other).sum()))})
    return whole


def _scores(reference: Tensor | None, answer: Tensor | None) -> dict[str, float]:
    """Difference of scores in 0..1, where both have them.

    A sure model hides in its small scores what has changed: of 0.99999 nothing is left to see. So their ratio counts
    too, less strictly: logits keep fewer digits than probabilities.
    """
    if reference is None or answer is None:
        return {}
    if reference.shape != answer.shape:
        return {"scores": math.inf}
    first, second = reference.double(), answer.double()
    if not first.numel():
        return {"scores": 0.0}
    scale = first.max().clamp(min=LEAST)
    difference = (first - second).abs()
    return {"scores": max(_number((difference / scale).max()), RATIO * _number((difference / (first + FAINT)).max()))}


def _relative(reference: Tensor, answer: Tensor) -> float:
    """Largest difference as a share of the largest number."""
    if not reference.numel():
        return 0.0
    return _number((reference - answer).abs().max() / reference.abs().max().clamp(min=1e-12))


def _number(value: Tensor) -> float:
    number = float(value)
    return number if math.isfinite(number) else math.inf


def _side(objects: Instances) -> Tensor:
    return objects.boxes.double().max().clamp(min=1) if len(objects.boxes) else torch.ones((), dtype=torch.float64)


def _matched(reference: Instances, answer: Instances, overlap: float) -> list[tuple[int, int]]:
    """Numbers of the objects that are the same: each of the reference, in its order, takes the nearest that is free."""
    if not len(reference.classes) or not len(answer.classes):
        return []
    first, second = reference.boxes.double()[:, None], answer.boxes.double()[None]
    distance = (first - second).abs().amax(2) / _side(reference)
    shared = (first[..., 2:].minimum(second[..., 2:]) - first[..., :2].maximum(second[..., :2])).clamp(min=0).prod(2)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(2) for boxes in (first, second)]
    near = (shared >= overlap * (areas[0] + areas[1] - shared)) & (shared > 0) | (distance <= SAME)
    near &= reference.classes[:, None] == answer.classes[None]
    if reference.scores is not None and answer.scores is not None:
        distance = distance + (reference.scores.double()[:, None] - answer.scores.double()[None]).abs()
    distance = distance.masked_fill(~near, math.inf)
    pairs = []
    for number in near.any(1).nonzero()[:, 0].tolist():
        best = int(distance[number].argmin())
        if math.isfinite(float(distance[number, best])):
            pairs.append((number, best))
            distance[:, best] = math.inf
    return pairs


def _mask_pixels(reference: Bitmaps, answer: Bitmaps, first: Tensor, second: Tensor) -> Count:
    """Pixels that either mask of an object has; those that one of the two has alone."""
    if reference.size != answer.size:
        return Count(1, 1)
    from faster_coco_eval import mask as coco

    size = list(reference.size)
    runs = [
        [{"size": size, "counts": counts} for counts in masks.to_runs(masks.take(bitmaps, index))]
        for bitmaps, index in ((reference, first), (answer, second))
    ]
    either, both = 0, 0
    for pair in zip(*runs):
        either += int(coco.area(coco.merge(list(pair))))
        both += int(coco.area(coco.merge(list(pair), 1)))
    return Count(either, either - both)
