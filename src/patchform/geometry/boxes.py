"""Boxes in their several forms. xyxy pixels, float32, everywhere but at a head's own door."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST_GROWTH = math.log(1000 / 16)
"""Logarithm of the most that `decode` makes a box wider or higher by: exp of any more might not be finite."""


def to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height -> xyxy."""
    centre, size = boxes.split(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def to_centres(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy -> centre x, centre y, width, height."""
    start, end = boxes.split(2, -1)
    return torch.cat([(start + end) / 2, end - start], -1)


def encode(boxes: Tensor, anchors: Tensor, scales: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """How anchors have to move and grow to become boxes (Girshick et al. 2014, R-CNN, appendix C).

    Args:
        boxes: (..., 4), with positive sides.
        anchors: likewise.
        scales: factors of the four numbers: such as make them about 1.

    Returns:
        (..., 4): movement of the centre in widths and heights of the anchor, logarithm of the growth of both.
    """
    (x, y, width, height), (x0, y0, width0, height0) = _centred(boxes), _centred(anchors)
    deltas = [(x - x0) / width0, (y - y0) / height0, (width / width0).log(), (height / height0).log()]
    return torch.stack([factor * part for factor, part in zip(scales, deltas)], -1)


def decode(shifts: Tensor, anchors: Tensor, scales: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Anchors, moved and grown: the inverse of `encode`. (..., 4) of both, which broadcast."""
    x0, y0, width0, height0 = _centred(anchors)
    across, down, wider, higher = (part / factor for part, factor in zip(shifts.unbind(-1), scales))
    x, y = across * width0 + x0, down * height0 + y0
    width, height = wider.clamp(max=LARGEST_GROWTH).exp() * width0, higher.clamp(max=LARGEST_GROWTH).exp() * height0
    return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)


def _centred(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre and sides."""
    left, top, right, bottom = boxes.unbind(-1)
    width, height = right - left, bottom - top
    return left + 0.5 * width, top + 0.5 * height, width, height
