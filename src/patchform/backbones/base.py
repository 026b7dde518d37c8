"""The contract of a backbone: pictures in, `Features` out, with channels and strides known before the first batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from operator import attrgetter
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers.token_mixing import exchange
from patchform.records import CellBox, FeatureInfo, Features


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
        embedding: its part, by name, that makes cells (B, H, W, D) of squares of `strides[0]` pixels, behind which
            tokens of two images can be mixed; "" where there is none.
        beyond_maps: its parts, by name, that tokens and summary alone come from: under a head that reads nothing but
            maps there is nothing for them to learn.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    width: int
    frames: int | None = None
    prefers_channels_last: bool = False
    embedding: str = ""
    beyond_maps: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.register_forward_pre_hook(_check_input)

    @property
    def in_channels(self) -> int | None:
        """C of the images, as the first layer has it; None where it does not say."""
        counts = (getattr(layer, "in_channels", None) for layer in self.modules() if layer is not self)
        return next((count for count in counts if isinstance(count, int)), None)

    def parameters_beyond_maps(self) -> list[nn.Parameter]:
        """Those that no map comes from."""
        parts = [attrgetter(name)(self) for name in self.beyond_maps]
        modules = [part for part in parts if isinstance(part, nn.Module)]
        own = [part for part in parts if isinstance(part, nn.Parameter)]
        return [*own, *(parameter for module in modules for parameter in module.parameters())]

    def check(self, images: Tensor) -> None:
        """Raise UsageError for images of another number of axes or channels than `forward` takes."""
        clips, axes = self.frames is not None, images.dim()
        if axes != 4 + clips:
            wanted = "clips (B, T, C, H, W)" if clips else "images (B, C, H, W)"
            remedy = "add an axis for the batch" if axes == 3 + clips else "see Backbone.forward"
            raise UsageError(f"this backbone takes {wanted}, not {axes} axes: {tuple(images.shape)}", remedy=remedy)
        if self.in_channels not in (None, images.shape[-3]):
            raise UsageError(
                f"images of {images.shape[-3]} channels for a backbone of {self.in_channels}: {tuple(images.shape)}",
                remedy=f"build it with in_channels={images.shape[-3]}",
            )
        if not images.is_floating_point():
            raise UsageError(
                f"images of {images.dtype}", remedy="a backbone takes floating point, normalised; a Model takes uint8"
            )

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

    def fuse(self) -> Self:
        """Turn what learns in several layers and can compute in one, in place, into that one. Here: nothing."""
        return self


def _check_input(backbone: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Images that do not suit are refused in words, whatever layer of whatever backbone they would have stopped."""
    if inputs and not torch.compiler.is_compiling() and not torch.jit.is_tracing():  # type: ignore[attr-defined]
        assert isinstance(backbone, Backbone)
        backbone.check(inputs[0])


@contextmanager
def exchanged(backbone: Backbone, box: CellBox) -> Iterator[None]:
    """Within it, images of a pair exchange the cells of a box of the coarsest map where the backbone embeds them.

    Raises:
        UsageError: a backbone without an `embedding`.
    """
    if not backbone.embedding:
        raise UsageError(
            "this backbone names no embedding to mix tokens behind", remedy="set augmentation.mix_token to 0"
        )
    part: nn.Module = attrgetter(backbone.embedding)(backbone)
    hook = part.register_forward_hook(partial(_exchange, box, (backbone.strides[0], backbone.strides[-1])))
    try:
        yield
    finally:
        hook.remove()


def _exchange(
    box: CellBox, strides: tuple[int, int], part: nn.Module, inputs: tuple[Tensor, ...], cells: Tensor
) -> Tensor:
    fine, coarse = strides
    if tuple(cells.shape[1:3]) != grids.cells(grids.size_of(inputs[0]), fine):
        raise UsageError(f"an embedding whose cells are no squares of {fine} pixels: {tuple(cells.shape)}")
    return exchange(cells, box, coarse // fine)


def blocks_with_maps(maps_from: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Numbers of the blocks after which a map is taken, checked; None: the last of `depth`."""
    if maps_from is None:
        return (depth,)
    numbers = tuple(maps_from)
    ascending = all(one < other for one, other in pairwise(numbers))
    if not numbers or not ascending or not 1 <= numbers[0] <= numbers[-1] <= depth:
        raise UsageError(
            f"maps_from is {list(numbers)}", remedy=f"name blocks from 1 to {depth}, each once, in ascending order"
        )
    return numbers


def through_blocks(
    blocks: Iterable[nn.Module],
    x: Tensor,
    *,
    grid: tuple[int, int],
    padding: Tensor | None,
    maps_from: Sequence[int],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Tokens through blocks of one width, and the maps that are taken on the way.

    Args:
        blocks: called as `block(x, grid=grid, padding=padding)`.
        x: (B, P + H*W, D), P tokens in front of the cells.
        grid: H and W.
        padding: (B, H, W) bool of the cells, True on padding.
        maps_from: numbers of the blocks, from 1, after which a map is taken.

    Returns:
        Tokens like x, and the maps (B, D, H, W), not normalised.
    """
    prefix, maps = x.shape[1] - grid[0] * grid[1], []
    token_padding = sequence_padding(padding, prefix)
    for number, block in enumerate(blocks, start=1):
        x = block(x, grid=grid, padding=token_padding)
        if number in maps_from:
            maps.append(x[:, prefix:].transpose(1, 2).unflatten(2, grid))
    return x, tuple(maps)


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
    return images.masked_fill(padding.view(padding.shape[0], *(1,) * (images.dim() - 3), *padding.shape[1:]), 0)


def shrink_padding(padding: Tensor | None, stride: int) -> Tensor | None:
    """Padding (B, H, W) of pixels -> of cells of `stride` pixels (`grids.shrink_mask`); None: there is none."""
    return None if padding is None else grids.shrink_mask(padding, stride)


def sequence_padding(padding: Tensor | None, prefix: int) -> Tensor | None:
    """Padding (B, H, W) of cells -> (B, P + H*W) of their sequence behind P tokens that are never padding."""
    return None if padding is None else F.pad(padding.flatten(1), (prefix, 0))
