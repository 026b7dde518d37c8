"""EVA-02: a vision transformer with SwiGLU, norms inside and rotary positions (Fang et al. 2023, arXiv:2303.11331).

    image --patches--> [class | p1 p2 ... pN] + position --> block x depth --+--mean, norm--> summary
                                                                 |           +--norm--> tokens
                                                                 +-> maps (from chosen depths, one stride)

    block:  x --norm--> attention --+--norm--> gate (SiLU) * value --norm--> linear --+-->
            |  q, k of patches turn |                                                 |
            +-----------------------+-------------------------------------------------+

Learned positions are added, and queries and keys of patches turn besides: by rows and columns as a picture of the first
training's size numbers them, 16 to a side, whatever the size now. Keys have no biases. The two smallest sizes are
without the norm inside the perceptron.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.backbones.base import Backbone, blocks_with_maps, shrink_padding, through_blocks, zero_pixels
from patchform.descriptions import Variant
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.blocks import Block, hidden_width
from patchform.layers.drop import linear_rates
from patchform.layers.linear import Linear
from patchform.layers.patches import Patches
from patchform.layers.positions import Grid, Learned1D, Rope2D
from patchform.layers.summaries import ClassTokens, MeanThenNorm, Summary
from patchform.records import Features


class EVA02(Backbone):
    """Vision transformer of EVA-02.

    Args:
        in_channels: C of the images.
        image_size: native input, pixels (side or (height, width)); at other sizes learned positions are resized.
        patch: side of a patch, pixels.
        width, depth, heads: D, number of blocks, attention heads.
        mlp_ratio: hidden width of the perceptrons over D.
        qkv_bias: biases of queries and values; keys have none.
        inner_norm: whether a norm is inside the perceptrons.
        rope_grid: rows and columns (one number for both) that the rotation counts from border to border.
        summary: "mean_then_norm" of the patches, or the normalised "class" token.
        drop_path: stochastic depth of the last block, rising linearly from 0.
        maps_from: after which blocks (1 = the first) a map is taken, ascending; default: the last.

    Raises:
        UsageError: an unknown summary.
    """

    beyond_maps = ("norm", "pool")

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        patch: int = 14,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 8 / 3,
        qkv_bias: bool = True,
        inner_norm: bool = True,
        rope_grid: int | tuple[int, int] = 16,
        summary: Literal["class", "mean_then_norm"] = "mean_then_norm",
        drop_path: float = 0.0,
        maps_from: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if summary not in ("class", "mean_then_norm"):
            raise UsageError(f'no summary "{summary}"', remedy="there are: class, mean_then_norm")
        self.maps_from = blocks_with_maps(maps_from, depth)
        self.width, self.patch = width, patch
        self.channels, self.strides = (width,) * len(self.maps_from), (patch,) * len(self.maps_from)

        self.patches = Patches(in_channels, width, patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.position = Learned1D(width, grids.cells(image_size, patch), prefix=1)
        self.blocks = nn.ModuleList(
            EVABlock(
                width,
                heads,
                rope=CountedRope(width // heads, grids.pair(rope_grid)),
                hidden=hidden_width(width, mlp_ratio),
                qkv_bias=qkv_bias,
                inner_norm=inner_norm,
                drop_path=rate,
            )
            for rate in linear_rates(drop_path, depth)
        )
        self.pool: Summary = ClassTokens(width, 1) if summary == "class" else MeanThenNorm(width, 1)
        self.norm = nn.LayerNorm(width, eps=1e-6) if self.pool.last_norm is None else None

        blocks.init_weights(self.blocks)
        nn.init.trunc_normal_(self.class_token, std=0.02)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> maps (B, D, H/p, W/p), tokens (B, N, D) and summary (B, D).

        In a padded batch rows and columns are counted from border to border of the whole of it.
        """
        images = zero_pixels(images, padding)
        cell_padding = shrink_padding(padding, self.patch)
        cells = self.patches(images)  # (B, H/p, W/p, D)
        grid = (cells.shape[1], cells.shape[2])
        x = torch.cat([self.class_token.expand(cells.shape[0], -1, -1), cells.flatten(1, 2)], 1)  # (B, 1 + N, D)
        x = self.position(x, grid)
        x, maps = through_blocks(self.blocks, x, grid=grid, padding=cell_padding, maps_from=self.maps_from)
        norm = self.norm or self.pool.last_norm
        assert norm is not None
        tokens = norm(x)
        summary = self.pool(tokens, x, cell_padding)
        return Features(maps, self.strides, grids.size_of(images), tokens[:, 1:], summary, cell_padding)

    def layers(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)


class CountedRope(Rope2D):
    """Rotary positions by row and column as a grid of a stated size counts them; channel 2i is paired with 2i + 1.

    Args:
        head_width: d, which 4 divides.
        counted: rows and columns from border to border, whatever their number.
    """

    pair_axis = -1

    def __init__(self, head_width: int, counted: Grid) -> None:
        super().__init__(head_width, base=10000.0)
        self.counted = counted

    def coordinates(self, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row and column of each cell, from 0 to what is counted."""
        row, column = (
            cell.double() * counted / length
            for cell, counted, length in zip(grids.coordinates(grid, device=device), self.counted, grid)
        )
        return row, column


class EVABlock(Block):
    """A block with a gated perceptron.

    Args:
        width: D.
        heads: attention heads; divides D.
        rope: position inside attention.
        hidden: inner width of the perceptron.
        qkv_bias: biases of queries and values.
        inner_norm: whether a norm is inside the perceptron.
        drop_path: rate of stochastic depth of both branches.
    """

    def __init__(
        self, width: int, heads: int, *, rope: Rope2D, hidden: int, qkv_bias: bool, inner_norm: bool, drop_path: float
    ) -> None:
        super().__init__(
            width, heads, position=rope, qkv_bias="no_key" if qkv_bias else False, mlp_ratio=0, drop_path=drop_path
        )
        self.mlp = NormedSwiGLU(width, hidden, norm=inner_norm)


class NormedSwiGLU(nn.Module):
    """Linear, gated by the SiLU of another, norm, linear (Shazeer 2020; the norm: Wang et al. 2022, "sub-LN").

    Args:
        width: D.
        hidden: inner width.
        norm: whether there is one.
    """

    def __init__(self, width: int, hidden: int, *, norm: bool) -> None:
        super().__init__()
        self.gate, self.fc1 = Linear(width, hidden), Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-6) if norm else nn.Identity()
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(self.norm(F.silu(self.gate(x)) * self.fc1(x)))


def _row(
    width: int, depth: int, heads: int, *, image_size: int = 224, inner_norm: bool = True, hidden: int | None = None
) -> Variant:
    size = {"width": width, "depth": depth, "heads": heads, "inner_norm": inner_norm}
    return Variant(
        build=EVA02, image_size=image_size, options=size if hidden is None else {**size, "mlp_ratio": hidden / width}
    )


VARIANTS = {
    "nano": Variant(
        build=EVA02,
        image_size=32,
        options={"patch": 8, "width": 48, "depth": 2, "heads": 3, "rope_grid": 4},
    ),
    "ti": _row(192, 12, 3, inner_norm=False),
    "s": _row(384, 12, 6, inner_norm=False),
    "b": _row(768, 12, 12),
    "l": _row(1024, 24, 16, hidden=2730),
    "ti336": _row(192, 12, 3, image_size=336, inner_norm=False),
    "s336": _row(384, 12, 6, image_size=336, inner_norm=False),
    "b448": _row(768, 12, 12, image_size=448),
    "l448": _row(1024, 24, 16, image_size=448, hidden=2730),
}
