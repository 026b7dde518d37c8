"""CLIP's tower of pictures: a vision transformer that learnt from texts (Radford et al., ICML 2021, arXiv:2103.00020).

    image --patches--> [class | p1 .. pN] + position --norm--> block x depth --norm--> class (--projection) -> summary
                                                                   |                   p1..pN (--projection) -> tokens
                                                                   +-> maps (from chosen depths, one stride)

A ViT with a norm in front of the blocks, patches without biases, and x sigmoid(1.702 x) for a GELU (that of the paper's
code; most of OpenCLIP's models have the exact one: gelu="none"). The paper judges features before the projection into
the space that pictures and texts share (appendix A.3), so there is none unless its width is named.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patchform.backbones.base import Backbone, blocks_with_maps, shrink_padding, through_blocks, zero_pixels
from patchform.descriptions import Variant
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.blocks import GELU, Block
from patchform.layers.drop import linear_rates
from patchform.layers.patches import Patches
from patchform.layers.positions import Learned1D
from patchform.records import Features


class CLIP(Backbone):
    """The vision transformer of CLIP.

    Args:
        in_channels: C of the images.
        image_size: native input, pixels (side or (height, width)); at other sizes the positions are resized.
        patch: side of a patch, pixels.
        width, depth, heads: D, number of blocks, attention heads.
        mlp_ratio: hidden width of the perceptrons over D.
        qkv_bias: biases of queries, keys, values.
        gelu: form of the activation; names of weights do not tell it.
        projection: width of the space shared with texts, which summary and tokens are projected into; None: they are
            not projected.
        drop_path: stochastic depth of the last block, rising linearly from 0.
        maps_from: after which blocks (1 = the first) a map is taken, ascending; default: the last.
    """

    beyond_maps = ("norm", "projection")

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
        gelu: GELU = "quick",
        projection: int | None = None,
        drop_path: float = 0.0,
        maps_from: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.maps_from = blocks_with_maps(maps_from, depth)
        self.width, self.patch = projection or width, patch
        self.channels, self.strides = (width,) * len(self.maps_from), (patch,) * len(self.maps_from)

        self.patches = Patches(in_channels, width, patch, bias=False)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.position = Learned1D(width, grids.cells(image_size, patch), prefix=1)
        self.first_norm = nn.LayerNorm(width, eps=1e-5)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, gelu=gelu, eps=1e-5, drop_path=rate)
            for rate in linear_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.projection = None if projection is None else nn.Linear(width, projection, bias=False)

        blocks.init_weights(self.blocks)
        nn.init.normal_(self.class_token, std=width**-0.5)
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> maps (B, D, H/p, W/p), tokens (B, N, D') and summary (B, D'); D' is D or the projection's."""
        images = zero_pixels(images, padding)
        cell_padding = shrink_padding(padding, self.patch)
        cells = self.patches(images)  # (B, H/p, W/p, D)
        grid = (cells.shape[1], cells.shape[2])
        x = torch.cat([self.class_token.expand(cells.shape[0], -1, -1), cells.flatten(1, 2)], 1)  # (B, 1 + N, D)
        x = self.first_norm(self.position(x, grid))
        x, maps = through_blocks(self.blocks, x, grid=grid, padding=cell_padding, maps_from=self.maps_from)
        x = self.norm(x)
        if self.projection is not None:
            x = self.projection(x)
        return Features(maps, self.strides, grids.size_of(images), x[:, 1:], x[:, 0], cell_padding)

    def layers(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)


def _row(
    patch: int, width: int, depth: int, heads: int, *, image_size: int = 224, ratio: float | None = None
) -> Variant:
    """`ratio`: of the perceptrons of OpenCLIP's own sizes, which have the exact GELU."""
    options = {"patch": patch, "width": width, "depth": depth, "heads": heads}
    own = {} if ratio is None else {"mlp_ratio": ratio, "gelu": "none"}
    return Variant(build=CLIP, image_size=image_size, options={**options, **own})


VARIANTS = {
    "nano": _row(8, 48, 2, 3, image_size=32),
    "b32": _row(32, 768, 12, 12),
    "b16": _row(16, 768, 12, 12),
    "l14": _row(14, 1024, 24, 16),
    "l14_336": _row(14, 1024, 24, 16, image_size=336),
    "h14": _row(14, 1280, 32, 16, ratio=4.0),
    "g14": _row(14, 1408, 40, 16, ratio=4.3637),
    "bigg14": _row(14, 1664, 48, 16, ratio=4.9231),
}
