"""CrossViT: two vision transformers that exchange class tokens (Chen et al., ICCV 2021, arXiv:2103.14899).

                              stage (3 of them)                                             every branch
    image      --12x12--> [c | p1 .. pN] --few blocks--> c' = fusion(c, coarse patches) --> norm, c -+
      |                                             X                                                +-> summary
      +-resize --16x16--> [C | P1 .. PM] -many blocks--> C' = fusion(C, fine patches)   --> norm, C -+
                                                                                              P -> tokens

The fine branch has small patches, small width and few blocks, the coarse one the opposite. In a fusion the class
token is the only query: projected to the other branch's width, it attends to the other branch's patches, and is
projected back.

The coarse branch sees the image resized (bicubic, not antialiased): 240 pixels become 224, so that 12 and 16 divide. A
cell of its map is then 16 * 240 / 224 = 17.1 input pixels wide; `strides` holds the nearest integers, (12, 17).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.backbones.base import Backbone, sequence_padding, zero_pixels
from patchform.descriptions import Variant
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.attention import CrossAttention, real_keys
from patchform.layers.blocks import Block
from patchform.layers.convolutions import channels_innermost
from patchform.layers.drop import DropPath, linear_rates
from patchform.layers.patches import Patches, pad_to_multiple
from patchform.layers.positions import Learned1D
from patchform.records import Features

EPS = 1e-6  # of every layer norm


class CrossViT(Backbone):
    """Cross-attention multi-scale vision transformer. Pairs are (fine branch, coarse branch).

    `summary` holds both class tokens side by side and is `width` wide, the sum of the two; `tokens` are the coarse
    branch's and as wide as that. A map has ceil(round(H * scale) / patch) rows.

    Args:
        in_channels: C of the images.
        image_size: native input, pixels; other sizes work, positions are resized.
        scales: side of the image that a branch sees over the input's. (1, 224 / 240) takes images of 240 pixels and
            makes those of 224 from them; (240 / 224, 1) with `image_size` 224 is how the authors' code does it.
        patches: side of a patch, pixels of the branch's image.
        widths: D of the branches.
        depths: blocks of the branches in each stage.
        heads: attention heads, of all blocks and fusions; divides both widths.
        mlp_ratio: hidden width of the perceptrons over D.
        qkv_bias: biases of queries, keys, values.
        stem: "patches" projects squares, "convolutions" are the three of the variants with a dagger.
        drop_path: stochastic depth of the last block, rising linearly from 0.

    Raises:
        UsageError: the convolutions are not defined for patches of this side.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 240,
        scales: tuple[float, float] = (1.0, 224 / 240),
        patches: tuple[int, int] = (12, 16),
        widths: tuple[int, int] = (192, 384),
        depths: Sequence[tuple[int, int]] = ((1, 4), (1, 4), (1, 4)),
        heads: int = 6,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        stem: Literal["patches", "convolutions"] = "patches",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.scales, self.patches = tuple(scales), tuple(patches)
        self.channels, self.width = tuple(widths), sum(widths)
        self.strides = tuple(round(patch / scale) for patch, scale in zip(patches, scales))
        native = [grids.cells(size, patch) for size, patch in zip(self.sizes(grids.pair(image_size)), patches)]
        kind = Patches if stem == "patches" else ConvolutionalPatches
        rates = iter(linear_rates(drop_path, sum(map(max, depths))))

        self.stems = nn.ModuleList(kind(in_channels, width, patch) for width, patch in zip(widths, patches))
        self.class_tokens = nn.ParameterList(torch.empty(1, 1, width) for width in widths)
        self.positions = nn.ModuleList(Learned1D(width, grid, prefix=1) for width, grid in zip(widths, native))
        self.stages = nn.ModuleList(
            Stage(widths, depth, heads, mlp_ratio, qkv_bias=qkv_bias, rates=[next(rates) for _ in range(max(depth))])
            for depth in depths
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=EPS) for width in widths)

        self.beyond_maps = ("norms", f"stages.{len(self.stages) - 1}.fusions")  # which make class tokens alone
        blocks.init_weights(self.stages)
        for token in self.class_tokens:
            nn.init.trunc_normal_(token, std=0.02)

    def sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(height, width) of the image that each branch sees, for an input of `size`."""
        height, width = size
        return [(_scaled(height, ratio), _scaled(width, ratio)) for ratio in map(_ratio, self.scales)]

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> two maps, tokens (B, M, D of the coarse branch) and summary (B, sum of both D)."""
        images = zero_pixels(images, padding)  # resizing mixes neighbours
        sequences, shapes, paddings = [], [], []
        for branch, size in enumerate(self.sizes((images.shape[-2], images.shape[-1]))):
            cells = self.stems[branch](_resized(images, size))  # (B, H', W', D)
            grid = (cells.shape[1], cells.shape[2])
            token = self.class_tokens[branch].expand(cells.shape[0], -1, -1)
            sequences.append(self.positions[branch](torch.cat([token, cells.flatten(1, 2)], 1), grid))
            shapes.append(grid)
            paddings.append(None if padding is None else _on_grid(padding, size, self.patches[branch]))

        fine, coarse = sequences
        token_paddings = [sequence_padding(cell_padding, 1) for cell_padding in paddings]
        for stage in self.stages:
            fine, coarse = stage(fine, coarse, *token_paddings)
        maps = tuple(x[:, 1:].transpose(1, 2).unflatten(2, grid) for x, grid in zip((fine, coarse), shapes))
        coarse = self.norms[1](coarse)
        summary = torch.cat([self.norms[0](fine[:, 0]), coarse[:, 0]], 1)
        return Features(maps, self.strides, grids.size_of(images), coarse[:, 1:], summary, paddings[1])

    def layers(self) -> list[nn.Module]:
        """The stages: the branches run side by side within one."""
        return list(self.stages)


