"""ResNet: convolutions with shortcuts, the backbone that transformers are measured against and hybrids stand on.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (2015), sections 3.3 and 4.1, table 1.

    image (H, W) -> stem: 7x7 / 2, max-pool 3x3 / 2                     -> stage 0    H/4   widths[0]
                                                                        -> stage 1    H/8   widths[1]
    block:  x --+-- conv, norm, relu, conv, norm [, relu, conv, norm]   -> stage 2    H/16  widths[2]
                |                                     |                 -> stage 3    H/32  widths[3]  -> mean
                +-- (1x1 conv, norm where shape changes) -- + -- relu

Gives four maps (strides 4, 8, 16, 32; 1, 2, 4, 8 with the small stem), the last one as tokens and its mean as summary.

As in the published weights (torchvision's "v1.5"), a bottleneck that halves the map does so in its 3x3 convolution; in
the paper it is the first 1x1. Where the map changes its shape the shortcut is a projection (the paper's option B).
Convolutions are faster with `model.to(memory_format=torch.channels_last)`: the maps follow the weights' format.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from patchform.backbones.base import Backbone, shrink_padding, zero_pixels
from patchform.descriptions import Variant
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers.convolutions import Strided, channels_innermost
from patchform.layers.drop import DropPath, linear_rates
from patchform.layers.norms import BatchNorm2d
from patchform.records import Features


class Convolution(NamedTuple):
    """One convolution of a block's branch."""

    kernel: int
    """Side, in cells."""
    strided: bool
    """Whether it carries the stride of the block."""
    width: int
    """Output channels in units of the stage's width."""


BLOCKS = {
    "basic": (Convolution(3, True, 1), Convolution(3, False, 1)),
    "bottleneck": (Convolution(1, False, 1), Convolution(3, True, 1), Convolution(1, False, 4)),
}
"""The two branches of figure 5."""


