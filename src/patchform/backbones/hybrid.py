"""Hybrid R+ViT: a transformer over the map of a small ResNet (Dosovitskiy et al., ICLR 2021, section 3.1).

    image --7x7 / 2, pool / 2--> stem --stage 0--> --stage 1--> ... --patches--> ViT --> summary, tokens
                                         | /4         | /8                        | /(last stride * patch)
                                         v            v                           v
                                        map          map                         map

The "local network" is the ResNet of Big Transfer (Kolesnikov et al. 2020): standardised kernels (Qiao et al. 2019),
group norms, and convolutions that pad like TensorFlow's "SAME". It may have any number of stages; without one its map
is that of the stem, stride 4. R50+B/16 has the 3 blocks of stage 3 moved into stage 2, so that it ends at stride 16.
Sizes with Ti, S and L, and R26: Steiner et al. 2021, "How to train your ViT?".
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.backbones.base import shrink_padding, zero_pixels
from patchform.backbones.resnet import BLOCKS, Bottleneck
from patchform.backbones.vit import ViT
from patchform.descriptions import Variant
from patchform.geometry import grids
from patchform.layers.blocks import GELU
from patchform.layers.norms import GroupNorm
from patchform.layers.positions import PositionName
from patchform.records import Features

GROUPS = 32
"""Of every group norm; the widths are multiples of it."""


class Hybrid(ViT):
    """A ViT whose patches are cut from the last map of a ResNet.

    Args:
        in_channels: C of the images.
        image_size: native input, pixels (side or (height, width)); other sizes work, learned positions are resized.
        stages: units of each stage of the local network; () leaves its stem alone.
        local_width: channels of the stem; stage s has 4 * 2**s times as many. A multiple of 32.
        patch: side of a patch, cells of the last stage's map.
        width, depth, heads: D, number of blocks, attention heads of the transformer.
        mlp_ratio: hidden width of the perceptrons over D.
        position: absolute or relative position of the tokens.
        drop_path: stochastic depth of the last block, rising linearly from 0; the local network has none.
        gelu: "tanh" is what the original computes; "none", the error function, is how others run the same weights.
        qkv_bias: biases of queries, keys, values.
    """

    prefers_channels_last = True
    embedding = ""  # its patches are cut from a map, not from pixels

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        stages: tuple[int, ...] = (3, 4, 9),
        local_width: int = 64,
        patch: int = 1,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        position: PositionName = "learned_1d",
        drop_path: float = 0.0,
        gelu: GELU = "tanh",
        qkv_bias: bool = True,
    ) -> None:
        local = LocalNetwork(in_channels, local_width, stages)
        super().__init__(
            in_channels=local.channels[-1],
            image_size=grids.cells(image_size, local.strides[-1]),
            patch=patch,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            position=position,
            drop_path=drop_path,
            gelu=gelu,
            qkv_bias=qkv_bias,
        )
        self.local = local
        self.channels = (*local.channels, width)
        self.strides = (*local.strides, local.strides[-1] * patch)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> the local network's maps and the transformer's, tokens (B, N, D) and summary (B, D).

        The group norms' statistics are those of all cells, padding (which is 0 in the image) included.
        """
        images = zero_pixels(images, padding)
        cell_padding = shrink_padding(padding, self.local.strides[-1])
        maps = self.local(images)
        features = super().forward(maps[-1], padding=cell_padding)
        return features._replace(maps=(*maps, *features.maps), strides=self.strides, size=grids.size_of(images))

    @property
    def in_channels(self) -> int:
        """C of the images: the local network's, which reads them."""
        return self.local.in_channels

    def layers(self) -> list[nn.Module]:
        """The units of the local network and the blocks."""
        return [*self.local.layers(), *super().layers()]


