"""Swin: hierarchical vision transformer using shifted windows (Liu et al., ICCV 2021, arXiv:2103.14030), and Swin v2:
scaling up capacity and resolution (Liu et al., CVPR 2022, arXiv:2111.09883).

    image --4x4 patches--> stage 1 --merge 2x2--> stage 2 --merge--> stage 3 --merge--> stage 4 --norm, mean--> summary
                             | /4                   | /8               | /16              | /32
                             v                      v                  v                  v
                            map                    map                map                map

A stage alternates blocks whose windows tile the grid with blocks whose tiling is displaced by half a window, so that
neighbours are in one window in every second block. Maps are the stages' outputs before any norm.

    v1:  x + attention(norm(x))   scores q k / sqrt(d) + table of offsets       merge: norm, reduction
    v2:  x + norm(attention(x))   scores s cos(q, k) + network(log of offsets)  merge: reduction, norm

What happens where windows do not divide a map, or one covers an axis of it, the paper does not say, and no two
published programs do the same: `windows` has the rule of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.backbones.base import Backbone, shrink_padding, zero_pixels
from patchform.descriptions import Variant
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.blocks import Block
from patchform.layers.drop import linear_rates
from patchform.layers.filled_windows import FilledWindows, RolledWindows
from patchform.layers.patches import Patches
from patchform.layers.patterns import Windows
from patchform.layers.positions import Grid, RelativeBias, RelativePosition
from patchform.records import Features

WindowRule: TypeAlias = Literal["masked", "zeros", "zeros_axis", "zeros_map", "zeros_native", "zeros_rolled"]
"""What windows do that a map does not fill, and which of every second block's are displaced.

masked: empty places are nobody's keys; an axis that one window covers is not displaced.
zeros: zeros fill them, whose keys and values, the projection's bias, are seen; all are displaced. Detectors and
segmenters of OpenMMLab and of Swin's authors, transformers' SwinBackbone.
zeros_axis: so, but an axis that one window covers is not displaced. torchvision.
zeros_map: so, but a map one of whose axes is covered so is not displaced. Classifiers of the authors (whose maps have
to be whole windows), of transformers and of mmpretrain.
zeros_native: so, but what is displaced, and the largest window, is decided by the rows of the maps of `image_size`.
transformers' version 2.
zeros_rolled: so, but decided for each axis by the maps of `image_size`; and zeros fill a map that is displaced already.
timm.
Where windows divide every map and cover no axis, all of them are one function.
"""


def _tilings(rule: WindowRule, window: int, native: Grid) -> tuple[Windows, Windows]:
    """The windows of a stage's blocks, in turn, for its map of `image_size`."""
    rows, columns = native
    smallest = min(window, rows, columns)
    sides = {
        "masked": (smallest, smallest),
        "zeros_map": (smallest, smallest),
        "zeros_native": (min(window, rows), min(window, rows)),
        "zeros_rolled": (min(window, rows), min(window, columns)),
    }
    size = sides.get(rule, (window, window))
    shift = size[0] // 2, size[1] // 2
    if rule == "zeros_native":
        shift = shift if rows > window else (0, 0)
    elif rule == "zeros_rolled":
        shift = shift[0] * (rows > window), shift[1] * (columns > window)
    displaced = {
        "masked": Windows(size, shift),
        "zeros_axis": FilledWindows(size, shift),
        "zeros_map": FilledWindows(size, shift, "map"),
        "zeros_rolled": RolledWindows(size, shift),
    }.get(rule, FilledWindows(size, shift, "nothing"))
    return type(displaced)(size), displaced


