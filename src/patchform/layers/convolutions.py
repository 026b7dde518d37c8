"""Convolutions of maps (B, C, H, W): with a norm and a ReLU behind them, as a classifier of cells; a norm of cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.geometry import grids
from patchform.layers.norms import BatchNorm2d


class CellNorm(nn.LayerNorm):
    """Layer normalisation of every cell of a map.

    Args:
        channels: C.
        eps: added to the variance.
    """

    def __init__(self, channels: int, *, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return super().forward(cells.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def channels_innermost(images: Tensor) -> Tensor:
    """The same (B, C, H, W), its channels next to each other in memory, in which order convolutions are faster.

    `Tensor.contiguous(memory_format=...)` is unknown to `torch.func.vmap`; this is the same copy.
    """
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def halved(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2)): means of 2x2 cells, at an odd end of what is there."""
    height, width = x.shape[2:]
    if grids.known(height, width):
        return F.avg_pool2d(x, 2, ceil_mode=True)
    for axis, length in ((2, height), (3, width)):  # the last cell twice has the mean of one
        places = torch.arange(2 * grids.ceil_div(length, 2), device=x.device)
        x = x.index_select(axis, places.clamp(max=length - 1))
    return F.avg_pool2d(x, 2)


class Strided(nn.Conv2d):
    """A convolution that makes the grid coarser, right on the narrowest maps too.

    Where columns of the kernel meet nothing but padding (3 wide at stride 2 on a map of one column), torch 2.15 leaves
    their gradient unset in bfloat16 on a CPU: it is whatever lay in memory, at times infinite. The map is made so wide
    here, with the zeros that padding stands for, that every column meets it. A graph for any size has no gradients.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        width, kernel, padding = x.shape[-1], self.kernel_size[1], int(self.padding[1])
        lacking = kernel - padding - width
        if not grids.known(width) or lacking <= 0 or self.dilation[1] > 1:
            return super().forward(x)
        columns = (width + 2 * padding - kernel) // self.stride[1] + 1
        return super().forward(F.pad(x, (0, lacking)))[..., :columns]


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU; the grid stays as it is.

    In training a batch with one number a channel (one image, pooled to one cell) is normalised by the running
    statistics: it has no variance of its own.

    Args:
        in_channels, out_channels: C before and behind.
        kernel: its side, odd.
        bias: whether the convolution has one; the norm takes it away again, but published weights hold it.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
        self.norm = BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")  # He et al. 2015
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        x, norm = self.conv(x), self.norm
        if norm.training and x.numel() == x.shape[1]:
            return F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps))
        return F.relu(norm(x))


def classifier(channels: int, classes: int, *, kernel: int = 1, bias: bool = True) -> nn.Conv2d:
    """The convolution (B, channels, H, W) -> (B, classes, H, W) that ends a dense head; it starts with small logits."""
    conv = nn.Conv2d(channels, classes, kernel, padding=kernel // 2, bias=bias)
    nn.init.trunc_normal_(conv.weight, std=0.02)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