class LocalNetwork(nn.Module):
    """The ResNet below the transformer.

    Args:
        in_channels: C.
        width: channels of the stem.
        depths: units of each stage.
    """

    def __init__(self, in_channels: int, width: int, depths: tuple[int, ...]) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.channels = tuple(4 * width << stage for stage in range(len(depths))) or (width,)
        self.strides = tuple(4 << stage for stage in range(len(depths))) or (4,)
        self.stem = conv_norm(in_channels, width, 7, 2)
        self.stages = nn.ModuleList()
        channels = width
        for number, depth in enumerate(depths):
            stage = nn.Sequential()
            for index in range(depth):
                stage.append(Unit(channels, width << number, stride=2 if number > 0 and index == 0 else 1))
                channels = 4 * width << number
            self.stages.append(stage)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> the map of every stage, fine to coarse; the stem's where there is none."""
        x = F.relu(self.stem(images), inplace=True)
        height, width = grids.size_of(x)  # "SAME": of one cell or two that are missing, one is at the bottom and right
        if grids.known(height, width):
            x = F.max_pool2d(x, 3, 2, padding=(height % 2, width % 2), ceil_mode=True)
        else:  # zeros are no maximum behind a ReLU
            rows, columns = grids.cells((height, width), 2)
            x = F.max_pool2d(F.pad(x, (2 * columns - width, 1, 2 * rows - height, 1)), 3, 2)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps or [x]

    def layers(self) -> list[nn.Module]:
        """The units."""
        return [unit for stage in self.stages for unit in stage.children()]


class Unit(Bottleneck):
    """ResNet's bottleneck with the layers of this file; it starts as its shortcut.

    Args:
        in_channels: of the input.
        width: inner channels; the output has four times as many.
        stride: of the 3x3 convolution.
    """

    def __init__(self, in_channels: int, width: int, *, stride: int = 1) -> None:
        super().__init__(in_channels, width, branch=BLOCKS["bottleneck"], stride=stride, layer=conv_norm)
        nn.init.zeros_(self.branch[-1].get_parameter("norm.weight"))


class StandardisedConv(nn.Conv2d):
    """Convolution whose every kernel has mean 0 and deviation 1 (Qiao et al. 2019), without bias, padded as "SAME".

    Args:
        in_channels, out_channels: C and D.
        kernel: side, cells.
        stride: of the convolution; the map has ceil(H / stride) rows.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        even = kernel // 2 if stride == 1 else 0  # "SAME" of a strided one depends on the size of the map
        super().__init__(in_channels, out_channels, kernel, stride, padding=even, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, ceil(H / stride), ceil(W / stride))."""
        return self._conv_forward(self._padded(x), self.standardised(), None)

    def standardised(self) -> Tensor:
        """(kernel - mean) / (deviation + 1e-5), as the original has it, by way of a layer norm: the fastest kernel."""
        channels_last = self.weight.permute(0, 2, 3, 1)  # the order in memory
        kernels, inputs = channels_last.flatten(1), self.weight[0].shape.numel()
        tiny = 1e-20  # without it a kernel of equal numbers would be 0 / 0
        if not torch.is_grad_enabled():
            unit, _, inverse = torch.native_layer_norm(kernels, [inputs], None, None, tiny)
            return unit.mul_(1 / (1 + 1e-5 * inverse)).view_as(channels_last).permute(0, 3, 1, 2)
        unit = F.layer_norm(kernels, [inputs], eps=tiny)
        std = torch.linalg.vecdot(kernels, unit.detach())[:, None] / inputs  # its derivative by `unit` is 0
        return (unit * (std / (std + 1e-5))).view_as(channels_last).permute(0, 3, 1, 2)

    def _padded(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride == 1 or kernel == 1:
            return x
        bottom, right = ((grids.ceil_div(side, stride) - 1) * stride + kernel - side for side in grids.size_of(x))
        return F.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))


def conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Sequential:
    """Standardised convolution and group norm."""
    conv = StandardisedConv(in_channels, out_channels, kernel, stride)
    return nn.Sequential(OrderedDict(conv=conv, norm=GroupNorm(GROUPS, out_channels, eps=1e-6)))


def _row(
    stages: tuple[int, ...], width: int, depth: int, heads: int, *, patch: int = 1, local_width: int = 64
) -> Variant:
    size = {"stages": stages, "local_width": local_width, "patch": patch}
    return Variant(build=Hybrid, image_size=224, options={**size, "width": width, "depth": depth, "heads": heads})


VARIANTS = {
    "nano": Variant(
        build=Hybrid,
        image_size=32,
        options={"stages": (1, 1), "local_width": 32, "width": 48, "depth": 2, "heads": 3},
    ),
    "r_ti16": _row((), 192, 12, 3, patch=8),
    "r26_s32": _row((2, 2, 2, 2), 384, 12, 6),
    "r26_b32": _row((2, 2, 2, 2), 768, 12, 12),
    "r50_b16": _row((3, 4, 9), 768, 12, 12),
    "r50_l32": _row((3, 4, 6, 3), 1024, 24, 16),
}
"""r_ti16 cuts patches of 8 cells from the stem's map: 32 pixels, whatever the 16 of its name stands for."""
