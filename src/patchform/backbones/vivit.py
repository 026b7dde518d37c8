"""ViViT: a video vision transformer (Arnab et al., ICCV 2021, arXiv:2103.15691).

    clip --tubelets--> [class | p .. p] + position --> block x depth --norm--> class -> summary
                                                            |                   p    -> tokens
                                                            +--mean over time--> map

The paper's four models (section 3.3): 1. spatio-temporal attention: plain blocks over all tokens. 2. factorised
encoder: a spatial transformer over the tokens of each moment, a temporal one over the class tokens of all moments.
3. factorised self-attention: a block attends over time, then over space. 4. factorised dot product: half of the heads
of a block attend over time, half over space. Models 3 and 4 have no class token; their summary is the mean of the
tokens.

A moment is a slice of the clip that is one tubelet deep. The order in model 3 and all else that the paper leaves open
is as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from patchform.backbones.base import Backbone, sequence_padding, shrink_padding, zero_pixels
from patchform.descriptions import Variant
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.attention import Attention, GroupMasks, attend
from patchform.layers.blocks import GELU, Block, BlockOptions
from patchform.layers.drop import linear_rates
from patchform.layers.patches import Tubelets
from patchform.layers.pattern_tables import Grid
from patchform.layers.patterns import Global, Groups
from patchform.layers.positions import Learned1D, Position
from patchform.layers.tubelet_positions import TubeletPosition
from patchform.records import Features

EPS = 1e-6  # of every layer norm


class ViViT(Backbone):
    """Video transformer whose tokens attend to all others of the clip (model 1).

    Args:
        in_channels: C of the frames.
        image_size: native input, pixels; at other sizes positions are resized.
        frames: native length T of a clip; at other lengths positions are resized along time. Where it is no multiple of
            `tube`, the last frame is repeated.
        patch: side of a tubelet, pixels.
        tube: its length, frames.
        width, depth, heads: D, number of blocks, attention heads.
        mlp_ratio: hidden width of the perceptrons over D.
        qkv_bias: biases of queries, keys, values.
        gelu: "tanh" is what the authors compute; "none", the error function, suits weights of pictures from elsewhere.
        drop_path: stochastic depth of the last block, rising linearly from 0.
    """

    prefix: ClassVar[int] = 1  # class tokens

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        frames: int = 32,
        patch: int = 16,
        tube: int = 2,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        gelu: GELU = "tanh",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.width, self.patch, self.frames = width, patch, frames
        self.channels, self.strides = (width,), (patch,)

        self.patches = Tubelets(in_channels, width, patch, tube)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if self.prefix else None
        self.position = self.make_position(grids.cells(image_size, patch), grids.ceil_div(frames, tube))
        self.blocks = nn.ModuleList(
            self.block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, gelu=gelu, drop_path=rate)
            for rate in linear_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(width, eps=EPS)
        blocks.init_weights(self.blocks)
        for block in self.blocks:
            if isinstance(block, FactorisedBlock):
                nn.init.zeros_(block.temporal_attention.proj.weight)

    def make_position(self, grid: Grid, moments: int) -> Position:
        """Position of the tokens."""
        return TubeletPosition(self.width, grid, moments, prefix=self.prefix)

    def block(self, width: int, heads: int, *, drop_path: float, **options: Unpack[BlockOptions]) -> Block:
        """One block."""
        return Block(width, heads, drop_path=drop_path, **options)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, T, C, H, W) -> a map (B, D, H/p, W/p), tokens (B, T/f * N, D), moment by moment, and summary (B, D).

        padding is that of all frames.
        """
        images = zero_pixels(images, padding)
        return self.encode(self.patches(images), grids.size_of(images), shrink_padding(padding, self.patch))

    def encode(self, tubelets: Tensor, size: Grid, padding: Tensor | None) -> Features:
        """Features of projected tubelets (B, T/f, H/p, W/p, D); padding (B, H/p, W/p)."""
        _, moments, *grid, _ = tubelets.shape
        assert self.class_token is not None
        x = torch.cat([self.class_token.expand(tubelets.shape[0], -1, -1), tubelets.flatten(1, 3)], 1)
        x = self.position(x, (grid[0], grid[1]))
        token_padding = None if padding is None else sequence_padding(padding.repeat(1, moments, 1), 1)
        for block in self.blocks:
            x = block(x, padding=token_padding)
        return self.features(x[:, 1:].unflatten(1, (moments, *grid)), size, padding, self.norm(x[:, 0]))

    def features(self, tubelets: Tensor, size: Grid, padding: Tensor | None, summary: Tensor | None = None) -> Features:
        """Features from the last tokens (B, T/f, H/p, W/p, D); without a summary it is their mean."""
        scene = tubelets.mean(1).permute(0, 3, 1, 2)
        tokens = self.norm(tubelets.flatten(1, 3))
        if summary is None:
            token_padding = None if padding is None else padding.repeat(1, tubelets.shape[1], 1)
            summary = grids.masked_mean(tokens, token_padding)
        return Features((scene,), self.strides, size, tokens, summary, padding)

    def layers(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)


