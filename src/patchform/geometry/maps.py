"""Maps of cells (B, C, h, w): resized, laid over the pixels that the cells are of.

Every size may be a symbol (`grids.known`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from patchform.geometry import grids
from patchform.geometry.grids import larger

Mode = Literal["nearest", "bilinear"]


def to_size(x: Tensor, size: Sequence[int], mode: Mode = "bilinear") -> Tensor:
    """(B, C, h, w) -> (B, C, *size), corners not aligned; at its own size it is returned as it is."""
    here = x.shape[-2:]
    if grids.known(*here, *size) and tuple(here) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode=mode, **({} if mode == "nearest" else {"align_corners": False}))


def reach(covered: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels that cells are resized to, so that each lies over its own pixels.

    Cells of a stride that is itself rounded (CrossViT) may cover less than the input; they are stretched over it.

    Args:
        covered: height and width of what they cover, pixels; the last cells may reach beyond the input.
        size: of the input.
    """
    return larger(covered[0], size[0]), larger(covered[1], size[1])


def over_pixels(cells: Tensor, covered: tuple[int, int], size: tuple[int, int], mode: Mode = "bilinear") -> Tensor:
    """(B, C, h, w) -> (B, C, *size) float32: resized to what they cover, see `reach`; what lies beyond is cut off."""
    return to_size(cells.float(), reach(covered, size), mode)[..., : size[0], : size[1]]
