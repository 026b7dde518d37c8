"""From what a detector says to objects of a picture: the part of the input that is picture, its pixels, the best boxes.

Boxes are xyxy pixels, float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchform.records import Features


def picture_sizes(features: Features) -> Tensor:
    """(B, 2) float32: height and width in pixels of the part of each input that is not padding."""
    if features.pixel_padding is None:
        size = torch.tensor(features.size, dtype=torch.float32, device=features.maps[0].device)
        return size.expand(features.maps[0].shape[0], 2)
    real = ~features.pixel_padding
    return torch.stack([real.any(2).sum(1), real.any(1).sum(1)], 1).float()


def clip(boxes: Tensor, size: Tensor) -> Tensor:
    """(..., 4) boxes, cut off at the border of a picture of `size` (2,): height, width."""
    return torch.minimum(boxes.clamp(min=0), size[[1, 0, 1, 0]])


def to_pictures(boxes: Tensor, real: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes of the input as boxes of the picture before it was resized, inside it.

    Args:
        boxes: (N, 4) pixels of the input.
        real: (2,) height and width of the picture in the input: a row of `picture_sizes`.
        size: height and width of the picture itself, pixels.

    Returns:
        (N, 4) float32.
    """
    whole = torch.tensor(size, dtype=torch.float32, device=boxes.device)
    return clip(boxes.float() * (whole / real)[[1, 0, 1, 0]], whole)


def nms(boxes: Tensor, scores: Tensor, classes: Tensor, *, overlap: float, most: int) -> Tensor:
    """Which boxes are left when those that overlap a better one of their class are taken away.

    Args:
        boxes: (N, 4).
        scores: (N,).
        classes: (N,) int64; boxes of different classes do not compete.
        overlap: IoU above which the worse of two boxes goes.
        most: so many are given at most.

    Returns:
        (K,) int64: indices, scores falling.
    """
    from torchvision.ops import batched_nms

    return batched_nms(boxes.float(), scores.float(), classes, overlap)[:most]
