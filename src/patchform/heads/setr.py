"""SETR: segmentation as sequence to sequence (Zheng et al., CVPR 2021, arXiv:2012.15840), its three decoders.

    naive  map --norm--> 1x1 conv --> 1x1 conv --> logits
    pup    map --norm--> (3x3 conv, twice the size) x 3 --> 3x3 conv --> 1x1 conv --> logits, half the image's size
    mla    maps --norm--> 1x1 conv --sums from deep to shallow--> 3x3 conv = levels
           levels --> 3x3 conv x 2 --> four times the size --together--> 3x3 conv --> logits, a quarter of it

Batch norm and ReLU follow every convolution but the last (section 3.3). All leave the rest to bilinear interpolation.
Maps, or levels, may have decoders of their own, whose losses help in training.

OpenMMLab's form of it, read from the source of mmsegmentation 1.x:

    naive  map --norm--> 1x1 conv --> 1x1 conv --> logits --> four times the size, and only then the image's
    pup    as above
    mla    levels --> 3x3 conv x 2 --> four times the size, corners not aligned --together--> 1x1 conv --> logits

with no bias in front of a batch norm. Its auxiliary decoders of naive and pup are one or two convolutions, four times
the size after each, and the classifier; those of mla have a bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.errors import UsageError
from patchform.geometry.maps import larger, to_size
from patchform.heads.base import Cells, DenseHead, DenseRaw, PixelOptions
from patchform.layers.convolutions import CellNorm, ConvNorm, classifier
from patchform.layers.pyramids import top_down
from patchform.records import FeatureInfo, Features, Target

QUARTER = 4
"""Pixels a cell that MLA, and the auxiliary decoders of PUP, enlarge to: four times for patches of 16."""


class SETR(DenseHead):
    """Classify the cells of the last map, or of all maps, and enlarge the logits.

    Args:
        features: of the backbone.
        classes: number of classes.
        decoder: "naive", "pup" (progressive upsampling) or "mla" (multi-level aggregation). The authors give mla the
            maps of blocks 6, 12, 18 and 24 of ViT-L, the others the last one.
        channels_inside: between the convolutions; mla has half as many behind its levels.
        auxiliary: numbers of the maps, of mla's levels (0 is the finest, -1 the last) that have a decoder and a loss in
            training.
        auxiliary_weight: factor of each of these losses; the authors have three or four (naive: of blocks 10, 15
            and 20 of ViT-L; pup: 24 too; mla: all levels).
        form: of the program whose weights it takes: "authors", or "openmmlab" (see above).
        auxiliary_steps: convolutions before the last of an auxiliary decoder, 1 or more; more than one in OpenMMLab's
            naive and pup only, which have 2 in their files, but for naive on Cityscapes.
        pixels: see `PixelOptions`.

    Raises:
        UsageError: the backbone has no map of such a number; an option out of its range.
    """

    def __init__(
        self,
        features: FeatureInfo,
        *,
        classes: int,
        decoder: Literal["naive", "pup", "mla"] = "naive",
        channels_inside: int = 256,
        auxiliary: Sequence[int] = (),
        auxiliary_weight: float = 0.4,
        form: Literal["authors", "openmmlab"] = "authors",
        auxiliary_steps: int = 1,
        **pixels: Unpack[PixelOptions],
    ) -> None:
        super().__init__(features, classes=classes, auxiliary_weight=auxiliary_weight, **pixels)
        if decoder not in ("naive", "pup", "mla"):
            raise UsageError(f'decoder is "{decoder}"', remedy='it is "naive", "pup" or "mla"')
        if form not in ("authors", "openmmlab"):
            raise UsageError(f'form is "{form}"', remedy='it is "authors" or "openmmlab"')
        openmmlab = form == "openmmlab"
        if auxiliary_steps < 1 or (auxiliary_steps > 1 and (decoder == "mla" or not openmmlab)):
            raise UsageError(
                f"auxiliary_steps is {auxiliary_steps}",
                remedy='it is 1 or more, and more than 1 only with form "openmmlab" and decoder "naive" or "pup"',
            )
        channels = features.channels
        for number in auxiliary:
            if not -len(channels) <= number < len(channels):
                raise UsageError(f"no map {number}", remedy=f"the backbone gives {len(channels)}, counted from 0")
        self.auxiliary, inside = tuple(auxiliary), channels_inside
        self.by_quarter = openmmlab and decoder == "naive"  # its logits grow to a quarter of the image, then to all
        self.auxiliary_by_quarter = self.by_quarter or decoder == "pup"
        self.aggregation = Aggregation(channels, inside) if decoder == "mla" else None
        if decoder == "mla":
            self.decoder: nn.Module = MLA(
                len(channels), inside, classes, kernel=1 if openmmlab else 3, aligned=not openmmlab
            )
            self.auxiliary_decoders = nn.ModuleList(classifier(inside, classes, bias=openmmlab) for _ in auxiliary)
            return
        kernel = 3 if decoder == "pup" else 1
        if decoder == "pup":
            doublings = max(1, round(math.log2(features.strides[-1])))
            self.decoder = Steps(channels[-1], inside, classes, number=doublings, growth=2, bias=not openmmlab)
        elif openmmlab:
            self.decoder = Steps(channels[-1], inside, classes, number=1, growth=QUARTER, kernel=1, bias=False)
        else:
            self.decoder = Naive(channels[-1], inside, classes)
        self.auxiliary_decoders = nn.ModuleList(
            Steps(channels[number], inside, classes, number=auxiliary_steps, growth=QUARTER, kernel=kernel, bias=False)
            if openmmlab
            else Naive(channels[number], inside, classes, kernel=kernel)
            for number in auxiliary
        )

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> DenseRaw:
        """Logits of cells; auxiliary ones only in training."""
        maps: Sequence[Tensor] = features.maps
        if self.aggregation is None:
            cells = _cells(self.decoder(maps[-1]), self.covered(features, -1), by_quarter=self.by_quarter)
        else:
            maps = self.aggregation(maps)
            covered = self.covered(features, 0)
            cells = Cells(self.decoder(maps, _quarter(covered)), covered)
        auxiliary = []
        for number, decoder in zip(self.auxiliary, self.auxiliary_decoders) if self.training else ():
            covered = self.covered(features, number)
            auxiliary.append(_cells(decoder(maps[number]), covered, by_quarter=self.auxiliary_by_quarter))
        return self.raw(features, cells, auxiliary)


class Naive(nn.Module):
    """The decoder "naive", and PUP's auxiliary one: two convolutions.

    Args:
        channels: C of the map.
        inside: width between the convolutions.
        classes: number of classes.
        kernel: side of the first convolution.
    """

    def __init__(self, channels: int, inside: int, classes: int, *, kernel: int = 1) -> None:
        super().__init__()
        self.norm = CellNorm(channels)
        self.project = ConvNorm(channels, inside, kernel, bias=True)
        self.classify = classifier(inside, classes)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes, H, W)."""
        return self.classify(self.project(self.norm(cells)))


