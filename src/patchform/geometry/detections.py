"""From what a detector says to objects of a picture: the part of the input that is picture, its pixels, the best boxes.

Boxes are xyxy pixels, float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from patchform.geometry.grids import as_tensor
from patchform.records import Features


def picture_sizes(features: Features) -> Tensor:
    """(B, 2) float32: height and width in pixels of the part of each input that is not padding."""
    if features.pixel_padding is None:
        size = as_tensor(features.size, device=features.maps[0].device)
        return size.expand(features.maps[0].shape[0], 2)
    real = ~features.pixel_padding
    return torch.stack([real.any(2).sum(1), real.any(1).sum(1)], 1).float()


def clip(boxes: Tensor, size: Tensor) -> Tensor:
    """(..., 4) boxes, cut off at the border of a picture of `size` (..., 2), which broadcasts: height, width."""
    return torch.minimum(boxes.clamp(min=0), _twice(size))


def to_pictures(boxes: Tensor, real: Tensor, sizes: Tensor | Sequence[int]) -> Tensor:
    """Boxes of the input as boxes of the picture before it was resized, inside it.

    Args:
        boxes: (..., N, 4) pixels of the input.
        real: (..., 2) height and width of the picture in the input: `picture_sizes`, or a row of it.
        sizes: (..., 2) height and width of the picture itself, pixels.

    Returns:
        (..., N, 4) float32.
    """
    whole = torch.as_tensor(sizes, device=boxes.device).float()
    return clip(boxes.float() * _twice(whole / real).unsqueeze(-2), whole.unsqueeze(-2))


def _twice(size: Tensor) -> Tensor:
    """(..., 2) of height and width -> (..., 4) of the sides of a box."""
    flipped = size.flip(-1)
    return torch.cat([flipped, flipped], -1)


@torch.library.custom_op("patchform::nms", mutates_args=())
def nms(boxes: Tensor, scores: Tensor, groups: Tensor, number: int, overlap: float, most: int) -> Tensor:
    """Which boxes are left when those that overlap a better one of their group are taken away.

    An operator of its own: its shapes do not depend on what is seen, so that graphs of any model hold it as one node,
    which a file says in its own words (`patchform.export.operators`).

    Args:
        boxes: (B, K, 4).
        scores: (B, K) of any range; boxes of minus infinity, or not a number, are none.
        groups: (B, K) int64, 0..number - 1; boxes of different groups do not compete.
        number: of groups.
        overlap: IoU above which the worse of two boxes goes.
        most: so many are given at most.

    Returns:
        (B, most) int64: indices into K, scores falling, then -1.
    """
    from torchvision.ops import batched_nms

    result = groups.new_full((boxes.shape[0], most), -1)
    for image, score in enumerate(scores.float()):
        rows = (score > -math.inf).nonzero()[:, 0]
        kept = rows[batched_nms(boxes[image, rows].float(), score[rows], groups[image, rows], overlap)[:most]]
        result[image, : len(kept)] = kept
    return result


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor, number: int, overlap: float, most: int) -> Tensor:
    return groups.new_empty(boxes.shape[0], most)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """(B, K, ...) and (B, N) int64, as `nms` gives it -> (B, N, ...): values of these; of -1 any."""
    at = index.clamp(min=0)
    at = at[(...,) + (None,) * (values.dim() - 2)].expand(-1, -1, *values.shape[2:])
    return values.gather(1, at)
