"""Cells of two images exchanged in a box (MixToken: Jiang et al., NeurIPS 2021, arXiv:2104.10858, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from patchform.records import CellBox


def partners(x: Tensor) -> Tensor:
    """(B, ...) -> the same, where images 2i and 2i + 1 have changed places; of an odd number the last one stays.

    So parts of a batch that begin at even places pair as the whole does.
    """
    even = x.shape[0] // 2 * 2
    return torch.cat([x[:even].unflatten(0, (-1, 2)).flip(1).flatten(0, 1), x[even:]])


def exchange(cells: Tensor, box: CellBox, scale: int = 1) -> Tensor:
    """Cells (B, H, W, D) with those of the box taken from each one's partner; done twice, they are as they were.

    Args:
        cells: of an embedding.
        box: of cells that are `scale` times as large.
        scale: cells of the embedding along a side of one of the box.
    """
    top, left, bottom, right = (scale * side for side in box)
    exchanged = cells.clone()
    exchanged[:, top:bottom, left:right] = partners(cells[:, top:bottom, left:right])
    return exchanged