class Steps(nn.Module):
    """The decoder "pup", and OpenMMLab's but for mla: the map grows after each convolution.

    Args:
        channels: C of the map.
        inside: width between the convolutions.
        classes: number of classes.
        number: of convolutions before the last; pup has one for each doubling that makes pixels of cells, four for 16.
        growth: how many times the size a step makes the map.
        kernel: side of the convolutions.
        bias: whether they have one.
    """

    def __init__(
        self, channels: int, inside: int, classes: int, *, number: int, growth: int, kernel: int = 3, bias: bool
    ) -> None:
        super().__init__()
        self.growth = growth
        self.norm = CellNorm(channels)
        widths = [channels, *[inside] * number]
        self.steps = nn.ModuleList(ConvNorm(*pair, kernel, bias=bias) for pair in pairwise(widths))
        self.classify = classifier(inside, classes)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes, H', W').

        H' is 8 H with four steps of two: the last growth is left to the interpolation of the logits, which is the same,
        for the classifier looks at a cell at a time.
        """
        x = self.norm(cells)
        for number, step in enumerate(self.steps):
            x = step(to_size(x, (self.growth * x.shape[-2], self.growth * x.shape[-1])) if number else x)
        return self.classify(x)


class Aggregation(nn.Module):
    """From the maps to the levels of MLA: each is the sum of its map and all deeper ones.

    Args:
        channels: of the maps, shallow to deep.
        inside: channels of the levels.
    """

    def __init__(self, channels: Sequence[int], inside: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(CellNorm(width) for width in channels)
        self.laterals = nn.ModuleList(ConvNorm(width, inside, 1) for width in channels)
        self.outputs = nn.ModuleList(ConvNorm(inside, inside, 3) for _ in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i) -> as many (B, inside, H_i, W_i)."""
        narrow = [lateral(norm(x)) for lateral, norm, x in zip(self.laterals, self.norms, maps, strict=True)]
        return [output(x) for output, x in zip(self.outputs, top_down(narrow, "bilinear"))]


class MLA(nn.Module):
    """The decoder "mla": two convolutions on each level, and one on all of them.

    Args:
        levels: number of levels.
        channels: of a level; half as many inside.
        classes: number of classes.
        kernel: side of the last convolution.
        aligned: whether levels grow from corner to corner: the authors align the corners here, and nowhere else.
    """

    def __init__(self, levels: int, channels: int, classes: int, *, kernel: int = 3, aligned: bool = True) -> None:
        super().__init__()
        self.aligned, half = aligned, channels // 2
        self.branches = nn.ModuleList(
            nn.Sequential(ConvNorm(channels, half, 3), ConvNorm(half, half, 3)) for _ in range(levels)
        )
        self.classify = classifier(levels * half, classes, kernel=kernel)

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Levels (B, C, H_i, W_i) -> (B, classes, *size)."""
        enlarged = [
            F.interpolate(branch(x), size=size, mode="bilinear", align_corners=self.aligned)
            for branch, x in zip(self.branches, levels, strict=True)
        ]
        return self.classify(torch.cat(enlarged, 1))


def _cells(logits: Tensor, covered: tuple[int, int], *, by_quarter: bool) -> Cells:
    """Logits over what they cover, in pixels, or what they grow to on the way."""
    return Cells(to_size(logits, _quarter(covered)) if by_quarter else logits, covered)


def _quarter(covered: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of cells of a quarter of the pixels' resolution."""
    return larger(1, covered[0] // QUARTER), larger(1, covered[1] // QUARTER)
