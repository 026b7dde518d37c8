"""Samples to batches, batches to parts, batches to a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from patchform.records import Batch, Sample, Target


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
    """The batch on a device. Asynchronous for batches in pinned memory; targets travel as a few tensors.

    Whole numbers that targets hold as uint8 are int64 there.
    """
    return batch._replace(
        images=batch.images.to(device, non_blocking=True),
        targets=PackedTargets.of(batch.targets).to(device),
        padding=_move(batch.padding, device),
        views=_move(batch.views, device),
    )


def _move(tensor: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=True)


class _Place(NamedTuple):
    """Where a tensor of a target is found again."""

    dtype: torch.dtype
    start: int
    """In the joined tensor of this type."""
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PackedTargets(Sequence[Target]):
    """Targets of a batch as few large tensors instead of many small ones, on the way from a worker to a device.

    As a sequence it gives the targets; their tensors are views of the joined ones.
    """

    joined: dict[torch.dtype, Tensor]
    """All tensors of a type, flat, end to end."""
    records: tuple[Any, ...]
    """The targets, with a `_Place` for each tensor."""

    @classmethod
    def of(cls, targets: Sequence[Target]) -> PackedTargets:
        """Pack targets, unless they are packed."""
        if isinstance(targets, PackedTargets):
            return targets
        flat: dict[torch.dtype, list[Tensor]] = {}
        ends: dict[torch.dtype, int] = {}

        def place(tensor: Tensor) -> _Place:
            start = ends.get(tensor.dtype, 0)
            flat.setdefault(tensor.dtype, []).append(tensor.reshape(-1))
            ends[tensor.dtype] = start + tensor.numel()
            return _Place(tensor.dtype, start, tuple(tensor.shape))

        records = tuple(_with_each(target, Tensor, place) for target in targets)
        return cls({dtype: torch.cat(tensors) for dtype, tensors in flat.items()}, records)

    def pin_memory(self) -> PackedTargets:
        """The same in pinned memory. torch's loader asks for it."""
        return PackedTargets({dtype: tensor.pin_memory() for dtype, tensor in self.joined.items()}, self.records)

    def to(self, device: torch.device | str) -> tuple[Target, ...]:
        """The targets on a device, uint8 as int64."""
        moved = {dtype: tensor.to(device, non_blocking=True) for dtype, tensor in self.joined.items()}
        if torch.uint8 in moved:
            moved[torch.uint8] = moved[torch.uint8].long()
        return self._views(moved)

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The targets where they are."""
        return self._views(self.joined)

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Target: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Target, ...]: ...
    def __getitem__(self, index: int | slice) -> Target | tuple[Target, ...]:
        return self.targets[index]

    def _views(self, joined: dict[torch.dtype, Tensor]) -> tuple[Target, ...]:
        def view(place: _Place) -> Tensor:
            return joined[place.dtype][place.start : place.start + math.prod(place.shape)].view(place.shape)

        return tuple(_with_each(record, _Place, view) for record in self.records)


def _with_each(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A record of records with `change` of each thing of a kind in it."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[_with_each(field, kind, change) for field in value])
    return value
