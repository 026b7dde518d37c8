"""A transformer over the frames of a clip, each seen by any backbone of single images.

    frames --backbone, one by one--> summaries --linear--> [class | f1 .. fT] + time --block x depth--norm--> class

Neimark et al., "Video Transformer Network" (2021, arXiv:2102.00719), section 3; Arnab et al., "ViViT" (2021), model 2.
VTN's attention along time is a Longformer's, with learned positions; here every frame sees every frame, and positions
are fixed sines, so that a clip may have any number of frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from patchform.errors import UsageError
from patchform.heads.base import Head
from patchform.heads.linear import LabelOptions, Linear
from patchform.layers import blocks
from patchform.layers.blocks import Block
from patchform.layers.drop import linear_rates
from patchform.layers.positions import Sinusoid1D
from patchform.records import FeatureInfo, Features, Target


class TemporalEncoder(Linear):
    """Logits of each class from `features.frames`: what changes from frame to frame counts, and in which order.

    Args:
        features: of the backbone, whose width is D of the summaries.
        classes: number of classes C.
        inner: width of the tokens along time, even.
        depth, heads: number of blocks, attention heads.
        drop_path: stochastic depth of the last block, rising linearly from 0.
        options: see `LabelOptions`.

    Raises:
        UsageError: an option out of its range.
    """

    tasks: ClassVar[tuple[str, ...]] = ("video_classification",)
    reads_summary_alone: ClassVar[bool] = False

    def __init__(
        self,
        features: FeatureInfo,
        *,
        classes: int,
        inner: int = 192,
        depth: int = 3,
        heads: int = 3,
        drop_path: float = 0.0,
        **options: Unpack[LabelOptions],
    ) -> None:
        super().__init__(features._replace(width=inner), classes=classes, **options)
        self.project = nn.Linear(features.width, inner)
        self.class_token = nn.Parameter(torch.zeros(1, 1, inner))
        self.position = Sinusoid1D()
        self.blocks = nn.ModuleList(Block(inner, heads, drop_path=rate) for rate in linear_rates(drop_path, depth))
        self.norm = nn.LayerNorm(inner, eps=1e-6)
        blocks.init_weights(self.blocks)
        nn.init.trunc_normal_(self.class_token, std=0.02)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> Tensor:
        """(B, C) logits."""
        if features.frames is None:
            raise UsageError(
                "the head temporal_encoder needs a summary of each frame and has none",
                remedy="give it clips and a backbone of single images, or use the head linear",
            )
        frames = self.project(features.frames)
        x = torch.cat([self.class_token.expand(frames.shape[0], -1, -1), frames], 1)
        x = self.position(x, (1, frames.shape[1]))
        for block in self.blocks:
            x = block(x)
        return super().forward(features._replace(summary=self.norm(x)[:, 0]))

    def token_logits(self, raw: Tensor, features: Features) -> Tensor:
        """None: what is classified is no mean of tokens."""
        return Head.token_logits(self, raw, features)
