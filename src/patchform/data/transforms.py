"""Pixels to pixels: resizing and cropping, random changes, and the mixing of whole batches.

A transform is a callable from (C, H, W) to (C, H', W'), uint8 in 0..255 or float32 in 0..1, of the type it was given.
A clip (T, C, H, W) goes the same way: what is drawn is drawn once, and every frame is changed alike.
It never writes into its input. Random ones draw from torch's global numbers, which the data set seeds for each sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from patchform.data.own_change import own_change
from patchform.descriptions import Preprocessing
from patchform.errors import UsageError
from patchform.records import Batch, CellBox, Label
from patchform.settings import AugmentationSettings

Transform: TypeAlias = Callable[[Tensor], Tensor]
T = TypeVar("T")
"""What is true of a picture, where it has to change with the pixels."""


@dataclass(frozen=True)
class Chain:
    """One transform after the other."""

    steps: tuple[Transform, ...]

    def __call__(self, image: Tensor) -> Tensor:
        """Through all of them."""
        for step in self.steps:
            image = step(image)
        return image


@dataclass(frozen=True)
class Compose(Generic[T]):
    """One step after the other, of pixels together with what is true of them."""

    steps: tuple[Callable[..., tuple[Tensor, T]], ...]

    def __call__(self, image: Tensor, truth: T, *arguments: Any) -> tuple[Tensor, T]:
        """Apply all; each gets the arguments."""
        for step in self.steps:
            image, truth = step(image, truth, *arguments)
        return image, truth


@dataclass(frozen=True)
class PixelsAlone:
    """A change of pixels that leaves what is true of them as it is."""

    transform: Transform

    def __call__(self, image: Tensor, truth: T, *_: Any) -> tuple[Tensor, T]:
        """Change the pixels."""
        return self.transform(image), truth


def evaluation_transform(preprocessing: Preprocessing) -> Transform:
    """The deterministic transform to the model's input: `preprocessing.resize`, `crop_share` and `interpolation`."""
    return Fit(preprocessing)


def training_transform(preprocessing: Preprocessing, augmentation: AugmentationSettings) -> Transform:
    """Random transforms to the input size: crop, flips, policy, colour jitter, erasing. What is off costs nothing.

    Raises:
        UsageError: a range is not one, a setting is for objects alone, or a policy or colour jitter meets other
            pictures than it is defined for.
    """
    a = augmentation
    refuse_for_objects(a)
    if a.policy != "none" and (preprocessing.channels != 3 or preprocessing.bits != 8):
        raise UsageError(f"augmentation.policy {a.policy} needs pictures of 3 channels and 8 bits")
    if a.color_jitter > 0 and preprocessing.channels not in (1, 3):
        raise UsageError("augmentation.color_jitter needs pictures of 1 or 3 channels")
    check_ranges(a, "crop_scale", "crop_ratio")
    steps: list[Transform] = []
    if a.crop_padding > 0:
        steps += [Fit(preprocessing), PaddedCrop(a.crop_padding)]
    elif tuple(a.crop_scale) == (1, 1):
        steps += [Fit(preprocessing)]
    else:
        steps += [RandomCrop(preprocessing, tuple(a.crop_scale), tuple(a.crop_ratio))]
    steps += [Flip(-1, a.flip)] * (a.flip > 0) + [Flip(-2, a.vertical_flip)] * (a.vertical_flip > 0)
    steps += [*_colours(a), *[Erase(a.erasing)] * (a.erasing > 0), *own_change(a)]
    return Chain(tuple(steps))


def _colours(a: AugmentationSettings) -> list[Transform]:
    """The policy and the jitter, which are torchvision's."""
    if a.policy == "none" and not a.color_jitter:
        return []
    from torchvision.transforms import v2  # a second and a half to import, and few runs need it

    bilinear = v2.InterpolationMode.BILINEAR
    steps: list[Transform] = []
    if a.policy == "rand_augment":
        steps += [v2.RandAugment(a.operations, a.magnitude, interpolation=bilinear)]
    elif a.policy == "trivial_augment":
        steps += [v2.TrivialAugmentWide(interpolation=bilinear)]
    if a.color_jitter > 0:
        steps += [v2.ColorJitter(a.color_jitter, a.color_jitter, a.color_jitter)]
    return steps


