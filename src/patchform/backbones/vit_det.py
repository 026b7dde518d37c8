"""ViTDet: a plain vision transformer for large pictures (Li, Mao, Girshick, He, ECCV 2022, arXiv:2203.16527).

    image --patches--> p1 ... pN + position --> (window, ..., window, global) x 4 --norm--> mean -> summary
                                                                         |           p1..pN -> tokens
                                                                         +-> maps (from chosen depths, one stride)

Section 3, "backbone adaptation": the blocks are those of ViT, but attention stays inside windows that do not shift; a
few blocks, evenly spread, attend to the whole picture, so that windows exchange information. Where one window covers
the grid it is ViT without a class token. The simple pyramid that goes with it is the neck "simple" of Faster R-CNN.
"""

from __future__ import annotations

from torch import Tensor, nn

from patchform.backbones.base import Backbone, blocks_with_maps, shrink_padding, zero_pixels
from patchform.descriptions import Variant
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers import blocks, positions
from patchform.layers.blocks import Block
from patchform.layers.drop import linear_rates
from patchform.layers.patches import Patches
from patchform.layers.patterns import Global, Windows
from patchform.records import Features
from patchform.schema import Natural


class ViTDet(Backbone):
    """Vision transformer with windows and a few global blocks.

    Args:
        in_channels: C of the images.
        image_size: native input, pixels; other sizes work, learned positions are resized.
        patch: side of a patch, pixels.
        width, depth, heads: D, number of blocks, attention heads.
        window: side of a window, cells.
        global_blocks: so many of the blocks attend globally: the last of as many equal parts.
        mlp_ratio: hidden width of the perceptrons over D.
        qkv_bias: biases of queries, keys, values.
        position: of the tokens; one slot for absolute positions and those inside attention, which in
            a window are those of the window.
        drop_path: stochastic depth of the last block, rising linearly from 0.
        maps_from: after which blocks (1 = the first) a map is taken, ascending; default: the last.

    Raises:
        UsageError: more global blocks than blocks, or none.
    """

    beyond_maps = ("norm",)

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 1024,
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        window: int = 14,
        global_blocks: Natural = 4,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        position: positions.PositionName = "learned_1d",
        drop_path: float = 0.0,
        maps_from: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= global_blocks <= depth:
            raise UsageError(f"{global_blocks} global_blocks of {depth}", remedy="give one at least, all at most")
        self.maps_from = blocks_with_maps(maps_from, depth)
        self.width, self.patch = width, patch
        self.channels, self.strides = (width,) * len(self.maps_from), (patch,) * len(self.maps_from)
        grid, tile = grids.cells(image_size, patch), (window, window)
        global_numbers = {depth * part // global_blocks for part in range(1, global_blocks + 1)}

        self.patches = Patches(in_channels, width, patch)
        self.position = positions.absolute(position, width, grid)
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                pattern=Global() if number in global_numbers else Windows(tile),
                position=positions.relative(position, width, heads, grid if number in global_numbers else tile),
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop_path=rate,
            )
            for number, rate in enumerate(linear_rates(drop_path, depth), start=1)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        blocks.init_weights(self.blocks)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> maps (B, D, H/p, W/p), tokens (B, N, D) and summary (B, D)."""
        images = zero_pixels(images, padding)
        cell_padding = shrink_padding(padding, self.patch)
        x = self.patches(images)  # (B, H/p, W/p, D)
        grid = (x.shape[1], x.shape[2])
        x = self.position(x.flatten(1, 2), grid).unflatten(1, grid)
        maps = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, padding=cell_padding)
            if number in self.maps_from:
                maps.append(x.permute(0, 3, 1, 2))
        tokens = self.norm(x).flatten(1, 2)
        summary = grids.masked_mean(tokens, cell_padding)
        return Features(tuple(maps), self.strides, grids.size_of(images), tokens, summary, cell_padding)

    def layers(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)


def _row(width: int, depth: int, heads: int, drop_path: float) -> Variant:
    size = {"width": width, "depth": depth, "heads": heads}
    return Variant(build=ViTDet, image_size=1024, options={**size, "drop_path": drop_path})


VARIANTS = {
    "nano": Variant(
        build=ViTDet,
        image_size=32,
        options={"patch": 8, "width": 48, "depth": 4, "heads": 3, "window": 3, "global_blocks": 2},
    ),
    "b": _row(768, 12, 12, 0.1),
    "l": _row(1024, 24, 16, 0.4),
    "h": _row(1280, 32, 16, 0.5),
}
"""With the rates of stochastic depth of the authors' recipes."""
