"""BEiT and BEiT v2: a vision transformer that learnt to name hidden patches (Bao et al., ICLR 2022; Peng et al. 2022).

"BEiT: BERT pre-training of image transformers", arXiv:2106.08254; "BEiT v2: masked image modeling with vector-quantized
visual tokenizers", arXiv:2208.06366, whose backbone is the same.

    image --patches--> [class | p1 p2 ... pN] --> block x depth --+--mean, norm--> summary
                                                      |           +--norm--> tokens
                                                      +-> maps (from chosen depths, one stride)

    block:  x --norm--> attention --scale--+--norm--> perceptron --scale--+-->
            |     + bias of the offset     |                              |
            +------------------------------+------------------------------+

No positions are added: every block has a bias for each offset between two patches, and three of the class token, from
it, to it and to itself. Keys have no biases.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from patchform.backbones.base import Backbone, blocks_with_maps, shrink_padding, through_blocks, zero_pixels
from patchform.descriptions import Variant
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.blocks import Block
from patchform.layers.drop import linear_rates
from patchform.layers.fitting import Fitted, TransferContext
from patchform.layers.patches import Patches
from patchform.layers.positions import Grid, RelativeBias
from patchform.layers.summaries import ClassTokens, MeanThenNorm, Summary
from patchform.records import Features


class BEiT(Backbone):
    """Vision transformer of BEiT and BEiT v2.

    Args:
        in_channels: C of the images.
        image_size: native input, pixels (side or (height, width)); at other sizes the tables of offsets are resized.
        patch: side of a patch, pixels.
        width, depth, heads: D, number of blocks, attention heads.
        mlp_ratio: hidden width of the perceptrons over D.
        qkv_bias: biases of queries and values; keys have none.
        summary: "mean_then_norm" of the patches, or the normalised "class" token.
        layer_scale: initial factor on every branch; None has no factors.
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
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        summary: Literal["class", "mean_then_norm"] = "mean_then_norm",
        layer_scale: float | None = 0.1,
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
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                position=ClassBias(heads, grids.cells(image_size, patch)),
                mlp_ratio=mlp_ratio,
                qkv_bias="no_key" if qkv_bias else False,
                layer_scale=layer_scale,
                drop_path=rate,
            )
            for rate in linear_rates(drop_path, depth)
        )
        self.pool: Summary = ClassTokens(width, 1) if summary == "class" else MeanThenNorm(width, 1)
        self.norm = nn.LayerNorm(width, eps=1e-6) if self.pool.last_norm is None else None

        blocks.init_weights(self.blocks)
        nn.init.trunc_normal_(self.class_token, std=0.02)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> maps (B, D, H/p, W/p), tokens (B, N, D) and summary (B, D)."""
        images = zero_pixels(images, padding)
        cell_padding = shrink_padding(padding, self.patch)
        cells = self.patches(images)  # (B, H/p, W/p, D)
        grid = (cells.shape[1], cells.shape[2])
        x = torch.cat([self.class_token.expand(cells.shape[0], -1, -1), cells.flatten(1, 2)], 1)  # (B, 1 + N, D)
        x, maps = through_blocks(self.blocks, x, grid=grid, padding=cell_padding, maps_from=self.maps_from)
        norm = self.norm or self.pool.last_norm
        assert norm is not None
        tokens = norm(x)
        summary = self.pool(tokens, x, cell_padding)
        return Features(maps, self.strides, grids.size_of(images), tokens[:, 1:], summary, cell_padding)

    def layers(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)


class ClassBias(RelativeBias):
    """A bias for each head and offset, and three for a class token in front of the cells.

    `class_table` (3, heads) holds those of pairs from it to a cell, from a cell to it, and of it with itself. Tables of
    other grids are resized bilinearly, as transformers does.
    """

    mode = "bilinear"

    def __init__(self, heads: int, grid: Grid) -> None:
        super().__init__(heads, grid)
        self.class_table = nn.Parameter(torch.empty(3, heads))
        nn.init.trunc_normal_(self.class_table, std=0.02)

    def forward(self, q: Tensor, k: Tensor, grid: Grid | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Leave q and k, give the bias (h, 1 + N, 1 + N)."""
        cells = self.between_cells(grid or self.grid)  # (h, N, N)
        heads, count = cells.shape[:2]
        to_cells, from_cells, itself = self.class_table[..., None, None].to(cells.dtype)  # each (h, 1, 1)
        first = torch.cat([itself, to_cells.expand(heads, 1, count)], 2)
        return q, k, torch.cat([first, torch.cat([from_cells.expand(heads, count, 1), cells], 2)], 1)

    def fit(self, name: str, tensor: Tensor, context: TransferContext) -> Fitted:
        """A table of offsets of another grid; what the class token has is of none."""
        return (tensor, "") if name == "class_table" else super().fit(name, tensor, context)


def _row(width: int, depth: int, heads: int, *, image_size: int = 224, layer_scale: float = 0.1) -> Variant:
    size = {"width": width, "depth": depth, "heads": heads, "layer_scale": layer_scale}
    return Variant(build=BEiT, image_size=image_size, options=size)


VARIANTS = {
    "nano": Variant(
        build=BEiT,
        image_size=32,
        options={"patch": 8, "width": 48, "depth": 2, "heads": 3},
    ),
    "b": _row(768, 12, 12),
    "l": _row(1024, 24, 16, layer_scale=1e-5),
    "b384": _row(768, 12, 12, image_size=384),
    "l384": _row(1024, 24, 16, image_size=384, layer_scale=1e-5),
    "l512": _row(1024, 24, 16, image_size=512, layer_scale=1e-5),
}
