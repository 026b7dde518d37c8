"""Samples to batches, batches to parts, batches to a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from patchform.records import Batch, Bitmaps, Embedding, Instances, Label, Regions, Sample, Target


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples.

    Returns:
        A batch of images (B, C, H, W), of clips (B, T, C, H, W), of the samples' type. Images of unequal sizes are
        padded with zeros at the bottom and the right, and `padding` (B, H, W) says where. `targets` is empty unless
        every sample has one.
    """
    images = [sample.image for sample in samples]
    targets = tuple(sample.target for sample in samples if sample.target is not None)
    views = [sample.views for sample in samples if sample.views is not None]
    padding = None
    if len({image.shape for image in images}) == 1:
        stacked = torch.stack(images)
    else:
        height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
        stacked = images[0].new_zeros(len(images), *images[0].shape[:-2], height, width)
        padding = torch.ones(len(images), height, width, dtype=torch.bool)
        for index, image in enumerate(images):
            stacked[index, ..., : image.shape[-2], : image.shape[-1]] = image
            padding[index, : image.shape[-2], : image.shape[-1]] = False
    return Batch(
        images=stacked,
        targets=targets if len(targets) == len(samples) else (),
        names=tuple(sample.name for sample in samples),
        sizes=tuple(sample.size for sample in samples),
        padding=padding,
        views=torch.stack(views) if len(views) == len(samples) else None,
    )


