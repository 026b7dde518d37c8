"""SigLIP's tower of pictures: a vision transformer whose tokens a learned query pools (Zhai et al., ICCV 2023).

"Sigmoid loss for language image pre-training", arXiv:2303.15343; "SigLIP 2", Tschannen et al. 2025, arXiv:2502.14786,
whose models of fixed size are the same; the pooling is that of "Scaling vision transformers", Zhai et al. 2022.

    image --patches--> p1 p2 ... pN + position --> block x depth --norm--+--> tokens
                                                       |                 |
                                                       |        query --attention--+--norm--> perceptron --+--> summary
                                                       |                           +-----------------------+
                                                       +-> maps (from chosen depths, one stride)
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from patchform.backbones.base import Backbone, blocks_with_maps, shrink_padding, through_blocks, zero_pixels
from patchform.descriptions import Variant
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.blocks import GELU, Block
from patchform.layers.drop import linear_rates
from patchform.layers.patches import Patches
from patchform.layers.positions import Learned1D
from patchform.layers.summaries import AttentionPool, Mean, Summary
from patchform.records import Features


class SigLIP(Backbone):
    """The vision transformer of SigLIP and SigLIP 2.

    Args:
        in_channels: C of the images.
        image_size: native input, pixels (side or (height, width)); at other sizes the positions are resized.
        patch: side of a patch, pixels.
        width, depth, heads: D, number of blocks, attention heads.
        mlp_ratio: hidden width of the perceptrons over D.
        qkv_bias: biases of queries, keys, values, in the pooling too.
        summary: "attention": a learned query attends to the tokens; "mean": of the tokens, as towers without that head
            are read (PaliGemma's, timm's "gap").
        gelu: form of the activation; the authors' code has "tanh", timm's the exact one.
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
        summary: Literal["attention", "mean"] = "attention",
        gelu: GELU = "tanh",
        drop_path: float = 0.0,
        maps_from: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if summary not in ("attention", "mean"):
            raise UsageError(f'no summary "{summary}"', remedy="there are: attention, mean")
        self.maps_from = blocks_with_maps(maps_from, depth)
        self.width, self.patch, self.gelu = width, patch, gelu
        self.channels, self.strides = (width,) * len(self.maps_from), (patch,) * len(self.maps_from)

        self.patches = Patches(in_channels, width, patch)
        self.position = Learned1D(width, grids.cells(image_size, patch))
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, gelu=gelu, drop_path=rate)
            for rate in linear_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pool: Summary = Mean(width, 0)
        if summary == "attention":
            self.pool = AttentionPool(width, heads, 0, mlp_ratio=mlp_ratio, gelu=gelu, qkv_bias=qkv_bias)

        for part in (self.blocks, self.pool):
            blocks.init_weights(part)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> maps (B, D, H/p, W/p), tokens (B, N, D) and summary (B, D)."""
        images = zero_pixels(images, padding)
        cell_padding = shrink_padding(padding, self.patch)
        cells = self.patches(images)  # (B, H/p, W/p, D)
        grid = (cells.shape[1], cells.shape[2])
        x = self.position(cells.flatten(1, 2), grid)
        x, maps = through_blocks(self.blocks, x, grid=grid, padding=cell_padding, maps_from=self.maps_from)
        tokens = self.norm(x)
        summary = self.pool(tokens, x, cell_padding)
        return Features(maps, self.strides, grids.size_of(images), tokens, summary, cell_padding)

    def layers(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)


def _row(
    patch: int, width: int, depth: int, heads: int, *, image_size: int = 256, ratio: float | None = None
) -> Variant:
    size = {"patch": patch, "width": width, "depth": depth, "heads": heads}
    return Variant(build=SigLIP, image_size=image_size, options=size if ratio is None else {**size, "mlp_ratio": ratio})


_SO400M = 4304 / 1152
"""Of the shape-optimised tower (Alabdulmohsin et al. 2023)."""
VARIANTS = {
    "nano": _row(8, 48, 2, 3, image_size=32),
    "b16": _row(16, 768, 12, 12, image_size=224),
    "b32": _row(32, 768, 12, 12),
    "l16": _row(16, 1024, 24, 16),
    "so400m14": _row(14, 1152, 27, 16, image_size=224, ratio=_SO400M),
    "so400m16": _row(16, 1152, 27, 16, ratio=_SO400M),
    "g16": _row(16, 1536, 40, 16),
}
