"""Stand-alone self-attention: residual networks without 3x3 convolutions (Ramachandran et al., NeurIPS 2019,
arXiv:1906.05909).

    image --7x7 / 2, max-pool / 2--> stage 1 --> stage 2 --> stage 3 --> stage 4 --mean--> summary, tokens
                                      | /4        | /8        | /16       | /32
                                      v           v           v           v
                                     map         map         map         map

    block:  x --1x1, norm, relu--> local attention (, mean of 2x2) --norm, relu, 1x1, norm--+-- relu
            |                                                                               |
            +--------------------- (1x1 and norm where the shape changes) ------------------+

A cell looks at the k x k square around it (the paper's equations 2 and 3): scores are q . (key + [row, column]), where
row and column are learned embeddings of the offset, and there is no 1 / sqrt(d). As around a convolution, the square
beyond the border is filled with zeros: keys and values are 0 there, their scores are q . [row, column], and they take
their part of the softmax; so does what is padding.

Built from the paper's text, for its authors published neither code nor weights: no claim is made that their numbers
are met. Where the text leaves it open, embeddings of offsets are shared by the heads, and the stem is a convolution.
Every head is made from all channels of the input, which the numbers of parameters that the paper reports speak for; the
text gives each its own share of them, the same thing with block-diagonal matrices.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.backbones.base import Backbone
from patchform.geometry import grids
from patchform.layers.attention import attend
from patchform.layers.drop import DropPath, rising
from patchform.records import Features, Variant


class StandAlone(Backbone):
    """Residual network whose spatial convolutions are local self-attention.

    Args:
        in_channels: C of the images.
        width: channels of the stem and inside the blocks of stage 1; doubles with every stage.
        depths: blocks of each stage; they give four times the width inside.
        heads: attention heads; they divide `width`.
        span: k, side of the square that a cell sees, odd.
        drop_path: highest rate of stochastic depth, in [0, 1), that of the last block.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        width: int = 64,
        depths: Sequence[int] = (3, 4, 6, 3),
        heads: int = 8,
        span: int = 7,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.channels = tuple(4 * width << stage for stage in range(len(depths)))
        self.strides = tuple(4 << stage for stage in range(len(depths)))
        self.width = self.channels[-1]
        rates = iter(rising(drop_path, sum(depths)))

        conv = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.stem = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(width)))
        self.stages = nn.ModuleList()
        before = width
        for number, (channels, depth) in enumerate(zip(self.channels, depths)):
            stage = nn.ModuleList()
            for index in range(depth):
                stride = 2 if number and not index else 1
                stage.append(LocalBlock(before, channels, heads, span, stride=stride, drop_path=next(rates)))
                before = channels
            self.stages.append(stage)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> one map a stage, tokens (B, N, D) and summary (B, D), the mean of cells without padding.

        In training the norms' statistics are those of all cells, padding included.
        """
        if padding is not None:
            images = images.masked_fill(padding[:, None], 0)
        x = F.max_pool2d(F.relu(self.stem(images)), 3, stride=2, padding=1)
        x = x.permute(0, 2, 3, 1)  # (B, H, W, D) in all blocks
        maps, hidden = [], None if padding is None else grids.shrink_mask(padding, 4)
        for stage, stride in zip(self.stages, self.strides):
            for block in stage:  # type: ignore[attr-defined]
                x = block(x, hidden)
                hidden = None if padding is None else grids.shrink_mask(padding, stride)
            maps.append(x.permute(0, 3, 1, 2))
        tokens = x.flatten(1, 2)
        summary = grids.masked_mean(tokens, hidden)
        return Features(tuple(maps), self.strides, grids.size_of(images), tokens, summary, hidden)

    def layers(self) -> list[nn.Module]:
        """The blocks of all stages."""
        return [block for stage in self.stages for block in stage]  # type: ignore[attr-defined]


class LocalBlock(nn.Module):
    """relu(shortcut(x) + branch(x)): a bottleneck around local attention.

    Args:
        in_channels: D of the input.
        out_channels: D of the output; a quarter of it inside.
        heads: attention heads.
        span: side of the square that a cell sees.
        stride: 2 halves the grid, after the attention.
        drop_path: probability that an image skips the branch in training.
    """

    def __init__(
        self, in_channels: int, out_channels: int, heads: int, span: int, *, stride: int, drop_path: float
    ) -> None:
        super().__init__()
        self.stride, inner = stride, out_channels // 4
        self.down = Projection(in_channels, inner)
        self.attention, self.attention_norm = LocalAttention(inner, inner, heads, span), Norm(inner)
        self.up = Projection(inner, out_channels)
        changes = stride > 1 or in_channels != out_channels
        self.shortcut = Projection(in_channels, out_channels) if changes else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, H, W, D) and padding (B, H, W) -> (B, ceil(H / stride), ceil(W / stride), D')."""
        branch = self.attention(F.relu(self.down(x)), padding)
        if self.stride > 1:
            pooled = F.avg_pool2d(branch.permute(0, 3, 1, 2), self.stride, ceil_mode=True)
            branch, x = pooled.permute(0, 2, 3, 1), x[:, :: self.stride, :: self.stride]
        branch = self.up(F.relu(self.attention_norm(branch)))
        return F.relu(self.drop_path(self.shortcut(x), _ready, branch))


