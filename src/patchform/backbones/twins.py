"""Twins: local and global attention taken apart (Chu et al., NeurIPS 2021, arXiv:2104.13840).

    image --squares--> stage 1 --squares--> stage 2 --squares--> stage 3 --squares--> stage 4 --norm, mean--> summary
                         | /4                 | /8                 | /16                | /32
                         v                    v                    v                    v
                        map                  map                  map                  map

    PCPVT:  block, PEG, block, block, ...          keys of every block are squares of r x r cells, each made into one
    SVT:    windows, PEG, squares, windows, ...    a block within windows, then one whose keys are the squares

PEG is a positional encoding generator (Chu et al. 2021, CPVT): a depthwise convolution that has positions from the
zeros around the map. PCPVT is PVT with it in place of learned positions, and the mean in place of the class
token. Maps are what the next stage gets: not normalised, but with `norm_maps`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor, nn

from patchform.backbones.base import Backbone, shrink_padding
from patchform.descriptions import Variant
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.blocks import Block
from patchform.layers.drop import linear_rates
from patchform.layers.filled_windows import FilledWindows, HalfFilledWindows
from patchform.layers.patterns import Windows
from patchform.layers.reduction import PatchProjection, patch_projection_block, zero_padding
from patchform.records import Features


class Twins(Backbone):
    """What PCPVT and SVT have in common: everything but the blocks.

    Args:
        in_channels: C of the images.
        widths: channels of each stage.
        stages: the blocks of each stage, (B, H, W, D) -> the same.
        norm_maps: a norm after each stage, as the authors' detectors and segmenters have it, in place of that of the
            tokens.
    """

    beyond_maps = ("norm",)

    def __init__(
        self, in_channels: int, widths: Sequence[int], stages: Sequence[Sequence[nn.Module]], norm_maps: bool
    ) -> None:
        super().__init__()
        self.channels, self.width = tuple(widths), widths[-1]
        self.strides = tuple(4 << stage for stage in range(len(widths)))
        self.patches = nn.ModuleList(
            PatchProjection(before, width, 2 if stage else 4)
            for stage, (before, width) in enumerate(zip((in_channels, *widths), widths, strict=False))
        )
        self.patches_norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.stages = nn.ModuleList(map(nn.ModuleList, stages))
        self.positions = nn.ModuleList(PositionGenerator(width) for width in widths)
        self.map_norms = nn.ModuleList(
            nn.LayerNorm(width, eps=1e-6) if norm_maps else nn.Identity() for width in widths
        )
        self.norm = nn.Identity() if norm_maps else nn.LayerNorm(self.width, eps=1e-6)
        blocks.init_weights(self)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> one map a stage, tokens (B, N, D) and summary (B, D), their mean."""
        x, cell_padding = images.permute(0, 2, 3, 1), padding
        maps = []
        for number, stage in enumerate(self.stages):
            x = self.patches_norms[number](self.patches[number](zero_padding(x, cell_padding)))  # (B, H, W, D)
            cell_padding = shrink_padding(padding, self.strides[number])
            for index, block in enumerate(stage.children()):
                x = block(x, padding=cell_padding)
                if index == 0:
                    x = self.positions[number](x, cell_padding)
            x = self.map_norms[number](x)
            maps.append(x.permute(0, 3, 1, 2))
        tokens = self.norm(x).flatten(1, 2)
        summary = grids.masked_mean(tokens, cell_padding)
        return Features(tuple(maps), self.strides, grids.size_of(images), tokens, summary, cell_padding)

    def layers(self) -> list[nn.Module]:
        """The blocks of all stages."""
        return [block for stage in self.stages for block in stage.children()]


