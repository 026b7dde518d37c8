"""Transforms of a picture together with its objects.

A transform is a callable from (C, H, W) pixels, their `Instances`, and a source of `Another` picture, to pixels and
`Instances`. Pixels are uint8 in 0..255 or float32 in 0..1; they keep their type and no input is written into. Random
ones draw from torch's global numbers, which the data set seeds for each sample. Pictures keep the sizes that they come
to; what they lack in a batch is filled up, and marked as padding, when the batch is made.

Boxes are cut off at the edge of the picture, and masks with them. An object that is cut off is dropped when less than
`LEAST_SHARE` of it is left, or, also when it merely becomes small, less than a pixel of its width or height. A crowd is
dropped for the latter alone: what is left of it must not count as background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from patchform.data.listing import RLE, Objects, Segmentation
from patchform.data.own_change import own_change
from patchform.data.transforms import (
    Compose,
    Jitter,
    PixelsAlone,
    evaluation_transform,
    refuse_crop,
    refuse_for_whole,
    resize,
    whole_size,
    window,
)
from patchform.descriptions import Preprocessing
from patchform.errors import UsageError
from patchform.geometry import masks
from patchform.records import Bitmaps, Instances
from patchform.settings import AugmentationSettings

Another: TypeAlias = Callable[[], tuple[Tensor, Instances]]
"""Gives a picture of the data set and its objects, drawn anew each time from torch's global numbers."""
Transform: TypeAlias = Callable[[Tensor, Instances, Another], tuple[Tensor, Instances]]

LEAST_SHARE = 0.1
"""Of the pixels of an object's mask, else of its box."""
GREY = 114 / 255
"""What a mosaic shows where no picture reaches, as YOLOv4's."""


def evaluation_objects(preprocessing: Preprocessing) -> Transform:
    """`evaluation_transform` for the picture. Objects stay in its own pixels, as predictions do.

    Raises:
        UsageError: `preprocessing.resize` is crop, which would cut objects off.
    """
    refuse_crop(preprocessing, of="objects")
    return PixelsAlone(evaluation_transform(preprocessing))


def training_objects(preprocessing: Preprocessing, augmentation: AugmentationSettings) -> Transform:
    """Random transforms to the model's input: mosaic, scale and crop or the whole picture, flips, copy-paste, colours.

    Raises:
        UsageError: a range is not one, or a setting that is not for objects.
    """
    a, p = augmentation, preprocessing
    refuse_for_whole(p, a, of="objects")
    if a.sizes and (p.resize == "native" or (p.resize == "fit" and max(a.sizes) > max(p.size))):
        raise UsageError(
            f"augmentation.sizes {list(a.sizes)} does not go with preprocessing.resize {p.resize} to {list(p.size)}",
            remedy="with fit, the longer side of preprocessing.size bounds them; native resizes nothing",
        )
    if a.mosaic and p.resize == "native":
        raise UsageError("augmentation.mosaic needs a size", remedy="set preprocessing.resize to fit, keep or squash")
    whole = a.sizes or tuple(a.scale) == (1, 1) or p.resize in ("squash", "native")
    steps: list[Transform] = [Whole(p, a.sizes) if whole else LargeScaleJitter(p, (a.scale[0], a.scale[1]))]
    steps += [Mirror(-1, a.flip)] * (a.flip > 0) + [Mirror(-2, a.vertical_flip)] * (a.vertical_flip > 0)
    if a.mosaic > 0:
        steps.insert(0, Mosaic(p, a.mosaic))
    if a.copy_paste > 0:
        steps = [CopyPaste(Compose(tuple(steps)), a.copy_paste)]
    steps += [PixelsAlone(Jitter(a.color_jitter))] * (a.color_jitter > 0)
    steps += [PixelsAlone(change) for change in own_change(a)]
    return Compose(tuple(steps))


# ------------------------------------------------------------------------------------------------ objects by themselves


