"""Dual-ViT: a pathway of pixels beside a pathway of semantics (Yao et al., TPAMI 2023, arXiv:2207.04976).

    image --stem--> P---dual---halve---dual---halve---merge---halve---merge---P --> four maps, tokens
                    |    ^|             ^|              ||              ||     |
                  pool   |v             |v              ||              ||   class --> summary
                    S---dual---linear--dual---linear--merge---linear--merge---S

P are the cells of the grid. S are a few tokens, 64 at 224 pixels, global semantics of the image. First S attends to P
and P to S, which costs N x M and never N x N; where N has become small the two are one sequence. In the order of the
computation, with numbers of this file's own, which the code refers to; attention(Q, K) has queries from Q, keys and
values from K. On the right, what each is in the code of Yao et al. (classification/dualvit.py):

    start   X = P pooled over squares, Q learned                            DualViT.forward_sep: pool, q
      (1)   A = softmax(query(Q) k(X)^T / sqrt(D)) v(X)                     q_embed, kv
      (2)   S = LN(a * A + b * X), a, b = softmax(gate(mean(A + X)))        se, proxy_ln
    dual block, semantic pathway                                            DualAttention
      (3)   S = S + attention(LN(S), LN(S))                                 qkv_proxy, gamma1
      (4)   S = S + attention(LN(S), LN(P))                                 q_proxy, kv_proxy, gamma2
      (5)   S = S + mlp(LN(S))                                              mlp_proxy, gamma3
    dual block, pixel pathway                                               DualBlock
      (6)   P = P + attention(LN(P), LN(S))                                 attn.q, attn.kv, attn.proj, gamma1
      (7)   P = P + mlp(LN(P)), with a depthwise 3x3 convolution inside     mlp (PVT2FFN), gamma2
    merge block                                                             MergeBlock
      (8)   [P, S] = [P, S] + attention(LN([P, S]), itself)                 attn, gamma1
      (9)   [P, S] = [P, S] + [mlp as in (7) of LN(P), an mlp of LN(S)]     mlp (MergeFFN), gamma2
    class block                                                             ClassBlock
      (10)  c = mean([P, S])                                                DualViT.forward_cls
      (11)  c = c + attention(LN(c), LN([c, P, S]))                         attn
      (12)  c = c + mlp(LN(c))                                              mlp

Each branch of (3) to (9) has a learned factor per channel. Only the convolutions depend on positions.

Gives four maps, the last one as tokens, and the class token c as summary. Unlike other backbones' the maps are
normalised: so the next stage takes them, and so the authors' dense backbones do. Those compute the same four
maps; they only have no class block and let S end before the last (9). `summary="mean"` is that form.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from patchform.backbones.base import Backbone, shrink_padding, zero_pixels
from patchform.descriptions import Variant
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.attention import (
    Attention,
    CrossAttention,
    attend,
    join_heads,
    never_empty,
    real_keys,
    split_heads,
)
from patchform.layers.blocks import MLP, ClassBlock, ConvolutionalMLP, hidden_width
from patchform.layers.convolutions import Strided, channels_innermost
from patchform.layers.drop import DropPath, linear_rates
from patchform.layers.norms import BatchNorm2d, LayerScale
from patchform.layers.pooling import square_means
from patchform.records import Features

EPS = 1e-6  # of LN(P), LN([P, S]), the class block and the stages' ends; the other norms have torch's 1e-5
QUERY_SIDE = 8  # a side of the grid that the learned Q lies on


class KeyMask(NamedTuple):
    """Keys that are not padding, or all if all are: (B, 1, 1, 1, K) bool, as attention takes them; None: all."""

    pixels: Tensor | None
    semantics: Tensor | None

    def both(self) -> Tensor | None:
        """Of the sequence [P, S]."""
        return None if self.pixels is None or self.semantics is None else torch.cat([self.pixels, self.semantics], 4)


class DualViT(Backbone):
    """Dual vision transformer of four stages.

    Args:
        in_channels: C of the images.
        stem: channels of the stem's convolutions.
        widths, depths, heads: D, number of blocks, attention heads of each stage.
        mlp_ratios: of each stage, hidden width of the pixels' perceptrons over D, block by block and again from the
            front: (4, 3) is 4, 3, 4, 3, ...
        class_ratio: that of the class block.
        qkv_bias: biases of queries, keys, values.
        window: side, in cells of the first map, of the square that a semantic token is pooled from. A rest at the
            bottom and the right is left out.
        summary: "class" has the class block; "mean" averages the tokens and has no parameters that maps do not need.
        layer_scale: initial factor on the branches.
        drop_path: stochastic depth of the last block, rising linearly from 0.
    """

    embedding = "stem"
    beyond_maps = ("class_block",)

    def __init__(
        self,
        *,
        in_channels: int = 3,
        stem: int = 32,
        widths: Sequence[int] = (64, 128, 320, 448),
        depths: Sequence[int] = (3, 4, 6, 3),
        heads: Sequence[int] = (2, 4, 10, 14),
        mlp_ratios: Sequence[Sequence[float]] = ((8,), (8,), (4, 3), (3,)),
        class_ratio: float = 2.0,
        qkv_bias: bool = True,
        window: int = 7,
        summary: Literal["class", "mean"] = "class",
        layer_scale: float = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.channels, self.strides, self.width = tuple(widths), (4, 8, 16, 32), widths[-1]
        rates = iter(linear_rates(drop_path, sum(depths)))

        self.stem = Stem(in_channels, stem, widths[0])
        self.start = SemanticStart(widths[0], window)
        self.halves = nn.ModuleList(Halve(fine, coarse) for fine, coarse in pairwise(widths))
        self.projections = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(fine, eps=EPS), nn.Linear(fine, coarse), nn.LayerNorm(coarse))
            for fine, coarse in pairwise(widths)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(
                kind(
                    width,
                    count,
                    ratios[i % len(ratios)],
                    qkv_bias=qkv_bias,
                    layer_scale=layer_scale,
                    drop_path=next(rates),
                )
                for i in range(depth)
            )
            for kind, width, depth, count, ratios in zip(KINDS, widths, depths, heads, mlp_ratios, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=EPS) for width in widths)
        self.class_block = None
        if summary == "class":
            self.class_block = ClassBlock(self.width, heads[-1], class_ratio, qkv_bias=qkv_bias)
        if self.class_block is None:
            self.layers()[-1].register_module("semantic_mlp", None)  # its output would not be used
        blocks.init_weights(self)
        self.apply(_init_weights)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> four maps, tokens (B, N, D) and summary (B, D)."""
        images = zero_pixels(images, padding)
        paddings = [shrink_padding(padding, stride) for stride in self.strides]
        pixels = normed = self.stem(images)  # (B, H, W, D) throughout
        semantics, semantic_padding = self.start(pixels, paddings[0])  # (B, M, D) throughout
        maps = []
        for number, stage in enumerate(self.stages):
            if number > 0:
                pixels, semantics = self.halves[number - 1](normed), self.projections[number - 1](semantics)
            key_mask = KeyMask(never_empty(real_keys(paddings[number])), never_empty(real_keys(semantic_padding)))
            for block in stage.children():
                pixels, semantics = block(pixels, semantics, key_mask)
            normed = self.norms[number](pixels)
            maps.append(normed.permute(0, 3, 1, 2))
        tokens = normed.flatten(1, 2)
        if self.class_block is None:
            summary = grids.masked_mean(tokens, paddings[-1])
        else:
            sequence, allowed = torch.cat([pixels.flatten(1, 2), semantics], 1), key_mask.both()
            mean = grids.masked_mean(sequence, None if allowed is None else ~allowed.flatten(1))[:, None]  # (10)
            summary = self.norms[-1](self.class_block(mean, sequence, allowed))[:, 0]  # (11), (12)
        return Features(tuple(maps), self.strides, grids.size_of(images), tokens, summary, paddings[-1])

    def layers(self) -> list[nn.Module]:
        """The blocks of all stages, then the class block."""
        stages = [block for stage in self.stages for block in stage.children()]
        return stages if self.class_block is None else [*stages, self.class_block]


