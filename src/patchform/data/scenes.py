"""Transforms of a picture together with the class of every pixel.

A scene transform is a callable from (C, H, W) pixels and their `Regions` to both. Pixels are uint8 in 0..255 or float32
in 0..1, classes (H, W) uint8; both keep their types and neither input is written into. Random ones draw from torch's
global numbers, which the data set seeds for each sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from patchform.data.transforms import Transform, evaluation_transform, resize, whole_size
from patchform.errors import UsageError
from patchform.records import IGNORED, Preprocessing, Regions
from patchform.settings import AugmentationSettings

Scene: TypeAlias = Callable[[Tensor, Regions], tuple[Tensor, Regions]]


def evaluation_scene(preprocessing: Preprocessing) -> Scene:
    """The way of `evaluation_transform` for the picture. The mask stays in the picture's own pixels, as predictions do.

    Raises:
        UsageError: `preprocessing.resize` is crop, which would leave pixels of the mask without a prediction.
    """
    _refuse_crop(preprocessing)
    fit = evaluation_transform(preprocessing)
    return lambda image, regions: (fit(image), regions)


def training_scene(preprocessing: Preprocessing, augmentation: AugmentationSettings) -> Scene:
    """The random way to the model's input size: scale and crop, flips, colours.

    Raises:
        UsageError: a range is not one, or a setting that is not for masks.
    """
    a = augmentation
    _refuse_crop(preprocessing)
    off = {
        "policy": a.policy == "none",
        "erasing": a.erasing == 0,
        "crop_padding": a.crop_padding == 0,
        "mixup": a.mixup == 0,
        "cutmix": a.cutmix == 0,
    }
    for name, holds in off.items():
        if not holds:
            raise UsageError(f"augmentation.{name} is not for masks", remedy="leave it at its default")
    if not 0 < a.scale[0] <= a.scale[1]:
        raise UsageError(f"augmentation.scale {list(a.scale)} is not a range", remedy="give [low, high], above 0")
    if a.color_jitter > 0 and preprocessing.channels not in (1, 3):
        raise UsageError("augmentation.color_jitter needs pictures of 1 or 3 channels")
    steps: list[Scene] = [ScaledCrop(preprocessing, (a.scale[0], a.scale[1]))]
    steps += [Mirror(-1, a.flip)] * (a.flip > 0) + [Mirror(-2, a.vertical_flip)] * (a.vertical_flip > 0)
    steps += [_pixels_alone(Jitter(a.color_jitter))] * (a.color_jitter > 0)

    def all_steps(image: Tensor, regions: Regions) -> tuple[Tensor, Regions]:
        for step in steps:
            image, regions = step(image, regions)
        return image, regions

    return all_steps


def _refuse_crop(preprocessing: Preprocessing) -> None:
    if preprocessing.resize == "crop":
        raise UsageError("data.resize crop cuts pixels off", remedy="set it to keep, native or squash for masks")


def _pixels_alone(transform: Transform) -> Scene:
    return lambda image, regions: (transform(image), regions)


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
        (height, tall), (width, wide) = (_box(have, seen * factor, wanted) for have, seen, wanted in sides)
        for down, right in torch.rand(self.attempts, 2).tolist():
            top, left = int(down * (image.shape[-2] - height + 1)), int(right * (image.shape[-1] - width + 1))
            box = (..., slice(top, top + height), slice(left, left + width))
            if self._varied(mask[box]):
                break
        found = resize(image[box], (tall, wide), p.interpolation)
        classes = _nearest(mask[box], (tall, wide))
        lack = (0, p.size[1] - wide, 0, p.size[0] - tall)
        if any(lack):
            found, classes = functional.pad(found, lack), functional.pad(classes, lack, value=IGNORED)
        return found, Regions(classes)

    def _varied(self, mask: Tensor) -> bool:
        counts = torch.bincount(mask.flatten(), minlength=IGNORED + 1)[:IGNORED]
        return bool(counts.max() <= self.largest_share * counts.sum())


def _box(have: int, scaled: float, wanted: int) -> tuple[int, int]:
    """Pixels of a side that are taken, and to how many they are resized, when `have` are scaled to `scaled`."""
    if scaled <= wanted:
        return have, max(1, round(scaled))
    return min(have, max(1, round(wanted * have / scaled))), wanted


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


class Jitter:
    """Brightness, contrast, saturation and hue, each changed with probability 1/2.

    After the photometric distortion of SSD (Liu et al. 2016, section 2.2). Its authors' ranges are those of strength
    0.5: an offset of up to 32 of 255, factors of 0.5 to 1.5 for contrast and saturation, a turn of up to 36 degrees.
    There the last two happen in HSV; here they scale and turn the colour about the grey axis (YIQ), at equal luma. So
    all four are one product with a matrix, and pixels are cut off at black and white once.

    Args:
        strength: in (0, 1]; the ranges grow with it.
    """

    # to luma and two chroma axes (NTSC)
    yiq = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, image: Tensor) -> Tensor:
        """(1 or 3, H, W) -> the same shape."""
        chances, amounts = torch.rand(4).tolist(), (torch.rand(4) * 2 - 1).tolist()
        brightness, contrast, saturation, hue = (
            self.strength * amount if chance < 0.5 else 0.0 for chance, amount in zip(chances, amounts)
        )
        if not any((brightness, contrast, saturation, hue)):
            return image
        whole = 1 if image.is_floating_point() else 255
        offset = brightness * 64 / 255 * whole
        if len(image) == 1:
            changed = (image.float() + offset) * (1 + contrast)
        else:
            matrix = self.matrix(contrast, saturation, hue * math.pi * 0.4)
            shift = matrix.sum(1, keepdim=True) * offset
            changed = torch.addmm(shift, matrix, image.flatten(1).float()).view(image.shape)
        return changed.clamp_(0, whole) if whole == 1 else changed.round_().clamp_(0, whole).to(torch.uint8)

    def matrix(self, contrast: float, saturation: float, angle: float) -> Tensor:
        """(3, 3) on RGB: all scaled by 1 + contrast, chroma by 1 + saturation and turned by `angle` (radians)."""
        yiq = torch.tensor(self.yiq, dtype=torch.float64)
        cosine, sine = (1 + saturation) * math.cos(angle), (1 + saturation) * math.sin(angle)
        turn = torch.tensor([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]], dtype=torch.float64)
        return ((1 + contrast) * (yiq.inverse() @ turn @ yiq)).float()