class PCPVT(Twins):
    """Pyramid of blocks of global attention to reduced maps (section 3.1).

    Args:
        in_channels: C of the images.
        widths: channels of each stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        mlp_ratios: hidden width of the perceptrons over the stage's.
        qkv_bias: biases of queries, keys, values.
        reductions: side of the squares that become one key, cells.
        norm_maps: see `Twins`.
        drop_path: stochastic depth of the last block, rising linearly from 0.
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
        reductions: Sequence[int] = (8, 4, 2, 1),
        norm_maps: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        rates = iter(linear_rates(drop_path, sum(depths)))
        sizes = zip(widths, depths, heads, mlp_ratios, reductions, strict=True)
        stages = [
            [
                patch_projection_block(width, stage_heads, ratio, side, qkv_bias=qkv_bias, drop_path=next(rates))
                for _ in range(depth)
            ]
            for width, depth, stage_heads, ratio, side in sizes
        ]
        super().__init__(in_channels, widths, stages, norm_maps)


WindowRule: TypeAlias = Literal["masked", "zeros", "zeros_half"]
"""What windows do that a map does not fill.

masked: empty places are nobody's keys. zeros: zeros fill them, whose keys and values, the projection's bias, are seen:
timm, and the authors' detectors. zeros_half: zeros where windows divide one side of the map, masked where they divide
neither: the authors' segmenters and OpenMMLab, by a slip of an index that their weights have seen.
"""
_WINDOWS: dict[WindowRule, type[Windows]] = {
    "masked": Windows,
    "zeros": FilledWindows,
    "zeros_half": HalfFilledWindows,
}


class SVT(Twins):
    """Pyramid of blocks of local and global attention in turn (section 3.2).

    Args:
        in_channels, widths, depths, heads, mlp_ratios, qkv_bias, reductions, drop_path, norm_maps: see `PCPVT`.
        window: side of a window, cells.
        windows: what those do that a map does not fill: a `WindowRule`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 10, 4),
        heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        qkv_bias: bool = True,
        window: int = 7,
        windows: WindowRule = "masked",
        reductions: Sequence[int] = (8, 4, 2, 1),
        norm_maps: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        rates = iter(linear_rates(drop_path, sum(depths)))
        sizes = zip(widths, depths, heads, mlp_ratios, reductions, strict=True)
        pattern = _WINDOWS[windows]((window, window))
        stages = [
            [
                patch_projection_block(width, stage_heads, ratio, side, qkv_bias=qkv_bias, drop_path=rate)
                if index % 2
                else Block(width, stage_heads, pattern=pattern, mlp_ratio=ratio, qkv_bias=qkv_bias, drop_path=rate)
                for index, rate in zip(range(depth), rates)
            ]
            for width, depth, stage_heads, ratio, side in sizes
        ]
        super().__init__(in_channels, widths, stages, norm_maps)
        self.windows = windows


class PositionGenerator(nn.Module):
    """x + a depthwise 3x3 convolution of it (Chu et al. 2021, CPVT, section 3.3).

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        nn.init.normal_(self.conv.weight, std=math.sqrt(2 / 9))

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """(B, H, W, D) -> the same; padding (B, H, W)."""
        return x + self.conv(zero_padding(x, padding).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


# -------------------------------------------------------------------------------------------------------------- sizes


def _pcpvt(*depths: int) -> Variant:
    return Variant(build=PCPVT, image_size=224, options={"depths": depths})


def _svt(width: int, *depths: int) -> Variant:
    widths = tuple(width << stage for stage in range(4))
    return Variant(
        build=SVT,
        image_size=224,
        options={"widths": widths, "depths": depths, "heads": tuple(width // 32 for width in widths)},
    )


_NANO = {"widths": (16, 24, 32), "heads": (1, 2, 2), "mlp_ratios": (2, 2, 2), "reductions": (4, 2, 1)}
VARIANTS = {
    "nano": Variant(build=SVT, image_size=32, options={**_NANO, "depths": (2, 2, 2), "window": 4}),
    "nano_dense": Variant(
        build=SVT, image_size=32, options={**_NANO, "depths": (2, 2, 2), "window": 4, "norm_maps": True}
    ),
    "nano_pcpvt": Variant(build=PCPVT, image_size=32, options={**_NANO, "depths": (1, 1, 2)}),
    "pcpvt_s": _pcpvt(3, 4, 6, 3),
    "pcpvt_b": _pcpvt(3, 4, 18, 3),
    "pcpvt_l": _pcpvt(3, 8, 27, 3),
    "svt_s": _svt(64, 2, 2, 10, 4),
    "svt_b": _svt(96, 2, 2, 18, 2),
    "svt_l": _svt(128, 2, 2, 18, 2),
}
