"""Samples to batches, batches to parts, batches to a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from patchform.records import Batch, Label, Regions, Sample, Target


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples.

    Returns:
        A batch of images (B, C, H, W) of the samples' type. Images of unequal sizes are padded with zeros at the bottom
        and the right, and `padding` (B, H, W) says where. `targets` is empty unless every sample has one.
    """
    images = [sample.image for sample in samples]
    targets = tuple(sample.target for sample in samples if sample.target is not None)
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
    )


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """Consecutive parts of at most `size` images; 0 gives the whole batch."""
    count = len(batch.images)
    size = size or count
    for start in range(0, count, size):
        part = slice(start, start + size)
        yield Batch(
            images=batch.images[part],
            targets=batch.targets[part],
            names=batch.names[part],
            sizes=batch.sizes[part],
            padding=None if batch.padding is None else batch.padding[part],
        )


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on a device. Asynchronous for batches in pinned memory; labels, and masks of one size, travel as one
    tensor. Classes are int64 there.
    """
    return batch._replace(
        images=batch.images.to(device, non_blocking=True),
        targets=_targets_to(batch.targets, device),
        padding=None if batch.padding is None else batch.padding.to(device, non_blocking=True),
    )


def _targets_to(targets: Sequence[Target], device: torch.device | str) -> tuple[Target, ...]:
    packed = pack(targets)
    if isinstance(packed, Tensor):
        packed = packed.to(device, non_blocking=True).long()
    if packed is not None:
        return unpack(packed, device)
    return tuple(
        Regions(target.classes.to(device, non_blocking=True).long(), _move(target.scores, device))
        if isinstance(target, Regions)
        else Label(target.classes.to(device), _move(target.scores, device))
        for target in targets
    )


def _move(tensor: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=True)


Packed = tuple[Tensor, tuple[int, ...], Tensor | None] | Tensor
"""Labels as one tensor of classes, how many each label has, and (B, C) scores if they have them; or masks (B, H, W)."""


def pack(targets: Sequence[Target]) -> Packed | None:
    """Few large tensors instead of many small ones, for transfers between processes and to a device.

    None when the targets are of several kinds, only some have scores, or masks differ in size or have scores.
    """
    masks = [target.classes for target in targets if isinstance(target, Regions) and target.scores is None]
    if masks and len(masks) == len(targets) and len({(mask.shape, mask.dtype) for mask in masks}) == 1:
        return torch.stack(masks)
    labels = [target for target in targets if isinstance(target, Label)]
    scores = [label.scores for label in labels if label.scores is not None]
    if not labels or len(labels) < len(targets) or len(scores) not in (0, len(labels)):
        return None
    classes = torch.cat([label.classes for label in labels])
    return classes, tuple(len(label.classes) for label in labels), torch.stack(scores) if scores else None


def unpack(packed: Packed, device: torch.device | str = "cpu") -> tuple[Target, ...]:
    """The targets again; tensors are views of the moved ones."""
    if isinstance(packed, Tensor):
        return tuple(Regions(mask) for mask in packed.to(device, non_blocking=True).unbind())
    classes, lengths, scores = packed
    parts = classes.to(device, non_blocking=True).split(list(lengths))
    if scores is None:
        return tuple(Label(part) for part in parts)
    return tuple(Label(part, row) for part, row in zip(parts, scores.to(device, non_blocking=True).unbind()))
