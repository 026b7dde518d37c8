"""Stand-alone self-attention: residual networks without 3x3 convolutions (Ramachandran et al., NeurIPS 2019,
arXiv:1906.05909).

    image --7x7 / 2, max-pool / 2--> stage 1 --> stage 2 --> stage 3 --> stage 4 --mean--> summary, tokens
                                      | /4        | /8        | /16       | /32
                                      v           v           v           v
                                     map         map         map         map

    block:  x --1x1, norm, relu--> local attention (, mean of 2x2) --norm, relu, 1x1, norm--+-- relu
            |                                                                               |
            +--------------------- (1x1 and norm where the shape changes) ------------------+

A cell attends to the k x k square around it (the paper's equations 2 and 3): scores are q . (key + [row, column]),
where row and column are learned embeddings of the offset, and there is no 1 / sqrt(d). As around a convolution, the
square beyond the border is filled with zeros: keys and values are 0 there, their scores are q . [row, column], and they
count in the softmax; so does padding.

Built from the paper's text, for its authors published neither code nor weights: no claim is made that their numbers
are met. Where the text leaves it open, embeddings of offsets are shared by the heads, and the stem is a convolution.
Every head is made from all channels of the input, which the numbers of parameters that the paper reports speak for; the
text gives each its own share of them, the same thing with block-diagonal matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.backbones.resnet import AttendingResNet
from patchform.descriptions import Variant
from patchform.geometry import grids
from patchform.layers.attention import attend
from patchform.layers.convolutions import halved
from patchform.layers.drop import DropPath, linear_rates
from patchform.layers.norms import Norm, Projection


class StandAlone(AttendingResNet):
    """Residual network whose spatial convolutions are local self-attention.

    Args:
        in_channels: C of the images.
        width: channels of the stem and inside the blocks of stage 1; doubles with every stage.
        depths: blocks of each stage; they give four times the width inside.
        heads: attention heads; they divide `width`.
        span: k, side of the square that a cell attends to, odd.
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
        rates, stages = iter(linear_rates(drop_path, sum(depths))), []
        before = width
        for number, depth in enumerate(depths):
            channels, stage = 4 * width << number, []
            for index in range(depth):
                stride = 2 if number and not index else 1
                stage.append(LocalBlock(before, channels, heads, span, stride=stride, drop_path=next(rates)))
                before = channels
            stages.append(stage)
        super().__init__(in_channels, width, stages)


class LocalBlock(nn.Module):
    """relu(shortcut(x) + branch(x)): a bottleneck around local attention.

    Args:
        in_channels: D of the input.
        out_channels: D of the output; a quarter of it inside.
        heads: attention heads.
        span: side of the square that a cell attends to.
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
        branch = self.attention(F.relu(self.down(x), inplace=True), padding)
        if self.stride > 1:
            branch, x = halved(branch.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), x[:, ::2, ::2]
        branch = self.up(F.relu(self.attention_norm(branch), inplace=True))
        return F.relu(self.drop_path.add(self.shortcut(x), branch), inplace=True)


class LocalAttention(nn.Module):
    """Attention of every cell to the square around it (equations 2 and 3).

    The grid is cut into tiles; the keys of a tile are the tile and a halo around it, so memory grows with the number of
    cells. What is in the halo of a tile but not in the square of a query has a bias of -inf.

    Args:
        in_channels: D.
        out_channels: D'.
        heads: h; divides both; D' / h is even.
        span: k, odd.
        tile: side of a tile, cells; any gives the same answer.
    """

    def __init__(self, in_channels: int, out_channels: int, heads: int, span: int, *, tile: int = 4) -> None:
        super().__init__()
        self.heads, self.radius, self.tile = heads, span // 2, tile
        width = out_channels // heads
        self.qkv = nn.Linear(in_channels, 3 * out_channels, bias=False)
        self.rows = nn.Parameter(torch.empty(span, width // 2))
        self.columns = nn.Parameter(torch.empty(span, width // 2))
        nn.init.normal_(self.qkv.weight, std=in_channels**-0.5)
        nn.init.normal_(self.rows)
        nn.init.normal_(self.columns)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, H, W, D) and padding (B, H, W) -> (B, H, W, D')."""
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0)
        height, width = x.shape[1:3]
        tile, radius = self.tile, self.radius
        rows, columns = grids.cells((height, width), tile)
        bottom, right = rows * tile - height, columns * tile - width
        q, kv = self.qkv(x).tensor_split([self.qkv.out_features // 3], -1)
        q = F.pad(q, (0, 0, 0, right, 0, bottom)).unflatten(2, (columns, tile)).unflatten(1, (rows, tile))
        q = q.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, G, t^2, D'): a tile is a group
        q = q.unflatten(-1, (self.heads, -1)).transpose(2, 3)  # (B, G, h, t^2, d)
        kv = F.pad(kv, (0, 0, radius, radius + right, radius, radius + bottom))  # the projection has no bias: zeros
        halo = tile + 2 * radius
        cells = grids.squares((rows, columns), side=halo, step=tile, device=x.device)
        halos = kv.flatten(1, 2).index_select(1, cells).unflatten(1, (rows * columns, -1))  # (B, G, halo^2, 2D')
        k, v = halos.unflatten(-1, (2, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)  # (B, G, h, halo^2, d)
        mixed = attend(q, k, v, bias=self.bias(q), scale=1.0)
        tiles = mixed.transpose(2, 3).flatten(3).unflatten(2, (tile, tile)).unflatten(1, (rows, columns))
        return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2).narrow(1, 0, height).narrow(2, 0, width)

    def bias(self, q: Tensor) -> Tensor:
        """Scores (B, G, h, t^2, halo^2) of queries (B, G, h, t^2, d) and offsets; -inf outside a query's square."""
        of_row, of_column = q.unflatten(3, (self.tile, self.tile)).chunk(2, -1)
        by_row = _by_key((of_row @ self.rows.t()).transpose(3, 4)).transpose(3, 4)  # (B, G, h, t, t, halo)
        by_column = _by_key(of_column @ self.columns.t())
        return (by_row[..., None] + by_column[..., None, :]).flatten(5).flatten(3, 4)


def _by_key(scores: Tensor) -> Tensor:
    """(..., t, k) of queries in a line and offsets -> (..., t, t + k - 1) of queries and keys; -inf elsewhere."""
    cells, offsets = scores.shape[-2:]
    line = F.pad(scores, (0, cells), value=float("-inf")).flatten(
        -2
    )  # a query's keys begin one further than the last's
    return line[..., :-cells].unflatten(-1, (cells, cells + offsets - 1))


def _row(*depths: int) -> Variant:
    return Variant(build=StandAlone, image_size=224, options={"depths": depths})


VARIANTS = {
    "nano": Variant(build=StandAlone, image_size=32, options={"width": 8, "depths": (1, 2), "heads": 2, "span": 3}),
    "26": _row(1, 2, 4, 1),
    "38": _row(2, 3, 5, 2),
    "50": _row(3, 4, 6, 3),
}
