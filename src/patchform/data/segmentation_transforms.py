"""Transforms of a picture together with the class of every pixel.

A scene transform is a callable from (C, H, W) pixels and their `Regions` to both. Pixels are uint8 in 0..255 or float32
in 0..1, classes (H, W) uint8; both keep their types and neither input is written into. Random ones draw from torch's
global numbers, which the data set seeds for each sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from patchform.data.own_change import own_change
from patchform.data.transforms import (
    Compose,
    Jitter,
    PixelsAlone,
    evaluation_transform,
    refuse_crop,
    refuse_for_objects,
    refuse_for_whole,
    resize,
    whole_size,
    window,
)
from patchform.descriptions import Preprocessing
from patchform.records import IGNORED, Regions
from patchform.settings import AugmentationSettings

Scene: TypeAlias = Callable[[Tensor, Regions], tuple[Tensor, Regions]]


def evaluation_scene(preprocessing: Preprocessing) -> Scene:
    """`evaluation_transform` for the picture. The mask stays in the picture's own pixels, as predictions do.

    Raises:
        UsageError: `preprocessing.resize` is crop, which would leave pixels of the mask without a prediction.
    """
    refuse_crop(preprocessing, of="masks")
    return PixelsAlone(evaluation_transform(preprocessing))


def training_scene(preprocessing: Preprocessing, augmentation: AugmentationSettings) -> Scene:
    """The random transforms to the model's input size: scale and crop, flips, colours.

    Raises:
        UsageError: a range is not one, or a setting that is not for masks.
    """
    a = augmentation
    refuse_for_whole(preprocessing, augmentation, of="masks")
    refuse_for_objects(a)
    steps: list[Scene] = [ScaledCrop(preprocessing, (a.scale[0], a.scale[1]))]
    steps += [Mirror(-1, a.flip)] * (a.flip > 0) + [Mirror(-2, a.vertical_flip)] * (a.vertical_flip > 0)
    steps += [PixelsAlone(Jitter(a.color_jitter))] * (a.color_jitter > 0)
    steps += [PixelsAlone(change) for change in own_change(a)]
    return Compose(tuple(steps))


class ScaledCrop:
    """A random scale at the picture's aspect, then a random crop of the model's input size.

    Scale 1 is the size at which evaluation sees the picture. What the crop lacks at the bottom and the right is 0 in
    the picture and ignored in the mask. While one class has more than `largest_share` of the pixels that are not
    ignored, another box is drawn; of `attempts` boxes the last is taken as it is. This is common practice on ADE20K and
    Cityscapes.

    The box is cut out and then resized, which costs a fraction of the reverse: it begins at a whole pixel of the
    picture, and the filter sees nothing beyond it.

    Args:
        preprocessing: size, resizing and interpolation.
        scale: range of the factor, drawn evenly.
    """

    attempts = 10
    largest_share = 0.75

    def __init__(self, preprocessing: Preprocessing, scale: tuple[float, float]) -> None:
        self.preprocessing, self.scale = preprocessing, scale

    def __call__(self, image: Tensor, regions: Regions) -> tuple[Tensor, Regions]:
        """(C, H, W), (H, W) -> (C, *size), (*size)."""
        p, mask = self.preprocessing, regions.classes
        low, high = self.scale
        factor = low + (high - low) * torch.rand(()).item()
        sides = tuple(zip(image.shape[-2:], whole_size(p, image.shape[-2], image.shape[-1]), p.size))
        # of each side: pixels of the picture in the box, and to how many they are resized
        (height, tall), (width, wide) = (window(side, whole * factor, target) for side, whole, target in sides)
        for down, right in torch.rand(self.attempts, 2).tolist():
            top, left = int(down * (image.shape[-2] - height + 1)), int(right * (image.shape[-1] - width + 1))
            box = (..., slice(top, top + height), slice(left, left + width))
            if self._varied(mask[box]):
                break
        pixels = resize(image[box], (tall, wide), p.interpolation)
        classes = _nearest(mask[box], (tall, wide))
        lack = (0, p.size[1] - wide, 0, p.size[0] - tall)
        if any(lack):
            pixels, classes = functional.pad(pixels, lack), functional.pad(classes, lack, value=IGNORED)
        return pixels, Regions(classes)

    def _varied(self, mask: Tensor) -> bool:
        counts = torch.bincount(mask.flatten(), minlength=IGNORED + 1)[:IGNORED]
        return bool(counts.max() <= self.largest_share * counts.sum())


def _nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) -> `size`: each pixel has the class at its centre."""
    rows, columns = (
        ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new)).long() for old, new in zip(mask.shape, size)
    )
    return mask.index_select(0, rows).index_select(1, columns)


class Mirror:
    """Mirror picture and mask along one axis (-1: left and right) with a probability."""

    def __init__(self, axis: int, probability: float) -> None:
        self.axis, self.probability = axis, probability

    def __call__(self, image: Tensor, regions: Regions) -> tuple[Tensor, Regions]:
        """(C, H, W), (H, W) -> the same shapes."""
        if torch.rand(()).item() >= self.probability:
            return image, regions
        return image.flip(self.axis), Regions(regions.classes.flip(self.axis))