class SemanticStart(nn.Module):
    """The first semantic tokens, one for each square of `window` cells a side: equations 1 and 2."""

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.queries = nn.Parameter(torch.empty(QUERY_SIDE, QUERY_SIDE, width))
        self.query = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.kv = nn.Linear(width, 2 * width)
        self.gate = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2 * width))
        self.norm = nn.LayerNorm(width)
        nn.init.trunc_normal_(self.queries, std=0.02)

    def forward(self, pixels: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, H, W, D) and (B, H, W) -> (B, M, D) and (B, M), of an input's own number M of squares."""
        real = pixels if padding is None else pixels.masked_fill(padding[..., None], 0)
        pooled, empty = square_means(real.permute(0, 3, 1, 2), self.window), None
        if padding is not None:
            share = square_means((~padding)[:, None].to(pixels.dtype), self.window)  # real, (B, 1, ...)
            pooled, empty = pooled / share.clamp(min=1e-6), share.flatten(1) == 0
        x = pooled.flatten(2).transpose(1, 2)

        # as in the authors' dense code; their classifier leaves Q as it is for any 64 squares, 4 x 16 too
        q = self.query(grids.resize(self.queries, grids.size_of(pooled))).flatten(0, 1).expand(x.shape[0], 1, 1, -1, -1)
        k, v = split_heads(self.kv(x), 1, parts=2)
        attended = attend(q, k, v, allowed=never_empty(real_keys(empty)))[:, 0, 0]  # (1)
        a, b = self.gate(grids.masked_mean(attended + x, empty)).unflatten(1, (2, 1, -1)).softmax(1).unbind(1)
        return self.norm(a * attended + b * x), empty  # (2)