class Bottleneck(nn.Module):
    """relu(shortcut(x) + branch(x)), section 3.2.

    Args:
        in_channels: of the input.
        width: of the stage.
        branch: the convolutions; a norm follows each, a relu all but the last.
        stride: of the block.
        drop_path: probability that an image skips the branch in training, in [0, 1).
        layer: makes a convolution and its norm from input channels, output channels, kernel and stride.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        branch: Sequence[Convolution],
        stride: int = 1,
        drop_path: float = 0.0,
        layer: Callable[[int, int, int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        layer = layer or conv_norm
        out_channels = width * branch[-1].width
        fits = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if fits else layer(in_channels, out_channels, 1, stride)
        self.branch = nn.ModuleList()
        for kernel, strided, units in branch:
            self.branch.append(layer(in_channels, width * units, kernel, stride if strided else 1))
            in_channels = width * units
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        shortcut = self.shortcut(x)
        for number, layer in enumerate(self.branch):
            x = layer(F.relu(x, inplace=True) if number else x)
        return F.relu(self.drop_path.add(shortcut, x), inplace=True)


class ResNet(Backbone):
    """Residual network of four stages.

    Args:
        in_channels: channels of the images.
        block: "basic" (two 3x3) or "bottleneck" (1x1, 3x3, 1x1 to four times the width).
        depths: blocks of each stage.
        widths: width of each stage; also of the stem: the first.
        stem: "imagenet": 7x7 with stride 2 and max-pool; "small": 3x3 with stride 1, for pictures of about 32 pixels
            (the paper's section 4.2 starts so).
        dilated: so many of the last stages do not halve the map; the 3x3 convolutions behind their first block reach
            twice as far instead, stage by stage (Yu & Koltun 2016). DETR's "DC5" has 1.
        drop_path: highest rate of stochastic depth, in [0, 1), that of the last block.

    Raises:
        UsageError: an unknown block or stem; more stages dilated than halve the map.
    """

    prefers_channels_last = True

    def __init__(
        self,
        *,
        in_channels: int = 3,
        block: Literal["basic", "bottleneck"] = "basic",
        depths: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        stem: Literal["imagenet", "small"] = "imagenet",
        dilated: int = 0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if block not in BLOCKS:
            raise UsageError(f'no block "{block}"', remedy=f"there are: {', '.join(BLOCKS)}")
        if stem not in ("imagenet", "small"):
            raise UsageError(f'no stem "{stem}"', remedy="there are: imagenet, small")
        check_dilated(dilated, len(depths))
        branch = BLOCKS[block]
        first = 4 if stem == "imagenet" else 1
        self.stem = conv_norm(in_channels, widths[0], *((7, 2) if stem == "imagenet" else (3, 1)))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        self.stages = nn.ModuleList()
        rates = iter(linear_rates(drop_path, sum(depths)))
        channels, halved, dilation = widths[0], len(depths) - dilated, 1
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            stage = nn.Sequential()
            for index in range(depth):
                stride = 2 if 0 < number < halved and index == 0 else 1
                layer = partial(conv_norm, dilation=dilation)
                stage.append(
                    Bottleneck(channels, width, branch=branch, stride=stride, drop_path=next(rates), layer=layer)
                )
                channels = width * branch[-1].width
                if number >= halved and index == 0:
                    dilation *= 2
            self.stages.append(stage)
        self.channels = tuple(width * branch[-1].width for width in widths)
        self.strides = tuple(first * 2 ** min(number, halved - 1) for number in range(len(widths)))
        self.width = self.channels[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015b, "Delving Deep into Rectifiers", section 2.2
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """Features of (B, C, H, W) images; `summary` is the mean over the cells that are not padding.

        In training the norms' statistics are those of all cells, padding included.
        """
        images = zero_pixels(images, padding)
        x = self.pool(F.relu(self.stem(images), inplace=True))
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        tokens = x.flatten(2).transpose(1, 2)  # (B, H*W, D)
        cell_padding = shrink_padding(padding, self.strides[-1])
        summary = grids.masked_mean(tokens, cell_padding)
        return Features(tuple(maps), self.strides, grids.size_of(images), tokens, summary, cell_padding)

    def layers(self) -> list[nn.Module]:
        """The blocks, shallow to deep."""
        return [block for stage in self.stages for block in stage.children()]


class AttendingResNet(Backbone):
    """A ResNet's stem, and stages of blocks of (B, H, W, D): what axial and stand-alone attention share.

    Args:
        in_channels: C of the images.
        width: channels of the stem. A stage has 4 times as many, doubling with every stage.
        stages: blocks of each stage, (B, H, W, D) and padding (B, H, W) -> (B, H', W', D'); the first block of each but
            the first, and but the dilated ones, halves the grid.
        dilated: so many of the last stages do not halve it.
    """

    def __init__(
        self, in_channels: int, width: int, stages: Sequence[Sequence[nn.Module]], *, dilated: int = 0
    ) -> None:
        super().__init__()
        self.channels = tuple(4 * width << stage for stage in range(len(stages)))
        self.strides = tuple(4 << min(stage, len(stages) - 1 - dilated) for stage in range(len(stages)))
        self.width = self.channels[-1]
        conv = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.stem = nn.Sequential(OrderedDict(conv=conv, norm=BatchNorm2d(width)))
        self.stages = nn.ModuleList(map(nn.ModuleList, stages))

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> one map a stage, tokens (B, N, D) and summary (B, D), the mean of cells without padding.

        In training the norms' statistics are those of all cells, padding included.
        """
        images = zero_pixels(images, padding)
        x = self.stem(channels_innermost(images))
        x = F.max_pool2d(F.relu(x, inplace=True), 3, stride=2, padding=1).permute(0, 2, 3, 1)  # (B, H, W, D)
        maps, cell_padding = [], shrink_padding(padding, 4)
        for stage, stride in zip(self.stages, self.strides):
            for block in stage.children():
                x = block(x, cell_padding)
                cell_padding = shrink_padding(padding, stride)
            maps.append(x.permute(0, 3, 1, 2))
        tokens = x.flatten(1, 2)
        summary = grids.masked_mean(tokens, cell_padding)
        return Features(tuple(maps), self.strides, grids.size_of(images), tokens, summary, cell_padding)

    def layers(self) -> list[nn.Module]:
        """The blocks of all stages."""
        return [block for stage in self.stages for block in stage.children()]


def check_dilated(dilated: int, stages: int) -> None:
    """Raise UsageError unless so many of the stages can be dilated: the first does not halve the map."""
    if not 0 <= dilated < stages:
        raise UsageError(f"{dilated} dilated stages", remedy=f"up to {stages - 1} of {stages} may be")


def conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int, dilation: int = 1) -> nn.Sequential:
    """Convolution without bias and batch normalisation; the map has ceil(H / stride) rows."""
    padding = dilation * (kernel // 2)
    kind = Strided if stride > 1 and kernel > 1 else nn.Conv2d
    conv = kind(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=BatchNorm2d(out_channels)))


VARIANTS = {
    "18": Variant(build=ResNet, image_size=224, options={"block": "basic", "depths": (2, 2, 2, 2)}),
    "34": Variant(build=ResNet, image_size=224, options={"block": "basic", "depths": (3, 4, 6, 3)}),
    "50": Variant(build=ResNet, image_size=224, options={"block": "bottleneck", "depths": (3, 4, 6, 3)}),
    "101": Variant(build=ResNet, image_size=224, options={"block": "bottleneck", "depths": (3, 4, 23, 3)}),
    "152": Variant(build=ResNet, image_size=224, options={"block": "bottleneck", "depths": (3, 8, 36, 3)}),
    "nano": Variant(
        build=ResNet,
        image_size=64,
        options={"block": "bottleneck", "depths": (1, 2, 1, 1), "widths": (4, 8, 12, 16)},
    ),
}
