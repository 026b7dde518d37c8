"""Segmenter: transformer for semantic segmentation (Strudel et al., ICCV 2021, arXiv:2105.05633), its two decoders.

    linear  cells --norm--> batch norm --> linear --> logits
    mask    cells --norm--> linear --+--> block x depth --norm--+--> cells   --linear, length 1--+
            a token of each class ---+                          +--> classes --linear, length 1--+
                                                                             products --norm--> logits

In the second the classes look at the cells and at one another, and a class scores where a cell points its way (section
3.2). The batch norm of the first is that of DINOv2 (Oquab et al. 2024). Both predict at the map's resolution and
leave the rest to bilinear interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.errors import UsageError
from patchform.heads.base import Cells, DenseHead, DenseRaw, PixelOptions
from patchform.layers import blocks
from patchform.layers.blocks import Block
from patchform.layers.convolutions import CellNorm, classifier
from patchform.layers.drop import linear_rates
from patchform.layers.norms import BatchNorm2d
from patchform.records import FeatureInfo, Features, Target


class Segmenter(DenseHead):
    """Classify the cells of the last map, each by itself or all of them together with the classes.

    Args:
        features: of the backbone.
        classes: number of classes.
        decoder: "mask" (the mask transformer) or "linear".
        channels_inside: width D of the mask transformer; default: that of the map.
        depth, heads: blocks and attention heads of the mask transformer; heads default to one for 64 of D.
        drop_path: stochastic depth of its last block, rising linearly from 0.
        pixels: see `PixelOptions`.

    Raises:
        UsageError: an option out of its range.
    """

    def __init__(
        self,
        features: FeatureInfo,
        *,
        classes: int,
        decoder: Literal["mask", "linear"] = "mask",
        channels_inside: int | None = None,
        depth: int = 2,
        heads: int | None = None,
        drop_path: float = 0.0,
        **pixels: Unpack[PixelOptions],
    ) -> None:
        super().__init__(features, classes=classes, **pixels)
        if decoder not in ("mask", "linear"):
            raise UsageError(f'decoder is "{decoder}"', remedy='it is "mask" or "linear"')
        channels = features.channels[-1]
        inside = channels_inside or channels
        heads = heads or max(1, inside // 64)
        if inside % heads:
            raise UsageError(f"{heads} heads do not divide a width of {inside}", remedy="set heads or channels_inside")
        self.norm = CellNorm(channels)
        self.decoder: nn.Module
        if decoder == "linear":
            self.decoder = nn.Sequential(BatchNorm2d(channels), classifier(channels, classes))
        else:
            self.decoder = MaskTransformer(channels, inside, classes, depth=depth, heads=heads, drop_path=drop_path)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> DenseRaw:
        """Logits of the cells of the last map."""
        x = self.norm(features.maps[-1])
        logits = self.decoder(x, features.padding) if isinstance(self.decoder, MaskTransformer) else self.decoder(x)
        return self.raw(features, Cells(logits, self.covered(features, -1)))


class MaskTransformer(nn.Module):
    """Tokens of classes among those of cells.

    Args:
        channels: C of the cells.
        width: D inside.
        classes: number of classes.
        depth, heads: blocks and attention heads.
        drop_path: stochastic depth of the last block.
    """

    def __init__(
        self, channels: int, width: int, classes: int, *, depth: int, heads: int, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.classes = classes
        self.project = nn.Linear(channels, width)
        self.class_tokens = nn.Parameter(torch.empty(1, classes, width))
        self.blocks = nn.ModuleList(Block(width, heads, drop_path=rate) for rate in linear_rates(drop_path, depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.cell_key, self.class_key = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.mask_norm = nn.LayerNorm(classes)
        blocks.init_weights(self)
        nn.init.trunc_normal_(self.class_tokens, std=0.02)
        for layer in (self.cell_key, self.class_key):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, cells: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, classes, H, W); cells on padding (B, H, W) are not seen."""
        tokens = self.project(cells.flatten(2).transpose(1, 2))
        x = torch.cat([tokens, self.class_tokens.expand(tokens.shape[0], -1, -1)], 1)  # (B, H*W + classes, D)
        hidden = None if padding is None else F.pad(padding.flatten(1), (0, self.classes))
        for block in self.blocks:
            x = block(x, padding=hidden)
        tokens, classes = self.norm(x).split([tokens.shape[1], self.classes], 1)
        keys, class_keys = F.normalize(self.cell_key(tokens), dim=2), F.normalize(self.class_key(classes), dim=2)
        masks = torch.bmm(keys, class_keys.transpose(1, 2))
        return self.mask_norm(masks).transpose(1, 2).unflatten(2, cells.shape[-2:])
