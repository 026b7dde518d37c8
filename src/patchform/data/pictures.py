"""The pictures of a listing as samples: what is known of each, and how both are changed together.

What is known, the truth, is a slot: a label, a class for every pixel, objects, or what a task of its own reads from an
item.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from patchform.data.detection_transforms import Transform as ObjectTransform
from patchform.data.detection_transforms import instances
from patchform.data.images import decode
from patchform.data.listing import Item, Listing
from patchform.data.mask_files import decode_mask
from patchform.data.multi_crop import MultiCrop
from patchform.data.samples import Samples, labels_of
from patchform.data.segmentation_transforms import Scene
from patchform.data.transforms import Transform
from patchform.descriptions import Preprocessing
from patchform.errors import DataError, UsageError
from patchform.records import Instances, Label, Regions, Sample, Target, tensors_of

T = TypeVar("T", bound=Target)
"""What is known of a picture."""
F = TypeVar("F")
"""A transform."""


class Changed(NamedTuple):
    """What a transform makes of a picture."""

    image: Tensor
    target: Target
    views: Tensor | None = None
    """(V, C, h, w): small crops beside."""


class Pictures(Samples[tuple[Tensor, T]], Generic[T, F]):
    """The pictures of a listing, decoded, with their truth, through a transform. Both are kept in memory if they fit.

    Args:
        listing: what there is.
        transform: from decoded pixels, and what is known of them, to the model's input.
        preprocessing: how files are decoded.
        seed: of the random transforms.

    Raises:
        UsageError: the preprocessing is one of clips.
    """

    def __init__(self, listing: Listing, transform: F, preprocessing: Preprocessing, seed: int = 0) -> None:
        super().__init__(listing, preprocessing, seed)
        if preprocessing.frames:
            raise UsageError(
                f"the data are pictures, and preprocessing.frames is {preprocessing.frames}", remedy="set it to 0"
            )
        self.transform = transform

    @abstractmethod
    def truth(self, item: Item, size: tuple[int, int]) -> T:
        """What is known of a picture of (height, width) pixels, in its own pixels. Raises DataError."""

    @abstractmethod
    def changed(self, pixels: Tensor, truth: T) -> Changed:
        """Decoded pixels (C, H, W) and truth through the transform; neither is written into."""

    def decoded(self, index: int) -> tuple[Tensor, T]:
        """Decoded pixels (C, H, W) and truth, from memory when the set is small."""
        cached = self._cached(index)
        if cached is not None:
            return cached
        item = self.listing.items[index]
        pixels = decode(item.path, self.preprocessing, thorough=False)  # `data.checks` was
        truth = self.truth(item, (pixels.shape[-2], pixels.shape[-1]))
        if self._fits(sum(tensor.nbytes for tensor in (pixels, *tensors_of(truth)))):
            self._store(index, (pixels, truth))
        return pixels, truth

    def another(self) -> tuple[Tensor, T]:
        """A picture drawn at random and its truth, for transforms that put several together."""
        return self.decoded(int(torch.randint(len(self), ())))

    def _sample(self, index: int) -> Sample:
        pixels, truth = self.decoded(index)
        image, target, views = self.changed(pixels, truth)
        size = (pixels.shape[-2], pixels.shape[-1])
        return Sample(image, target, self.listing.name(index), size, views)


class LabelledPictures(Pictures[Label, Transform]):
    """Pictures with the classes of their items, which may be none."""

    def truth(self, item: Item, size: tuple[int, int]) -> Label:
        """The classes."""
        return labels_of(item)

    def changed(self, pixels: Tensor, truth: Label) -> Changed:
        """The transform sees the pixels."""
        return Changed(self.transform(pixels), truth)


class ViewedPictures(Pictures[Label, MultiCrop]):
    """Several crops of each picture (views, C, H, W), and small ones, with the classes of their items."""

    def truth(self, item: Item, size: tuple[int, int]) -> Label:
        """The classes."""
        return labels_of(item)

    def changed(self, pixels: Tensor, truth: Label) -> Changed:
        """The crops."""
        crops = self.transform(pixels)
        return Changed(crops.images, truth, crops.local)


class MaskedPictures(Pictures[Regions, Scene]):
    """Pictures with a class for every pixel, as uint8."""

    def truth(self, item: Item, size: tuple[int, int]) -> Regions:
        """The mask, decoded."""
        coding = self.listing.mask_codes
        if item.mask is None or coding is None:
            raise DataError("a picture without a mask", where=item.path)
        return Regions(decode_mask(item.mask, coding, size))

    def changed(self, pixels: Tensor, truth: Regions) -> Changed:
        """The transform sees both."""
        return Changed(*self.transform(pixels, truth))


class ObjectPictures(Pictures[Instances, ObjectTransform]):
    """Pictures with their objects; with masks, if any object of the listing has an outline."""

    def __init__(
        self, listing: Listing, transform: ObjectTransform, preprocessing: Preprocessing, seed: int = 0
    ) -> None:
        super().__init__(listing, transform, preprocessing, seed)
        self.outlined = outlined(listing)

    def truth(self, item: Item, size: tuple[int, int]) -> Instances:
        """The objects as tensors. Raises DataError for a picture that is not of the size for which it is annotated."""
        if item.objects is None:
            raise DataError("a picture without annotated objects", where=item.path)
        if tuple(item.objects.size) != size:
            (tall, wide), (height, width) = item.objects.size, size
            what = f"objects of a picture of {wide} x {tall} pixels for one of {width} x {height}"
            turned = "; its orientation tag is followed: annotate what is seen" * ((wide, tall) == size)
            raise DataError(what, where=item.path, remedy="mend the annotation" + turned)
        return instances(item.objects, outlined=self.outlined)

    def changed(self, pixels: Tensor, truth: Instances) -> Changed:
        """The transform sees both, and may ask for others."""
        return Changed(*self.transform(pixels, truth, self.another))


def outlined(listing: Listing) -> bool:
    """Whether any object has an outline."""
    return any(item.objects is not None and item.objects.segmentations is not None for item in listing.items)