def instances(objects: Objects, *, outlined: bool) -> Instances:
    """What is annotated, as tensors.

    Args:
        objects: of a picture.
        outlined: decode masks. An object without an outline gets that of its box.
    """
    return Instances(
        boxes=torch.from_numpy(objects.boxes).float(),
        classes=torch.from_numpy(objects.classes).long(),
        masks=_decoded(objects) if outlined else None,
        crowd=None if objects.crowd is None else torch.from_numpy(objects.crowd).bool(),
        areas=None if objects.areas is None else torch.from_numpy(objects.areas).float(),
    )


def _decoded(objects: Objects) -> Bitmaps:
    segmentations: Sequence[Segmentation | None] = objects.segmentations or [None] * len(objects.boxes)
    parts = []
    for outline, (left, top, right, bottom) in zip(segmentations, objects.boxes.tolist(), strict=True):
        if isinstance(outline, RLE):
            parts.append(masks.from_runs(outline.counts, objects.size))
        else:
            corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
            parts.append(masks.from_polygons((corners,) if outline is None else outline, objects.size))
    return masks.concatenate(parts, objects.size)


def take(objects: Instances, index: Tensor) -> Instances:
    """Objects by number, (K,) int64, or by an (N,) bool."""
    return Instances(
        objects.boxes[index],
        objects.classes[index],
        None if objects.scores is None else objects.scores[index],
        None if objects.masks is None else masks.take(objects.masks, index),
        None if objects.crowd is None else objects.crowd[index],
        None if objects.areas is None else objects.areas[index],
    )


def join(parts: Sequence[Instances]) -> Instances:
    """Objects of one picture, without scores, all with masks or all without. None is a crowd where none is marked so.

    Areas are left out unless all have theirs.
    """
    crowds = [torch.zeros(len(part.boxes), dtype=torch.bool) if part.crowd is None else part.crowd for part in parts]
    areas = [part.areas for part in parts if part.areas is not None]
    bitmaps = [part.masks for part in parts if part.masks is not None]
    return Instances(
        boxes=torch.cat([part.boxes for part in parts]),
        classes=torch.cat([part.classes for part in parts]),
        masks=masks.concatenate(bitmaps) if bitmaps else None,
        crowd=None if all(part.crowd is None for part in parts) else torch.cat(crowds),
        areas=torch.cat(areas) if len(areas) == len(parts) else None,
    )


def view(objects: Instances, box: tuple[int, int, int, int], size: tuple[int, int]) -> Instances:
    """What is left of objects when a box of their picture is cut out and resized.

    A box that is cut off and has a mask becomes the least that holds what the mask has left.

    Args:
        objects: N objects.
        box: left, top, right, bottom in whole pixels; it may reach beyond the picture.
        size: (height, width) to which it is resized.
    """
    left, top, right, bottom = box
    scale = torch.tensor([size[1] / (right - left), size[0] / (bottom - top)]).repeat(2)
    moved = (objects.boxes - torch.tensor([left, top, left, top])) * scale
    boxes = moved.clamp(min=0).minimum(torch.tensor([size[1], size[0]]).repeat(2))
    shares = _areas(boxes) / _areas(moved).clamp(min=1e-9)
    bitmaps = None if objects.masks is None else masks.view(objects.masks, box, size)
    cut = (boxes != moved).any(1)
    if bitmaps is not None and objects.masks is not None and cut.any():
        before = masks.areas(objects.masks) * scale[0] * scale[1]
        shares = (masks.areas(bitmaps) / before.clamp(min=1e-9)).clamp(max=1)
        boxes = torch.where(cut[:, None], _within(masks.tight(bitmaps).float(), boxes), boxes)
    shares = torch.where(cut, shares, 1.0)
    areas = None if objects.areas is None else objects.areas * scale[0] * scale[1] * shares
    return _keep_visible(objects._replace(boxes=boxes, masks=bitmaps, areas=areas), shares)


