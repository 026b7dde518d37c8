"""RegionViT: regional-to-local attention for vision transformers (Chen et al., ICLR 2022, arXiv:2106.02689).

    image --28x28 patches--> regions --+
                                       +--> stage 1 --/2--> stage 2 --/2--> stage 3 --/2--> stage 4 --> regions, cells
    image --convolutions---> cells ----+       | /4            | /8            | /16           | /32       |
                                               v               v               v               v      norm, mean
                                              map             map             map             map      -> summary

    block:  all regions attend to each other, then every window [r | c1 c2 ... c49], a region and the 7x7 cells in it,
            attends within itself, by the same attention and now with positions; then the perceptron

Maps are the cells of every stage. The summary is the mean of the regions; `tokens` are the cells of the last stage
under the norm of the regions (a picture of 224 pixels ends with 7x7 cells in one region).

Sizes are the paper's table 1; windows of 14 and PEG (a depth-wise convolution as position, Chu et al. 2021) are those
of its detectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.backbones.base import Backbone, shrink_padding, zero_pixels
from patchform.descriptions import Variant
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.attention import Attention, never_empty, real_keys
from patchform.layers.blocks import MLP, hidden_width
from patchform.layers.convolutions import Strided, channels_innermost
from patchform.layers.drop import DropPath, linear_rates
from patchform.layers.patches import Patches, pad_cells, pad_to_multiple
from patchform.layers.positions import Grid, RelativeBias
from patchform.records import Features

PATCH = 4
"""Side of a cell of the first stage, pixels."""
EPS = 1e-6


class RegionViT(Backbone):
    """Regional-to-local vision transformer.

    Args:
        in_channels: C of the images.
        widths, depths, heads: D, blocks and attention heads of each stage.
        window: cells along a side of a region, in all stages.
        mlp_ratio: hidden width of the perceptrons over the stage's.
        qkv_bias: biases of queries, keys, values.
        stem: how cells are made: "3conv" is three small convolutions, "1conv" one of 8x8 pixels.
        peg: positions by a depth-wise convolution after the first block of each stage.
        norm_maps: a norm on the cells between stages, as the authors' detectors have it.
        drop_path: stochastic depth of the last block, rising linearly from 0; by image (the authors' code leaves the
            branches that windows have out window by window).

    Raises:
        UsageError: an unknown stem.
    """

    beyond_maps = ("norm",)

    def __init__(
        self,
        *,
        in_channels: int = 3,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        depths: tuple[int, ...] = (2, 2, 8, 2),
        heads: tuple[int, ...] = (2, 4, 8, 16),
        window: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        stem: Literal["3conv", "1conv"] = "3conv",
        peg: bool = False,
        norm_maps: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        stems = {"3conv": ThreeConvolutions, "1conv": OneConvolution}
        if stem not in stems:
            raise UsageError(f'no stem "{stem}"', remedy=f"there are: {', '.join(stems)}")
        self.channels, self.width, self.window = tuple(widths), widths[-1], window
        self.strides = tuple(PATCH << stage for stage in range(len(widths)))
        rates = iter(linear_rates(drop_path, sum(depths)))

        self.regions = Patches(in_channels, widths[0], PATCH * window)
        self.cells = stems[stem](in_channels, widths[0])
        self.stages = nn.ModuleList(
            Stage(
                before,
                width,
                stage_heads,
                window,
                mlp_ratio,
                qkv_bias=qkv_bias,
                peg=peg,
                rates=[next(rates) for _ in range(depth)],
            )
            for before, width, depth, stage_heads in zip((None, *widths), widths, depths, heads)
        )
        self.map_norms = nn.ModuleList(nn.LayerNorm(width) if norm_maps else nn.Identity() for width in widths)
        self.norm = nn.LayerNorm(self.width, eps=EPS)
        blocks.init_weights(self.stages)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> one map a stage, tokens (B, N, D) and summary (B, D)."""
        images = zero_pixels(images, padding)
        regions, cells = self.regions(_centre(images, self.regions.size)), self.cells(images)  # (B, H, W, D) throughout
        maps, cell_padding = [], None
        for stage, norm, stride in zip(self.stages, self.map_norms, self.strides):
            cell_padding = shrink_padding(padding, stride)
            regions, cells = stage(regions, cells, cell_padding)
            cells = norm(cells)
            maps.append(cells.permute(0, 3, 1, 2))
        summary = grids.masked_mean(self.norm(regions).flatten(1, 2), shrink_padding(cell_padding, self.window))
        tokens = self.norm(cells).flatten(1, 2)
        return Features(tuple(maps), self.strides, grids.size_of(images), tokens, summary, cell_padding)

    def layers(self) -> list[nn.Module]:
        """The blocks of all stages."""
        return [block for stage in self.stages if isinstance(stage, Stage) for block in stage.blocks]


