"""BoTNet: bottleneck transformers for visual recognition (Srinivas et al., CVPR 2021, arXiv:2101.11605).

    image --stem--> stage 0 --> stage 1 --> stage 2 --> bottlenecks with attention --> mean
                      | /4        | /8        | /16        | /32, or /16 in the S1 family
                      v           v           v            v
                     map         map         map          map

    block:  x --+-- 1x1 conv, norm, relu -- attention [2x2 mean] norm, relu -- 1x1 conv, norm --+-- relu
                +-- (1x1 conv, norm, relu where the shape changes) -----------------------------+

A ResNet in whose last stage global attention takes the place of the 3x3 convolution. Positions are relative, in two
dimensions, and multiply the scaled query (section 3.1 and figure 4); at other image sizes their tables are resized.
The rows here are without the squeeze-and-excitation and the SiLU of the paper's T3 to T7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.backbones.base import shrink_padding, zero_pixels
from patchform.backbones.resnet import ResNet, conv_norm
from patchform.descriptions import Variant
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers.attention import attend, real_keys
from patchform.layers.convolutions import halved
from patchform.layers.drop import DropPath, linear_rates
from patchform.layers.fitting import Fitted, TransferContext, fit_line
from patchform.layers.norms import BatchNorm2d
from patchform.layers.positions import Grid, Relative2D, RelativePosition
from patchform.records import Features


class BoTNet(ResNet):
    """Residual network whose last stage attends.

    Args:
        in_channels: C of the images.
        image_size: native input, pixels: the size of the position tables; other sizes work.
        depths: blocks of each stage; those of the last attend.
        widths: of each stage; also of the stem: the first. The last is a multiple of `heads`.
        stride: of the last stage: 2 ends at 32 pixels a cell, 1 (the S1 family) at 16.
        heads: attention heads.
        position: what queries multiply beside keys: embeddings of offsets, of rows and columns, or nothing (section
            4.3).
        stem: as of ResNet.
        drop_path: highest rate of stochastic depth, that of the last block.

    Raises:
        UsageError: a stride that is neither 1 nor 2.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        stride: Literal[1, 2] = 1,
        heads: int = 4,
        position: Literal["relative", "absolute", "none"] = "relative",
        stem: Literal["imagenet", "small"] = "imagenet",
        drop_path: float = 0.0,
    ) -> None:
        if stride not in (1, 2):
            raise UsageError(f"the last stage has no stride of {stride}", remedy="it can be 1 or 2")
        rates, below = linear_rates(drop_path, sum(depths)), sum(depths[:-1])
        super().__init__(
            in_channels=in_channels,
            block="bottleneck",
            depths=depths[:-1],
            widths=widths[:-1],
            stem=stem,
            drop_path=rates[below - 1],
        )
        self.blocks = nn.ModuleList()
        channels, cell = self.width, self.strides[-1]
        for index, rate in enumerate(rates[below:]):
            step = stride if index == 0 else 1
            inside = _position(position, widths[-1] // heads, grids.cells(image_size, cell))
            self.blocks.append(BoTBlock(channels, widths[-1], heads, position=inside, stride=step, drop_path=rate))
            channels, cell = 4 * widths[-1], cell * step
        self.width = channels
        self.channels, self.strides = (*self.channels, channels), (*self.strides, cell)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """Features of (B, C, H, W) images; no cell attends to padding, and `summary` is the mean without it."""
        images = zero_pixels(images, padding)
        below = super().forward(images)
        x = below.maps[-1]
        cell_padding, coarse = (shrink_padding(padding, cell) for cell in self.strides[-2:])
        for block in self.blocks:
            x = block(x, padding=cell_padding)
            cell_padding = coarse
        tokens = x.flatten(2).transpose(1, 2)  # (B, H*W, D)
        summary = grids.masked_mean(tokens, cell_padding)
        return Features((*below.maps, x), self.strides, below.size, tokens, summary, cell_padding)

    def layers(self) -> list[nn.Module]:
        """The blocks, shallow to deep."""
        return [*super().layers(), *self.blocks]


class BoTBlock(nn.Module):
    """ResNet's bottleneck with attention in its middle (figure 3).

    Args:
        in_channels: of the input.
        width: inner channels D; the output has four times as many.
        heads: attention heads; divides the width.
        position: inside attention.
        stride: 2 halves the map with a mean after attention (section 3.1), 1 keeps it.
        drop_path: probability that an image skips the branch in training, in [0, 1).
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        heads: int,
        *,
        position: RelativePosition | None,
        stride: int = 1,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        fits = in_channels == 4 * width and stride == 1
        self.shortcut: nn.Module = nn.Identity()
        if not fits:  # unlike ResNet's, this projection ends in a relu (the authors' code)
            self.shortcut = conv_norm(in_channels, 4 * width, 1, stride).append(nn.ReLU(inplace=True))
        self.reduce = conv_norm(in_channels, width, 1, 1)
        self.attention = SelfAttention(width, heads, position=position)
        self.pool: Callable[[Tensor], Tensor] = nn.Identity() if stride == 1 else halved
        self.norm = BatchNorm2d(width)
        self.expand = conv_norm(width, 4 * width, 1, 1)
        self.drop_path = DropPath(drop_path)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.expand.get_parameter("norm.weight"))  # a block starts as its shortcut

    def forward(self, x: Tensor, *, padding: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, 4 * D, ceil(H / stride), ceil(W / stride)); padding (B, H, W)."""
        shortcut = self.shortcut(x)
        x = self.attention(F.relu(self.reduce(x), inplace=True), padding=padding)
        x = self.expand(F.relu(self.norm(self.pool(x)), inplace=True))
        return F.relu(self.drop_path.add(shortcut, x), inplace=True)


class SelfAttention(nn.Module):
    """All cells of a map attend to all (figure 4): no biases, and no projection of the mixture.

    Args:
        width: D.
        heads: h; divides D.
        position: inside attention, or None.
    """

    def __init__(self, width: int, heads: int, *, position: RelativePosition | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.position = position
        nn.init.normal_(self.qkv.weight, std=0.01)  # the authors' code

    def forward(self, x: Tensor, *, padding: Tensor | None = None) -> Tensor:
        """(B, D, H, W) -> the same shape; padding (B, H, W)."""
        grid = grids.size_of(x)
        qkv = self.qkv(x.flatten(2).transpose(1, 2)[:, None])  # (B, 1, N, 3D)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)  # each (B, 1, h, N, d)
        bias = None
        if self.position is not None:
            q, k, bias = self.position(q, k, grid)
        mixed = attend(q, k, v, bias=bias, allowed=real_keys(padding))[:, 0]  # (B, h, N, d)
        return mixed.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, grid)


class Absolute2D(RelativePosition):
    """Learned embeddings of rows and columns that multiply the scaled query beside the key (section 4.3).

    q . (k + rows[y] + columns[x]) with row and column of the key: so they are added to it. The heads share them; at
    other grids they are resized along their own axis.

    Args:
        head_width: d.
        grid: native rows and columns.
    """

    def __init__(self, head_width: int, grid: Grid) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(grid[0], head_width))
        self.columns = nn.Parameter(torch.empty(grid[1], head_width))
        nn.init.normal_(self.rows, std=head_width**-0.5)
        nn.init.normal_(self.columns, std=head_width**-0.5)

    def forward(self, q: Tensor, k: Tensor, grid: Grid | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Leave q, add to k; no bias."""
        height, width = grid or (self.rows.shape[0], self.columns.shape[0])
        rows = grids.resize(self.rows[:, None], (height, 1), mode="bilinear")  # (H, 1, d)
        columns = grids.resize(self.columns[None], (1, width), mode="bilinear")  # (1, W, d)
        return q, k + (rows + columns).flatten(0, 1).to(k.dtype), None

    def fit(self, name: str, tensor: Tensor, context: TransferContext) -> Fitted:
        """Rows or columns (N, d) of another grid."""
        return fit_line(tensor, getattr(self, name), context, "bilinear")


def _position(name: Literal["relative", "absolute", "none"], head_width: int, grid: Grid) -> RelativePosition | None:
    if name == "none":
        return None
    return Relative2D(head_width, grid) if name == "relative" else Absolute2D(head_width, grid)


def _row(*depths: int, stride: Literal[1, 2] = 1, image_size: int = 224) -> Variant:
    return Variant(build=BoTNet, image_size=image_size, options={"depths": depths, "stride": stride})


VARIANTS = {
    "nano": Variant(
        build=BoTNet,
        image_size=32,
        options={"depths": (1, 1, 1, 2), "widths": (4, 8, 12, 16), "stride": 2, "heads": 2, "stem": "small"},
    ),
    "50": _row(3, 4, 6, 3, stride=2),
    "s1_50": _row(3, 4, 6, 3),
    "s1_59": _row(3, 4, 6, 6),
    "s1_77": _row(3, 4, 6, 12, image_size=320),
    "s1_110": _row(3, 4, 23, 6),
    "s1_128": _row(3, 4, 23, 12, image_size=256),
    "s1_128_384": _row(3, 4, 23, 12, image_size=384),
}