class LocalAttention(nn.Module):
    """Attention of every cell to the square around it (equations 2 and 3).

    The grid is cut into tiles; the queries of a tile look at the tile and a halo around it, so memory grows with the
    number of cells. What is in the halo of a tile but not in the square of a query has a bias of -inf.

    Args:
        in_channels: D.
        out_channels: D'.
        heads: h; divides both; D' / h is even.
        span: k, odd.
        tile: side of a tile, cells; any gives the same answer.
    """

    far: Tensor
    step: Tensor

    def __init__(self, in_channels: int, out_channels: int, heads: int, span: int, *, tile: int = 4) -> None:
        super().__init__()
        self.heads, self.radius, self.tile = heads, span // 2, tile
        width, halo = out_channels // heads, tile + 2 * (span // 2)
        self.qkv = nn.Linear(in_channels, 3 * out_channels, bias=False)
        self.rows = nn.Parameter(torch.empty(span, width // 2))
        self.columns = nn.Parameter(torch.empty(span, width // 2))
        nn.init.normal_(self.qkv.weight, std=in_channels**-0.5)
        nn.init.normal_(self.rows)
        nn.init.normal_(self.columns)

        step = torch.arange(halo) - torch.arange(tile)[:, None]  # offset + radius
        self.register_buffer("far", (step < 0) | (step >= span), persistent=False)
        self.register_buffer("step", step.clamp(0, span - 1), persistent=False)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, H, W, D) and padding (B, H, W) -> (B, H, W, D')."""
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0)
        batch, height, width, _ = x.shape
        tile, radius = self.tile, self.radius
        below, beside = -height % tile, -width % tile
        qkv = F.pad(self.qkv(x), (0, 0, radius, radius + beside, radius, radius + below))  # without bias: keys of 0
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(3, 0, 4, 1, 2, 5)  # (B, h, r + H + r, r + W + r, d)
        q = q[:, :, radius : radius + height + below, radius : radius + width + beside]
        q = q.unflatten(3, (-1, tile)).unflatten(2, (-1, tile)).permute(0, 2, 4, 1, 3, 5, 6)  # (B, ty, tx, h, t, t, d)
        half = q.shape[-1] // 2
        by_row = self.places(q[..., :half], self.rows)[..., :, None]
        by_column = self.places(q[..., half:].transpose(4, 5), self.columns).transpose(4, 5)[..., None, :]
        bias = (by_row + by_column).flatten(6).flatten(4, 5)  # (B, ty, tx, h, t^2, halo^2)
        q, bias = q.flatten(4, 5).flatten(1, 2), bias.flatten(1, 2)  # a tile is a group
        mixed = attend(q, self.halos(k), self.halos(v), bias=bias, scale=1.0)  # (B, G, h, t^2, d)
        tiles = mixed.unflatten(1, ((height + below) // tile, -1)).unflatten(4, (tile, tile))
        out = tiles.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height + below, width + beside, -1)
        return out[:, :height, :width]

    def places(self, q: Tensor, table: Tensor) -> Tensor:
        """Scores (..., t, t, halo) of queries (..., t, t, d/2) and offsets along the first t; far ones are -inf."""
        scores = torch.einsum("...yxd,ykd->...yxk", q, table[self.step])
        return scores.masked_fill(self.far[:, None], float("-inf"))

    def halos(self, x: Tensor) -> Tensor:
        """(B, h, r + H + r, r + W + r, d) -> (B, G, h, halo^2, d)."""
        halo = self.tile + 2 * self.radius
        views = x.unfold(2, halo, self.tile).unfold(3, halo, self.tile)  # (B, h, ty, tx, d, halo, halo)
        return views.permute(0, 2, 3, 1, 5, 6, 4).flatten(4, 5).flatten(1, 2)


class Projection(nn.Module):
    """A 1x1 convolution without bias and its norm, in evaluation one product.

    Args:
        in_channels: D.
        out_channels: D'.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(in_channels, out_channels, bias=False), Norm(out_channels)
        nn.init.normal_(self.linear.weight, std=(2 / out_channels) ** 0.5)  # He et al. 2015, "fan out"

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D')."""
        if self.norm.training:
            return self.norm(self.linear(x))
        factor, shift = _affine(self.norm)
        return F.linear(x, self.linear.weight * factor[:, None], shift)


class Norm(nn.BatchNorm1d):
    """Batch normalisation of the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return super().forward(x.flatten(0, -2)).view(x.shape)


def _affine(norm: Norm) -> tuple[Tensor, Tensor]:
    """What a norm multiplies by and adds in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return factor, norm.bias - norm.running_mean * factor


def _ready(shortcut: Tensor, branch: Tensor) -> Tensor:
    """The branch of the samples that keep it. It is computed for all: the norms need the statistics of the batch."""
    return branch


def _row(*depths: int) -> Variant:
    return Variant(build=StandAlone, image_size=224, options={"depths": depths})


VARIANTS = {
    "nano": Variant(build=StandAlone, image_size=32, options={"width": 8, "depths": (1, 2), "heads": 2, "span": 3}),
    "26": _row(1, 2, 4, 1),
    "38": _row(2, 3, 5, 2),
    "50": _row(3, 4, 6, 3),
}
