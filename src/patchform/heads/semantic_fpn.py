"""Semantic FPN: panoptic feature pyramid networks (Kirillov et al., CVPR 2019, arXiv:1901.02446), the semantic branch.

    maps --feature pyramid--> levels --(3x3 conv, twice the size) until they are as fine as the first--> sum
                                                                          sum --1x1 conv--> logits

Batch norm (group norm in the paper; PVT and its successors have batch norm) and ReLU follow the 3x3 convolutions
(section 3.1). Above a backbone of one stride stand the levels of `layers.pyramids.Levels`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Unpack

import torch
from torch import nn

from patchform.errors import UsageError
from patchform.geometry.maps import to_size
from patchform.heads.base import Cells, DenseHead, DenseRaw, PixelOptions, map_norms
from patchform.layers.convolutions import ConvNorm, classifier
from patchform.layers.pyramids import FPN, Levels, doubled
from patchform.records import FeatureInfo, Features, Target


class SemanticFPN(DenseHead):
    """All levels of a feature pyramid, brought to the size of the finest and added.

    Args:
        features: of the backbone.
        classes: number of classes.
        channels_pyramid: of the levels of the pyramid.
        channels_inside: of the convolutions behind it.
        norm: "layer" normalises the cells of each map first; "none", as PVT has it, takes them as they are.
        dropout: rate of whole channels in front of the classifier, in [0, 1).
        pixels: see `PixelOptions`.

    Raises:
        UsageError: an option out of its range.
    """

    def __init__(
        self,
        features: FeatureInfo,
        *,
        classes: int,
        channels_pyramid: int = 256,
        channels_inside: int = 128,
        norm: Literal["layer", "none"] = "none",
        dropout: float = 0.1,
        **pixels: Unpack[PixelOptions],
    ) -> None:
        super().__init__(features, classes=classes, **pixels)
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout is {dropout}", remedy="it lies in [0, 1)")
        self.levels = Levels(features.channels, features.strides)
        widths, finest = self.levels.channels, self.levels.strides[0]
        self.norms = map_norms(norm, widths)
        self.pyramid = FPN(widths, channels_pyramid)
        self.doublings = [round(math.log2(stride / finest)) for stride in self.levels.strides]
        self.branches = nn.ModuleList(
            nn.ModuleList(
                ConvNorm(channels_inside if number else channels_pyramid, channels_inside, 3)
                for number in range(max(1, doublings))
            )
            for doublings in self.doublings
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classify = classifier(channels_inside, classes)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> DenseRaw:
        """Logits of the cells of the finest level."""
        levels = self.pyramid([norm(x) for norm, x in zip(self.norms, self.levels(features.maps))])
        enlarged = []
        for x, branch, doublings in zip(levels, self.branches, self.doublings):
            for step in branch.children():
                x = doubled(step(x)) if doublings else step(x)
            enlarged.append(to_size(x, levels[0].shape[-2:]))
        logits = self.classify(self.dropout(torch.stack(enlarged).sum(0)))
        return self.raw(features, Cells(logits, self.levels.covered(logits, 0)))