def _centre(images: Tensor, side: int) -> Tensor:
    """Zeros before and after, up to whole regions of `side` pixels, as published; cells are padded at the end alone.

    Only an axis that needs it is padded: the authors' code gives the other one a whole region more.
    """
    high, wide = (grids.ceil_div(length, side) * side - length for length in images.shape[-2:])
    if grids.known(high, wide) and not (high or wide):
        return images
    return F.pad(images, (wide // 2, wide - wide // 2, high // 2, high - high // 2))


# --------------------------------------------------------------------------------------------------------------- stems


class ThreeConvolutions(nn.Module):
    """Two strided 3x3 convolutions with norm and GELU, then a 3x3 one (Ti and S).

    Args:
        in_channels: C.
        width: D; the first two have D / 4 and D / 2 channels.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=stride, padding=1)
            for before, after, stride in (
                (in_channels, width // 4, 2),
                (width // 4, width // 2, 2),
                (width // 2, width, 1),
            )
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in (width // 4, width // 2))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ceil(H / 4), ceil(W / 4), D)."""
        first, *others = self.convolutions
        x = first(channels_innermost(images)).permute(0, 2, 3, 1)
        for norm, convolution in zip(self.norms, others):
            x = _convolve(convolution, F.gelu(norm(x)))
        return x


class OneConvolution(nn.Module):
    """An 8x8 convolution with stride 4 (M and B).

    Args:
        in_channels: C.
        width: D.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, 2 * PATCH, stride=PATCH, padding=PATCH - 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ceil(H / 4), ceil(W / 4), D)."""
        images = channels_innermost(pad_to_multiple(images, PATCH))
        return self.proj(images).permute(0, 2, 3, 1)


def _convolve(convolution: nn.Module, x: Tensor) -> Tensor:
    """A convolution of (B, H, W, D)."""
    return convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


# -------------------------------------------------------------------------------------------------------------- stages


class Stage(nn.Module):
    """Half as many rows and columns, unless it is the first, then blocks on windows of a region and its cells.

    Args:
        before: D of the stage before; None for the first.
        width: D.
        heads: attention heads.
        window: cells along a side of a region.
        mlp_ratio: hidden width of the perceptrons over D.
        qkv_bias: biases of queries, keys, values.
        peg: a depth-wise convolution after the first block.
        rates: of stochastic depth, one a block.
    """

    def __init__(
        self,
        before: int | None,
        width: int,
        heads: int,
        window: int,
        mlp_ratio: float,
        *,
        qkv_bias: bool,
        peg: bool,
        rates: Sequence[float],
    ) -> None:
        super().__init__()
        self.window = window
        self.halve = nn.Identity() if before is None else Halving(before, width)
        self.blocks = nn.ModuleList(
            RegionalToLocal(width, heads, window, mlp_ratio, qkv_bias=qkv_bias, drop_path=rate) for rate in rates
        )
        self.peg = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False) if peg else None

    def forward(self, regions: Tensor, cells: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, h', w', D'), (B, H', W', D') -> regions (B, h, w, D), cells (B, H, W, D); padding is (B, H, W)."""
        regions, cells = self.halve(regions), self.halve(cells)
        grid, size = (regions.shape[1], regions.shape[2]), (cells.shape[1], cells.shape[2])
        region_mask, window_mask = self.masks(grid, size, padding, cells)
        windows = _join(regions, cells, self.window)
        for number, block in enumerate(self.blocks):
            windows = block(windows, region_mask, window_mask)
            if number == 0 and self.peg is not None:
                regions, cells = _split(windows, grid, size, self.window)
                windows = _join(regions + _convolve(self.peg, regions), cells + _convolve(self.peg, cells), self.window)
        return _split(windows, grid, size, self.window)

    def masks(
        self, grid: Grid, size: Grid, padding: Tensor | None, cells: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Keys allowed among regions (B, 1, 1, 1, G), and within windows (B, G, 1, 1 + N, 1 + N)."""
        missing = grid[0] * self.window - size[0], grid[1] * self.window - size[1]
        region_padding, allowed = shrink_padding(padding, self.window), None
        if not grids.known(*missing) or any(missing):
            allowed = _published_mask(grid, missing, self.window, cells.device).expand(cells.shape[0], -1, -1, -1, -1)
        if padding is not None and region_padding is not None:
            keys = ~_join(region_padding[..., None], padding[..., None], self.window).transpose(2, 3)[:, :, None]
            allowed = keys if allowed is None else allowed & keys  # keys: (B, G, 1, 1, 1 + N)
        return real_keys(region_padding), never_empty(allowed)


class Halving(nn.Module):
    """Norm, GELU and a strided depth-wise 3x3 convolution; one for regions and cells.

    Args:
        before: D.
        width: D of the output, a multiple.
    """

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(before)
        self.convolution = Strided(before, width, 3, stride=2, padding=1, groups=before)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, ceil(H / 2), ceil(W / 2), D')."""
        return _convolve(self.convolution, F.gelu(self.norm(x)))


class RegionalToLocal(nn.Module):
    """Regions attend among themselves, then windows within, by one attention; then the perceptron (section 3).

    Args:
        width: D.
        heads: attention heads.
        window: cells along a side of a region.
        mlp_ratio: hidden width of the perceptron over D.
        qkv_bias: biases of queries, keys, values.
        drop_path: rate of stochastic depth of the three branches.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        window: int,
        mlp_ratio: float,
        *,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.grid = (window, window)
        self.norm0 = nn.LayerNorm(width, eps=EPS)
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attention = Attention(width, heads, position=WithinWindow(heads, self.grid), qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width, hidden_width(width, mlp_ratio))
        self.residual = DropPath(drop_path)

    def forward(self, windows: Tensor, region_mask: Tensor | None = None, window_mask: Tensor | None = None) -> Tensor:
        """(B, G, 1 + N, D), regions in front, to the same; masks have B in front."""
        regions = self.residual(windows[:, :, 0], self.attend_regions, region_mask)
        windows = torch.cat([regions[:, :, None], windows[:, :, 1:]], 2)
        windows = self.residual(windows, self.attend_windows, window_mask)
        return self.residual(windows, lambda part: self.mlp(self.norm2(part)))

    def attend_regions(self, regions: Tensor, allowed: Tensor | None) -> Tensor:
        """Regional self-attention, (B, G, D)."""
        return self.attention(self.norm0(regions)[:, None], allowed=allowed)[:, 0]

    def attend_windows(self, windows: Tensor, allowed: Tensor | None) -> Tensor:
        """Local self-attention, (B, G, 1 + N, D)."""
        return self.attention(self.norm1(windows), grid=self.grid, allowed=allowed)


class WithinWindow(RelativeBias):
    """A bias between cells of a window. Called without a grid, for regions, it adds nothing."""

    def forward(self, q: Tensor, k: Tensor, grid: Grid | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Leave q and k, give the bias (h, 1 + N, 1 + N) or None."""
        return (q, k, None) if grid is None else super().forward(q, k, grid)


def _join(regions: Tensor, cells: Tensor, side: int) -> Tensor:
    """(B, h, w, D) and (B, H, W, D) -> windows (B, h*w, 1 + side**2, D); missing cells, at the end, are zeros."""
    rows, columns = regions.shape[1:3]
    cells = pad_cells(cells, (rows * side, columns * side))
    squares = cells.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3)  # (B, h, w, side, side, D)
    return torch.cat([regions[:, :, :, None], squares.flatten(3, 4)], 3).flatten(1, 2)


