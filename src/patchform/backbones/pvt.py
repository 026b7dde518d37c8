"""PVT: a pyramid whose keys and values are a coarser map (Wang et al., ICCV 2021, arXiv:2102.12122).

    image --squares--> stage 1 --squares--> stage 2 --squares--> stage 3 --squares--> stage 4 --norm--> summary
                         | /4                 | /8                 | /16                | /32
                         v                    v                    v                    v
                        map                  map                  map                  map

    a stage's attention:   queries: all cells          keys and values: squares of r x r cells, each made into one

Version 1 cuts into plain squares, adds learned positions in every stage and reads a class token of the last one.
Version 2 (Wang et al., CVMJ 2022, arXiv:2106.13797) cuts into squares that overlap, has positions from the zeros
around a depthwise convolution inside its perceptrons, has a norm after every stage and reads the mean; its linear
attention has 7 x 7 means of any map as keys. Maps are what the next stage gets: in version 2 they are normalised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.backbones.base import Backbone, sequence_padding, shrink_padding
from patchform.descriptions import Variant
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.blocks import ConvolutionalMLP, hidden_width
from patchform.layers.drop import linear_rates
from patchform.layers.patches import OverlappingPatches
from patchform.layers.pooling import adaptive_means
from patchform.layers.positions import Learned1D
from patchform.layers.reduction import PatchProjection, ReducedBlock, Reduction, patch_projection_block, zero_padding
from patchform.records import Features

STRIDES = (4, 8, 16, 32)


class PVT(Backbone):
    """Pyramid vision transformer, version 1.

    Args:
        in_channels: C of the images.
        image_size: native input, pixels; other sizes work, positions are resized (bilinear, as the authors do).
        widths: channels of the four stages.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        mlp_ratios: hidden width of the perceptrons over the stage's.
        qkv_bias: biases of queries, keys, values.
        reductions: side of the squares that become one key, cells; 1 in the last stage, which holds the class token.
        drop_path: stochastic depth of the last block, rising linearly from 0.

    Raises:
        UsageError: the last stage is to be reduced.
    """

    beyond_maps = ("norm",)

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        widths: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 4, 6, 3),
        heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        qkv_bias: bool = True,
        reductions: Sequence[int] = (8, 4, 2, 1),
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if reductions[-1] != 1:
            raise UsageError(
                f"a stage with a class token has no squares of {reductions[-1]} x {reductions[-1]} cells",
                remedy="the last of `reductions` is 1",
            )
        self.channels, self.strides, self.width = tuple(widths), STRIDES, widths[-1]
        native = [grids.cells(image_size, stride) for stride in STRIDES]
        rates = iter(linear_rates(drop_path, sum(depths)))

        self.patches = nn.ModuleList(
            PatchProjection(before, width, side)
            for before, width, side in zip((in_channels, *widths), widths, (4, 2, 2, 2), strict=False)
        )
        self.patches_norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.class_token = nn.Parameter(torch.empty(1, 1, self.width))
        self.positions = nn.ModuleList(
            Learned1D(width, grid, prefix=int(stride == STRIDES[-1]), mode="bilinear")
            for width, grid, stride in zip(widths, native, STRIDES, strict=True)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(
                patch_projection_block(width, stage_heads, ratio, side, qkv_bias=qkv_bias, drop_path=next(rates))
                for _ in range(depth)
            )
            for width, depth, stage_heads, ratio, side in zip(
                widths, depths, heads, mlp_ratios, reductions, strict=True
            )
        )
        self.norm = nn.LayerNorm(self.width, eps=1e-6)

        blocks.init_weights(self)
        nn.init.trunc_normal_(self.class_token, std=0.02)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> four maps, tokens (B, N, D) and summary (B, D), the class token."""
        x, cell_padding = images.permute(0, 2, 3, 1), padding
        maps = []
        for number, stage in enumerate(self.stages):
            x = self.patches_norms[number](self.patches[number](zero_padding(x, cell_padding)))  # (B, H, W, D)
            grid = (x.shape[1], x.shape[2])
            cell_padding = shrink_padding(padding, STRIDES[number])
            x, token_padding = x.flatten(1, 2), cell_padding
            if stage is self.stages[-1]:
                x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1)
                token_padding = sequence_padding(cell_padding, 1)
                x = self.positions[number](x, grid)
            else:
                x = self.positions[number](x, grid).unflatten(1, grid)
            for block in stage.children():
                x = block(x, padding=token_padding)
            cells = x if x.dim() == 4 else x[:, 1:].unflatten(1, grid)
            maps.append(cells.permute(0, 3, 1, 2))
        x = self.norm(x)
        return Features(tuple(maps), STRIDES, grids.size_of(images), x[:, 1:], x[:, 0], cell_padding)

    def layers(self) -> list[nn.Module]:
        """The blocks of all stages."""
        return [block for stage in self.stages for block in stage.children()]


