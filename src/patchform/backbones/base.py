"""The contract of a backbone: pictures in, `Features` out, with channels and strides known before the first batch."""

from __future__ import annotations

from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from patchform.geometry import grids
from patchform.records import FeatureInfo, Features


class Backbone(nn.Module):
    """A backbone that any head can stand on.

    A file of this folder holds: a docstring (paper, a drawing, what it gives), one public Backbone class (or several of
    one family) and `VARIANTS` (rows, with a "nano" one for tests). Parts that are a paper's own, such as a `Stem`, a
    `Stage` or a `Fusion`, may share a name with those of another file. What the world has published for the family,
    scores and layouts of weights, lies in the file of the same name in `published/`.

    Attributes:
        channels: C_i of each map, fine to coarse.
        strides: input pixels per cell of each map.
        width: D of `tokens` and `summary`.
        frames: native number of frames of a clip; None for backbones of single images.
        prefers_channels_last: whether its convolutions are faster on weights in that memory format; a `Model` then has
            them so.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    width: int
    frames: int | None = None
    prefers_channels_last: bool = False

    @property
    def feature_info(self) -> FeatureInfo:
        """What a head is built for."""
        return FeatureInfo(self.channels, self.strides, self.width)

    @abstractmethod
    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """Compute features.

        Args:
            images: (B, C, H, W) floating point, normalised; video backbones take (B, T, C, H, W). H and W need not
                be multiples of a stride: a map has ceil(H / stride) rows (a backbone that rescales its input says how
                many).
            padding: (B, H, W) bool, True on padding. What lies there changes nothing that is not padding.
        """

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The blocks, shallow to deep: the units of layer-wise learning rates and of activation checkpointing."""


def over_frames(backbone: Backbone, clips: Tensor, *, padding: Tensor | None = None) -> Features:
    """Features of clips from a backbone of single images, frame by frame.

    Maps and the summary are means over time, tokens stand frame by frame, and `frames` holds the summary of each.

    Args:
        backbone: of single images.
        clips: (B, T, C, H, W) floating point, normalised.
        padding: (B, H, W) bool of all frames of a clip.
    """
    batch, length = clips.shape[:2]
    frame_padding = None if padding is None else padding.repeat_interleave(length, 0)
    features: Features = backbone(clips.flatten(0, 1), padding=frame_padding)

    def by_clip(x: Tensor) -> Tensor:
        return x.unflatten(0, (batch, length))

    frames = None if features.summary is None else by_clip(features.summary)
    return features._replace(
        maps=tuple(by_clip(x).mean(1) for x in features.maps),
        tokens=None if features.tokens is None else by_clip(features.tokens).flatten(1, 2),
        summary=None if frames is None else frames.mean(1),
        padding=None if features.padding is None else by_clip(features.padding)[:, 0],
        frames=frames,
    )


def zero_pixels(images: Tensor, padding: Tensor | None) -> Tensor:
    """Images (B, ..., C, H, W) with zeros on padding (B, H, W)."""
    if padding is None:
        return images
    return images.masked_fill(padding.view(len(padding), *(1,) * (images.dim() - 3), *padding.shape[1:]), 0)


def shrink_padding(padding: Tensor | None, stride: int) -> Tensor | None:
    """Padding (B, H, W) of pixels -> of cells of `stride` pixels (`grids.shrink_mask`); None: there is none."""
    return None if padding is None else grids.shrink_mask(padding, stride)


def sequence_padding(padding: Tensor | None, prefix: int) -> Tensor | None:
    """Padding (B, H, W) of cells -> (B, P + H*W) of their sequence behind P tokens that are never padding."""
    return None if padding is None else F.pad(padding.flatten(1), (prefix, 0))