def check_ranges(augmentation: AugmentationSettings, *names: str) -> None:
    """Raise UsageError unless each is [low, high], above 0 and, as a share of the area, at most 1."""
    for name in names:
        low, high = getattr(augmentation, name)
        if not 0 < low <= high or (name in ("crop_scale", "local_scale") and high > 1):
            raise UsageError(f"augmentation.{name} [{low}, {high}] is not a range", remedy="give [low, high], above 0")


def check_off(augmentation: AugmentationSettings, *names: str, of: str) -> None:
    """Raise UsageError unless all of these changes are off."""
    for name in names:
        if getattr(augmentation, name) not in (0, "none"):
            raise UsageError(f"augmentation.{name} is not for {of}", remedy="leave it at its default")


def refuse_for_objects(augmentation: AugmentationSettings) -> None:
    """Raise UsageError for settings that are for objects alone."""
    for name in ("sizes", "mosaic", "copy_paste"):
        if getattr(augmentation, name):
            raise UsageError(f"augmentation.{name} is for objects", remedy="leave it at its default")


def refuse_crop(preprocessing: Preprocessing, *, of: str) -> None:
    """Raise UsageError for a resizing that would leave a part of the picture without a prediction."""
    if preprocessing.resize == "crop":
        raise UsageError(
            "preprocessing.resize crop cuts pixels off", remedy=f"set it to keep, fit, native or squash for {of}"
        )


def refuse_for_whole(preprocessing: Preprocessing, augmentation: AugmentationSettings, *, of: str) -> None:
    """Raise UsageError for settings that are not for pictures with masks or objects, and for ranges that are none."""
    a = augmentation
    refuse_crop(preprocessing, of=of)
    check_off(a, "policy", "erasing", "crop_padding", "mixup", "cutmix", of=of)
    check_ranges(a, "scale")
    if a.color_jitter > 0 and preprocessing.channels not in (1, 3):
        raise UsageError("augmentation.color_jitter needs pictures of 1 or 3 channels")


LONGEST = 4
"""For keep: the longer side is at most so many times the wanted shorter side."""


