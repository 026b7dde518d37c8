"""What a training step of a recipe takes: counted where it can be, measured in small steps where not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchform.data.collate import parts, to_device
from patchform.data.listing import Listing
from patchform.data.loader import generator
from patchform.descriptions import Preprocessing
from patchform.distributed import SINGLE
from patchform.layers.drop import DropPath
from patchform.records import Batch
from patchform.settings import Recipe
from patchform.tasks.base import task_of
from patchform.training import ema, optimizer, peaks
from patchform.training.learner import Learner
from patchform.training.preparation import model_of, seed_everything
from patchform.training.schedule import RunLength
from patchform.training.step import gradients, move

Size = tuple[int, int]

FEW, NEVER = 2, 1e-12
"""Pictures of a step that is measured, and again one more; a rate of stochastic depth that still draws."""
LARGE = 256 * 256
"""Pixels from which a picture is first measured at half its sides."""


class Held(NamedTuple):
    """Bytes that are there whatever the batch."""

    weights: int
    gradients: int
    moments: int
    average: int
    saved: int
    """On the CPU: the copy of a checkpoint that is being written, on top of what a step took, which is not given back
    (`training.memory`)."""


class Growth(NamedTuple):
    """Bytes of a picture in the forward and backward pass, by its number of pixels; of a clip by that of one frame."""

    constant: float
    linear: float
    square: float

    @classmethod
    def through(cls, small: tuple[int, float], large: tuple[int, float]) -> Growth:
        """Through two points (pixels, bytes): linear and square terms, or, where it grows less, constant and linear."""
        (few, less), (many, more) = small, large
        if few == many:
            return cls(0.0, more / many, 0.0)
        if more / many >= less / few:
            square = (more / many - less / few) / (many - few)
            linear = less / few - square * few
            return cls(0.0, linear, square) if linear > 0 else cls(0.0, 0.0, more / many**2)
        linear = max(0.0, (more - less) / (many - few))
        return cls(more - linear * many, linear, 0.0)

    def __call__(self, pixels: int) -> float:
        """Bytes."""
        return self.constant + pixels * (self.linear + pixels * self.square)


class Load(NamedTuple):
    """The part of a batch that goes through the model at once, and the batch."""

    images: int
    size: Size
    whole: int
    batch_size: Size


def loads(batches: Iterable[Sequence[Size]], part: int, pixels: int) -> set[Load]:
    """What goes through the model at once, as `collate.split` divides it."""
    distinct = set()
    for sizes in batches:
        whole = (max(height for height, _ in sizes), max(width for _, width in sizes))
        if not pixels:
            distinct.add(Load(min(part or len(sizes), len(sizes)), whole, len(sizes), whole))
            continue
        for start, stop, tall, wide in parts(sizes, part or len(sizes), pixels):
            distinct.add(Load(stop - start, (tall, wide), len(sizes), whole))
    return distinct


class Cost(NamedTuple):
    """Bytes of a training step."""

    held: Held
    move: int
    """Beyond what is held, while the optimizer moves."""
    rest: float
    """Beyond what is held, in the forward and backward pass, of no picture in particular."""
    image: Growth
    pixel: float
    """Of a pixel of the whole batch, from its arrival to the end of the step."""
    arriving: float
    """Of a pixel of the whole batch, while it is mixed."""

    def peak(self, load: Load) -> int:
        """Bytes at the same time."""
        batch = load.whole * math.prod(load.batch_size)
        passes = batch * self.pixel + self.rest + load.images * self.image(math.prod(load.size))
        return round(sum(self.held) + max(self.move, batch * self.arriving, passes))


class _StepBytes(NamedTuple):
    """Bytes of one step beyond what is held."""

    arriving: int
    batch: int
    passes: int
    move: int


class Meter:
    """Takes small steps of a recipe, with a learning rate of 0."""

    def __init__(self, recipe: Recipe, listing: Listing, preprocessing: Preprocessing, device: torch.device) -> None:
        self.recipe, self.listing, self.preprocessing, self.device = recipe, listing, preprocessing, device
        seed_everything(recipe.training.seed)
        fresh = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, init_from=None, compile=False))
        counts = [1] * len(listing.classes)
        self.model = model_of(fresh, listing, preprocessing, counts=counts, say=lambda note: None).to(device).train()
        self.learner = Learner(self.model, fresh, RunLength(1, recipe.training.epochs), SINGLE)
        self.learner.frozen.at(recipe.training.epochs - 1)  # when most is learnt
        for module in self.model.modules():
            if isinstance(module, DropPath) and module.rate > 0:
                module.rate = NEVER
        self.optimizer = self.learner.optimizer
        optimizer.set_rate(self.optimizer, 0.0)
        self.task = task_of(self.model.architecture, self.model.head)
        self.mixing = self.task.mixing(recipe.augmentation, len(listing.classes))

    def cost(
        self, batches: Sequence[Sequence[Size]], room: int, progress: Callable[[int, int], None], notes: list[str]
    ) -> Cost:
        """Measure, at the largest size of the batches unless that takes more than there is room for."""
        size = max((load.size for load in loads(batches, 0, 0)), key=math.prod)
        padded = len({size for batch in batches for size in batch}) > 1
        few = min(FEW, self.recipe.training.micro_batch or max(map(len, batches)))
        half = _smaller(size)
        at_once = half == size or not (padded or math.prod(size) > LARGE)
        done, most, points = 0, 3 if at_once else 5, list[tuple[int, float]]()

        def step(images: int, size: Size) -> _StepBytes:
            nonlocal done, most
            step_bytes = self._step(images, size, padded=padded)
            done += 1
            progress(done, max(done, most))
            return step_bytes

        def measure(size: Size) -> Callable[[Growth], Cost]:
            """Note what each picture adds."""
            less, more = step(few, size), step(few + 1, size)
            area, images = math.prod(size), few + 1
            points.append((area, max(1.0, more.passes - less.passes)))

            def cost(image: Growth) -> Cost:
                rest = max(0.0, more.passes - images * image(area))
                return Cost(held, more.move, rest, image, more.batch / images / area, more.arriving / images / area)

            return cost

        def fits(image: Growth) -> bool:
            return sum(held) + (few + 1) * image(math.prod(size)) <= room

        step(few, half)  # from here on there are gradients and moments
        held = self._held()
        if at_once:
            return measure(size)(Growth.through(points[0], points[0]))
        cost = measure(half)
        image = Growth(0.0, 0.0, points[0][1] / points[0][0] ** 2)  # if attention were all that it takes
        if not fits(image):
            measure(_smaller(half))
            image = Growth.through(points[1], points[0])
        if not fits(image):
            notes.append(
                f"pictures above {half[0]} x {half[1]} pixels were not measured: what they take is extrapolated"
            )
            return cost(image)
        return measure(size)(Growth.through(points[0], points[-1]))

    def _step(self, images: int, size: Size, *, padded: bool) -> _StepBytes:
        recipe, objective = self.recipe, self.learner.objective
        with peaks.measured(self.device) as arriving:
            batch = to_device(self._random_batch(images, size, padded=padded), self.device)
            batch = self.mixing.mix(batch, generator(recipe.training.seed, "mix", 0))
            batch = self.learner.mixed(0, batch)
        with peaks.measured(self.device) as passes:
            norm = gradients(objective, [batch], precision=recipe.training.precision).norm
        with peaks.measured(self.device) as moving:
            move(objective, norm, optimizer=self.optimizer, clip=recipe.optimizer.clip)
            if self.learner.average is not None:
                ema.update(self.learner.average, self.model, recipe.training.ema)
        self.optimizer.zero_grad(set_to_none=False)
        return _StepBytes(arriving.most, arriving.left, passes.most, moving.most)

    def _random_batch(self, images: int, size: Size, *, padded: bool) -> Batch:
        """Noise with targets; with padding, all pictures but the first lack a column."""
        p, (height, width) = self.preprocessing, size
        numbers = generator(self.recipe.training.seed, "plan")

        def pixels_of(*shape: int) -> Tensor:
            if p.bits == 16:
                return torch.rand(shape, generator=numbers)
            return torch.randint(256, shape, dtype=torch.uint8, generator=numbers)

        change, crops = self.recipe.augmentation, (p.frames,) * (p.frames > 0)
        if change.views > 1:
            crops = (change.views,)
        pixels, small = pixels_of(images, *crops, p.channels, height, width), (change.local_size,) * 2
        views = pixels_of(images, change.local_views, p.channels, *small) if change.local_views else None
        padding = None
        if padded:
            padding = torch.zeros(images, height, width, dtype=torch.bool)
            padding[1:, :, -1] = True
        targets = [self.task.made_up(self.listing, size, change, numbers) for _ in range(images)]
        return Batch(pixels, targets, ("",) * images, (size,) * images, padding, views)

    def _held(self) -> Held:
        parameters = list(self.learner.objective.parameters())
        state = [value for moments in self.optimizer.state.values() for value in moments.values()]
        average = self.learner.average
        copy = [] if average is None else [*average.parameters(), *average.buffers()]
        weights, moments, averaged = _bytes([*parameters, *self.model.buffers()]), _bytes(state), _bytes(copy)
        saved = weights + moments + averaged if self.device.type == "cpu" else 0
        if (distilled := self.learner.distilled) is not None:
            weights += _bytes([*distilled.teacher.model.parameters(), *distilled.teacher.model.buffers()])
        return Held(weights, _bytes([parameter.grad for parameter in parameters]), moments, averaged, saved)


def _bytes(values: Iterable[Any]) -> int:
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def _smaller(size: Size) -> Size:
    """Half the sides, up to a multiple of 32 pixels; no larger than before."""
    height, width = (min(side, 32 * math.ceil(side / 64)) for side in size)
    return height, width
