"""Whether a recipe fits into memory, and what would make it fit: predicted from a few small steps that are measured.

What is held, whatever the batch, is counted: weights, gradients, the optimizer's moments, the average. What a picture
adds is measured on the device itself, in steps with two numbers of pictures, at one size of picture or at two. The
prediction is an upper bound in three ways: gradients are taken to be there throughout, as they are in all parts of a
batch but the first; stochastic depth is taken to leave nothing out; every picture is taken to be as large as the
augmentation can make it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from patchform import lookup
from patchform.data.dataset import open_data
from patchform.data.detection_transforms import Whole
from patchform.data.listing import Listing
from patchform.data.loader import TrainingBatches, aspects, balance
from patchform.data.samples import CACHE_BYTES
from patchform.data.transforms import whole_size
from patchform.descriptions import Preprocessing
from patchform.device import fast_precision, pick_device
from patchform.errors import ResourceError
from patchform.geometry import grids
from patchform.settings import ModelSettings, Recipe
from patchform.tasks.base import find_task
from patchform.training import peaks
from patchform.training.cost import FEW, Cost, Held, Meter, Size, loads
from patchform.training.memory import memory_errors
from patchform.training.preparation import refuse_nonsense

Progress = Callable[[str, int, int], None]

MARGIN = 1.2
"""What is predicted fits if there is room for so many times as much. What CPU processes took at most beyond their
imports, over what was predicted: ViT-S/16 of 128 pixels with 4, 32 and 64 pictures, and 32 in parts of 8, 1.00, 1.02,
1.02 and 0.99; with 32 ResNet-18 1.06, PVT v2 b0 1.19. The rest is fragments, scratch space of kernels and libraries."""
LOOKED_AT = 200_000
"""Pictures of which batches are looked at; those of later epochs are left out."""
WINDOW = 14
"""Cells of a side above which windows are proposed: that of ViTDet."""


class Option(NamedTuple):
    """Settings to run the recipe with, and what it then takes."""

    settings: dict[str, Any]
    """Over the recipe's, by dotted name; none: as it is."""
    images: int
    """Of the part of a batch that takes most."""
    size: Size
    """(height, width) of that part, padding included, pixels."""
    peak: int
    """Bytes at the same time, predicted; without Python and its libraries."""
    fits: bool
    """`MARGIN` times the peak is within the room."""


class Plan(NamedTuple):
    """What a recipe takes, and other settings for the same batch size."""

    device: str
    room: int
    """Bytes that there are for tensors."""
    held: Held
    ways: tuple[Option, ...]
    """The recipe as it is, then others."""
    notes: tuple[str, ...]

    @property
    def best(self) -> Option | None:
        """The first one that fits, None if none does."""
        return next((option for option in self.ways if option.fits), None)


def plan(recipe: Recipe, *, room: int | None = None, progress: Progress = lambda what, done, count: None) -> Plan:
    """Predict the peak memory of a recipe, and of other settings to run it with. Trains nothing, writes nothing.

    Without data, classes and objects are made up and pictures have `preprocessing.size`. Sizes of pictures come from
    the listing; no picture is opened. Validation, worker processes and, on the CPU, decoded pictures that are kept in
    memory are not counted.

    Args:
        recipe: all settings. `model.init_from` is not read, `model.compile` not done.
        room: bytes for tensors; default: what the device has left.
        progress: called with (what is measured, steps done, all steps).

    Raises:
        UsageError: a setting out of range, an unknown name.
        DataError: data that cannot be listed.
        ResourceError: not even the smallest step that is measured fits.
    """
    refuse_nonsense(recipe)
    if recipe.training.threads:
        torch.set_num_threads(recipe.training.threads)
    device, notes = pick_device(recipe.training.device), list[str]()
    if recipe.training.precision == "auto":
        settings = dataclasses.replace(recipe.training, precision=fast_precision(device).precision)
        recipe = dataclasses.replace(recipe, training=settings)
    if device.type not in ("cpu", "cuda"):
        notes.append(f"measured on the CPU: {device.type} does not say how much memory a step takes")
        device = torch.device("cpu")
    room = peaks.room(device) if room is None else room
    listing, preprocessing = _listing(recipe, notes), recipe.preprocessing
    batches = list(_batches(recipe, listing, preprocessing))
    if device.type == "cpu" and recipe.data.path:
        notes.append(f"not counted: decoded pictures of a small set stay in memory, up to {CACHE_BYTES >> 30} GiB")

    def cost_of(model: ModelSettings) -> Cost:
        label = model.backbone + ", checkpointing" * model.checkpointing
        meter = Meter(dataclasses.replace(recipe, model=model), listing, preprocessing, device)
        with memory_errors(FEW, preprocessing):
            return meter.cost(batches, room, functools.partial(progress, label), notes)

    checkpointing = not recipe.model.checkpointing
    cost = cost_of(recipe.model)
    options = [*_options(recipe, batches, cost, room, {})]
    others: list[tuple[dict[str, Any], ModelSettings]] = [
        ({"model.checkpointing": checkpointing}, dataclasses.replace(recipe.model, checkpointing=checkpointing))
    ]
    if not options[0].fits and (windows := _windowed(recipe.model, preprocessing)):
        others.append(({"model.backbone": windows.backbone, "model.options": windows.options}, windows))
    for changed, model in others:
        try:
            options += _options(recipe, batches, cost_of(model), room, changed)
        except ResourceError as error:
            notes.append(f"not measured with {next(iter(changed))} {next(iter(changed.values()))}: {error.what}")
    return Plan(str(device), room, cost.held, tuple(options), tuple(dict.fromkeys(notes)))


# -------------------------------------------------------------------------------------------------- what is learnt from


