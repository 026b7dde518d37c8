"""Axial-ResNet: the classification backbone of Axial-DeepLab (Wang et al., ECCV 2020, arXiv:2003.07853).

    image --7x7 / 2, max-pool / 2--> stage 1 --> stage 2 --> stage 3 --> stage 4 --mean--> summary, tokens
                                      | /4        | /8        | /16       | /32
                                      v           v           v           v
                                     map         map         map         map

    block:  x --1x1, norm, relu--> along the height --> along the width (, mean of 2x2) --relu, 1x1, norm--+-- relu
            |                                                                                              |
            +---------------------------- (1x1 and norm where the shape changes) --------------------------+

A residual network whose 3x3 convolutions are two attentions, one along each axis, over the whole axis. They are
position-sensitive (the paper's equation 4): embeddings of the offset between query and key multiply the query and the
key, and are added to the value. Batch norms stand behind the projection, on each of the three kinds of scores (there is
no 1 / sqrt(d)) and behind each of the two kinds of values.

The tables of offsets have the length of the native axis; at other sizes they are resized to the axis at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.backbones.resnet import AttendingResNet, check_dilated
from patchform.descriptions import Variant
from patchform.geometry import grids
from patchform.layers.convolutions import halved
from patchform.layers.drop import DropPath, linear_rates
from patchform.layers.fitting import Fitted, TransferContext, fit_line
from patchform.layers.norms import BatchNorm2d, Norm, Projection, affine
from patchform.schema import Natural


class AxialResNet(AttendingResNet):
    """Residual network with axial attention.

    Args:
        in_channels: C of the images.
        image_size: native input, pixels; other sizes work, tables of offsets are resized.
        width: channels of the stem. A stage has 4 times as many, doubling with every stage; inside its blocks half.
        depths: blocks of each stage.
        heads: attention heads; they divide `width`.
        dilated: so many of the last stages do not halve the map. Attention along an axis already reaches all of it, so
            nothing takes the place of the stride: only the tables of offsets are longer.
        drop_path: highest rate of stochastic depth, in [0, 1), that of the last block.

    Raises:
        UsageError: more stages dilated than halve the map.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        width: int = 32,
        depths: Sequence[int] = (1, 2, 4, 1),
        heads: int = 8,
        dilated: Natural = 0,
        drop_path: float = 0.0,
    ) -> None:
        check_dilated(dilated, len(depths))
        rates, stages = iter(linear_rates(drop_path, sum(depths))), []
        before, grid = width, grids.cells(image_size, 4)
        for number, depth in enumerate(depths):
            channels, stage = 4 * width << number, []
            for index in range(depth):
                stride = 2 if 0 < number < len(depths) - dilated and not index else 1
                stage.append(AxialBlock(before, channels, grid, heads=heads, stride=stride, drop_path=next(rates)))
                before, grid = channels, grids.cells(grid, stride)
            stages.append(stage)
        super().__init__(in_channels, width, stages, dilated=dilated)