class Stage(nn.Module):
    """A multi-scale encoder (section 3.3): blocks in each branch, then a fusion in each.

    Args:
        widths: D of the branches.
        depths: blocks of the branches.
        heads: attention heads.
        mlp_ratio: hidden width of the perceptrons over D.
        qkv_bias: biases of queries, keys, values.
        rates: of stochastic depth, one a block of the longer branch; the fusions take the last.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        heads: int,
        mlp_ratio: float,
        *,
        qkv_bias: bool,
        rates: Sequence[float],
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.ModuleList(
                Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, eps=EPS, drop_path=rate)
                for rate in rates[:depth]
            )
            for width, depth in zip(widths, depths)
        )
        self.fusions = nn.ModuleList(
            Fusion(width, other, heads, qkv_bias=qkv_bias, drop_path=rates[-1])
            for width, other in zip(widths, reversed(widths))
        )

    def forward(
        self, fine: Tensor, coarse: Tensor, fine_padding: Tensor | None = None, coarse_padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, 1 + N, D) and (B, 1 + M, D'), class tokens in front, to the same; paddings (B, 1 + N), (B, 1 + M)."""
        for block in self.branches[0].children():
            fine = block(fine, padding=fine_padding)
        for block in self.branches[1].children():
            coarse = block(coarse, padding=coarse_padding)
        fine_token = self.fusions[0](fine[:, :1], coarse[:, 1:], coarse_padding)
        coarse_token = self.fusions[1](coarse[:, :1], fine[:, 1:], fine_padding)
        return torch.cat([fine_token, fine[:, 1:]], 1), torch.cat([coarse_token, coarse[:, 1:]], 1)


