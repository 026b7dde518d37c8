"""ParNet: a network that is not deep (Goyal, Bochkovskiy, Deng, Koltun, NeurIPS 2022, arXiv:2110.07641).

    image -> 2 x down -> stream of 4 --- map, stride 4 --- down --+
               |                                                  |
              down -> stream of 5 ----- map, stride 8 --------- fuse, down --+
               |                                                             |
              down -> stream of 5 ----- map, stride 16 ------------------- fuse -- down -> map, stride 32 -> mean

    block:  x --+-- norm --+-- x gate(mean of it) ---+
                +-- 3x3 convolution, norm -----------+-- sum -- silu -->       at most 12 of them in a row
                +-- 1x1 convolution, norm -----------+

A block that changes the shape has no skip: the gate, of its input, multiplies the sum of the two convolutions, and the
1x1 convolution sees the mean of 2x2 cells where the block halves the map. Gives four maps: what the three streams end
with and the fused one, which also gives tokens, and the mean as summary.

For inference `fuse` joins the two convolutions and their norms into one 3x3 convolution. The released models L and XL
have dropout 0.1 in front of the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from patchform.backbones.base import Backbone, shrink_padding, zero_pixels
from patchform.descriptions import Variant
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers.drop import DropPath, linear_rates
from patchform.layers.norms import BatchNorm2d
from patchform.layers.patches import pad_to_multiple
from patchform.records import Features

Activation: TypeAlias = Literal["silu", "relu"]


class SiLU(nn.SiLU):
    """torch's; where a gradient is wanted, in two steps: its own way back is wrong under `torch.func.vmap`."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x * x.sigmoid() if torch.is_grad_enabled() else super().forward(x)


ACTIVATIONS = {"silu": SiLU, "relu": nn.ReLU}