class PVTv2(Backbone):
    """Pyramid vision transformer, version 2.

    Args:
        in_channels, depths, heads, mlp_ratios, qkv_bias, drop_path: see `PVT`.
        widths: channels of the stages.
        attention: "reduced" as in version 1, "linear" has 7 x 7 means as keys, so that its cost grows with the map.
        reductions: side of the squares that become one key, cells; "linear" has none.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 4, 6, 3),
        heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        qkv_bias: bool = True,
        attention: Literal["reduced", "linear"] = "reduced",
        reductions: Sequence[int] = (8, 4, 2, 1),
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.channels, self.width = tuple(widths), widths[-1]
        self.strides = tuple(4 << stage for stage in range(len(widths)))
        rates = iter(linear_rates(drop_path, sum(depths)))

        def reduction(width: int, side: int) -> nn.Module | None:
            return Means(width) if attention == "linear" else Reduction(width, side) if side > 1 else None

        self.patches = nn.ModuleList(
            OverlappingPatches(before, width, 3 if stage else 7, 2 if stage else 4)
            for stage, (before, width) in enumerate(zip((in_channels, *widths), widths, strict=False))
        )
        self.patches_norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                ConvolutionalBlock(
                    width,
                    stage_heads,
                    reduction=reduction(width, side),
                    mlp=ConvolutionalMLP(width, hidden_width(width, ratio), relu=attention == "linear"),
                    qkv_bias=qkv_bias,
                    drop_path=next(rates),
                )
                for _ in range(depth)
            )
            for width, depth, stage_heads, ratio, side in zip(
                widths, depths, heads, mlp_ratios, reductions, strict=True
            )
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in widths)

        blocks.init_weights(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:  # variance: 2 / outputs an input reaches
                reach = module.out_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, std=math.sqrt(2 / reach))
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> one map a stage, tokens (B, N, D) and summary (B, D), their mean."""
        x, cell_padding = images.permute(0, 2, 3, 1), padding
        maps = []
        for number, stage in enumerate(self.stages):
            x = self.patches[number](zero_padding(x, cell_padding).permute(0, 3, 1, 2))
            x = self.patches_norms[number](x)  # (B, H, W, D)
            cell_padding = shrink_padding(padding, self.strides[number])
            for block in stage.children():
                x = block(x, padding=cell_padding)
            x = self.norms[number](x)
            maps.append(x.permute(0, 3, 1, 2))
        tokens = x.flatten(1, 2)
        summary = grids.masked_mean(tokens, cell_padding)
        return Features(tuple(maps), self.strides, grids.size_of(images), tokens, summary, cell_padding)

    def layers(self) -> list[nn.Module]:
        """The blocks of all stages."""
        return [block for stage in self.stages for block in stage.children()]


# ---------------------------------------------------------------------------------------------- what version 2 brought


class ConvolutionalBlock(ReducedBlock):
    """Its perceptron has a convolution."""

    def feed_forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """The perceptron's branch, of a map (B, H, W, D)."""
        return self.mlp(self.norm2(x), padding)


class Means(nn.Module):
    """7 x 7 means of any map, each projected to a key and value (Wang et al. 2022, section 3.1).

    Args:
        width: D.
    """

    SIDE = 7

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squares = PatchProjection(width, width, 1)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, H, W, D) -> (B, 7, 7, D); the means are over cells that are not padding."""
        means = adaptive_means(zero_padding(x, padding).permute(0, 3, 1, 2), self.SIDE)
        key_padding = None
        if padding is not None:
            share = adaptive_means((~padding)[:, None].to(x.dtype), self.SIDE)  # of real cells, (B, 1, 7, 7)
            key_padding = share[:, 0] == 0
            means = means / share.masked_fill(share == 0, 1)
        return F.gelu(self.norm(self.squares(means.permute(0, 2, 3, 1)))), key_padding


# -------------------------------------------------------------------------------------------------------------- sizes


def _row(
    build: type[Backbone],
    depths: tuple[int, ...],
    *,
    widths: tuple[int, ...] = (64, 128, 320, 512),
    heads: tuple[int, ...] = (1, 2, 5, 8),
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
    **options: object,
) -> Variant:
    size = {"widths": widths, "depths": depths, "heads": heads, "mlp_ratios": mlp_ratios, **options}
    return Variant(build=build, image_size=224, options=size)


_NANO = {"widths": (16, 24, 32, 48), "heads": (1, 2, 2, 3), "mlp_ratios": (2, 2, 2, 2), "reductions": (4, 2, 1, 1)}
VARIANTS = {
    "nano": Variant(build=PVTv2, image_size=32, options={**_NANO, "depths": (1, 1, 2, 1)}),
    "nano_v1": Variant(build=PVT, image_size=32, options={**_NANO, "depths": (1, 1, 2, 1)}),
    "v1_ti": _row(PVT, (2, 2, 2, 2)),
    "v1_s": _row(PVT, (3, 4, 6, 3)),
    "v1_m": _row(PVT, (3, 4, 18, 3)),
    "v1_l": _row(PVT, (3, 8, 27, 3)),
    "v1_h": _row(PVT, (3, 10, 60, 3), widths=(128, 256, 512, 768), heads=(2, 4, 8, 12)),
    "v2_b0": _row(PVTv2, (2, 2, 2, 2), widths=(32, 64, 160, 256)),
    "v2_b1": _row(PVTv2, (2, 2, 2, 2)),
    "v2_b2": _row(PVTv2, (3, 4, 6, 3)),
    "v2_b2_li": _row(PVTv2, (3, 4, 6, 3), attention="linear"),
    "v2_b3": _row(PVTv2, (3, 4, 18, 3)),
    "v2_b4": _row(PVTv2, (3, 8, 27, 3)),
    "v2_b5": _row(PVTv2, (3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
}