class Fusion(nn.Module):
    """A class token attends to the patches of the other branch (section 3.3, equations 3 to 5).

    Args:
        width: D of the token.
        other: D' of the other branch; attention happens at this width.
        heads: attention heads; divides D'.
        qkv_bias: biases of queries, keys, values.
        drop_path: rate of stochastic depth of the attention.
    """

    def __init__(self, width: int, other: int, heads: int, *, qkv_bias: bool = True, drop_path: float = 0.0) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.LayerNorm(width, eps=EPS), nn.GELU(), nn.Linear(width, other))
        self.norm = nn.LayerNorm(other, eps=EPS)
        self.attention = CrossAttention(other, heads, qkv_bias=qkv_bias)
        self.residual = DropPath(drop_path)
        self.leave = nn.Sequential(nn.LayerNorm(other, eps=EPS), nn.GELU(), nn.Linear(other, width))

    def forward(self, token: Tensor, patches: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, 1, D), (B, N, D') -> (B, 1, D); padding (B, 1 + N), the first of which is the token itself.

        The result replaces the token: only the attention has a residual connection (the authors' code).
        """
        return self.leave(self.residual(self.enter(token), self.attention_branch, patches, padding))

    def attention_branch(self, token: Tensor, patches: Tensor, padding: Tensor | None) -> Tensor:
        """(B, 1, D'), the only query, and (B, N, D') -> (B, 1, D')."""
        tokens = self.norm(torch.cat([token, patches], 1))
        return self.attention(tokens[:, :1], tokens, real_keys(padding))


class ConvolutionalPatches(nn.Module):
    """Three convolutions in place of one, the variants with a dagger (section 4; strides from the authors' code).

    Args:
        in_channels: C.
        width: D; the first two convolutions have D / 4 and D / 2 channels.
        size: side of a patch, pixels: 12 or 16.
    """

    STRIDES = {12: (4, 3, 1), 16: (4, 2, 2)}

    def __init__(self, in_channels: int, width: int, size: int) -> None:
        super().__init__()
        if size not in self.STRIDES:
            raise UsageError(f"convolutions make no patches of {size} pixels", remedy="they make 12 or 16")
        first, second, third = self.STRIDES[size]
        self.size = size
        self.proj = nn.Sequential(
            nn.Conv2d(in_channels, width // 4, 7, stride=first, padding=3),
            nn.ReLU(),
            nn.Conv2d(width // 4, width // 2, 3, stride=second, padding=0 if second == 3 else 1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 3, stride=third, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ceil(H / p), ceil(W / p), D)."""
        images = channels_innermost(pad_to_multiple(images, self.size))
        return self.proj(images).permute(0, 2, 3, 1)


def _ratio(scale: float) -> Fraction:
    """The fraction that a scale such as 224 / 240 stands for."""
    return Fraction(scale).limit_denominator(1_000_000)


def _scaled(length: int, ratio: Fraction) -> int:
    """max(1, round(length * ratio)), by whole numbers alone: a half goes to the even neighbour, as `round` has it."""
    halves, whole = 2 * ratio.numerator * length + ratio.denominator, 2 * ratio.denominator
    rounded = halves // whole
    tie = 1 - torch.sym_min(1, halves % whole)
    return torch.sym_max(1, rounded - tie * (rounded % 2))


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size). Not antialiased: the published weights were trained so."""
    if grids.known(*size):
        same = grids.size_of(images) == size
        return images if same else F.interpolate(images, size=size, mode="bicubic", align_corners=False)
    resized = grids.resize(images.permute(2, 3, 0, 1).flatten(2), size)  # a cubic resize differs between runtimes
    return resized.unflatten(2, (images.shape[0], images.shape[1])).permute(2, 3, 0, 1)


def _on_grid(padding: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """Padding (B, H, W) of the input's pixels -> of the cells of a branch that sees the image at `size`."""
    row, column = (
        (2 * torch.arange(new, device=padding.device) + 1) * old // (2 * new)  # the pixel at the centre
        for new, old in zip(size, padding.shape[1:])
    )
    return grids.shrink_mask(padding[:, row[:, None], column], patch)


def _row(
    width: int,
    depth: int,
    heads: int,
    mlp_ratio: float,
    *,
    stem: Literal["patches", "convolutions"] = "patches",
    image_size: int = 240,
    coarse_size: int = 224,
) -> Variant:
    return Variant(
        build=CrossViT,
        image_size=image_size,
        options={
            "scales": (1.0, coarse_size / image_size),
            "widths": (width, 2 * width),
            "depths": ((1, depth),) * 3,
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "stem": stem,
        },
    )


VARIANTS = {
    "nano": Variant(
        build=CrossViT,
        image_size=48,
        options={
            "scales": (1.0, 1.0),
            "patches": (6, 8),
            "widths": (16, 32),
            "depths": ((1, 2), (1, 1)),
            "heads": 2,
            "mlp_ratio": 2.0,
        },
    ),
    "ti": _row(96, 4, 3, 4.0),
    "s": _row(192, 4, 6, 4.0),
    "b": _row(384, 4, 12, 4.0),
    "9": _row(128, 3, 4, 3.0),
    "15": _row(192, 5, 6, 3.0),
    "18": _row(224, 6, 7, 3.0),
    "9_dagger": _row(128, 3, 4, 3.0, stem="convolutions"),
    "15_dagger": _row(192, 5, 6, 3.0, stem="convolutions"),
    "18_dagger": _row(224, 6, 7, 3.0, stem="convolutions"),
    "15_dagger_408": _row(192, 5, 6, 3.0, stem="convolutions", image_size=408, coarse_size=384),
    "18_dagger_408": _row(224, 6, 7, 3.0, stem="convolutions", image_size=408, coarse_size=384),
}
