"""Maps of several strides: summed from coarse to fine, as a feature pyramid; made from one stride; coarser ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from patchform.geometry.maps import Mode, to_size
from patchform.layers.convolutions import Strided
from patchform.layers.norms import BatchNorm2d

MADE_STRIDES = (4, 8, 16, 32)
"""Strides of a hierarchical backbone, which dense heads were designed for."""


def doubled(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W), bilinear."""
    return to_size(x, (2 * x.shape[-2], 2 * x.shape[-1]))


def top_down(maps: Sequence[Tensor], mode: Mode) -> list[Tensor]:
    """Each map plus the sum of all coarser ones, which is resized from map to map (Lin et al. 2017, section 3).

    Args:
        maps: fine to coarse, each (B, C, H_i, W_i).
        mode: of resizing.

    Returns:
        As many, of the same shapes.
    """
    sums = [maps[-1]]
    for finer in reversed(maps[:-1]):
        sums.append(finer + to_size(sums[-1], finer.shape[-2:], mode))
    return sums[::-1]


class FPN(nn.Module):
    """Feature pyramid network (Lin et al., CVPR 2017, arXiv:1612.03144): bare convolutions, nearest neighbours.

    Args:
        channels: of the maps, fine to coarse.
        width: channels of all results.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(before, width, 1) for before in channels)
        self.outputs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        for conv in (*self.laterals, *self.outputs):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i) -> as many (B, width, H_i, W_i)."""
        sums = top_down([lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)], "nearest")
        return [output(x) for output, x in zip(self.outputs, sums)]


class Coarser(nn.Module):
    """Levels above a pyramid, each a 3x3 convolution of stride 2 (RetinaNet, Lin et al., ICCV 2017, section 4: P6, P7).

    Args:
        in_channels: of the map below the first: the backbone's coarsest, or the pyramid's.
        width: channels of the levels.
        number: of levels, 0 or more.
        between: what a level goes through on its way to the next; ReLU in the paper, nothing in mmdetection.
    """

    def __init__(
        self, in_channels: int, width: int, number: int, *, between: Callable[[Tensor], Tensor] = F.relu
    ) -> None:
        super().__init__()
        self.between = between
        self.outputs = nn.ModuleList(
            Strided(width if level else in_channels, width, 3, stride=2, padding=1) for level in range(number)
        )
        for conv in (*self.outputs,):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> `number` maps (B, width, H', W'), each side half of the last, rounded up."""
        levels: list[Tensor] = []
        for number, output in enumerate(self.outputs):
            x = output(self.between(x) if number else x)
            levels.append(x)
        return levels


class Levels(nn.Module):
    """The maps of a backbone that has several strides; of one that has a single stride, four levels made from them.

    Levels of about 4, 8, 16 and 32 pixels a cell come from as many maps, evenly chosen from shallow to deep (one map
    serves them all). Each doubling is a 2x2 transposed convolution, with batch norm and GELU between two of them; each
    halving is a max-pool of 2x2. For patches of 16 pixels that is what BEiT and MAE put under UPerNet (Bao et al. 2022;
    He et al. 2022, appendix A.4).

    Args:
        channels, strides: of the backbone's maps.
        finest: levels of fewer pixels a cell are left out, but for the coarsest: of 4, 8, 16, ... pixels; a stride that
            is none of them counts as the nearest.

    Attributes:
        channels: of each level, fine to coarse.
        strides: input pixels per cell of each level; a fraction where 4 is none of the backbone's.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, finest: int = 0) -> None:
        super().__init__()
        single = len(set(strides)) == 1
        targets = MADE_STRIDES if single else tuple(strides)
        levels = [level for level, stride in enumerate(targets) if 2 ** round(math.log2(stride)) >= finest]
        levels = levels or [len(targets) - 1]
        step = (len(channels) - 1) / (len(targets) - 1) if single else 1
        self.chosen = tuple(round(level * step) for level in levels)
        doublings = [round(math.log2(strides[0] / targets[level])) if single else 0 for level in levels]
        self.channels = tuple(channels[index] for index in self.chosen)
        self._steps = tuple(
            (strides[index] * 2 ** max(0, -times), 2 ** max(0, times)) for index, times in zip(self.chosen, doublings)
        )
        self.strides = tuple(pixels / cells for pixels, cells in self._steps)
        self.steps = nn.ModuleList(_rescaled(width, times) for width, times in zip(self.channels, doublings))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The levels, fine to coarse."""
        return [step(maps[index]) for step, index in zip(self.steps, self.chosen)]

    def covered(self, cells: Tensor, number: int) -> tuple[int, int]:
        """Height and width in pixels of what the cells of a level lie over."""
        pixels, together = self._steps[number]  # whole numbers: no rounding of what may be symbols
        return cells.shape[-2] * pixels // together, cells.shape[-1] * pixels // together


def _rescaled(channels: int, doublings: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(doublings):
        if number:
            layers += [BatchNorm2d(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels, 2, stride=2))
    layers += [nn.MaxPool2d(2, ceil_mode=True) for _ in range(-doublings)]  # odd grids keep their last cells
    return nn.Sequential(*layers)