def split(batch: Batch, size: int, pixels: int = 0) -> Iterator[Batch]:
    """Consecutive parts.

    Args:
        batch: images (B, ..., H, W).
        size: images of a part at most; 0: all.
        pixels: of a part at most, padding and all frames included, 0: no bound. An image that has more is a part of its
            own. With a bound, parts go without the padding that none of their images needs; a model whose positions
            follow the size of its input, or that looks at padding, notices.
    """
    count = len(batch.images)
    whole = (batch.images.shape[-2], batch.images.shape[-1])
    sizes = _real_sizes(batch) if pixels else [whole] * count
    frames = batch.images.shape[1] if batch.images.dim() == 5 else 1
    for start, stop, tall, wide in parts(sizes, size or count, pixels and max(1, pixels // frames)):
        part = slice(start, stop)
        padding = batch.padding
        if padding is not None:
            padding = padding[part, :tall, :wide]
        if pixels and set(sizes[part]) == {(tall, wide)}:
            padding = None
        yield Batch(
            images=batch.images[part, ..., :tall, :wide],
            targets=batch.targets[part],
            names=batch.names[part],
            sizes=batch.sizes[part],
            padding=padding,
            views=None if batch.views is None else batch.views[part],
        )


def _real_sizes(batch: Batch) -> list[tuple[int, int]]:
    """(height, width) of each image without its padding."""
    if batch.padding is None:
        return [(batch.images.shape[-2], batch.images.shape[-1])] * len(batch.images)
    real = ~batch.padding
    counts = torch.stack([real.any(2).sum(1), real.any(1).sum(1)], 1)
    return [(height, width) for height, width in counts.tolist()]


def parts(sizes: Sequence[tuple[int, int]], count: int, pixels: int) -> Iterator[tuple[int, int, int, int]]:
    """Start, stop, height and width of parts of at most `count` images and so many pixels."""
    start, tall, wide = 0, 0, 0
    for index, (height, width) in enumerate(sizes):
        higher, wider = max(tall, height), max(wide, width)
        number = index - start + 1
        if number > count or (number > 1 and 0 < pixels < number * higher * wider):
            yield start, index, tall, wide
            start, higher, wider = index, height, width
        tall, wide = higher, wider
    if sizes:
        yield start, len(sizes), tall, wide


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on a device. Asynchronous for batches in pinned memory; labels, masks of one size, and objects travel
    as a few tensors. Classes are int64 there.
    """
    return batch._replace(
        images=batch.images.to(device, non_blocking=True),
        targets=_targets_to(batch.targets, device),
        padding=_move(batch.padding, device),
        views=_move(batch.views, device),
    )


def _targets_to(targets: Sequence[Target], device: torch.device | str) -> tuple[Target, ...]:
    packed = pack(targets)
    if isinstance(packed, Tensor):
        packed = packed.to(device, non_blocking=True).long()
    if packed is not None:
        return unpack(packed, device)
    return tuple(_alone_to(target, device) for target in targets)


def _alone_to(target: Target, device: torch.device | str) -> Target:
    if isinstance(target, Regions):
        return Regions(target.classes.to(device, non_blocking=True).long(), _move(target.scores, device))
    if isinstance(target, Label):
        return Label(target.classes.to(device), _move(target.scores, device))
    if isinstance(target, Embedding):
        return Embedding(target.scores.to(device))
    return unpack(_pack_objects([target]), device)[0]


def _move(tensor: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=True)


class Joined(NamedTuple):
    """One tensor of several: those that there are, one after the other."""

    tensor: Tensor | None
    """None where there is none."""
    lengths: tuple[int | None, ...]
    """Of each, None for one that there is not."""

    @classmethod
    def of(cls, tensors: Sequence[Tensor | None]) -> Joined:
        """Join tensors that are equal in all but their first axis."""
        present = [tensor for tensor in tensors if tensor is not None]
        lengths = tuple(None if tensor is None else len(tensor) for tensor in tensors)
        return cls(torch.cat(present) if present else None, lengths)

    def parts(self, device: torch.device | str) -> tuple[Tensor | None, ...]:
        """The tensors again, views of the one on the device."""
        if self.tensor is None:
            return tuple(None for _ in self.lengths)
        counts = [length for length in self.lengths if length is not None]
        found = iter(self.tensor.to(device, non_blocking=True).split(counts))
        return tuple(None if length is None else next(found) for length in self.lengths)


class PackedObjects(NamedTuple):
    """`Instances` of several images."""

    fields: tuple[Joined, ...]
    """Boxes, classes, scores, crowds, areas; bits and boxes of the masks."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of the masks, (0, 0) without."""


Packed = tuple[Tensor, tuple[int, ...], Tensor | None] | Tensor | PackedObjects
"""Labels as one tensor of classes, how many each label has, and (B, C) scores if they have them; masks (B, H, W); or
objects."""


def pack(targets: Sequence[Target]) -> Packed | None:
    """Few large tensors instead of many small ones, for transfers between processes and to a device.

    None when the targets are of several kinds, only some labels have scores, or masks of pixels differ in size or have
    scores.
    """
    objects = [target for target in targets if isinstance(target, Instances)]
    if objects and len(objects) == len(targets):
        return _pack_objects(objects)
    masks = [target.classes for target in targets if isinstance(target, Regions) and target.scores is None]
    if masks and len(masks) == len(targets) and len({(mask.shape, mask.dtype) for mask in masks}) == 1:
        return torch.stack(masks)
    labels = [target for target in targets if isinstance(target, Label)]
    scores = [label.scores for label in labels if label.scores is not None]
    if not labels or len(labels) < len(targets) or len(scores) not in (0, len(labels)):
        return None
    classes = torch.cat([label.classes for label in labels])
    return classes, tuple(len(label.classes) for label in labels), torch.stack(scores) if scores else None


_FIELDS: tuple[Callable[[Instances], Tensor | None], ...] = (
    lambda objects: objects.boxes,
    lambda objects: objects.classes,
    lambda objects: objects.scores,
    lambda objects: objects.crowd,
    lambda objects: objects.areas,
    lambda objects: None if objects.masks is None else objects.masks.bits,
    lambda objects: None if objects.masks is None else objects.masks.boxes,
)


def _pack_objects(targets: Sequence[Instances]) -> PackedObjects:
    return PackedObjects(
        fields=tuple(Joined.of([field(target) for target in targets]) for field in _FIELDS),
        sizes=tuple((0, 0) if target.masks is None else target.masks.size for target in targets),
    )


def unpack(packed: Packed, device: torch.device | str = "cpu") -> tuple[Target, ...]:
    """The targets again; tensors are views of the moved ones."""
    if isinstance(packed, Tensor):
        return tuple(Regions(mask) for mask in packed.to(device, non_blocking=True).unbind())
    if isinstance(packed, PackedObjects):
        rows = zip(packed.sizes, *(field.parts(device) for field in packed.fields), strict=True)
        return tuple(_objects(size, row) for size, *row in rows)
    classes, lengths, scores = packed
    parts = classes.to(device, non_blocking=True).split(list(lengths))
    if scores is None:
        return tuple(Label(part) for part in parts)
    return tuple(Label(part, row) for part, row in zip(parts, scores.to(device, non_blocking=True).unbind()))


def _objects(size: tuple[int, int], row: Sequence[Tensor | None]) -> Instances:
    boxes, classes, scores, crowd, areas, bits, outer = row
    masks = None if bits is None or outer is None else Bitmaps(bits, outer, (size[0], size[1]))
    return Instances(cast("Tensor", boxes), cast("Tensor", classes), scores, masks, crowd, areas)
