"""SETR: segmentation as sequence to sequence (Zheng et al., CVPR 2021, arXiv:2012.15840), decoder "naive".

    map --norm of each cell--> 1x1 conv, batch norm, ReLU --> 1x1 conv --> logits --bilinear--> a class for every pixel

The decoder (section 3.3) answers at the map's resolution and leaves the rest to interpolation. Other maps may have
decoders of their own, whose losses help in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.errors import UsageError
from patchform.heads.base import Head
from patchform.records import Features, Regions, Target

IGNORED = 255
"""Class of pixels that count for nothing, as `Regions` has it."""


class Raw(NamedTuple):
    """Logits of every cell."""

    logits: Tensor
    """(B, classes, H / stride, W / stride)."""
    auxiliary: tuple[Tensor, ...]
    """Likewise, each from a map of its own."""
    padding: Tensor | None
    """(B, H / stride, W / stride) bool, True on padding."""
    size: tuple[int, int]
    """(H, W) of the input, pixels."""


class SETR(Head):
    """Classify the cells of the last map and enlarge the answer.

    Args:
        channels, strides: of the backbone's maps.
        width: of its tokens; not used.
        classes: number of classes.
        channels_inside: width between the two convolutions.
        auxiliary: numbers of the maps (0 is the finest, -1 the last) that have a decoder and a loss in training.
        auxiliary_weight: factor of each of these losses; the authors have three of them, blocks 10, 15 and 20 of ViT-L.

    Raises:
        UsageError: the backbone has no map of such a number.
    """

    tasks: ClassVar[tuple[str, ...]] = ("semantic_segmentation",)

    def __init__(
        self,
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        width: int = 0,
        classes: int,
        channels_inside: int = 256,
        auxiliary: Sequence[int] = (),
        auxiliary_weight: float = 0.4,
    ) -> None:
        super().__init__()
        for number in auxiliary:
            if not -len(channels) <= number < len(channels):
                raise UsageError(f"no map {number}", remedy=f"the backbone gives {len(channels)}, counted from 0")
        self.strides, self.auxiliary, self.auxiliary_weight = tuple(strides), tuple(auxiliary), auxiliary_weight
        self.decoder = Naive(channels[-1], channels_inside, classes)
        self.auxiliary_decoders = nn.ModuleList(Naive(channels[i], channels_inside, classes) for i in auxiliary)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> Raw:
        """Logits at the maps' resolution; auxiliary ones only in training."""
        wanted = zip(self.auxiliary, self.auxiliary_decoders) if self.training else ()
        auxiliary = tuple(decoder(features.maps[number]) for number, decoder in wanted)
        return Raw(self.decoder(features.maps[-1]), auxiliary, features.padding, features.size)

    def loss(self, raw: Raw, targets: Sequence[Target]) -> dict[str, Tensor]:
        """{"loss": (), "auxiliary": ()}: cross-entropy, mean over the pixels that are not ignored; 0 if all are.

        The targets are of the size of the images that went in.
        """
        wanted = torch.stack([region.classes for region in cast("Sequence[Regions]", targets)]).to(raw.logits.device)
        losses = {"loss": _cross_entropy(raw.logits, self.strides[-1], wanted)}
        if raw.auxiliary:
            parts = [_cross_entropy(x, self.strides[i], wanted) for i, x in zip(self.auxiliary, raw.auxiliary)]
            losses["auxiliary"] = self.auxiliary_weight * torch.stack(parts).sum()
        return losses

    def count(self, targets: Sequence[Target]) -> Tensor:
        """() float: number of pixels that are not ignored."""
        regions = cast("Sequence[Regions]", targets)
        return torch.stack([(region.classes != IGNORED).sum() for region in regions]).sum().float()

    def decode(self, raw: Raw, sizes: Sequence[tuple[int, int]]) -> list[Target]:
        """One `Regions` an image, of its size: the input without the cells that are all padding, stretched over it."""
        stride = self.strides[-1]
        found: list[Target] = []
        for number, size in enumerate(sizes):
            logits = enlarge(raw.logits[number, None].float(), stride, raw.size)
            if raw.padding is not None:
                real = ~raw.padding[number]
                logits = logits[:, :, : int(real.any(1).sum()) * stride, : int(real.any(0).sum()) * stride]
            scores = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].softmax(0)
            found.append(Regions(scores.argmax(0), scores))
        return found


class Naive(nn.Module):
    """The decoder "naive": two 1x1 convolutions (section 3.3). PUP and MLA would stand in its place.

    Args:
        channels: C of the map.
        inside: width between the convolutions.
        classes: number of classes.
    """

    def __init__(self, channels: int, inside: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.project = nn.Conv2d(channels, inside, 1)
        self.batch_norm = nn.BatchNorm2d(inside)
        self.classify = nn.Conv2d(inside, classes, 1)
        nn.init.trunc_normal_(self.classify.weight, std=0.02)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]

    def forward(self, cells: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes, H, W)."""
        x = self.norm(cells.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.classify(F.relu(self.batch_norm(self.project(x))))


def enlarge(logits: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) cells -> (B, C, *size) pixels: each cell over its own `stride` pixels, what lies beyond cut off.

    For an image that the stride divides it is the plain bilinear resize. A stride that is itself rounded (CrossViT) may
    cover less than the image; the cells are then stretched over it.
    """
    height, width = (max(cells * stride, pixels) for cells, pixels in zip(logits.shape[-2:], size))
    pixels = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
    return pixels[..., : size[0], : size[1]]


def _cross_entropy(logits: Tensor, stride: int, wanted: Tensor) -> Tensor:
    """() mean over the pixels of `wanted`, (B, H, W), that are not ignored."""
    pixels = enlarge(logits.float(), stride, (wanted.shape[1], wanted.shape[2]))
    total = F.cross_entropy(pixels, wanted, ignore_index=IGNORED, reduction="sum")
    return total / (wanted != IGNORED).sum().clamp(min=1)
