"""Outlines as they are written: polygons or run lengths, the boxes around them, and whether these can be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from patchform.data.listing import RLE, Segmentation
from patchform.errors import DataError
from patchform.geometry.masks import run_lengths


def outline_box(outline: Segmentation) -> tuple[float, float, float, float] | None:
    """The xyxy box in pixels around an outline; None for one that holds nothing or is damaged."""
    if not isinstance(outline, RLE):
        points = [polygon for polygon in outline if len(polygon) >= 3 and np.isfinite(polygon).all()]
        if not points:
            return None
        (left, top), (right, bottom) = np.concatenate(points).min(0).tolist(), np.concatenate(points).max(0).tolist()
        return (left, top, right, bottom) if right > left and bottom > top else None
    lengths, (height, width) = runs_of(outline.counts), outline.size
    if lengths is None or lengths.sum() != height * width or not lengths[1::2].any():
        return None
    ends = lengths.cumsum()
    starts = (ends - lengths)[1::2][lengths[1::2] > 0]  # of the runs that are on, down the columns
    last = ends[1::2][lengths[1::2] > 0] - 1
    whole = (starts // height != last // height).any()  # a run that goes on in the next column
    top, bottom = (0, height) if whole else (int((starts % height).min()), int((last % height).max()) + 1)
    return float(starts.min() // height), float(top), float(last.max() // height + 1), float(bottom)


def runs_of(counts: bytes | Sequence[int]) -> np.ndarray | None:
    """(K,) int64 lengths of runs, of either form of COCO's; None where they are damaged."""
    try:
        lengths = run_lengths(counts) if isinstance(counts, bytes) else np.array(counts, np.int64)
    except (DataError, OverflowError):
        return None
    return lengths if not len(lengths) or lengths.min() >= 0 else None


def polygon_area(polygons: Iterable[np.ndarray]) -> float:
    """Pixels inside polygons that do not overlap."""
    total = 0.0
    for polygon in polygons:
        x, y = polygon.astype(np.float64).T
        total += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return total