def whole_size(preprocessing: Preprocessing, height: int, width: int) -> tuple[int, int]:
    """Height and width at which the model sees a whole picture, for every `resize` but crop, which shows a part."""
    if preprocessing.resize == "squash":
        return preprocessing.size
    if preprocessing.resize == "native":
        return height, width
    short, long = min(preprocessing.size), max(preprocessing.size)
    if preprocessing.resize == "keep":
        long = LONGEST * short
    scale = min(short / min(height, width), long / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class Fit:
    """Resize and centre crop, or squash, to exactly the model's input size; or keep the whole picture and its aspect.

    crop: the picture is resized, keeping its aspect, to just cover `size / crop_share`; then the centre is taken.
    keep: its shorter side becomes that of `size`, unless the longer one exceeds `LONGEST` times as much. fit: the same,
    but the longer one stays within that of `size`. native: as it is. With these three, pictures of one batch may differ
    in size.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(self, image: Tensor) -> Tensor:
        """(C, H, W) -> (C, *size), or of the aspect it has."""
        p = self.preprocessing
        if p.resize != "crop":
            return resize(image, whole_size(p, image.shape[-2], image.shape[-1]), p.interpolation)
        return _center(self.covering(image), p.size)

    def covering(self, image: Tensor) -> Tensor:
        """For crop: the whole picture, resized to just cover `size / crop_share`."""
        p, image = self.preprocessing, self._trim(image)
        height, width = image.shape[-2:]
        tall, wide = (math.floor(side / p.crop_share) for side in p.size)
        if width * tall > height * wide:  # wider than wanted
            wide = width * tall // height
        else:
            tall = height * wide // width
        return resize(image, (tall, wide), p.interpolation)

    def _trim(self, image: Tensor) -> Tensor:
        """Cut far ends off: a 1 x 5000 picture, resized as a whole, would need a gigabyte to give the same centre."""
        height, width = self.preprocessing.size
        longest = math.ceil(10 * min(image.shape[-2:]) * max(height, width) / min(height, width))
        return _center(image, (min(image.shape[-2], longest), min(image.shape[-1], longest)))


class RandomCrop:
    """A random share of the area at a random aspect, resized (Szegedy et al. 2015, "Going deeper", section 6).

    Args:
        preprocessing: size and interpolation.
        scale: lowest and highest share of the area.
        ratio: lowest and highest width / height; drawn evenly on a logarithmic scale.
    """

    attempts = 10
    """After so many boxes that do not fit, the largest centre box of an allowed aspect is taken."""

    def __init__(self, preprocessing: Preprocessing, scale: tuple[float, ...], ratio: tuple[float, ...]) -> None:
        self.size, self.interpolation = preprocessing.size, preprocessing.interpolation
        self.scale, self.ratio = scale, ratio

    def __call__(self, image: Tensor) -> Tensor:
        """(C, H, W) -> (C, *size)."""
        top, left, height, width = self._box(*image.shape[-2:])
        return resize(image[..., top : top + height, left : left + width], self.size, self.interpolation)

    def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        *boxes, (down, right) = torch.rand(self.attempts + 1, 2).tolist()
        for share, aspect in boxes:
            area = height * width * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            stretch = math.exp(low + aspect * (high - low))
            h, w = round(math.sqrt(area / stretch)), round(math.sqrt(area * stretch))
            if 0 < h <= height and 0 < w <= width:
                return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
        h = min(height, max(1, round(width / self.ratio[0])))
        w = min(width, max(1, round(height * self.ratio[1])))
        return (height - h) // 2, (width - w) // 2, h, w


class PaddedCrop:
    """Black on all sides, then a crop of the former size at a random place: a shift by up to `padding` pixels."""

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, image: Tensor) -> Tensor:
        """(C, H, W) -> (C, H, W)."""
        height, width = image.shape[-2:]
        down, right = torch.randint(2 * self.padding + 1, (2,)).tolist()
        padded = functional.pad(image, (self.padding,) * 4)
        return padded[..., down : down + height, right : right + width]


class Flip:
    """Mirror along one axis (-1: left and right) with a probability."""

    def __init__(self, axis: int, probability: float) -> None:
        self.axis, self.probability = axis, probability

    def __call__(self, image: Tensor) -> Tensor:
        """(C, H, W) -> (C, H, W)."""
        return image.flip(self.axis) if torch.rand(()).item() < self.probability else image


class Erase:
    """Random noise in a rectangle of 2 % to 40 % of the area (Zhong et al. 2020, "Random erasing", section 3, RE-R)."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Tensor) -> Tensor:
        """(C, H, W) -> (C, H, W)."""
        chance, share, aspect, down, right = torch.rand(5).tolist()
        if chance >= self.probability:
            return image
        height, width = image.shape[-2:]
        area, stretch = height * width * (0.02 + 0.38 * share), math.exp(math.log(0.3) * (1 - 2 * aspect))
        h, w = min(height, round(math.sqrt(area / stretch))), min(width, round(math.sqrt(area * stretch)))
        top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
        image = image.clone()
        box = image[..., top : top + h, left : left + w]
        shape = box.shape[-3:]  # of a clip, the same in every frame
        box.copy_(torch.rand(shape) if image.is_floating_point() else torch.randint(256, shape))
        return image


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


def resize(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """(..., C, H, W) -> (..., C, *size), antialiased, of the type it has."""
    if image.shape[-2:] == size:
        return image
    # the bits of torchvision's resize, whose checks take as long again for a picture of 32 pixels
    batch = image if image.dim() == 4 else image[None]
    resized = functional.interpolate(batch, size, mode=interpolation, antialias=interpolation != "nearest")
    resized = resized.clamp_(0, 1) if image.is_floating_point() else resized  # bicubic overshoots
    return resized.view(*image.shape[:-2], *size)


def window(side: int, scaled: float, target: int) -> tuple[int, int]:
    """Pixels of a side that are taken, and to how many they are resized, when `side` are scaled to `scaled`."""
    if scaled <= target:
        return side, max(1, round(scaled))
    return min(side, max(1, round(target * side / scaled))), target


def along(image: Tensor, size: tuple[int, int], number: int) -> list[Tensor]:
    """Crops of `size` from end to end of the side that has more to spare, in the middle of the other; 1: the centre."""
    if number == 1:
        return [_center(image, size)]
    spare = [side - target for side, target in zip(image.shape[-2:], size)]
    top, left = (round(lack / 2) for lack in spare)
    crops = []
    for index in range(number):
        if spare[0] > spare[1]:
            top = round(index * spare[0] / (number - 1))
        else:
            left = round(index * spare[1] / (number - 1))
        crops.append(image[..., top : top + size[0], left : left + size[1]])
    return crops


def _center(image: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = (round((side - target) / 2) for side, target in zip(image.shape[-2:], size))
    return image[..., top : top + size[0], left : left + size[1]]


class Mixing:
    """Mixup and CutMix of a whole batch with its neighbours (Zhang et al. 2018; Yun et al. 2019).

    One share for a batch; with both switched on, each is taken half of the time.

    Args:
        augmentation: `mixup`, `cutmix` (alphas of the Beta distribution) and `mix_probability` are used.
        classes: length of the soft targets.
    """

    def __init__(self, augmentation: AugmentationSettings, classes: int) -> None:
        self.mixup, self.cutmix = augmentation.mixup, augmentation.cutmix
        self.probability, self.classes = augmentation.mix_probability, classes

    @property
    def active(self) -> bool:
        """Whether any batch is ever mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def mix(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Mix each image with the one before it; the first with the last.

        Args:
            batch: images uint8 or float, with labels.
            generator: on the CPU; all that is drawn is drawn from it.

        Returns:
            When active: float32 images in 0..1 and labels whose `scores` (C,) are the mixed truth, with the classes of
            the image that was mixed into; also for batches left unmixed by chance. Else the batch as it is.
        """
        if not self.active:
            return batch
        labels = cast("Sequence[Label]", batch.targets)
        # the Beta distribution of torch takes no generator
        numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        images = batch.images.float() if batch.images.is_floating_point() else batch.images.float() / 255
        scores = torch.stack([soft(label, self.classes) for label in labels])
        padding = batch.padding
        if numbers.random() < self.probability:
            by_box = self.cutmix > 0 and (self.mixup <= 0 or numbers.random() < 0.5)
            alpha = self.cutmix if by_box else self.mixup
            share = float(numbers.beta(alpha, alpha))
            if by_box:
                images, share = _paste(images, share, numbers)
            else:
                images = torch.lerp(images.roll(1, 0), images, share)
            scores = torch.lerp(scores.roll(1, 0), scores, share)
            padding = None if padding is None else padding & padding.roll(1, 0)
        targets = tuple(Label(label.classes, row) for label, row in zip(labels, scores.unbind()))
        return batch._replace(images=images, targets=targets, padding=padding)


def soft(label: Label, classes: int) -> Tensor:
    """(classes,) float32: its scores, or 1 at its classes."""
    if label.scores is not None:
        return label.scores.float()
    return torch.zeros(classes, device=label.classes.device).index_fill_(0, label.classes, 1)


def _paste(images: Tensor, share: float, numbers: np.random.Generator) -> tuple[Tensor, float]:
    """Put a box of the neighbour, of about 1 - share of the area, at a random centre; the share kept, exactly."""
    height, width = images.shape[-2:]
    top, left, bottom, right = random_box(height, width, share, numbers)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.roll(1, 0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def random_box(height: int, width: int, share: float, numbers: np.random.Generator) -> CellBox:
    """A box of about 1 - share of the area around a random centre, cut off at the edges (Yun et al. 2019)."""
    side = math.sqrt(1 - share)
    h, w = round(height * side), round(width * side)
    top, left = int(numbers.integers(height)) - h // 2, int(numbers.integers(width)) - w // 2
    return max(0, top), max(0, left), min(height, top + h), min(width, left + w)
