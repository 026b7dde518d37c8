"""The contract of a method of learning without labels, and the masks that several methods hide patches with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from patchform.backbones.base import Backbone
from patchform.backbones.vit import ViT
from patchform.descriptions import Architecture, Preprocessing
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.heads.base import NoHead
from patchform.layers.patches import pad_to
from patchform.model import Model
from patchform.records import Batch, Loss, Target


class MethodHead(NoHead):
    """What a method has beside its backbone: decoder, mask tokens, a student. It is left behind when the backbone goes
    on.

    As a head it predicts the backbone's summary, in which `metrics.representation` looks for what was learnt; losses
    are the method's own.
    """

    def loss(self, raw: Tensor, targets: Sequence[Target]) -> dict[str, Loss]:
        """Not called: see `Method`."""
        raise NotImplementedError


class Method(Model):
    """A backbone that learns without labels. A file of this folder holds one; its name is what a recipe calls the head.

    The constructor takes the `backbone` and the `preprocessing`, then, keyword-only, its `architecture` and its own
    options. All that is no part of the result lies below `head`: so `backbone`, as it is stored, fills the backbone of
    a model of any task.

    Raises:
        UsageError: a backbone of clips.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: MethodHead,
        preprocessing: Preprocessing,
        architecture: Architecture | None = None,
    ) -> None:
        if backbone.frames is not None:
            raise UsageError("this backbone looks at clips, not at pictures", remedy="take another one")
        super().__init__(backbone, head, classes=(), preprocessing=preprocessing, architecture=architecture)

    def pictures(self, batch: Batch) -> Tensor:
        """(B, C, H, W) normalised images of a batch of one crop each.

        Raises:
            UsageError: several crops, or pictures of several sizes.
        """
        if batch.images.dim() != 4:
            raise UsageError("this method looks at one crop of a picture", remedy="set augmentation.views to 1")
        if batch.padding is not None:
            raise UsageError("pictures of several sizes", remedy="set preprocessing.resize to crop or squash")
        return self.normalise(batch.images)


# --------------------------------------------------------------------------------------------------- masks of patches


class PatchMask(NamedTuple):
    """Which patches of each image are hidden."""

    order: Tensor
    """(B, N) int64: numbers of the patches, those that stay visible first."""
    visible: int
    """How many of each image stay visible."""

    @property
    def mask(self) -> Tensor:
        """(B, N) bool, True where hidden."""
        mask = torch.ones_like(self.order, dtype=torch.bool)
        return mask.scatter_(1, self.order[:, : self.visible], False)


def random_mask(noise: Tensor, ratio: float) -> PatchMask:
    """Hide the patches of the highest numbers.

    Args:
        noise: (B, N) numbers, one a patch.
        ratio: share of the patches that is hidden, at least.

    Raises:
        UsageError: all would be hidden, or none.
    """
    count = noise.shape[1]
    visible = int(count * (1 - ratio))
    if not 0 < visible < count:
        remedy = "take larger pictures, or a backbone of smaller patches"
        raise UsageError(f"of {count} patches {visible} stay visible at a ratio of {ratio:g}", remedy=remedy)
    return PatchMask(noise.argsort(1), visible)


def check_ratio(ratio: float) -> float:
    """The share of hidden patches; raises UsageError when it is none."""
    if not 0 < ratio < 1:
        raise UsageError(f"ratio is {ratio}", remedy="it lies between 0 and 1")
    return ratio


def is_vit(backbone: Backbone) -> TypeGuard[ViT]:
    """Whether its tokens are patches of the picture, and nothing else: then some can be left out, or replaced."""
    return isinstance(backbone, ViT) and type(backbone).forward is ViT.forward


def side_of(backbone: Backbone) -> int:
    """Pixels of a side of what is hidden at once: a patch of a ViT, else a cell of the coarsest map."""
    return backbone.patch if is_vit(backbone) else backbone.strides[-1]


def patchify(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, N, side * side * C): the pixels of each patch, row by row, channels innermost.

    Where no whole number of patches covers the image, it is padded with zeros, as a backbone does.
    """
    rows, columns = grids.cells(grids.size_of(images), side)
    images = pad_to(images, (rows * side, columns * side))
    squares = images.unflatten(3, (columns, side)).unflatten(2, (rows, side))  # (B, C, rows, p, columns, p)
    return squares.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """(B, N, side * side * C) -> (B, C, *size): the inverse of `patchify`."""
    squares = patches.unflatten(2, (side, side, -1)).unflatten(1, grids.cells(size, side))
    return squares.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)[..., : size[0], : size[1]]


class MaskColour(nn.Module):
    """Hides patches of any backbone's input behind a learned colour (Xie et al. 2022, SimMIM, section 3.2, in pixels).

    Args:
        channels: of the images.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.colour = nn.Parameter(torch.zeros(channels))  # of normalised pixels: the mean of all pictures

    def forward(self, images: Tensor, mask: Tensor, side: int) -> Tensor:
        """(B, C, H, W) with the patches of `mask` (B, N) painted."""
        squares = patchify(images, side)
        painted = torch.where(mask[..., None], self.colour.repeat(side * side).to(squares.dtype), squares)
        return unpatchify(painted, side, grids.size_of(images))


def coarsest(maps: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """(B, N, C): the cells of the coarsest map, in raster order, resized to `grid` where a backbone has others."""
    map_ = maps[-1]
    if map_.shape[-2:] != grid:
        map_ = nn.functional.interpolate(map_, size=grid, mode="bilinear", align_corners=False)
    return map_.flatten(2).transpose(1, 2)