class ParNet(Backbone):
    """Parallel streams at three resolutions.

    Args:
        in_channels: channels of the images.
        widths: channels of the three streams and of the last map; the very first block has 64 at most.
        depths: blocks of each stream after the one that enters it.
        activation: "silu" is the paper's; "relu" is what the authors' scripts build with the settings they come with.
        drop_path: highest rate of stochastic depth, that of the last block of each stream; not in the paper.
        fused: build the form for inference, see `fuse`.

    Raises:
        UsageError: an unknown activation.
    """

    prefers_channels_last = True

    def __init__(
        self,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = (92, 192, 384, 1280),
        depths: Sequence[int] = (4, 5, 5),
        activation: Activation = "silu",
        drop_path: float = 0.0,
        fused: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UsageError(f'no activation "{activation}"', remedy=f"there are: {', '.join(ACTIVATIONS)}")
        self.channels, self.strides, self.width = tuple(widths), (4, 8, 16, 32), widths[-1]
        first, second, third, last = widths

        def down(before: int, after: int) -> ParNetBlock:
            return ParNetBlock(before, after, stride=2, activation=activation)

        start = min(64, first)  # as in RepVGG; the authors' code
        stems = (down(in_channels, start), down(start, first)), (down(first, second),), (down(second, third),)
        self.stems = nn.ModuleList(nn.ModuleList(stem) for stem in stems)
        self.streams = nn.ModuleList(
            nn.ModuleList(
                ParNetBlock(width, width, activation=activation, drop_path=rate)
                for rate in linear_rates(drop_path, depth)
            )
            for width, depth in zip(widths, depths)
        )
        self.down = down(first, second)
        self.fusions = nn.ModuleList(
            (Fusion(second, third, stride=2, activation=activation), Fusion(third, third, activation=activation))
        )
        self.last = down(third, last)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015b, "Delving Deep into Rectifiers", section 2.2
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if fused:
            self.fuse()

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """Features of (B, C, H, W) images; gates and `summary` take means over the cells that are not padding.

        In training the norms' statistics are those of all cells, padding included.
        """
        images = zero_pixels(images, padding)
        paddings = [padding, *(shrink_padding(padding, stride) for stride in (2, *self.strides))]  # of 2**step pixels
        x, maps, step = images, [], 0
        for stem, stream in zip(self.stems, self.streams):
            for block in stem.children():
                x, step = block(x, paddings[step]), step + 1
            y = x
            for block in stream.children():
                y = block(y, paddings[step])
            maps.append(y)
        x = self.down(maps[0], paddings[2])
        x = self.fusions[0](maps[1], x, paddings[3])
        x = self.fusions[1](maps[2], x, paddings[4])
        x = self.last(x, paddings[4])
        tokens = x.flatten(2).transpose(1, 2)  # (B, H*W, D)
        summary = grids.masked_mean(tokens, paddings[5])
        return Features((*maps, x), self.strides, grids.size_of(images), tokens, summary, paddings[5])

    def layers(self) -> list[nn.Module]:
        """The blocks: those that enter the streams, the streams fine to coarse, the fusions."""
        return [module for module in self.modules() if isinstance(module, ParNetBlock)]

    @torch.no_grad()
    def fuse(self) -> Self:
        """Turn every block, in place, into its form for inference, and return the model.

        The function in evaluation mode stays the same to rounding (section 3.1). Parameters and their names
        change: `fused=True` builds the model that such weights fit.
        """
        for block in self.layers():
            assert isinstance(block, ParNetBlock)
            block.fuse()
        return self


class ParNetBlock(nn.Module):
    """RepVGG-SSE where the shape stays, the downsampling block where it changes (sections 3.1 and 3.2, figure 2).

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stride: 1 or 2.
        groups: of the convolutions; the channels of the output are then shuffled, a group after the other.
        activation: after the sum.
        drop_path: probability that an image skips the convolutions in training, in [0, 1), where there is a skip.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: Activation = "silu",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        keeps = in_channels == out_channels and stride == 1
        self.stride, self.groups = stride, groups
        self.identity = BatchNorm2d(in_channels) if keeps else None
        self.spatial: FusableConvNorm | nn.Conv2d = FusableConvNorm(in_channels, out_channels, 3, stride, groups)
        self.pointwise: FusableConvNorm | None = FusableConvNorm(in_channels, out_channels, 1, 1, groups)
        self.gate = nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False)
        self.residual = DropPath(drop_path)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride)); padding (B, H, W) bool, True on padding."""
        mixed = self.spatial(x)
        if self.pointwise is not None:
            mixed = mixed + self.pointwise(x if self.stride == 1 else _halved(x))
        if self.identity is None:
            mixed = mixed * (2 * self.gate(_mean(x, padding)).sigmoid())  # twice: the authors' code, so that 0 is open
        else:
            skip = self.identity(x)
            mixed = self.residual.add(skip * self.gate(_mean(skip, padding)).sigmoid(), mixed)
        x = self.activation(mixed)
        return x if self.groups == 1 else _shuffled(x, self.groups)

    def fuse(self) -> None:
        """One 3x3 convolution with biases in place of two convolutions with norms; a second time changes nothing."""
        if self.pointwise is None or isinstance(self.spatial, nn.Conv2d):
            return
        kernel, bias = self.spatial.joined()
        point, point_bias = self.pointwise.joined()
        if self.stride == 1:
            point = F.pad(point, (1, 1, 1, 1))
        else:  # of the cells -1, 0 and 1 that the kernel sees in a row, the mean is that of 0 and 1
            point = F.pad(point.expand(-1, -1, 2, 2) / 4, (1, 0, 1, 0))
        old = self.spatial.conv
        size = old.in_channels, old.out_channels, 3, self.stride
        self.spatial = nn.Conv2d(*size, padding=1, groups=self.groups, device="meta")
        self.spatial.weight, self.spatial.bias = nn.Parameter(kernel + point), nn.Parameter(bias + point_bias)
        self.pointwise = None


class Fusion(nn.Module):
    """Two maps, each normalised, their channels in turn, through a block of two groups (section 3.2).

    Args:
        width: channels of either map.
        out_channels: of the output.
        stride: of the block.
        activation: of the block.
    """

    def __init__(self, width: int, out_channels: int, *, stride: int = 1, activation: Activation = "silu") -> None:
        super().__init__()
        self.norms = nn.ModuleList((BatchNorm2d(width), BatchNorm2d(width)))
        self.block = ParNetBlock(2 * width, out_channels, stride=stride, groups=2, activation=activation)

    def forward(self, fine: Tensor, coarse: Tensor, padding: Tensor | None = None) -> Tensor:
        """Two (B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride)); padding (B, H, W)."""
        x = torch.cat([self.norms[0](fine), self.norms[1](coarse)], 1)
        return self.block(_shuffled(x, 2), padding)


def _shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels (B, C, H, W) in turn from each group; torch's own ties a graph to maps of several columns."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class FusableConvNorm(nn.Module):
    """Convolution without bias and batch normalisation; the map has ceil(H / stride) rows.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: side, odd, cells.
        stride: in cells.
        groups: of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        return self.norm(self.conv(x))

    def joined(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the one convolution that does the same in evaluation."""
        norm = self.norm
        statistics = norm.running_mean, norm.running_var, norm.eps
        return fuse_conv_bn_weights(self.conv.weight, None, *statistics, norm.weight, norm.bias)


def _halved(x: Tensor) -> Tensor:
    """Mean of 2x2 cells; outside the map there are zeros, as for the 3x3 convolution, or they could not be fused."""
    return F.avg_pool2d(pad_to_multiple(x, 2), 2)


def _mean(x: Tensor, padding: Tensor | None) -> Tensor:
    """(B, C, H, W) -> (B, C, 1, 1)."""
    return grids.masked_mean(x.flatten(2).transpose(1, 2), padding)[..., None, None]


def _row(*widths: int) -> Variant:
    return Variant(build=ParNet, image_size=224, options={"widths": widths})


VARIANTS = {
    "nano": Variant(build=ParNet, image_size=64, options={"widths": (8, 12, 16, 32), "depths": (1, 2, 1)}),
    "s": _row(92, 192, 384, 1280),
    "m": _row(128, 256, 512, 2048),
    "l": _row(160, 320, 640, 2560),
    "xl": _row(200, 400, 800, 3200),
}
