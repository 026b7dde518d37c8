"""Samples to batches, batches to parts, batches to a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from patchform.errors import UsageError
from patchform.records import Batch, Sample, Target

T = TypeVar("T")


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
            exchanged=batch.exchanged,
        )


def by_size(batch: Batch, answer: Callable[[Batch], Iterable[T]]) -> list[T]:
    """What is answered to images of which each is shown as if it were alone.

    Padding is seen: a convolution turns its zeros into something else, and a norm, a pool or a table of positions goes
    over it. So the images of each size go together, without padding, and no answer depends on the others of its batch
    by more than rounding.

    Args:
        batch: images of any sizes.
        answer: gives one answer an image, for batches of images of one size.

    Returns:
        The answers in the order of the batch.
    """
    if batch.padding is None:
        return list(answer(batch))
    indices_of: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(_real_sizes(batch)):
        indices_of.setdefault(size, []).append(index)
    answers: dict[int, T] = {}
    for (height, width), indices in indices_of.items():
        part = Batch(
            images=batch.images[indices][..., :height, :width],
            targets=tuple(batch.targets[index] for index in indices) if batch.targets else (),
            names=tuple(batch.names[index] for index in indices),
            sizes=tuple(batch.sizes[index] for index in indices),
            padding=None,
            views=None if batch.views is None else batch.views[indices],
        )
        answers |= zip(indices, answer(part), strict=True)
    return [answers[index] for index in range(len(batch.images))]


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


def share_memory(tensor: Tensor) -> Tensor:
    """The tensor, moved to memory that other processes can look into, if there is anything of it."""
    return tensor.share_memory_() if tensor.numel() else tensor


class PackedTargets(Sequence[Target]):
    """Targets of a batch as few large tensors instead of many small ones, on the way from a worker to a device.

    As a sequence it gives the targets; their tensors are views of the joined ones.

    Args:
        column: of the targets.
    """

    def __init__(self, column: _Column) -> None:
        self.column = column

    @classmethod
    def of(cls, targets: Sequence[Target]) -> PackedTargets:
        """Pack targets, unless they are packed.

        Raises:
            UsageError: targets, or values of a field, of several types.
        """
        return targets if isinstance(targets, PackedTargets) else cls(_Column.of(targets))

    def pin_memory(self) -> PackedTargets:
        """The same in pinned memory. torch's loader asks for it."""
        return PackedTargets(self.column.each(Tensor.pin_memory))

    def to(self, device: torch.device | str) -> tuple[Target, ...]:
        """The targets on a device, uint8 as int64."""

        def move(tensor: Tensor) -> Tensor:
            moved = tensor.to(device, non_blocking=True)
            return moved.long() if moved.dtype == torch.uint8 else moved

        return tuple(self.column.each(move).values())

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The targets where they are."""
        return tuple(self.column.values())

    def __len__(self) -> int:
        return len(self.column.present)

    @overload
    def __getitem__(self, index: int) -> Target: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Target, ...]: ...
    def __getitem__(self, index: int | slice) -> Target | tuple[Target, ...]:
        return self.targets[index]


@dataclass(frozen=True, eq=False)
class _Column:
    """One field of several records: of each a tensor, a record itself, a plain value, or None."""

    present: tuple[bool, ...]
    """Of each, whether it is not None."""
    content: Tensor | tuple[Any, ...]
    """Of those: tensors of one shape stacked, or others flat and joined; the columns of records; or plain values."""
    kind: type | None = None
    """Of records."""
    shapes: tuple[torch.Size, ...] | None = None
    """Of tensors that are joined."""

    @classmethod
    def of(cls, values: Sequence[Any]) -> _Column:
        """Of the values of a field. Raises UsageError for several types."""
        present = tuple(value is not None for value in values)
        filled = [value for value in values if value is not None]
        kinds = {(type(value), getattr(value, "dtype", None)) for value in filled}
        if len(kinds) > 1:
            names = sorted(f"{kind.__name__} {dtype or ''}".strip() for kind, dtype in kinds)
            raise UsageError(f"targets of several types in one batch: {', '.join(names)}", remedy="give all the same")
        if not filled or not isinstance(filled[0], tuple | Tensor):
            return cls(present, tuple(filled))
        if isinstance(filled[0], Tensor):
            shapes = tuple(tensor.shape for tensor in filled)
            if len(set(shapes)) == 1:
                return cls(present, torch.stack(filled))
            return cls(present, torch.cat([tensor.flatten() for tensor in filled]), shapes=shapes)
        if not hasattr(filled[0], "_fields"):
            return cls(present, tuple(filled))
        return cls(present, tuple(map(cls.of, zip(*filled))), type(filled[0]))

    def each(self, change: Callable[[Tensor], Tensor]) -> _Column:
        """The same with `change` of each tensor."""
        if isinstance(self.content, Tensor):
            return replace(self, content=change(self.content))
        return (
            self if self.kind is None else replace(self, content=tuple(column.each(change) for column in self.content))
        )

    def values(self) -> Sequence[Any]:
        """What it was made of; tensors are views."""
        filled: Iterable[Any] = self.content if isinstance(self.content, tuple) else self._tensors(self.content)
        if self.kind is not None:
            filled = map(self.kind, *(column.values() for column in self.content))
        if all(self.present):
            return tuple(filled)
        filled = iter(filled)
        return tuple(next(filled) if present else None for present in self.present)

    def _tensors(self, joined: Tensor) -> Iterable[Tensor]:
        if self.shapes is None:
            return joined.unbind()
        parts = joined.split([shape.numel() for shape in self.shapes])
        return (part.view(shape) for part, shape in zip(parts, self.shapes))
