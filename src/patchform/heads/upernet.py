"""UPerNet: unified perceptual parsing (Xiao et al., ECCV 2018, arXiv:1807.10221), its head for segmentation.

    coarsest map --pools of 1, 2, 3, 6 cells--> together --3x3 conv--+
    the others --1x1 conv--> sums from coarse to fine <--------------+
                               |
                               +--3x3 conv--> together --3x3 conv--> 1x1 conv --> logits

Pools are those of PSPNet (Zhao et al. 2017, section 3.2). Batch norm and ReLU follow every convolution but the last.
Above a backbone of one stride stand the levels of `layers.pyramids.Levels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Unpack

import torch
from torch import Tensor, nn

from patchform.errors import UsageError
from patchform.geometry.maps import to_size
from patchform.heads.base import Cells, DenseHead, DenseRaw, PixelOptions, map_norms
from patchform.layers.convolutions import ConvNorm, classifier
from patchform.layers.pooling import adaptive_means
from patchform.layers.pyramids import Levels, top_down
from patchform.records import FeatureInfo, Features, Target
from patchform.schema import Range

POOLS = (1, 2, 3, 6)
"""Cells a side that the coarsest map is pooled to."""


class UPerNet(DenseHead):
    """Pyramid pooling on top of a feature pyramid, and all of its levels together.

    Args:
        features: of the backbone.
        classes: number of classes.
        channels_inside: of all levels; the auxiliary decoder has half as many.
        norm: "layer" normalises the cells of each map first, as Swin has it; "none" takes them as they are.
        norm_eps: added to the variance by those norms; published Swins have 1e-5.
        dropout: rate of whole channels in front of the classifiers, in [0, 1).
        auxiliary: number of the level (0 is the finest, -1 the coarsest) that has a decoder, one convolution and a
            classifier, and a loss in training; None for none.
        auxiliary_weight: factor of that loss.
        pixels: see `PixelOptions`.

    Raises:
        UsageError: no level of such a number; an option out of its range.
    """

    def __init__(
        self,
        features: FeatureInfo,
        *,
        classes: int,
        channels_inside: int = 512,
        norm: Literal["layer", "none"] = "layer",
        norm_eps: Annotated[float, Range(above=0, most=1)] = 1e-6,
        dropout: float = 0.1,
        auxiliary: int | None = -2,
        auxiliary_weight: float = 0.4,
        **pixels: Unpack[PixelOptions],
    ) -> None:
        super().__init__(features, classes=classes, auxiliary_weight=auxiliary_weight, **pixels)
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout is {dropout}", remedy="it lies in [0, 1)")
        inside, self.auxiliary = channels_inside, auxiliary
        self.levels = Levels(features.channels, features.strides)
        widths = self.levels.channels
        if auxiliary is not None and not -len(widths) <= auxiliary < len(widths):
            raise UsageError(f"no level {auxiliary}", remedy=f"there are {len(widths)}, counted from 0")
        self.norms = map_norms(norm, widths, eps=norm_eps)
        self.pools = Pools(widths[-1], inside)
        self.laterals = nn.ModuleList(ConvNorm(width, inside, 1) for width in widths[:-1])
        self.outputs = nn.ModuleList(ConvNorm(inside, inside, 3) for _ in widths[:-1])
        self.fuse = ConvNorm(len(widths) * inside, inside, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = classifier(inside, classes)
        self.auxiliary_decoder: nn.Sequential | None = None
        if auxiliary is not None:
            convolution = ConvNorm(widths[auxiliary], inside // 2, 3)
            self.auxiliary_decoder = nn.Sequential(convolution, nn.Dropout2d(dropout), classifier(inside // 2, classes))

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> DenseRaw:
        """Logits of the cells of the finest level; auxiliary ones only in training."""
        maps = [norm(x) for norm, x in zip(self.norms, self.levels(features.maps))]
        lateral = [narrow(x) for narrow, x in zip(self.laterals, maps)]
        *fine, coarse = top_down([*lateral, self.pools(maps[-1])], "bilinear")
        levels = [*(output(x) for output, x in zip(self.outputs, fine)), coarse]
        resized = torch.cat([to_size(x, levels[0].shape[-2:]) for x in levels], 1)
        logits = self.classify(self.dropout(self.fuse(resized)))
        auxiliary: tuple[Cells, ...] = ()
        if self.training and self.auxiliary_decoder is not None:
            assert self.auxiliary is not None
            coarse = self.auxiliary_decoder(maps[self.auxiliary])
            auxiliary = (Cells(coarse, self.levels.covered(coarse, self.auxiliary)),)
        return self.raw(features, Cells(logits, self.levels.covered(logits, 0)), auxiliary)


class Pools(nn.Module):
    """A map beside its pools.

    Args:
        channels: C of the map.
        inside: channels of each pool and of the result.
    """

    def __init__(self, channels: int, inside: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(ConvNorm(channels, inside, 1) for _ in POOLS)
        self.fuse = ConvNorm(channels + len(POOLS) * inside, inside, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, inside, H, W)."""
        pools = [conv(adaptive_means(x, side)) for conv, side in zip(self.pools, POOLS)]
        return self.fuse(torch.cat([x, *(to_size(pool, x.shape[-2:]) for pool in pools)], 1))
