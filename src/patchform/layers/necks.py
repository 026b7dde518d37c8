"""Necks: what stands between the maps of a backbone and a head that wants levels of one width.

A neck is built from `channels` and `strides` of the maps, the `width` of its levels and whether the cells of each map
that it uses are normalised first. It gives levels, fine to coarse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor, nn

from patchform.layers.convolutions import CellNorm
from patchform.layers.pyramids import FPN, MADE_STRIDES, Levels

Norm: TypeAlias = Literal["layer", "none"]


class Neck(nn.Module):
    """The contract of a neck.

    Attributes:
        strides: input pixels per cell of each level.
        read: so many of the levels, from the finest, serve RoIAlign too, the others only proposals of large objects.
    """

    strides: tuple[float, ...]
    read: int

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i) -> levels (B, width, H_l, W_l)."""
        raise NotImplementedError


class Pyramid(Neck):
    """A feature pyramid (Lin et al. 2017) and one level more, every second cell of its last (section 4.1, P6).

    Above a backbone of one stride stand the levels of `layers.pyramids.Levels`.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int, norm: Norm) -> None:
        super().__init__()
        self.levels = Levels(channels, strides)
        self.norms = nn.ModuleList(_norm(before, norm) for before in self.levels.channels)
        self.pyramid = FPN(self.levels.channels, width)
        self.strides, self.read = (*self.levels.strides, 2 * self.levels.strides[-1]), len(self.levels.strides)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """As many levels as maps (or made from one), and one more."""
        levels = self.pyramid([norm(x) for norm, x in zip(self.norms, self.levels(maps))])
        return [*levels, levels[-1][:, :, ::2, ::2]]


class Single(Neck):
    """The last map, behind a 1x1 convolution."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int, norm: Norm) -> None:
        super().__init__()
        self.norm, self.conv = _norm(channels[-1], norm), nn.Conv2d(channels[-1], width, 1)
        nn.init.xavier_uniform_(self.conv.weight)
        self.strides, self.read = (float(strides[-1]),), 1

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """One level."""
        return [self.conv(self.norm(maps[-1]))]


class SimplePyramid(Neck):
    """The simple feature pyramid of ViTDet (Li et al., ECCV 2022, arXiv:2203.16527, section 3), and one level more.

    Levels of about 4, 8, 16 and 32 pixels a cell are made from the last map: each doubling is a 2x2 transposed
    convolution that halves the channels, with layer norm and GELU between two of them; each halving a max-pool of 2x2.
    A 1x1 and a 3x3 convolution follow, each with a layer norm.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int, norm: Norm) -> None:
        super().__init__()
        self.norm = _norm(channels[-1], norm)
        doublings = [round(math.log2(strides[-1] / stride)) for stride in MADE_STRIDES]
        self.levels = nn.ModuleList(_simple_level(channels[-1], times, width) for times in doublings)
        level_strides = tuple(strides[-1] / 2**times for times in doublings)
        self.strides, self.read = (*level_strides, 2 * level_strides[-1]), len(level_strides)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Five levels."""
        x = self.norm(maps[-1])
        levels = [level(x) for level in self.levels]
        return [*levels, levels[-1][:, :, ::2, ::2]]


NECKS: dict[str, type[Neck]] = {"fpn": Pyramid, "single": Single, "simple": SimplePyramid}


def _norm(channels: int, norm: Norm) -> nn.Module:
    return CellNorm(channels) if norm == "layer" else nn.Identity()


def _simple_level(channels: int, doublings: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(doublings):
        if number:
            layers += [CellNorm(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels //= 2
    layers += [nn.MaxPool2d(2, ceil_mode=True) for _ in range(-doublings)]  # odd grids keep their last cells
    layers += [nn.Conv2d(channels, width, 1, bias=False), CellNorm(width)]
    layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), CellNorm(width)]
    return nn.Sequential(*layers)