class Stages(Backbone):
    """What both versions share: patches, stages of blocks with alternating windows, and merging between them.

    Args:
        block: (stage, pattern, drop path) -> a block of that stage.
        merge: (width) -> what joins 2x2 cells and doubles the width.
        in_channels, image_size, patch, width, depths, window, windows, drop_path: see `Swin`.
    """

    beyond_maps = ("norm",)

    def __init__(
        self,
        block: Callable[[int, Windows, float], Block],
        merge: Callable[[int], nn.Module],
        in_channels: int,
        image_size: int | tuple[int, int],
        patch: int,
        width: int,
        depths: tuple[int, ...],
        window: int,
        windows: WindowRule,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.windows = windows
        self.channels = tuple(width << stage for stage in range(len(depths)))
        self.strides = tuple(patch << stage for stage in range(len(depths)))
        self.width = self.channels[-1]
        rates = iter(linear_rates(drop_path, sum(depths)))

        self.patches = Patches(in_channels, width, patch)
        self.patches_norm = nn.LayerNorm(width)
        self.stages, self.merges = nn.ModuleList(), nn.ModuleList()
        for stage, (channels, stride, depth) in enumerate(zip(self.channels, self.strides, depths)):
            if stage:
                self.merges.append(merge(channels // 2))
            tilings = _tilings(windows, window, grids.cells(image_size, stride))
            self.stages.append(nn.ModuleList(block(stage, tilings[number % 2], next(rates)) for number in range(depth)))
        self.norm = nn.LayerNorm(self.width)
        blocks.init_weights(self.stages)
        blocks.init_weights(self.merges)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> one map a stage, tokens (B, N, D) and summary (B, D)."""
        images = zero_pixels(images, padding)
        x = self.patches_norm(self.patches(images))  # (B, H, W, D) throughout
        maps, cell_padding = [], None
        for merge, stage, stride in zip([nn.Identity(), *self.merges], self.stages, self.strides):
            x = merge(x)
            cell_padding = shrink_padding(padding, stride)
            for block in stage.children():
                x = block(x, padding=cell_padding)
            maps.append(x.permute(0, 3, 1, 2))
        tokens = self.norm(x).flatten(1, 2)
        summary = grids.masked_mean(tokens, cell_padding)
        return Features(tuple(maps), self.strides, grids.size_of(images), tokens, summary, cell_padding)

    def layers(self) -> list[nn.Module]:
        """The blocks of all stages."""
        return [block for stage in self.stages for block in stage.children()]


class Swin(Stages):
    """Shifted-window transformer, version 1.

    Args:
        in_channels: C of the images.
        image_size: native input, pixels; a stage whose native grid is smaller than the window gets one of
            that size.
        patch: side of a patch, pixels.
        width: channels of the first stage; doubles with every stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        window: side of a window, cells.
        windows: what those do that a map does not fill, and which are displaced: a `WindowRule`.
        mlp_ratio: hidden width of the perceptrons over the stage's.
        qkv_bias: biases of queries, keys, values.
        drop_path: stochastic depth of the last block, rising linearly from 0.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        patch: int = 4,
        width: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        window: int = 7,
        windows: WindowRule = "masked",
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        def block(stage: int, pattern: Windows, rate: float) -> Block:
            return Block(
                width << stage,
                heads[stage],
                pattern=pattern,
                position=RelativeBias(heads[stage], pattern.size),
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                eps=1e-5,
                drop_path=rate,
            )

        super().__init__(block, PatchMerging, in_channels, image_size, patch, width, depths, window, windows, drop_path)


class PatchMerging(nn.Module):
    """Join 2x2 cells and project to twice the width (section 3.1).

    Args:
        width: D; the output has 2D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, ceil(H / 2), ceil(W / 2), 2D)."""
        return self.reduction(self.norm(_squares(x)))


class SwinV2(Stages):
    """Shifted-window transformer, version 2.

    Keys that are not allowed are masked; the authors' code takes 100 from their scores instead, which is the same to
    rounding until a learned scale s (below 100) comes near that.

    Args:
        in_channels, image_size, patch, width, depths, heads, windows, mlp_ratio, drop_path: see `Swin`.
        window: side of a window, cells.
        pretrained_windows: for each stage, side of the window of the weights that training starts from: offsets are
            measured in it. Default: the own window.
        qkv_bias: biases of queries and values; keys have none.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 256,
        patch: int = 4,
        width: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        window: int = 8,
        windows: WindowRule = "masked",
        pretrained_windows: tuple[int, ...] | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        def block(stage: int, pattern: Windows, rate: float) -> Block:
            native = (pretrained_windows[stage],) * 2 if pretrained_windows else pattern.size
            return PostNormBlock(
                width << stage,
                heads[stage],
                pattern=pattern,
                position=ContinuousBias(heads[stage], pattern.size, native),
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop_path=rate,
            )

        super().__init__(
            block, PatchMergingV2, in_channels, image_size, patch, width, depths, window, windows, drop_path
        )


class PostNormBlock(Block):
    """x + norm(attention(x)), then x + norm(mlp(x)) (v2, section 3.2); keys have no bias.

    Args:
        width, heads, pattern, position, mlp_ratio, drop_path: see `Block`.
        qkv_bias: biases of queries and values.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        pattern: Windows,
        position: RelativePosition,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(
            width,
            heads,
            pattern=pattern,
            position=position,
            mlp_ratio=mlp_ratio,
            qkv_bias="no_key" if qkv_bias else False,
            eps=1e-5,
            drop_path=drop_path,
        )
        for norm in (self.norm1, self.norm2):  # at the start a block changes nothing (the authors' code)
            nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor, *, grid: Grid | None = None, padding: Tensor | None = None) -> Tensor:
        """Mix the tokens (B, H, W, D)."""
        x = self.residual(x, lambda part, pad: self.norm1(self.attend(part, grid, pad)), padding)
        return self.residual(x, lambda part: self.norm2(self.mlp(part)))


class ContinuousBias(RelativePosition):
    """Cosine scores, and a bias that a small network makes from the logarithms of offsets (v2, sections 3.2 and 3.3).

    Args:
        heads: h.
        grid: rows and columns of a window.
        native: sides of the window that offsets are measured in: its largest becomes 8 before the logarithm.
    """

    index: Tensor
    offsets: Tensor
    HIDDEN = 512
    HIGHEST = 100.0  # of the learned scales
    STRONGEST = 16.0  # bias

    def __init__(self, heads: int, grid: Grid, native: Grid) -> None:
        super().__init__()
        self.cached: tuple[object, Tensor] | None = None
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.fc1 = nn.Linear(2, self.HIDDEN)
        self.fc2 = nn.Linear(self.HIDDEN, heads, bias=False)
        dy, dx = (8 * torch.arange(1.0 - side, side) / max(of - 1, 1) for side, of in zip(grid, native))
        offset = torch.stack(torch.meshgrid(dy, dx, indexing="ij"), -1).flatten(0, 1)
        self.register_buffer("offsets", offset.sign() * (offset.abs() + 1).log2() / 3, persistent=False)
        self.register_buffer("index", RelativeBias.offsets(grid), persistent=False)

    def forward(self, q: Tensor, k: Tensor, grid: Grid | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries and keys of length 1, the former times their head's scale, and the bias (h, N, N)."""
        scale = self.logit_scale.clamp(max=math.log(self.HIGHEST)).exp() * q.shape[-1] ** 0.5  # which attention divides
        q = (q * (scale / _length(q))).to(q.dtype)
        k = (k / _length(k)).to(k.dtype)
        return q, k, self.bias(q.dtype)

    def bias(self, dtype: torch.dtype) -> Tensor:
        """(h, N, N); where no gradient is wanted it is computed once and cached as long as its parameters stay."""
        parameters = (self.fc1.weight, self.fc1.bias, self.fc2.weight)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or any(p.is_inference() for p in parameters):
            return self.compute().to(dtype)
        state = (dtype, *((p.data_ptr(), p._version) for p in parameters))
        cached = self.cached  # another thread may replace it meanwhile
        if cached is None or cached[0] != state:
            self.cached = cached = state, self.compute().to(dtype)
        return cached[1]

    def compute(self) -> Tensor:
        """The bias, not from the cache."""
        table = self.STRONGEST * self.fc2(F.relu(self.fc1(self.offsets))).sigmoid()
        return table.index_select(0, self.index).t().unflatten(1, (math.isqrt(self.index.shape[0]), -1))

    def train(self, mode: bool = True) -> Self:
        """Clear the cache, as does a move to another device or type."""
        self.cached = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.cached = None
        return super()._apply(fn, recurse)


def _length(x: Tensor) -> Tensor:
    """Of the last axis; 1 for vectors of zeros, which then have a finite gradient."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.masked_fill(length < 1e-12, 1)


class PatchMergingV2(PatchMerging):
    """Join 2x2 cells, project to twice the width, normalise (v2, section 3.2)."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.norm = nn.LayerNorm(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, ceil(H / 2), ceil(W / 2), 2D)."""
        return self.norm(self.reduction(_squares(x)))


def _squares(x: Tensor) -> Tensor:
    """(B, H, W, D) -> (B, ceil(H / 2), ceil(W / 2), 4D): 2x2 cells, column-major as published."""
    (height, width), (rows, columns) = x.shape[1:3], grids.cells((x.shape[1], x.shape[2]), 2)
    x = F.pad(x, (0, 0, 0, 2 * columns - width, 0, 2 * rows - height))
    squares = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H/2, row, W/2, column, D)
    return squares.permute(0, 1, 3, 4, 2, 5).flatten(3)


_SIZES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "t": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "s": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "b": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "l": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
_NANO = {"patch": 2, "width": 16, "depths": (2, 2), "heads": (1, 2), "window": 4, "mlp_ratio": 2.0}


def _row(build: type[Stages], size: str, window: int, image_size: int, **others: tuple[int, ...]) -> Variant:
    width, depths, heads = _SIZES[size]
    options = {"width": width, "depths": depths, "heads": heads, "window": window, **others}
    return Variant(build=build, image_size=image_size, options=options)


VARIANTS = {
    "nano": Variant(build=Swin, image_size=32, options=_NANO),
    **{size: _row(Swin, size, 7, 224) for size in _SIZES},
    **{f"{size}384": _row(Swin, size, 12, 384) for size in "bl"},
    "v2_nano": Variant(build=SwinV2, image_size=32, options=_NANO),
    **{f"v2_{size}_w{window}": _row(SwinV2, size, window, 256) for size in "tsb" for window in (8, 16)},
    **{f"v2_{size}_w12": _row(SwinV2, size, 12, 192) for size in "bl"},
    **{  # fine-tuned from those of window 12
        f"v2_{size}_w12to{window}": _row(SwinV2, size, window, 16 * window, pretrained_windows=(12, 12, 12, 6))
        for size in "bl"
        for window in (16, 24)
    },
}