class DualBlock(nn.Module):
    """Two pathways with cross-attention to each other: equations 3 to 7 (DualBlock).

    `mlp_ratio` is the hidden width of the pixels' perceptron over D (the semantics' has 4), `layer_scale` the initial
    factor on the branches, `drop_path` their rate of stochastic depth.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, *, qkv_bias: bool, layer_scale: float, drop_path: float
    ) -> None:
        super().__init__()
        self.residual, self.heads = DropPath(drop_path), heads
        # semantic pathway
        self.norm3, self.semantic_attention = nn.LayerNorm(width), nn.Linear(width, 3 * width, bias=qkv_bias)
        self.norm4 = nn.LayerNorm(width)
        self.semantic_cross_attention = CrossAttention(width, heads, qkv_bias=qkv_bias, project=False)
        self.norm5 = nn.LayerNorm(width)
        self.semantic_mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.scale3, self.scale4, self.scale5 = (LayerScale(width, layer_scale) for _ in range(3))
        # pixel pathway
        self.pixel_norm, self.norm6 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width)
        self.pixel_cross_attention = CrossAttention(width, heads, qkv_bias=qkv_bias)
        self.norm7 = nn.LayerNorm(width, eps=EPS)
        self.mlp = ConvolutionalMLP(width, hidden_width(width, mlp_ratio))
        self.scale6, self.scale7 = LayerScale(width, layer_scale), LayerScale(width, layer_scale)

    def forward(self, pixels: Tensor, semantics: Tensor, key_mask: KeyMask) -> tuple[Tensor, Tensor]:
        """(B, H, W, D) and (B, M, D) -> the same."""
        normed = self.pixel_norm(pixels).flatten(1, 2)  # LN(P) of both (4) and (6)
        semantics = self.residual(semantics, self._equation_3, key_mask.semantics)
        semantics = self.residual(semantics, self._equation_4, normed, key_mask.pixels)
        semantics = self.residual(semantics, self._equation_5)
        pixels = self.residual(pixels, self._equation_6, normed, semantics, key_mask.semantics)
        pixels = self.residual(pixels, self._equation_7)
        return pixels, semantics

    def _equation_3(self, semantics: Tensor, key_mask: Tensor | None) -> Tensor:
        """(3) Self-attention of the semantics (`qkv_proxy`)."""
        q, k, v = split_heads(self.semantic_attention(self.norm3(semantics)), self.heads, parts=3)
        return self.scale3(join_heads(attend(q, k, v, allowed=key_mask)))

    def _equation_4(self, semantics: Tensor, normed: Tensor, key_mask: Tensor | None) -> Tensor:
        """(4) Cross-attention of the semantics to the pixels (`q_proxy` and `kv_proxy`)."""
        return self.scale4(self.semantic_cross_attention(self.norm4(semantics), normed, key_mask))

    def _equation_5(self, semantics: Tensor) -> Tensor:
        """(5) Perceptron of the semantics (`mlp_proxy`)."""
        return self.scale5(self.semantic_mlp(self.norm5(semantics)))

    def _equation_6(self, pixels: Tensor, normed: Tensor, semantics: Tensor, key_mask: Tensor | None) -> Tensor:
        """(6) Cross-attention of the pixels to the semantics (`attn.q` and `attn.kv`)."""
        return self.scale6(self.pixel_cross_attention(normed, self.norm6(semantics), key_mask)).view_as(pixels)

    def _equation_7(self, pixels: Tensor) -> Tensor:
        """(7) Perceptron of the pixels (PVT2FFN)."""
        return self.scale7(self.mlp(self.norm7(pixels)))


class MergeBlock(nn.Module):
    """Both pathways as one sequence: equations 8 and 9 (MergeBlock). Arguments are those of the dual block."""

    semantic_mlp: MLP | None  # None: the semantics end here

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, *, qkv_bias: bool, layer_scale: float, drop_path: float
    ) -> None:
        super().__init__()
        self.residual = DropPath(drop_path)
        self.norm8, self.norm9 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.attention = Attention(width, heads, qkv_bias=qkv_bias)
        self.scale8 = LayerScale(width, layer_scale)
        self.mlp, self.semantic_mlp = ConvolutionalMLP(width, hidden_width(width, mlp_ratio)), MLP(width, 2 * width)
        self.scale9 = LayerScale(width, layer_scale)

    def forward(self, pixels: Tensor, semantics: Tensor, key_mask: KeyMask) -> tuple[Tensor, Tensor]:
        """(B, H, W, D) and (B, M, D) -> the same, or no semantics, (B, 0, D)."""
        grid, count = pixels.shape[1:3], pixels.shape[1] * pixels.shape[2]
        tokens = torch.cat([pixels.flatten(1, 2), semantics], 1)
        tokens = self.residual(tokens, self._equation_8, key_mask.both())
        if self.semantic_mlp is None:
            tokens = tokens[:, :count]
        tokens = self.residual(tokens, lambda t: self._equation_9(t[:, :count].unflatten(1, grid), t[:, count:]))
        return tokens[:, :count].unflatten(1, grid), tokens[:, count:]

    def _equation_8(self, tokens: Tensor, key_mask: Tensor | None) -> Tensor:
        """(8) Self-attention of pixels and semantics (`attn`)."""
        return self.scale8(self.attention(self.norm8(tokens)[:, None], allowed=key_mask)[:, 0])

    def _equation_9(self, pixels: Tensor, semantics: Tensor) -> Tensor:
        """(9) Perceptrons of pixels and semantics (MergeFFN)."""
        parts = [self.mlp(self.norm9(pixels)).flatten(1, 2)]
        if self.semantic_mlp is not None:
            parts.append(self.semantic_mlp(self.norm9(semantics)))
        return self.scale9(torch.cat(parts, 1))


KINDS = (DualBlock, DualBlock, MergeBlock, MergeBlock)  # of the four stages


class Stem(nn.Module):
    """Three convolutions of `inside` channels at half the resolution; one more halves it again."""

    def __init__(self, in_channels: int, inside: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        for channels, side, stride in ((in_channels, 7, 2), (inside, 3, 1), (inside, 3, 1)):
            self.conv.append(nn.Conv2d(channels, inside, side, stride, padding=side // 2, bias=False))
            self.conv.extend([BatchNorm2d(inside), nn.ReLU(inplace=True)])
        self.halve = Halve(inside, width)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ceil(H / 4), ceil(W / 4), D); channels lie innermost, so that no later layer copies."""
        return self.halve(self.conv(channels_innermost(images)).permute(0, 2, 3, 1))


