"""The contract of a backbone: pictures in, `Features` out, with channels and strides known before the first batch."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from patchform.records import Features


class Backbone(nn.Module):
    """A trunk that any head can stand on.

    A file of this folder holds: a docstring (paper, a drawing, what it gives), one public Backbone class (or several of
    one family) and `VARIANTS` (rows, with a "nano" one for tests). What the world has published for the family, scores
    and layouts of weights, lies in the file of the same name in `published/`.

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
