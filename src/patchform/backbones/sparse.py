"""A plain vision transformer whose attention is block-sparse.

    image --patches--> p1 ... pN + position --> block x depth --norm--> mean -> summary
                       |--1--|--2--|--3--|...     |                     p1..pN -> tokens
                        blocks of the raster      +-> maps (from chosen depths, one stride)

The cells, row by row, are cut into blocks of equal length; a cell attends to its own block, the neighbouring ones, and
the first few of the picture, as all cells do. Work and memory grow with the number of cells, not with its square. The
pattern is that of sparse transformers for sequences (Child et al. 2019, arXiv:1904.10509; Zaheer et al. 2020, BigBird,
arXiv:2007.14062, without its random part); the rest is ViT (Dosovitskiy et al. 2021).

No paper has just this network: there are no published weights or scores, and none are claimed.
"""

from __future__ import annotations

from torch import Tensor, nn

from patchform.backbones.base import Backbone, blocks_with_maps, shrink_padding, zero_pixels
from patchform.descriptions import Variant
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.blocks import Block
from patchform.layers.drop import linear_rates
from patchform.layers.patches import Patches
from patchform.layers.patterns import Blocks
from patchform.layers.positions import Learned1D
from patchform.records import Features
from patchform.schema import Natural


class Sparse(Backbone):
    """Vision transformer with block-sparse attention.

    Args:
        in_channels: C of the images.
        image_size: native input, pixels; other sizes work, learned positions are resized.
        patch: side of a patch, pixels.
        width, depth, heads: D, number of blocks, attention heads.
        block: cells that are one block of the pattern; twice the cells of a row make it two rows.
        near: neighbouring blocks on either side that a cell attends to.
        landmarks: blocks at the start of the picture that every cell attends to.
        mlp_ratio: hidden width of the perceptrons over D.
        qkv_bias: biases of queries, keys, values.
        drop_path: stochastic depth of the last block, rising linearly from 0.
        maps_from: after which blocks (1 = the first) a map is taken, ascending; default: the last.
    """

    beyond_maps = ("norm",)

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        patch: int = 16,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        block: int = 28,
        near: Natural = 1,
        landmarks: Natural = 1,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        maps_from: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.maps_from = blocks_with_maps(maps_from, depth)
        self.width, self.patch = width, patch
        self.channels, self.strides = (width,) * len(self.maps_from), (patch,) * len(self.maps_from)
        pattern = Blocks(block, near, landmarks)

        self.patches = Patches(in_channels, width, patch)
        self.position = Learned1D(width, grids.cells(image_size, patch))
        self.blocks = nn.ModuleList(
            Block(width, heads, pattern=pattern, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, drop_path=rate)
            for rate in linear_rates(drop_path, depth)
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


VARIANTS = {
    "nano": Variant(build=Sparse, image_size=32, options={"patch": 4, "width": 48, "depth": 2, "heads": 3, "block": 8}),
    "s": Variant(build=Sparse, image_size=224, options={"width": 384, "depth": 12, "heads": 6}),
    "b": Variant(build=Sparse, image_size=224, options={"width": 768, "depth": 12, "heads": 12}),
}