class Halve(nn.Module):
    """Overlapping patches from `fine` channels to `coarse`, and a norm."""

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.proj = Strided(fine, coarse, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(coarse)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, ceil(H / 2), ceil(W / 2), D')."""
        return self.norm(self.proj(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def _init_weights(layer: nn.Module) -> None:
    """Initial values of a convolution, as in the authors' code."""
    if isinstance(layer, nn.Conv2d):
        reached = layer.out_channels // layer.groups * layer.weight[0, 0].numel()  # outputs of an input
        nn.init.normal_(layer.weight, std=(2 / reached) ** 0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _row(
    stem: int, widths: Sequence[int], depths: Sequence[int], heads: Sequence[int], image_size: int = 224, **more: Any
) -> Variant:
    size = {"stem": stem, "widths": widths, "depths": depths, "heads": heads}
    return Variant(build=DualViT, image_size=image_size, options=size | more)


VARIANTS = {
    "nano": _row(8, (8, 16, 24, 32), (1, 2, 2, 1), (1, 2, 3, 4), 32, mlp_ratios=((4,), (4,), (3, 2), (2,)), window=2),
    "s": _row(32, (64, 128, 320, 448), (3, 4, 6, 3), (2, 4, 10, 14)),
    "b": _row(64, (64, 128, 320, 512), (3, 4, 15, 3), (2, 4, 10, 16)),
    "l": _row(64, (96, 192, 384, 512), (3, 6, 21, 3), (3, 6, 12, 16)),
}
