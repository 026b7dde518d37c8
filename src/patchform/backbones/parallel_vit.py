"""Parallel ViT and DeiT-III: wider instead of deeper, with layer scale and a class token that has no position.

"Three things everyone should know about vision transformers" (Touvron et al., ECCV 2022, arXiv:2203.09795): parallel
branches, and a stem of small perceptrons. "DeiT III: revenge of the ViT" (Touvron et al., ECCV 2022, arXiv:2204.07118):
the same backbone with one branch.

    image --stem--> p1 p2 ... pN + position --> [class | p1 .. pN] --> block x depth --norm--> class -> summary
                                                                            |                  p1..pN -> tokens
                                                                            +-> maps (from chosen depths, one stride)

    block:  x --+-- attention --+          +-- mlp --+
                +-- attention --+          +-- mlp --+
                +---------------+-- sum ---+---------+-- sum -->

Every branch has its own norms, weights and scales. As the norms differ only in their affine parts, two branches could
be one attention of twice the heads on weights joined anew at each step. That is exact, but on a CPU it saves a tenth of
a forward pass at best and nothing of a training step, before the joining is paid, and stochastic depth could no longer
spare the work of a branch. So they run one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from patchform.backbones.base import Backbone, blocks_with_maps, sequence_padding, shrink_padding, zero_pixels
from patchform.descriptions import Variant
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.blocks import Block
from patchform.layers.convolutions import channels_innermost
from patchform.layers.norms import BatchNorm2d
from patchform.layers.patches import Patches, pad_to_multiple
from patchform.layers.positions import Learned1D
from patchform.records import Features


class ParallelViT(Backbone):
    """Vision transformer of parallel branches.

    Args:
        in_channels: C of the images.
        image_size: native input, pixels (side or (height, width)); at other sizes the positions are resized.
        patch: side of a patch, pixels.
        width, depth, heads: D, number of blocks, attention heads of a branch.
        branches: attentions, and likewise perceptrons, side by side in a block; 1 is DeiT-III.
        mlp_ratio: hidden width of the perceptrons over D.
        qkv_bias: biases of queries, keys, values.
        stem: "linear" projects squares, "hmlp" is `HierarchicalPatches`.
        layer_scale: initial factor on every branch; None has no factors.
        drop_path: stochastic depth, the same for every branch of every block (the authors' code).
        maps_from: after which blocks (1 = the first) a map is taken, ascending; default: the last.

    Raises:
        UsageError: an unknown stem, or one that is not defined for these patches.
    """

    beyond_maps = ("norm",)

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        patch: int = 16,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        branches: int = 2,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        stem: Literal["linear", "hmlp"] = "linear",
        layer_scale: float | None = 1e-4,
        drop_path: float = 0.0,
        maps_from: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise UsageError(f'no stem "{stem}"', remedy=f"there are: {', '.join(STEMS)}")
        self.maps_from = blocks_with_maps(maps_from, depth)
        self.width, self.patch = width, patch
        self.channels, self.strides = (width,) * len(self.maps_from), (patch,) * len(self.maps_from)

        self.patches = STEMS[stem](in_channels, width, patch)
        self.position = Learned1D(width, grids.cells(image_size, patch))
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(
            ParallelBlock(
                Branch(
                    width,
                    heads,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    layer_scale=layer_scale,
                    drop_path=drop_path,
                )
                for _ in range(branches)
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

        blocks.init_weights(self.blocks)
        nn.init.trunc_normal_(self.class_token, std=0.02)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> maps (B, D, H/p, W/p), tokens (B, N, D) and summary (B, D).

        In training the norms of the stem "hmlp" see all patches, padding included.
        """
        images = zero_pixels(images, padding)
        cell_padding = shrink_padding(padding, self.patch)
        token_padding = sequence_padding(cell_padding, 1)
        cells = self.patches(images)  # (B, H/p, W/p, D)
        grid = (cells.shape[1], cells.shape[2])

        patches = self.position(cells.flatten(1, 2), grid)
        x = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], 1)  # (B, 1 + N, D)
        maps = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, padding=token_padding)
            if number in self.maps_from:
                maps.append(x[:, 1:].transpose(1, 2).unflatten(2, grid))
        x = self.norm(x)
        return Features(tuple(maps), self.strides, grids.size_of(images), x[:, 1:], x[:, 0], cell_padding)

    def layers(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)


