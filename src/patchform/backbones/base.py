"""The contract of a backbone: pictures in, `Features` out, with channels and strides known before the first batch."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.geometry import grids
from patchform.records import Features


class Backbone(nn.Module):
    """A trunk that any head can stand on.

    A file of this folder holds: a docstring (paper, a drawing, what it gives), one public Backbone class (or several of
    one family) and `VARIANTS` (rows, with a "nano" one for tests). What the world has published for the family, scores
    and layouts of weights, lies in the file of the same name in `published/`.

    Attributes:
        channels: C_i of each map, fine to coarse.
        strides: input pixels per cell of each map.
        width: D of `tokens` and `summary`.
        frames: native number of frames of a clip; None for backbones of single images.
        prefers_channels_last: whether its convolutions are faster on weights in that memory format; a `Model` and the
            training loop then have them so.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    width: int
    frames: int | None = None
    prefers_channels_last: bool = False

    @abstractmethod
    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """Compute features.

        Args:
            images: (B, C, H, W) floating point, normalised; video backbones take (B, T, C, H, W). H and W need not
                be multiples of a stride: a map has ceil(H / stride) rows (a backbone that rescales its input says how
                many).
            padding: (B, H, W) bool, True on padding. What lies there changes nothing that is not padding.
        """

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The blocks, shallow to deep: the units of layer-wise learning rates and of activation checkpointing."""


class AttendingResNet(Backbone):
    """A ResNet's stem, and stages of blocks that see (B, H, W, D): what axial and stand-alone attention share.

    Args:
        in_channels: C of the images.
        width: channels of the stem. A stage has 4 times as many, doubling with every stage.
        stages: blocks of each stage, (B, H, W, D) and padding (B, H, W) -> (B, H', W', D'); the first block of each but
            the first halves the grid.
    """

    def __init__(self, in_channels: int, width: int, stages: Sequence[Sequence[nn.Module]]) -> None:
        super().__init__()
        self.channels = tuple(4 * width << stage for stage in range(len(stages)))
        self.strides = tuple(4 << stage for stage in range(len(stages)))
        self.width = self.channels[-1]
        conv = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.stem = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(width)))
        self.stages = nn.ModuleList(map(nn.ModuleList, stages))

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> one map a stage, tokens (B, N, D) and summary (B, D), the mean of cells without padding.

        In training the norms' statistics are those of all cells, padding included.
        """
        if padding is not None:
            images = images.masked_fill(padding[:, None], 0)
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        x = F.max_pool2d(F.relu(x, inplace=True), 3, stride=2, padding=1).permute(0, 2, 3, 1)  # (B, H, W, D) in all blocks
        maps, hidden = [], None if padding is None else grids.shrink_mask(padding, 4)
        for stage, stride in zip(self.stages, self.strides):
            for block in stage:  # type: ignore[attr-defined]
                x = block(x, hidden)
                hidden = None if padding is None else grids.shrink_mask(padding, stride)
            maps.append(x.permute(0, 3, 1, 2))
        tokens = x.flatten(1, 2)
        summary = grids.masked_mean(tokens, hidden)
        return Features(tuple(maps), self.strides, grids.size_of(images), tokens, summary, hidden)

    def layers(self) -> list[nn.Module]:
        """The blocks of all stages."""
        return [block for stage in self.stages for block in stage]  # type: ignore[attr-defined]