def _split(windows: Tensor, grid: Grid, size: Grid, side: int) -> tuple[Tensor, Tensor]:
    """The inverse of `_join`: windows -> regions (B, *grid, D) and cells (B, *size, D)."""
    squares = windows[:, :, 1:].unflatten(2, (side, side)).unflatten(1, grid).transpose(2, 3)
    cells = squares.flatten(3, 4).flatten(1, 2)[:, : size[0], : size[1]]
    return windows[:, :, 0].unflatten(1, grid), cells


def _published_mask(grid: Grid, missing: Grid, side: int, device: torch.device) -> Tensor:
    """The keys allowed in windows at the border where rows or columns are missing, (1, G, 1, 1 + N, 1 + N) bool.

    The window in the corner has too many, as in the authors' code, which the published detectors come from: those of
    the windows of the last row or of the last column, and not only those of both.
    """
    row, column = grids.coordinates((side, side), device=device)
    real_row, real_column = (
        F.pad(index < side - count, (1, 0), value=True) for index, count in zip((row, column), missing)
    )
    last_row, last_column = (real[:, None] & real for real in (real_row, real_column))
    kinds = torch.stack([torch.ones_like(last_row), last_column, last_row, last_row | last_column])
    at_bottom, at_right = (torch.arange(n, device=device) == n - 1 for n in grid)
    kind = 2 * at_bottom[:, None] + at_right  # of each window
    return kinds.index_select(0, kind.flatten())[None, :, None]


# ------------------------------------------------------------------------------------------------------------- variants


def _row(width: int, depth: int, heads: int, *, window: int = 7, stem: str = "3conv", peg: bool = False) -> Variant:
    return Variant(
        build=RegionViT,
        image_size=224,
        options={
            "widths": tuple(width << stage for stage in range(4)),
            "depths": (2, 2, depth, 2),
            "heads": tuple(heads << stage for stage in range(4)),
            "window": window,
            "stem": stem,
            "peg": peg,
        },
    )


VARIANTS = {
    "nano": Variant(
        build=RegionViT,
        image_size=32,
        options={"widths": (16, 32), "depths": (2, 2), "heads": (1, 2), "window": 2, "mlp_ratio": 2.0, "peg": True},
    ),
    "ti": _row(64, 8, 2),
    "s": _row(96, 8, 3),
    "m": _row(96, 14, 3, stem="1conv"),
    "b": _row(128, 14, 4, stem="1conv"),
    "s_w14": _row(96, 8, 3, window=14),
    "s_w14_peg": _row(96, 8, 3, window=14, peg=True),
    "b_w14": _row(128, 14, 4, window=14, stem="1conv"),
    "b_w14_peg": _row(128, 14, 4, window=14, stem="1conv", peg=True),
}