class Branch(Block):
    """A sequential block whose halves can be added to another sum than their input."""

    def add_attention(self, total: Tensor, x: Tensor, padding: Tensor | None) -> Tensor:
        """`total` + attention of x, both (B, N, D)."""
        return self.residual(total, lambda _, part, pad: self.attention_branch(part, None, pad), x, padding)

    def add_perceptron(self, total: Tensor, x: Tensor) -> Tensor:
        """`total` + perceptron of x, both (B, N, D)."""
        return self.residual(total, lambda _, part: self.scale2(self.mlp(self.norm2(part))), x)


class ParallelBlock(nn.Module):
    """x + all attentions of x, then that + all perceptrons of that (2203.09795, section 3).

    Args:
        branches: one attention and one perceptron each.
    """

    def __init__(self, branches: Iterable[Branch]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor, *, padding: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); padding (B, N) bool, True on padding."""
        branches, total = [branch for branch in self.branches if isinstance(branch, Branch)], x
        for branch in branches:
            total = branch.add_attention(total, x, padding)
        x = total
        for branch in branches:
            total = branch.add_perceptron(total, x)
        return total


class HierarchicalPatches(nn.Module):
    """Patches by three perceptrons on squares of 4, 8 and 16 pixels, the stem "hMLP" (2203.09795, section 5).

    Strides equal kernels, so patches are independent, except through the statistics of the norms in training.

    Args:
        in_channels: C.
        width: D; the first two have D / 4 channels.
        size: side of a patch, pixels: 16.
    """

    def __init__(self, in_channels: int, width: int, size: int) -> None:
        super().__init__()
        if size != 16:
            raise UsageError(f"the stem hmlp makes no patches of {size} pixels", remedy="it makes those of 16")
        first = width // 4
        self.size = size
        self.proj = nn.Sequential(
            *(nn.Conv2d(in_channels, first, 4, stride=4), BatchNorm2d(first), nn.GELU()),
            *(nn.Conv2d(first, first, 2, stride=2), BatchNorm2d(first), nn.GELU()),
            *(nn.Conv2d(first, width, 2, stride=2), BatchNorm2d(width)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ceil(H / 16), ceil(W / 16), D)."""
        images = channels_innermost(pad_to_multiple(images, self.size))
        return self.proj(images).permute(0, 2, 3, 1)


STEMS = {"linear": Patches, "hmlp": HierarchicalPatches}


def _row(width: int, depth: int, heads: int, branches: int = 1, *, patch: int = 16, image_size: int = 224) -> Variant:
    size = {"patch": patch, "width": width, "depth": depth, "heads": heads, "branches": branches}
    return Variant(build=ParallelViT, image_size=image_size, options=size)


VARIANTS = {
    "nano": Variant(
        build=ParallelViT,
        image_size=32,
        options={"width": 48, "depth": 2, "heads": 3, "stem": "hmlp", "layer_scale": 0.1},
    ),
    "s18x2": _row(384, 18, 6, 2),
    "s36x1": _row(384, 36, 6),
    "b18x2": _row(768, 18, 12, 2),
    "b36x1": _row(768, 36, 12),
    "h26x2": _row(1280, 26, 16, 2, patch=14),
    "h52x1": _row(1280, 52, 16, patch=14),
    "deit3_ti": _row(192, 12, 3),
    "deit3_s": _row(384, 12, 6),
    "deit3_m": _row(512, 12, 8),
    "deit3_b": _row(768, 12, 12),
    "deit3_l": _row(1024, 24, 16),
    "deit3_h": _row(1280, 32, 16, patch=14),
    "deit3_g40": _row(1408, 40, 16, patch=14),  # the two giants are in the authors' code only
    "deit3_g48": _row(1664, 48, 16, patch=14),
    "deit3_s384": _row(384, 12, 6, image_size=384),
    "deit3_b384": _row(768, 12, 12, image_size=384),
    "deit3_l384": _row(1024, 24, 16, image_size=384),
}
