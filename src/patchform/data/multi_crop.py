"""Several crops of one picture, each changed by itself, for methods that compare them (Caron et al. 2021, DINO)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from patchform.data.own_change import own_change
from patchform.data.transforms import (
    Chain,
    Flip,
    Jitter,
    RandomCrop,
    Transform,
    check_off,
    check_ranges,
    refuse_for_objects,
)
from patchform.descriptions import Preprocessing
from patchform.errors import UsageError
from patchform.settings import AugmentationSettings

SIGMAS = (0.1, 2.0)
"""Pixels of deviation of a blur."""


class CropSet(NamedTuple):
    """What is made of a picture."""

    images: Tensor
    """(views, C, H, W)."""
    local: Tensor | None
    """(local_views, C, h, w), None where there are none."""


class MultiCrop:
    """Random crops of a picture: `views` of the model's size, which may differ in their changes, and `local_views`.

    Each is cropped, mirrored, jittered, made grey, blurred and solarised, in this order, by the draws of its own. The
    jitter is `transforms.Jitter`; the authors', five times the work, changes all four things 4 times in 5.

    Args:
        preprocessing: size, interpolation, channels.
        augmentation: crop_scale, crop_ratio, flip, color_jitter, grey, and what is for views alone.

    Raises:
        UsageError: a range is not one, probabilities of another number, or a setting that views do not have.
    """

    def __init__(self, preprocessing: Preprocessing, augmentation: AugmentationSettings) -> None:
        a, p = augmentation, preprocessing
        refuse_for_objects(a)
        kinds = a.views + (a.local_views > 0)
        for name in ("blur", "solarise"):
            chances = getattr(a, name)
            if chances and (len(chances) != kinds or not all(0 <= chance <= 1 for chance in chances)):
                remedy = f"give {kinds} numbers in [0, 1], one a crop and one for the small ones"
                raise UsageError(f"augmentation.{name} is {list(chances)}", remedy=remedy)
        check_ranges(a, "crop_scale", "local_scale", "crop_ratio")
        check_off(a, "policy", "erasing", "crop_padding", of="views")
        if (a.color_jitter > 0 and p.channels not in (1, 3)) or (a.grey > 0 and p.channels != 3):
            raise UsageError("augmentation.color_jitter and grey need pictures of 3 channels")
        self.augmentation, self.deep = a, p.bits == 16
        self.whole = [self._chain(p, a.crop_scale, number) for number in range(a.views)]
        small = dataclasses.replace(p, size=(a.local_size, a.local_size))
        self.small = self._chain(small, a.local_scale, a.views) if a.local_views else None

    def __call__(self, image: Tensor) -> CropSet:
        """(C, H, W) -> crops of the type it has."""
        images = torch.stack([transform(image) for transform in self.whole])
        if self.small is None:
            return CropSet(images, None)
        return CropSet(images, torch.stack([self.small(image) for _ in range(self.augmentation.local_views)]))

    def _chain(self, preprocessing: Preprocessing, scale: Sequence[float], number: int) -> Transform:
        from torchvision.transforms import v2  # a second and a half to import

        a, strength = self.augmentation, self.augmentation.color_jitter
        steps: list[Transform] = [RandomCrop(preprocessing, tuple(scale), tuple(a.crop_ratio))]
        steps += [Flip(-1, a.flip)] * (a.flip > 0)
        steps += [Jitter(strength)] * (strength > 0)
        steps += [v2.RandomGrayscale(a.grey)] * (a.grey > 0)
        if a.blur and a.blur[number] > 0:
            reach = min(math.ceil(3 * SIGMAS[1]), min(preprocessing.size) - 1)
            steps += [v2.RandomApply([v2.GaussianBlur(2 * reach + 1, SIGMAS)], a.blur[number])]
        if a.solarise and a.solarise[number] > 0:
            steps += [v2.RandomSolarize(0.5 if self.deep else 128, a.solarise[number])]
        steps += own_change(a)
        return Chain(tuple(steps))
