"""DINOv3: a vision transformer for dense features, with rotary positions and registers (Siméoni et al. 2025).

arXiv:2508.10104; registers: Darcet et al. 2024; RoPE with coordinates of the picture: section 3.2.

    image --patches--> [class | r1 .. r4 | p1 p2 ... pN] --> block x depth --norm--> class -> summary
                                                                   |                 p1..pN -> tokens
                                                                   +-> maps (from chosen depths, one stride)

    block:  x --norm--> attention --scale--+--norm--> perceptron or SwiGLU --scale--+-->
            |       q, k of patches turn   |                                        |
            +------------------------------+----------------------------------------+

No table of positions: a patch is placed by where its centre lies between the borders of the picture, from -1 to 1 along
each axis, whatever their number. So any size serves, and a picture that is twice as large is the same one more finely
cut. Keys have no biases.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from patchform.backbones.base import Backbone, blocks_with_maps, shrink_padding, through_blocks, zero_pixels
from patchform.descriptions import Variant
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.blocks import Block, Perceptron
from patchform.layers.drop import linear_rates
from patchform.layers.patches import Patches
from patchform.layers.positions import Grid, Rope2D
from patchform.layers.summaries import ClassAndMean, ClassTokens, Mean, Summary
from patchform.records import Features


class DINOv3(Backbone):
    """Vision transformer of DINOv3.

    Args:
        in_channels: C of the images.
        patch: side of a patch, pixels.
        width, depth, heads: D, number of blocks, attention heads.
        mlp_ratio: hidden width of the perceptrons over D; "swiglu" has two thirds of it.
        mlp: the kind of perceptron.
        qkv_bias: biases of queries and values; keys have none.
        registers: learned tokens that are not read, behind the class token ("storage tokens" of the authors' code).
        summary: the "class" token, the "mean" of the patches, or "class_and_mean" side by side, as the authors' linear
            classifier reads them.
        layer_scale: initial factor on every branch.
        drop_path: stochastic depth of the last block, rising linearly from 0.
        maps_from: after which blocks (1 = the first) a map is taken, ascending; default: the last.

    Raises:
        UsageError: an unknown summary.
    """

    beyond_maps = ("norm",)

    def __init__(
        self,
        *,
        in_channels: int = 3,
        patch: int = 16,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        mlp: Perceptron = "gelu",
        qkv_bias: bool = True,
        registers: int = 4,
        summary: Literal["class", "mean", "class_and_mean"] = "class",
        layer_scale: float = 1e-5,
        drop_path: float = 0.0,
        maps_from: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if summary not in ("class", "mean", "class_and_mean"):
            raise UsageError(f'no summary "{summary}"', remedy="there are: class, mean, class_and_mean")
        self.maps_from = blocks_with_maps(maps_from, depth)
        self.patch, self.prefix = patch, 1 + registers
        self.channels, self.strides = (width,) * len(self.maps_from), (patch,) * len(self.maps_from)

        self.patches = Patches(in_channels, width, patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_tokens = nn.Parameter(torch.empty(1, registers, width))
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                position=PictureRope(width // heads),
                mlp_ratio=mlp_ratio,
                mlp=mlp,
                qkv_bias="no_key" if qkv_bias else False,
                eps=1e-5,
                layer_scale=layer_scale,
                drop_path=rate,
            )
            for rate in linear_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-5)
        kinds = {"mean": Mean, "class_and_mean": ClassAndMean}
        self.pool: Summary = ClassTokens(width, 1) if summary == "class" else kinds[summary](width, self.prefix)
        self.width = self.pool.width

        blocks.init_weights(self.blocks)
        for tokens in (self.class_token, self.register_tokens):
            nn.init.normal_(tokens, std=0.02)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> maps (B, D, H/p, W/p), tokens (B, N, D) and summary (B, D), or twice as wide: `width`.

        In a padded batch a patch is placed in the whole of it, padding included.
        """
        images = zero_pixels(images, padding)
        cell_padding = shrink_padding(padding, self.patch)
        cells = self.patches(images)  # (B, H/p, W/p, D)
        grid = (cells.shape[1], cells.shape[2])
        front = [tokens.expand(cells.shape[0], -1, -1) for tokens in (self.class_token, self.register_tokens)]
        x = torch.cat([*front, cells.flatten(1, 2)], 1)  # (B, P + N, D)
        x, maps = through_blocks(self.blocks, x, grid=grid, padding=cell_padding, maps_from=self.maps_from)
        tokens = self.norm(x)
        summary = self.pool(tokens, x, cell_padding)
        return Features(maps, self.strides, grids.size_of(images), tokens[:, self.prefix :], summary, cell_padding)

    def layers(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)


class PictureRope(Rope2D):
    """Rotary positions whose coordinates are those of the picture: 2 pi times -1 to 1 from border to border.

    Channel i is paired with channel i + d/2 of the head: both halves have the angles of rows, then those of columns.
    """

    pair_axis = -3

    def coordinates(self, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row and column of the centre of each cell, in (-2 pi, 2 pi)."""
        row, column = (
            2 * math.pi * ((2 * cell + 1).double() / length - 1)
            for cell, length in zip(grids.coordinates(grid, device=device), grid)
        )
        return row, column


def _row(width: int, depth: int, heads: int, *, swiglu: float | None = None, qkv_bias: bool = True) -> Variant:
    size = {"width": width, "depth": depth, "heads": heads}
    gated = {} if swiglu is None else {"mlp": "swiglu", "mlp_ratio": swiglu}
    return Variant(build=DINOv3, image_size=224, options={**size, **gated, **({} if qkv_bias else {"qkv_bias": False})})


VARIANTS = {
    "nano": Variant(
        build=DINOv3,
        image_size=32,
        options={"patch": 8, "width": 48, "depth": 2, "heads": 3, "layer_scale": 0.1},
    ),
    "s": _row(384, 12, 6),
    "s_plus": _row(384, 12, 6, swiglu=6),
    "b": _row(768, 12, 12),
    "l": _row(1024, 24, 16),
    "l_plus": _row(1024, 24, 16, swiglu=6),
    "h_plus": _row(1280, 32, 20, swiglu=6),
    "7b": _row(4096, 40, 32, swiglu=3, qkv_bias=False),
}
