"""ViT: an image is worth 16x16 words (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929).

    image --patches--> [class | p1 p2 ... pN] + position --registers--> block x depth --norm--> class -> summary
                                                                            |                   p1..pN -> tokens
                                                                            +-> maps (from chosen depths, one stride)

The summary is a slot: class tokens, a mean, or attention of a learned query (`layers.summaries`).

Sizes are the paper's table 1, with Ti and S of DeiT (Touvron et al. 2021) and those of DINOv2 (Oquab et al. 2023).
Layer scale: CaiT (Touvron et al. 2021); register tokens: Darcet et al. 2024; positions other than learned_1d: the
paper's appendix D.4 and later work.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from patchform.backbones.base import Backbone, blocks_with_maps, sequence_padding, shrink_padding, zero_pixels
from patchform.descriptions import Variant
from patchform.geometry import grids
from patchform.layers import blocks, positions
from patchform.layers.blocks import Block, FormOptions
from patchform.layers.drop import linear_rates
from patchform.layers.patches import Patches
from patchform.layers.summaries import SummaryName, class_tokens_of, summary_of
from patchform.records import Features


class ViT(Backbone):
    """Vision transformer.

    Args:
        in_channels: C of the images.
        image_size: native input, pixels (side or (height, width)); other sizes work, learned positions are resized.
        patch: side of a patch, pixels.
        width, depth, heads: D, number of blocks, attention heads.
        mlp_ratio: hidden width of the perceptrons over D.
        position: of the tokens; one slot for absolute positions and those inside attention.
        summary: "class" reads the class tokens, "mean" averages the patch tokens, "class_and_mean" is both side by
            side; "mean_then_norm" normalises the mean and not the tokens; "attention" is what a learned query finds.
        class_tokens: how many; two are those of a distilled DeiT. None: one where the summary reads it, else none.
        registers: learned tokens that have no position and are not read (Darcet et al. 2024 use 4).
        layer_scale: initial factor on every branch; None has no factors.
        drop_path: stochastic depth of the last block, rising linearly from 0.
        maps_from: after which blocks (1 = the first) a map is taken, ascending; default: the last.
        block: of every block: `gelu`, "tanh" for weights from the original JAX code; `qkv_bias`, false for weights
            whose queries, keys and values have none; `mlp`, "swiglu" for the gated perceptrons of DINOv2's ViT-g.
    """

    beyond_maps = ("norm", "pool")

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        patch: int = 16,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        position: positions.PositionName = "learned_1d",
        summary: SummaryName = "class",
        class_tokens: int | None = None,
        registers: int = 0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        maps_from: tuple[int, ...] | None = None,
        **block: Unpack[FormOptions],
    ) -> None:
        super().__init__()
        self.maps_from = blocks_with_maps(maps_from, depth)
        self.patch = patch
        self.channels, self.strides = (width,) * len(self.maps_from), (patch,) * len(self.maps_from)
        grid, classes = grids.cells(image_size, patch), class_tokens_of(summary, class_tokens)
        self.prefix = classes + registers

        self.patches = Patches(in_channels, width, patch)
        self.class_token = nn.Parameter(torch.zeros(1, classes, width)) if classes else None
        self.position = positions.absolute(position, width, grid, prefix=classes)
        self.register_tokens = nn.Parameter(torch.empty(1, registers, width)) if registers else None
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                position=positions.relative(position, width, heads, grid),
                mlp_ratio=mlp_ratio,
                layer_scale=layer_scale,
                drop_path=rate,
                **block,
            )
            for rate in linear_rates(drop_path, depth)
        )
        gelu = block.get("gelu", "none")
        self.pool = summary_of(
            summary, width, heads, classes=classes, prefix=self.prefix, mlp_ratio=mlp_ratio, gelu=gelu
        )
        self.width = self.pool.width
        self.norm = None if self.pool.last_norm is not None else nn.LayerNorm(width, eps=1e-6)

        blocks.init_weights(self.blocks)
        blocks.init_weights(self.pool)
        for tokens in (self.class_token, self.register_tokens):
            if tokens is not None:
                nn.init.normal_(tokens, std=1e-6 if tokens is self.class_token else 0.02)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> maps (B, D, H/p, W/p), tokens (B, N, D) and summary (B, D), or twice as wide: `width`."""
        images = zero_pixels(images, padding)
        return self.through(self.patches(images), grids.size_of(images), shrink_padding(padding, self.patch))

    def through(self, cells: Tensor, size: tuple[int, int], padding: Tensor | None = None) -> Features:
        """All that follows the projection of the patches.

        Args:
            cells: (B, H/p, W/p, D) projected patches.
            size: of the input, pixels.
            padding: (B, H/p, W/p) bool, True on padding.
        """
        token_padding = sequence_padding(padding, self.prefix)
        grid = (cells.shape[1], cells.shape[2])
        x = self.embed(cells.flatten(1, 2), grid)
        maps = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, grid=grid, padding=token_padding)
            if number in self.maps_from:
                maps.append(x[:, self.prefix :].transpose(1, 2).unflatten(2, grid))
        tokens = self.normalise(x)
        return Features(
            tuple(maps), self.strides, size, tokens[:, self.prefix :], self.pool(tokens, x, padding), padding
        )

    def encode_visible(self, images: Tensor, visible: Tensor) -> Tensor:
        """Normalised tokens of some of the patches: positions are added first (He et al. 2022, section 3).

        Only for absolute positions: those inside attention are of whole grids.

        Args:
            images: (B, C, H, W).
            visible: (B, K) int64 numbers of patches in raster order.

        Returns:
            (B, P + K, D): class token and registers, then the patches in the order of `visible`.
        """
        cells = self.patches(images)
        x = self.embed(cells.flatten(1, 2), (cells.shape[1], cells.shape[2]))
        patches = x[:, self.prefix :].gather(1, visible[..., None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, : self.prefix], patches], 1)
        for block in self.blocks:
            x = block(x)
        return self.normalise(x)

    def normalise(self, x: Tensor) -> Tensor:
        """(B, P + N, D) -> the same, behind the last norm, which the summary may have."""
        norm = self.norm or self.pool.last_norm
        assert norm is not None
        return norm(x)

    def embed(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, D) patches -> (B, P + N, D): class token, registers, patches, with positions."""
        x = patches
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1)
        x = self.position(x, grid)
        if self.register_tokens is not None:
            first = self.prefix - self.register_tokens.shape[1]
            x = torch.cat([x[:, :first], self.register_tokens.expand(x.shape[0], -1, -1), x[:, first:]], 1)
        return x

    def layers(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)


def _row(patch: int, width: int, depth: int, heads: int, image_size: int = 224) -> Variant:
    size = {"patch": patch, "width": width, "depth": depth, "heads": heads}
    return Variant(build=ViT, image_size=image_size, options=size)


def _dinov2(size: str, registers: int) -> Variant:
    width, depth, heads = DINOV2[size]
    options: dict[str, Any] = {"width": width, "depth": depth, "heads": heads, "patch": 14, "layer_scale": 1e-5}
    options |= {"registers": registers, "position": "learned_1d_antialiased"} if registers else {}
    return Variant(build=ViT, image_size=518, options=options | ({"mlp": "swiglu"} if size == "g" else {}))


DINOV2 = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "g": (1536, 40, 24)}
"""Width, depth and heads of DINOv2 (Oquab et al. 2023, appendix B); g has SwiGLU. All have patches of 14 pixels."""

VARIANTS = {
    "nano": _row(8, 48, 2, 3, image_size=32),
    **{
        f"{name}{patch}": _row(patch, width, depth, heads)
        for name, (width, depth, heads) in {
            "ti": (192, 12, 3),
            "s": (384, 12, 6),
            "b": (768, 12, 12),
            "l": (1024, 24, 16),
            "h": (1280, 32, 16),
        }.items()
        for patch in (8, 14, 16, 32)
    },
    **{f"dinov2_{size}14": _dinov2(size, 0) for size in DINOV2},
    **{f"dinov2_reg_{size}14": _dinov2(size, 4) for size in DINOV2},
}
