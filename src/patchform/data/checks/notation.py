"""What the numbers of all boxes of a part mean together: pixels, shares, percent, or corners taken for sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from patchform.data.listing import Segmentation
from patchform.data.outlines import outline_box

SHARE_SIDE, PERCENT_SIDE = 8, 200
"""Pixels of the shorter side, from which numbers up to 1, and up to 100, are no pixels."""
PERCENT_BOXES = 20
"""So many boxes that all lie in a corner are no chance."""
APART, NEAR = 0.5, 0.9
"""Overlap (intersection over union) below which a box is not that of an outline, and from which it is."""
SLACK = 4.0
"""Pixels by which a box may always miss its outline."""


def are_shares(boxes: np.ndarray, raw: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """(N,) bool: boxes whose four numbers are shares of their pictures.

    Args:
        boxes: (N, 4) xyxy as they are read.
        raw: (N, 4) the numbers as they are written, as far as a format knows another reading of them.
        limits: (N, 4) width, height, width, height of the pictures.
    """
    with np.errstate(invalid="ignore"):
        small = ((boxes >= -1) & (boxes <= 2)).all(1) & ((np.abs(raw) <= 1.0001).all(1) | (boxes <= 1.0001).all(1))
        fractions = (boxes != np.round(boxes)).any(1)
        return small & fractions & (limits.min(1) >= SHARE_SIDE)


def are_percent(boxes: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether boxes of large pictures all lie in the first 100 pixels, and reach far in these."""
    if len(boxes) < PERCENT_BOXES or sizes.min() < PERCENT_SIDE:
        return False
    return bool(boxes.min() >= 0 and boxes.max() <= 100 and (boxes[:, 2:].max(0) > 80).all())


def around(outlines: Sequence[Segmentation | None], limits: np.ndarray) -> np.ndarray:
    """(N, 4) xyxy of the outline of each object inside its picture, NaN where there is none."""
    boxes = np.full((len(outlines), 4), np.nan)
    for index, outline in enumerate(outlines):
        if outline is not None and (box := outline_box(outline)) is not None:
            boxes[index] = box
    return np.clip(boxes, 0, limits)


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) intersection over union of boxes one by one; NaN where either is."""
    low, high = np.maximum(first[:, :2], second[:, :2]), np.minimum(first[:, 2:], second[:, 2:])
    shared = (high - low).clip(min=0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(1) for boxes in (first, second)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return shared / (areas[0] + areas[1] - shared)


def are_apart(boxes: np.ndarray, outlined: np.ndarray) -> np.ndarray:
    """(N,) bool: boxes that are not around their outlines, by more than a few pixels."""
    with np.errstate(invalid="ignore"):
        return (overlap(boxes, outlined) < APART) & (np.abs(boxes - outlined).max(1) > SLACK)


def fit_otherwise(
    boxes: np.ndarray,
    raw: np.ndarray,
    limits: np.ndarray,
    outlines: Sequence[Segmentation | None] | None,
    areas: np.ndarray | None,
) -> np.ndarray:
    """(N,) bool: boxes that fit their outlines, or without any their areas, if read as `raw`, and else do not.

    Args:
        boxes: (N, 4) xyxy as they are read.
        raw: (N, 4) the same in another reading.
        limits: (N, 4) width, height, width, height of the pictures.
        outlines: of each; None where there are none.
        areas: (N,) as annotated, NaN where there is none; None without any.
    """
    if outlines is not None and any(outlines):
        outlined = around(outlines, limits)
        return are_apart(np.clip(boxes, 0, limits), outlined) & (overlap(np.clip(raw, 0, limits), outlined) > NEAR)
    if areas is None:
        return np.zeros(len(boxes), bool)
    return ~_have_areas(boxes, areas) & _have_areas(raw, areas)


def _have_areas(boxes: np.ndarray, areas: np.ndarray) -> np.ndarray:
    own = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(1)
    with np.errstate(invalid="ignore"):
        return np.abs(own - areas) <= 0.02 * np.abs(areas) + 0.01