def without(objects: Instances, hidden: Tensor) -> Instances:
    """What is left of objects, with masks, behind others: `hidden` (H, W) bool."""
    assert objects.masks is not None
    before, bitmaps = masks.areas(objects.masks), masks.without(objects.masks, hidden)
    shares = masks.areas(bitmaps) / before.clamp(min=1)
    boxes = torch.where((shares < 1)[:, None], _within(masks.tight(bitmaps).float(), objects.boxes), objects.boxes)
    areas = None if objects.areas is None else objects.areas * shares
    return _keep_visible(objects._replace(boxes=boxes, masks=bitmaps, areas=areas), shares)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _within(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes cut off at boxes."""
    return torch.cat([boxes[:, :2].maximum(limits[:, :2]), boxes[:, 2:].minimum(limits[:, 2:])], 1)


def _keep_visible(objects: Instances, shares: Tensor) -> Instances:
    keep = shares >= LEAST_SHARE
    if objects.crowd is not None:
        keep |= objects.crowd
    keep &= (objects.boxes[:, 2:] - objects.boxes[:, :2] >= 1).all(1)
    if objects.masks is not None:
        keep &= masks.areas(objects.masks) > 0
    return objects if keep.all() else take(objects, keep)


# --------------------------------------------------------------------------------------------------------- transforms


class Whole:
    """The whole picture at the size at which evaluation sees it, or at one of several.

    Args:
        preprocessing: size, resizing and interpolation.
        sizes: lengths of the shorter side, one of which is drawn; the longer side is bounded as in evaluation.
    """

    def __init__(self, preprocessing: Preprocessing, sizes: Sequence[int] = ()) -> None:
        p = preprocessing
        self.choices = [p]
        if p.resize == "fit" and sizes:
            self.choices = [replace(p, size=(size, max(p.size))) for size in sizes]
        elif sizes:
            scales = [size / min(p.size) for size in sizes]
            self.choices = [replace(p, size=(round(p.size[0] * s), round(p.size[1] * s))) for s in scales]

    def __call__(self, image: Tensor, objects: Instances, another: Another) -> tuple[Tensor, Instances]:
        """(C, H, W) -> (C, H', W')."""
        drawn = int(torch.randint(len(self.choices), ())) if len(self.choices) > 1 else 0
        p, (height, width) = self.choices[drawn], image.shape[-2:]
        size = whole_size(p, height, width)
        return resize(image, size, p.interpolation), view(objects, (0, 0, width, height), size)


class LargeScaleJitter:
    """A random scale at the picture's aspect, then a random crop of the model's input size, or less.

    Ghiasi et al. 2021, "Simple copy-paste", section 3. Scale 1 is the size at which evaluation sees the picture. With
    resizing to fit, the crop lies as the picture does. Pictures that are smaller than it are left so.

    The box is cut out and then resized: see `segmentation_transforms.ScaledCrop`.

    Args:
        preprocessing: size, resizing and interpolation.
        scale: range of the factor, drawn evenly.
    """

    def __init__(self, preprocessing: Preprocessing, scale: tuple[float, float]) -> None:
        self.preprocessing, self.scale = preprocessing, scale

    def __call__(self, image: Tensor, objects: Instances, another: Another) -> tuple[Tensor, Instances]:
        """(C, H, W) -> (C, H', W'), at most the input size."""
        p, (height, width) = self.preprocessing, image.shape[-2:]
        chance, down, right = torch.rand(3).tolist()
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * chance
        target = p.size
        if p.resize == "fit":
            target = (max(p.size), min(p.size)) if height > width else (min(p.size), max(p.size))
        whole = whole_size(p, height, width)
        tall, new_height = window(height, whole[0] * factor, target[0])
        wide, new_width = window(width, whole[1] * factor, target[1])
        top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
        size = (new_height, new_width)
        resized = resize(image[..., top : top + tall, left : left + wide], size, p.interpolation)
        return resized, view(objects, (left, top, left + wide, top + tall), size)


class Mirror:
    """Mirror picture and objects along one axis (-1: left and right) with a probability."""

    def __init__(self, axis: int, probability: float) -> None:
        self.axis, self.probability = axis, probability

    def __call__(self, image: Tensor, objects: Instances, another: Another) -> tuple[Tensor, Instances]:
        """(C, H, W) -> (C, H, W)."""
        if torch.rand(()).item() >= self.probability:
            return image, objects
        low, high = (0, 2) if self.axis == -1 else (1, 3)
        boxes = objects.boxes.clone()
        boxes[:, low], boxes[:, high] = (image.shape[self.axis] - objects.boxes[:, end] for end in (high, low))
        bitmaps = None if objects.masks is None else masks.flip(objects.masks, self.axis)
        return image.flip(self.axis), objects._replace(boxes=boxes, masks=bitmaps)


class Mosaic:
    """Four pictures around a point, of twice the model's input size together (Bochkovskiy et al. 2020, section 3.3).

    Each is as large as evaluation sees it and touches, with one corner, a point that is drawn from the middle half of
    each side. What follows takes the result for a picture of the data set, so that its objects come to about half of
    their size.

    Args:
        preprocessing: size, resizing and interpolation.
        probability: of being done at all.
    """

    def __init__(self, preprocessing: Preprocessing, probability: float) -> None:
        self.size, self.probability, self.whole = preprocessing.size, probability, Whole(preprocessing)

    def __call__(self, image: Tensor, objects: Instances, another: Another) -> tuple[Tensor, Instances]:
        """(C, H, W) -> (C, 2 * size), or the picture as it is."""
        chance, *center = torch.rand(3).tolist()
        if chance >= self.probability:
            return image, objects
        height, width = 2 * self.size[0], 2 * self.size[1]
        y, x = (int(side * (0.25 + 0.5 * share)) for side, share in zip((height, width), center))
        grey = GREY if image.is_floating_point() else round(GREY * 255)
        canvas = image.new_full((len(image), height, width), grey)
        parts = []
        for corner, (picture, own) in enumerate([(image, objects), another(), another(), another()]):
            picture, own = self.whole(picture, own, another)
            h, w = picture.shape[-2:]
            top, left = y - h * (corner < 2), x - w * (corner % 2 == 0)
            rows, columns = slice(max(0, top), max(0, top + h)), slice(max(0, left), max(0, left + w))
            shown = canvas[..., rows, columns]
            up, before = max(0, -top), max(0, -left)
            shown.copy_(picture[..., up : up + shown.shape[-2], before : before + shown.shape[-1]])
            parts.append(view(own, (-left, -top, width - left, height - top), (height, width)))
        return canvas, join(parts)


class CopyPaste:
    """Objects of another picture pasted in (Ghiasi et al. 2021, "Simple copy-paste", section 3).

    Both pictures are changed at random by themselves. Each object of the other is taken with probability 1/2, crowds
    never; edges are not blended, which the paper finds to be as good. Needs masks.

    Args:
        first: what is done to each of the two.
        probability: of being done at all.
    """

    def __init__(self, first: Transform, probability: float) -> None:
        self.first, self.probability = first, probability

    def __call__(self, image: Tensor, objects: Instances, another: Another) -> tuple[Tensor, Instances]:
        """(C, H, W) -> what `first` makes of it, and then of the same shape."""
        image, objects = self.first(image, objects, another)
        if torch.rand(()).item() >= self.probability:
            return image, objects
        if objects.masks is None:
            raise UsageError("augmentation.copy_paste needs masks of objects", remedy="set it to 0")
        picture, pasted = self.first(*another(), another)
        chosen = torch.rand(len(pasted.boxes)) < 0.5
        if pasted.crowd is not None:
            chosen &= ~pasted.crowd
        height, width = image.shape[-2:]
        pasted = view(take(pasted, chosen), (0, 0, width, height), (height, width))
        assert pasted.masks is not None
        hidden = masks.union(pasted.masks)
        h, w = min(height, picture.shape[-2]), min(width, picture.shape[-1])
        image = image.clone()
        image[..., :h, :w] = torch.where(hidden[:h, :w], picture[..., :h, :w], image[..., :h, :w])
        return image, join([without(objects, hidden), pasted])