class AxialBlock(nn.Module):
    """relu(shortcut(x) + branch(x)) with attention along both axes (figure 2 of the paper).

    Args:
        in_channels: D of the input.
        out_channels: D of the output; half of it inside.
        grid: native rows and columns of the input.
        heads: attention heads.
        stride: 2 halves the grid.
        drop_path: probability that an image skips the branch in training.
    """

    def __init__(
        self, in_channels: int, out_channels: int, grid: tuple[int, int], *, heads: int, stride: int, drop_path: float
    ) -> None:
        super().__init__()
        self.stride, inner = stride, out_channels // 2
        self.down = Projection(in_channels, inner)
        self.height = AxialAttention(inner, heads, grid[0])
        self.width = AxialAttention(inner, heads, grid[1])
        self.up = Projection(inner, out_channels)
        nn.init.zeros_(self.up.norm.weight)  # at the start the branch adds nothing
        changes = stride > 1 or in_channels != out_channels
        self.shortcut = Projection(in_channels, out_channels) if changes else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, H, W, D) and padding (B, H, W) -> (B, ceil(H / stride), ceil(W / stride), D')."""
        branch = F.relu(self.down(x), inplace=True)
        across = None if padding is None else padding.transpose(1, 2)
        branch = self.height(branch.transpose(1, 2), across).transpose(1, 2)
        branch = self.width(branch, padding)
        if self.stride > 1:
            branch, x = halved(branch.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), x[:, ::2, ::2]
        branch = self.up(F.relu(branch, inplace=True))
        return F.relu(self.drop_path.add(self.shortcut(x), branch), inplace=True)


class AxialAttention(nn.Module):
    """Position-sensitive attention along the last axis of a grid (equation 4).

    A head has c channels, its queries and keys half of them. `relative` (2c, 2L - 1) holds embeddings for queries, keys
    and values, from that of what lies L - 1 cells ahead to that of what lies as far behind.

    Args:
        width: D; twice the heads divide it.
        heads: attention heads.
        length: L, native cells of the axis.
    """

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.parts = (width // heads // 2, width // heads // 2, width // heads)  # channels of q, k, v
        self.qkv = Projection(width, 2 * width)
        self.relative = nn.Parameter(torch.empty(2 * width // heads, 2 * length - 1))
        self.score_norm = BatchNorm2d(3 * heads)
        self.out_norm = Norm(2 * width)
        nn.init.normal_(self.qkv.linear.weight, std=width**-0.5)
        nn.init.normal_(self.relative, std=(width // heads) ** -0.5)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, R, L, D) and padding (B, R, L) -> (B, R, L, D): R lines, each by itself."""
        lines = self.qkv(x).flatten(0, 1).unflatten(-1, (self.heads, -1))  # (n, L, h, 2c)
        q, k, v = lines.transpose(1, 2).split(self.parts, -1)  # (n, h, L, .)
        from_q, from_k, from_v = self.offsets(x.shape[2]).split(self.parts)  # (., L, L)
        scores = self.scores(q, k, from_q, from_k)
        if padding is not None:
            key_padding = padding & ~padding.all(-1, keepdim=True)  # where all of a line is padding, no output is used
            scores = scores.masked_fill(key_padding.flatten(0, 1)[:, None, None], float("-inf"))
        mixed = self.mix(scores.softmax(-1), v, from_v)
        return mixed.unflatten(0, x.shape[:2])

    def fit(self, name: str, tensor: Tensor, context: TransferContext) -> Fitted:
        """Embeddings (2c, 2L - 1) of the offsets of another axis."""
        if name != "relative":
            raise ValueError("it does not depend on the axis")
        table, note = fit_line(tensor.t(), self.relative.t(), context, "bilinear")
        return table.t(), note

    def scores(self, q: Tensor, k: Tensor, from_q: Tensor, from_k: Tensor) -> Tensor:
        """(n, h, L, L): the sum of the three kinds, each normalised."""
        if self.score_norm.training:
            kinds = torch.stack(
                [q @ k.transpose(2, 3), _offset_scores(q, from_q), _offset_scores(k, from_k).transpose(2, 3)], 1
            )
            return self.score_norm(kinds.flatten(1, 2)).unflatten(1, (3, self.heads)).sum(1)
        factor, _ = affine(self.score_norm)  # what is added to all keys the softmax does not see
        a, b, c = factor.view(3, self.heads, 1, 1)
        return (
            (a * q) @ k.transpose(2, 3) + _offset_scores(b * q, from_q) + _offset_scores(c * k, from_k).transpose(2, 3)
        )

    def mix(self, weights: Tensor, v: Tensor, from_v: Tensor) -> Tensor:
        """(n, L, D): the sum of both kinds of values, each normalised; their channels are in pairs."""
        offsets = torch.einsum("nhij,cij->nhic", weights, from_v)
        if self.out_norm.training:
            pairs = torch.stack([weights @ v, offsets], -1).transpose(1, 2)  # (n, L, h, c, 2)
            return self.out_norm(pairs.flatten(2)).unflatten(-1, (-1, 2)).sum(-1)
        factor, shift = (x.view(self.heads, 1, -1, 2) for x in affine(self.out_norm))
        mixed = weights @ (v * factor[..., 0] + shift.sum(-1)) + offsets * factor[..., 1]  # the weights add up to 1
        return mixed.transpose(1, 2).flatten(2)

    def offsets(self, length: int) -> Tensor:
        """(2c, length, length): the embedding of the offset of [query, key] (for keys: of [key, query])."""
        table = grids.resize(self.relative.t()[:, None], (2 * length - 1, 1), mode="bilinear")[:, 0].t()
        cell = torch.arange(length, device=table.device)
        return table[:, cell[:, None] - cell + length - 1]


def _offset_scores(x: Tensor, embedding: Tensor) -> Tensor:
    """Products with embeddings of offsets, (n, h, i, c) and (c, i, j) -> (n, h, i, j)."""
    return torch.einsum("nhic,cij->nhij", x, embedding)


def _row(width: int, depths: tuple[int, ...]) -> Variant:
    return Variant(build=AxialResNet, image_size=224, options={"width": width, "depths": depths})


VARIANTS = {
    "nano": Variant(build=AxialResNet, image_size=32, options={"width": 8, "depths": (1, 2), "heads": 2}),
    "26s": _row(32, (1, 2, 4, 1)),
    "50s": _row(32, (3, 4, 6, 3)),
    "50m": _row(48, (3, 4, 6, 3)),
    "50l": _row(64, (3, 4, 6, 3)),
}
