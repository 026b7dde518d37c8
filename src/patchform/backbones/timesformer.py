"""TimeSformer: is space-time attention all you need? (Bertasius et al., ICML 2021, arXiv:2102.05095).

    clip --patches of every frame--> [class | p .. p] + space + time --> block x depth --norm--> class -> summary
                                                                             |                   p     -> tokens
                                                                             +--mean over time--> map

Three of the paper's schemes of attention (section 3, figure 2). Divided space-time: a block has three parts, each after
a norm and with a shortcut: every cell attends over the frames; every frame over its cells and the class token, whose
outputs of the frames are averaged; and every token goes through a perceptron. Joint space-time: plain blocks over all
tokens of the clip. Space only: plain blocks over every frame by itself, which has a class token of its own and no time;
the mean over the frames comes before the last norm.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from patchform.backbones.base import Backbone, sequence_padding, shrink_padding, zero_pixels
from patchform.descriptions import Variant
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.attention import Attention, real_keys
from patchform.layers.blocks import MLP, Block, hidden_width
from patchform.layers.drop import DropPath, linear_rates
from patchform.layers.fitting import Fitted, TransferContext, fit_line
from patchform.layers.patches import Patches
from patchform.layers.positions import Learned1D
from patchform.records import Features

EPS = 1e-6  # of every layer norm


class DividedBlock(nn.Module):
    """Attention over time, attention over space, perceptron (section 3, "T+S").

    Stochastic depth draws for each sample and part (the authors' code: for each cell, then for each frame), and drops
    the projection after temporal attention with it.

    Args:
        width: D.
        heads: attention heads; divides D.
        mlp_ratio: hidden width of the perceptron over D.
        qkv_bias: biases of queries, keys, values.
        drop_path: rate of stochastic depth of all branches.
    """

    def __init__(
        self, width: int, heads: int, *, mlp_ratio: float = 4.0, qkv_bias: bool = True, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.temporal_norm = nn.LayerNorm(width, eps=EPS)
        self.temporal_attention = Attention(width, heads, qkv_bias=qkv_bias)
        self.temporal_proj = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attention = Attention(width, heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width, hidden_width(width, mlp_ratio))
        self.residual = DropPath(drop_path)

    def forward(self, token: Tensor, patches: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mix the tokens.

        Args:
            token: class token, (B, 1, D).
            patches: (B, N, T, D): groups over time are views.
            allowed: (B, 1, 1, 1, 1 + N) bool, True for keys of a frame that are not padding.
        """
        patches = self.residual(patches, self.attend_time)
        tokens = token[:, None].expand(-1, patches.shape[2], -1, -1)
        frames = torch.cat([tokens, patches.transpose(1, 2)], 2)  # (B, T, 1 + N, D)
        frames = self.residual(frames, self.attend_space, allowed)
        token, patches = frames[:, :, 0].mean(1, keepdim=True), frames[:, :, 1:].transpose(1, 2)
        return self.residual(token, self.feed_forward), self.residual(patches, self.feed_forward)

    def attend_time(self, patches: Tensor) -> Tensor:
        """(B, N, T, D) -> the same."""
        return self.temporal_proj(self.temporal_attention(self.temporal_norm(patches)))

    def attend_space(self, frames: Tensor, allowed: Tensor | None) -> Tensor:
        """(B, T, 1 + N, D) -> the same."""
        return self.attention(self.norm1(frames), allowed=allowed)

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """(..., D) -> the same."""
        return self.mlp(self.norm2(tokens))


class TimeSformer(Backbone):
    """Video transformer with divided space-time attention.

    Args:
        in_channels: C of the frames.
        image_size: native input, pixels; at other sizes positions are resized (nearest, as in the authors' code).
        frames: native length T of a clip; at other lengths the time embedding is resized (nearest).
        patch: side of a patch, pixels.
        width, depth, heads: D, number of blocks, attention heads.
        mlp_ratio: hidden width of the perceptrons over D.
        qkv_bias: biases of queries, keys, values.
        drop_path: stochastic depth of the last block, rising linearly from 0.
    """

    block: ClassVar[type[DividedBlock] | type[Block]] = DividedBlock
    by_frame: ClassVar[bool] = False  # whether every frame keeps a class token of its own

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        frames: int = 8,
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.width, self.patch, self.frames = width, patch, frames
        self.channels, self.strides = (width,), (patch,)

        self.patches = Patches(in_channels, width, patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.position = Learned1D(width, grids.cells(image_size, patch), prefix=1, mode="nearest")
        self.time = self.times(frames)
        self.blocks = nn.ModuleList(
            self.block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, drop_path=rate)
            for rate in linear_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(width, eps=EPS)

        blocks.init_weights(self.blocks)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        for block in self.blocks:
            if isinstance(block, DividedBlock):  # at the start every frame goes through a plain ViT (the authors' code)
                nn.init.zeros_(block.temporal_proj.weight)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, T, C, H, W) -> a map (B, D, H/p, W/p), tokens (B, T*N, D), frame by frame, and summary (B, D).

        padding is that of all frames.
        """
        images = zero_pixels(images, padding)
        class_tokens, patches, grid = self.embed(images)
        cell_padding = shrink_padding(padding, self.patch)
        class_tokens, patches = self.mix(class_tokens, patches, cell_padding)
        tokens = self.norm(patches.transpose(1, 2)).flatten(1, 2)
        return Features(
            (patches.mean(2).transpose(1, 2).unflatten(2, grid),),
            self.strides,
            grids.size_of(images),
            tokens,
            summary=self.norm(class_tokens.mean(1)),
            padding=cell_padding,
            frames=self.norm(class_tokens) if self.by_frame else None,
        )

    def times(self, frames: int) -> nn.Parameter | None:
        """Embeddings of the times of the frames, (1, T, D), zero at the start."""
        return nn.Parameter(torch.zeros(1, frames, self.width))

    def embed(self, clips: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """(B, T, C, H, W) -> class token of every frame, (B, T, D), its patches, (B, N, T, D), and the grid of the N.

        Class tokens have no time.
        """
        batch, frames = clips.shape[:2]
        cells = self.patches(clips.flatten(0, 1))  # (B*T, H/p, W/p, D)
        grid = (cells.shape[1], cells.shape[2])
        tokens = torch.cat([self.class_token.expand(cells.shape[0], -1, -1), cells.flatten(1, 2)], 1)
        tokens = self.position(tokens, grid).unflatten(0, (batch, frames))  # (B, T, 1 + N, D)
        patches = tokens[:, :, 1:].transpose(1, 2)
        if self.time is not None:
            patches = patches + grids.resize(self.time, (1, frames), mode="nearest").to(tokens.dtype)
        return tokens[:, :, 0], patches, grid

    def mix(self, class_tokens: Tensor, patches: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """All blocks: (B, T, D) and (B, N, T, D), padding (B, H/p, W/p) -> class tokens (B, 1 or T, D), patches."""
        token, allowed = class_tokens[:, :1], real_keys(sequence_padding(padding, 1))
        for block in self.blocks:
            token, patches = block(token, patches, allowed)
        return token, patches

    def fit(self, name: str, tensor: Tensor, context: TransferContext) -> Fitted:
        """Times (1, T, D) of another number of frames."""
        if name != "time" or self.time is None or tensor.dim() != 3:
            raise ValueError("it does not depend on the number of frames")
        table, note = fit_line(tensor[0], self.time[0], context, "nearest")
        return table[None], note

    def layers(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)


class JointTimeSformer(TimeSformer):
    """Video transformer whose tokens attend to all others of the clip; arguments as `TimeSformer`."""

    block = Block

    def mix(self, class_tokens: Tensor, patches: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """As in `TimeSformer`; the clip has one class token."""
        cells, frames = patches.shape[1:3]
        tokens = torch.cat([class_tokens[:, :1], patches.transpose(1, 2).flatten(1, 2)], 1)  # (B, 1 + T*N, D)
        token_padding = None if padding is None else sequence_padding(padding.repeat(1, frames, 1), 1)
        for block in self.blocks:
            tokens = block(tokens, padding=token_padding)
        return tokens[:, :1], tokens[:, 1:].unflatten(1, (frames, cells)).transpose(1, 2)


class SpaceTimeSformer(TimeSformer):
    """Video transformer of single frames; arguments as `TimeSformer`, none of which is about time.

    `Features.frames` holds the class tokens of the frames, normalised.
    """

    block = Block
    by_frame = True

    def times(self, frames: int) -> None:
        """No time."""

    def mix(self, class_tokens: Tensor, patches: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """As in `TimeSformer`; every frame has a class token. Stochastic depth draws for each frame."""
        batch, frames = class_tokens.shape[:2]
        tokens = torch.cat([class_tokens[:, :, None], patches.transpose(1, 2)], 2).flatten(0, 1)  # (B*T, 1 + N, D)
        token_padding = None if padding is None else sequence_padding(padding.repeat_interleave(frames, 0), 1)
        for block in self.blocks:
            tokens = block(tokens, padding=token_padding)
        tokens = tokens.unflatten(0, (batch, frames))
        return tokens[:, :, 0], tokens[:, :, 1:].transpose(1, 2)


VARIANTS = {
    **{
        name: Variant(
            build=build,
            image_size=32,
            options={"frames": 3, "patch": 8, "width": 24, "depth": 2, "heads": 3, "mlp_ratio": 2.0},
        )
        for name, build in (
            ("nano", TimeSformer),
            ("nano_joint", JointTimeSformer),
            ("nano_space", SpaceTimeSformer),
        )
    },
    "b": Variant(build=TimeSformer, image_size=224, options={"frames": 8}),
    "hr": Variant(build=TimeSformer, image_size=448, options={"frames": 16}),
    "l": Variant(build=TimeSformer, image_size=224, options={"frames": 96}),
    "b_joint": Variant(build=JointTimeSformer, image_size=224, options={"frames": 8}),
    "b_space": Variant(build=SpaceTimeSformer, image_size=224, options={"frames": 8}),
}