def _listing(recipe: Recipe, notes: list[str]) -> Listing:
    """What is learnt from, or of classes alone where nothing is given."""
    if recipe.data.path:
        splits = open_data(recipe.data, seed=recipe.training.seed, preprocessing=recipe.preprocessing, task=recipe.task)
        notes += find_task(recipe.task).refuse(splits.train, training=True)
        return splits.train
    weights = recipe.loss.class_weights
    count = len(weights) if isinstance(weights, list) else find_task(recipe.task).classes
    names = recipe.data.classes if isinstance(recipe.data.classes, tuple) else tuple(map(str, range(count)))
    notes.append(f"no data given: planned for {len(names)} classes and pictures of preprocessing.size")
    return Listing(classes=names, items=(), root=Path())


def _batches(recipe: Recipe, listing: Listing, preprocessing: Preprocessing) -> Iterator[list[Size]]:
    """Sizes of the pictures of each batch of the run, or of one where all are of one size."""
    settings = recipe.training
    sizes = [_largest(recipe, preprocessing, item.objects.size) for item in listing.items if item.objects is not None]
    if len(set(sizes)) < 2:
        count = min(settings.batch_size, len(listing) or settings.batch_size)
        yield [sizes[0] if sizes else preprocessing.size] * count
        return
    weights = balance(listing) if recipe.data.balanced else None
    groups = None if preprocessing.resize == "squash" else aspects(listing)
    epochs = max(1, min(settings.epochs, LOOKED_AT // len(sizes)))
    steps = math.ceil(len(sizes) / settings.batch_size) * epochs
    order = TrainingBatches(len(sizes), settings.batch_size, settings.seed, 0, steps, weights, groups)
    for keys in order:
        yield [sizes[index] for _, index in keys]


def _largest(recipe: Recipe, preprocessing: Preprocessing, size: Size) -> Size:
    """(height, width) of the largest input that the augmentation makes of a picture with objects."""
    p, change = preprocessing, recipe.augmentation
    if change.mosaic > 0:
        size = (max(size[0], 2 * p.size[0]), max(size[1], 2 * p.size[1]))
    if change.sizes:
        return max((whole_size(choice, *size) for choice in Whole(p, change.sizes).choices), key=math.prod)
    whole = whole_size(p, *size)
    if tuple(change.scale) == (1, 1) or p.resize in ("squash", "native"):
        return whole
    crop = p.size  # the crop of large-scale jitter lies as the picture does
    if p.resize == "fit":
        crop = (max(p.size), min(p.size)) if size[0] > size[1] else (min(p.size), max(p.size))
    tall, wide = (min(most, round(side * change.scale[1])) for side, most in zip(whole, crop))
    return max(1, tall), max(1, wide)


# -------------------------------------------------------------------------------------------------------------- options


def _options(
    recipe: Recipe, batches: Sequence[Sequence[Size]], cost: Cost, room: int, changed: dict[str, Any]
) -> Iterator[Option]:
    """As the recipe says; with the largest parts that fit; and, for pictures of several sizes, the most pixels."""
    settings, frames = recipe.training, max(1, recipe.preprocessing.frames)

    def option(part: int, pixels: int, **more: int) -> Option:
        load = max(loads(batches, part, pixels and max(1, pixels // frames)), key=cost.peak)
        peak = cost.peak(load)
        changes = changed | {f"training.{name}": value for name, value in more.items()}
        return Option(changes, load.images, load.size, peak, peak * MARGIN <= room)

    whole = max(map(len, batches))
    current = min(settings.micro_batch or whole, whole)
    yield option(settings.micro_batch, settings.pixels_at_once)
    fitting = _last(lambda part: option(part, settings.pixels_at_once).fits, whole)
    even = math.ceil(whole / math.ceil(whole / fitting)) if fitting else 0  # of as few parts, the most equal
    if recipe.augmentation.mix_token and even % 2:  # images go in pairs
        even += 1 if even < fitting else -1
    if even and even != current:
        yield option(even, settings.pixels_at_once, micro_batch=even)
    sizes = {size for batch in batches for size in batch}
    if len(sizes) > 1:
        areas = sorted(map(math.prod, sizes))
        batch = max(loads(batches, 0, 0), key=lambda load: load.whole * math.prod(load.batch_size))
        pixels = batch.whole * math.prod(batch.batch_size)
        free = room / MARGIN - sum(cost.held) - cost.rest - pixels * cost.pixel
        at_once = _rounded(free / max(cost.image(area) / area for area in (areas[0], areas[-1])))
        if areas[-1] <= at_once < pixels and at_once != settings.pixels_at_once:
            yield option(settings.micro_batch, at_once, pixels_at_once=at_once)


def _last(holds: Callable[[int], bool], highest: int) -> int:
    """The highest of 1..highest for which it holds, 0 without one; below one for which it holds it always does."""
    low, high = 0, highest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _rounded(number: float) -> int:
    """Down to two digits."""
    if number < 10:
        return max(0, int(number))
    step = 10 ** (len(str(int(number))) - 2)
    return int(number) // step * step


def _windowed(model: ModelSettings, preprocessing: Preprocessing) -> ModelSettings | None:
    """The same vision transformer with windows, where there is one and the picture is larger than a window."""
    family, _, size = model.backbone.partition("/")
    if family != "vit":
        return None
    rows = lookup.module("backbones", "vit_det").VARIANTS
    row = rows["nano" if size == "nano" else "b"]
    options = lookup.backbone(model.backbone)[1].options | model.options
    parameters = inspect.signature(row.build).parameters
    if max(grids.cells(preprocessing.size, options.get("patch", 16))) <= WINDOW:
        return None
    shared = {name: value for name, value in options.items() if name in parameters}
    return dataclasses.replace(model, backbone=f"vit_det/{'nano' if size == 'nano' else 'b'}", options=shared)