class FactorisedEncoder(ViViT):
    """Video transformer with a transformer over space, then one over time (model 2); other arguments as `ViViT`.

    `Features.frames` holds the input of the temporal transformer: the class token of every moment, normalised. Maps
    and tokens are those of the spatial one.

    Args:
        in_channels, image_size, frames, patch, tube, width, depth, heads, mlp_ratio, qkv_bias, gelu, drop_path: as in
            `ViViT`; `depth` is that of the spatial transformer, stochastic depth rises from 0 in each.
        temporal_depth: blocks of the temporal transformer: 4 in the paper; the released L/16x2 has 24.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        frames: int = 32,
        patch: int = 16,
        tube: int = 2,
        width: int = 768,
        depth: int = 12,
        temporal_depth: int = 4,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        gelu: GELU = "tanh",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            image_size=image_size,
            frames=frames,
            patch=patch,
            tube=tube,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            gelu=gelu,
            drop_path=drop_path,
        )
        temporal = [
            self.block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, gelu=gelu, drop_path=rate)
            for rate in linear_rates(drop_path, temporal_depth)
        ]
        self.temporal = Temporal(width, grids.ceil_div(frames, tube), temporal)

    def make_position(self, grid: Grid, moments: int) -> Position:
        """One table for all moments."""
        return Learned1D(self.width, grid, prefix=1)

    def block(self, width: int, heads: int, *, drop_path: float, **options: Unpack[BlockOptions]) -> Block:
        """One block, which takes (B, T/f, N, D)."""
        return Block(width, heads, pattern=EachMoment(), drop_path=drop_path, **options)

    def encode(self, tubelets: Tensor, size: Grid, padding: Tensor | None) -> Features:
        """As in `ViViT`."""
        batch, moments, *grid, _ = tubelets.shape
        assert self.class_token is not None
        cells = tubelets.flatten(2, 3).flatten(0, 1)
        x = self.position(torch.cat([self.class_token.expand(cells.shape[0], -1, -1), cells], 1), (grid[0], grid[1]))
        x = x.unflatten(0, (batch, moments))  # (B, T/f, 1 + N, D)
        token_padding = None if padding is None else nn.functional.pad(padding.flatten(1), (1, 0))[:, None]
        for block in self.blocks:
            x = block(x, padding=token_padding)
        frames = self.norm(x[:, :, 0])
        tubelets = x[:, :, 1:].unflatten(2, (grid[0], grid[1]))
        return self.features(tubelets, size, padding, self.temporal(frames))._replace(frames=frames)

    def layers(self) -> list[nn.Module]:
        """The blocks of the spatial transformer, then those of the temporal one."""
        return [*self.blocks, *self.temporal.blocks]


class FactorisedSelfAttention(ViViT):
    """Video transformer whose blocks attend over time, then over space (model 3); arguments as `ViViT`."""

    prefix = 0

    def block(self, width: int, heads: int, *, drop_path: float, **options: Unpack[BlockOptions]) -> Block:
        """One block, which takes (B, T/f, N, D)."""
        return FactorisedBlock(width, heads, drop_path=drop_path, **options)

    def encode(self, tubelets: Tensor, size: Grid, padding: Tensor | None) -> Features:
        """As in `ViViT`."""
        _, moments, *grid, _ = tubelets.shape
        x = self.position(tubelets.flatten(1, 3), (grid[0], grid[1])).unflatten(1, (moments, grid[0] * grid[1]))
        token_padding = None if padding is None else padding.flatten(1)[:, None]
        for block in self.blocks:
            x = block(x, padding=token_padding)
        return self.features(x.unflatten(2, (grid[0], grid[1])), size, padding)


class FactorisedDotProduct(FactorisedSelfAttention):
    """Video transformer whose heads attend over time or over space (model 4); arguments as `ViViT`, 2 divides heads."""

    def block(self, width: int, heads: int, *, drop_path: float, **options: Unpack[BlockOptions]) -> Block:
        """One block, which takes (B, T/f, N, D)."""
        block = Block(width, heads, pattern=EachMoment(), drop_path=drop_path, **options)
        block.attention = FactorisedAttention(width, heads, qkv_bias=options.get("qkv_bias", True))
        return block


# ---------------------------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class EachMoment(Global):
    """Tokens (B, T/f, N, D): every query sees the tokens of its own moment; nothing is copied."""

    def gather(self, x: Tensor, padding: Tensor | None = None) -> Groups:
        """A group a moment; padding (B, 1, N)."""
        return Groups(x, None, None if padding is None else ~padding[:, :, None, None])

    def scatter(self, groups: Tensor, grid: tuple[int, ...]) -> Tensor:
        """As it is."""
        return groups


class FactorisedBlock(Block):
    """x + attention over time, then over space, then a perceptron, each behind a norm (equations 4 to 6).

    At the start of a `FactorisedSelfAttention` the attention over time adds nothing (section 3.4): its last layer is
    zero. The authors' code can have all of its kernels zero, but then none of them ever gets a gradient.

    Args:
        width: D.
        heads: attention heads; divides D.
        drop_path: rate of stochastic depth of all branches.
        options: of a `Block`.
    """

    def __init__(self, width: int, heads: int, *, drop_path: float = 0.0, **options: Unpack[BlockOptions]) -> None:
        super().__init__(width, heads, pattern=EachMoment(), drop_path=drop_path, **options)
        self.temporal_norm = nn.LayerNorm(width, eps=EPS)
        self.temporal_attention = Attention(width, heads, qkv_bias=options.get("qkv_bias", True))

    def forward(self, x: Tensor, *, grid: Grid | None = None, padding: Tensor | None = None) -> Tensor:
        """(B, T/f, N, D) -> the same; padding (B, 1, N)."""
        return super().forward(self.residual(x, self.attend_time), padding=padding)

    def attend_time(self, x: Tensor) -> Tensor:
        """(B, T/f, N, D) -> the same."""
        return self.temporal_attention(self.temporal_norm(x).transpose(1, 2)).transpose(1, 2)


class FactorisedAttention(Attention):
    """Attention whose first half of the heads is over time, the second over space (section 3.3, model 4)."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool) -> None:
        if heads % 2:
            raise UsageError(f"half of the heads look along time: 2 has to divide them, not {heads}")
        super().__init__(width, heads, qkv_bias=qkv_bias)

    def forward(
        self,
        tokens: Tensor,
        *,
        grid: Grid | None = None,
        allowed: Tensor | GroupMasks | None = None,
        gather_keys: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """(B, T/f, N, D) -> the same; allowed (B, 1, 1, 1, N) is of the heads over space."""
        parts = self.qkv(tokens).unflatten(-1, (3, 2, self.heads // 2, -1))  # (B, T/f, N, 3, 2, h/2, d)
        q, k, v = parts[..., 0, :, :].permute(3, 0, 2, 4, 1, 5)  # (B, N, h/2, T/f, d)
        over_time = attend(q, k, v).permute(0, 3, 1, 2, 4)
        q, k, v = parts[..., 1, :, :].permute(3, 0, 1, 4, 2, 5)  # (B, T/f, h/2, N, d)
        over_space = attend(q, k, v, allowed=allowed).transpose(2, 3)
        return self.proj(torch.cat([over_time, over_space], 3).flatten(3))


class Temporal(nn.Module):
    """The transformer over time of the factorised encoder: a class token and the moments.

    Args:
        width: D.
        moments: native length; at others positions are resized.
        layers: the blocks.
    """

    def __init__(self, width: int, moments: int, layers: list[Block]) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = TubeletPosition(width, (1, 1), moments, prefix=1)
        self.blocks = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width, eps=EPS)
        blocks.init_weights(self.blocks)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T/f, D) -> (B, D)."""
        x = self.position(torch.cat([self.class_token.expand(frames.shape[0], -1, -1), frames], 1), (1, 1))[:, None]
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0, 0])


# ----------------------------------------------------------------------------------------------------------------- rows

_MODELS: dict[str, type[ViViT]] = {
    "": ViViT,
    "_fe": FactorisedEncoder,
    "_fsa": FactorisedSelfAttention,
    "_fdp": FactorisedDotProduct,
}
_SIZES = {"b": (768, 12, 12), "l": (1024, 24, 16), "h": (1280, 32, 16)}  # width, depth, heads


def _row(kind: str, size: str) -> Variant:
    width, depth, heads = _SIZES[size]
    options = {"patch": 16, "tube": 2, "width": width, "depth": depth, "heads": heads}
    if (size, kind) == ("l", "_fe"):
        options["temporal_depth"] = depth
    return Variant(build=_MODELS[kind], image_size=224, options=options)


def _nano(kind: str) -> Variant:
    options = {"frames": 4, "patch": 8, "tube": 2, "width": 24, "depth": 2, "heads": 3, "mlp_ratio": 2.0}
    options |= {"_fe": {"temporal_depth": 1}, "_fdp": {"heads": 4}}.get(kind, {})
    return Variant(build=_MODELS[kind], image_size=32, options=options)


VARIANTS = {
    **{f"nano{kind}": _nano(kind) for kind in _MODELS},
    **{f"{size}16x2{kind}": _row(kind, size) for kind in _MODELS for size in _SIZES},
}
