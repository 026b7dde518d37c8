"""How predictions are made: of the whole picture, window by window, at several scales, of several views.

Each is a callable (model, batch) -> predictions, one an image, in pixels of the image before resizing. `Model.predict`
is one: the whole picture at once. `SlidingWindow` and `MultiScale` are for the class of every pixel, `SlicedObjects`
for objects, `MultiView` for the class of a video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from patchform.data.collate import by_size, collate, split, to_device
from patchform.data.detection_transforms import join, take
from patchform.data.transforms import evaluation_transform
from patchform.descriptions import Preprocessing
from patchform.errors import UsageError, expect
from patchform.model import Model
from patchform.records import Batch, Instances, Label, Regions, Sample, Target

NEAR = 2.0
"""Pixels from the border of a window within which a box is taken to be cut by it."""
Inference: TypeAlias = Callable[[Model, Batch], list[Target]]


@dataclass(frozen=True)
class SlidingWindow:
    """Window by window, the probabilities averaged where windows overlap.

    The last window of a row or column ends at the border, so every window lies inside the picture; a picture that one
    window covers is predicted as a whole. Windows go along the longer side and a pixel is decided as soon as no window
    will see it any more: what is held grows with the shorter side of a picture and with `window`, not with its length.
    Predictions have no scores.
    """

    window: tuple[int, int]
    """Height and width, pixels of the model's input."""
    stride: tuple[int, int]
    """From one window to the next; at most the window."""
    at_once: int = 4
    """Windows that go through the model together; changes no answer but by rounding."""
    margin: int = 0
    """Pixels along the edges of a window, if not of the picture too, that do not count. A model that looks no further
    than this predicts the same window by window as of the whole, where windows begin with its cells."""

    def __call__(self, model: Model, batch: Batch) -> list[Target]:
        """One `Regions` an image."""
        if not all(0 < step <= side - 2 * self.margin for step, side in zip(self.stride, self.window)):
            margins = f" and margins of {self.margin}" if self.margin else ""
            raise UsageError(
                f"a stride of {self.stride} does not cover the picture with windows of {self.window}{margins}"
            )
        predictions: list[Target] = []
        for number, size in enumerate(batch.sizes):
            image = _without_padding(batch, number)
            tall = image.shape[-2] >= image.shape[-1]
            classes = self._classes(model, image if tall else image.mT, turned=not tall)
            classes = classes if tall else classes.mT
            if classes.shape != size:
                classes = F.interpolate(classes[None, None].float(), size=size, mode="nearest-exact")[0, 0].long()
            predictions.append(Regions(classes))
        return predictions

    def _classes(self, model: Model, image: Tensor, *, turned: bool) -> Tensor:
        """(H, W) int64 of (C, H, W), no wider than tall; `turned`: it is the picture with its axes swapped."""
        (h, w), (down, across) = (pair[::-1] if turned else pair for pair in (self.window, self.stride))
        height, width = image.shape[-2:]
        h, w = min(h, height), min(w, width)
        classes = torch.empty(height, width, dtype=torch.int64, device=image.device)
        tops, lefts = starts(height, h, down), starts(width, w, across)
        total: Tensor | None = None  # (K, h, W): sums of probabilities of the rows that windows still see
        for number, top in enumerate(tops):
            rows = self._counts(top, h, height)
            for left, scores in self._windows(model, image[..., top : top + h, :], lefts, w, turned):
                if total is None:
                    total = scores.new_zeros(len(scores), h, width)
                columns = self._counts(left, w, width)
                total[:, rows, left : left + w][..., columns] += scores[:, rows, columns]
            assert total is not None
            done = (tops[number + 1] if number + 1 < len(tops) else height) - top
            classes[top : top + done] = total[:, :done].argmax(0)  # of sums as of means: all classes have as many
            for plane in total:  # one by one: little is copied
                plane[: h - done] = plane[done:].clone()
                plane[h - done :] = 0
        return classes

    def _counts(self, start: int, side: int, length: int) -> slice:
        """The pixels of a window that count, along one axis."""
        return slice(self.margin * (start > 0), side - self.margin * (start + side < length))

    def _windows(
        self, model: Model, strip: Tensor, lefts: Sequence[int], width: int, turned: bool
    ) -> Iterator[tuple[int, Tensor]]:
        """(left, probabilities (K, h, w)) of each window of a strip."""
        for start in range(0, len(lefts), self.at_once):
            group = lefts[start : start + self.at_once]
            windows = torch.stack([strip[..., left : left + width] for left in group])
            windows = windows.mT.contiguous() if turned else windows
            sizes = ((windows.shape[-2], windows.shape[-1]),) * len(group)
            for left, answer in zip(group, model.predict(Batch(windows, (), ("",) * len(group), sizes))):
                scores = scores_of(answer)
                yield left, scores.mT if turned else scores


@dataclass(frozen=True)
class MultiScale:
    """At several scales, mirrored too: the mean of the probabilities, in pixels of the image before resizing."""

    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    """Of the model's input; each is resized bilinearly."""
    mirrored: bool = True

    def __call__(self, model: Model, batch: Batch) -> list[Target]:
        """One `Regions` an image, with scores."""
        return by_size(batch, partial(self._means, model))

    def _means(self, model: Model, batch: Batch) -> list[Target]:
        pixels = batch.images if batch.images.is_floating_point() else batch.images.float() / 255
        total: list[Tensor] | None = None
        for scale in self.scales:
            size = tuple(max(1, round(scale * side)) for side in pixels.shape[-2:])
            images = _resized(pixels, size)
            for mirror in (False, True)[: 1 + self.mirrored]:
                answers = model.predict(batch._replace(images=images.flip(-1) if mirror else images))
                scores = [scores_of(answer) for answer in answers]
                scores = [score.flip(-1) for score in scores] if mirror else scores
                total = scores if total is None else [a + b for a, b in zip(total, scores)]
        assert total is not None
        means = [summed / (len(self.scales) * (1 + self.mirrored)) for summed in total]
        return [Regions(mean.argmax(0), mean) for mean in means]


@dataclass(frozen=True)
class SlicedObjects:
    """Objects window by window, each window prepared as a picture of its own: for small objects in large pictures.

    Akyon et al., "Slicing aided hyper inference" (2022), section 3. What is found more than once is kept once: of two
    answers of a class that overlap, the less sure goes, but first the one that the border of a window cuts.
    """

    window: tuple[int, int]
    """Height and width, pixels of the picture."""
    stride: tuple[int, int]
    """From one window to the next; at most the window. Objects as large as a window less the stride are seen whole."""
    whole: bool = True
    """Predict the whole picture too, where the objects are that no window holds."""
    measure: Literal["smaller", "union"] = "smaller"
    """What the shared area of two boxes is compared with: the smaller of them, which joins parts, or their union."""
    overlap: float = 0.5
    """Share from which the worse of two answers goes, in (0, 1]."""
    most: int = 1000
    """The surest answers of a picture that are looked at."""
    at_once: int = 4
    """Windows that are prepared together; changes no answer but by rounding."""

    def __call__(self, model: Model, batch: Batch) -> list[Target]:
        """One `Instances` an image; the batch holds pictures in their own pixels (`preparation`).

        Raises:
            UsageError: windows that do not cover a picture, pictures that were resized, a model of another task.
        """
        if not all(0 < step <= side for step, side in zip(self.stride, self.window)):
            raise UsageError(f"a stride of {self.stride} does not cover the picture with windows of {self.window}")
        return [self._objects(model, _without_padding(batch, number), size) for number, size in enumerate(batch.sizes)]

    def _objects(self, model: Model, image: Tensor, size: tuple[int, int]) -> Target:
        if tuple(image.shape[-2:]) != tuple(size):
            raise UsageError("slices are of pictures that were not resized", remedy="see inference.preparation")
        (height, width), (down, across) = size, self.stride
        tall, wide = min(self.window[0], height), min(self.window[1], width)
        windows = [
            (top, left, tall, wide) for top in starts(height, tall, down) for left in starts(width, wide, across)
        ]
        if self.whole and len(windows) > 1:
            windows.append((0, 0, height, width))
        transform = evaluation_transform(model.preprocessing)
        predictions: list[Instances] = []
        for start in range(0, len(windows), self.at_once):
            group = windows[start : start + self.at_once]
            samples = [
                Sample(transform(image[..., top : top + h, left : left + w]), None, "", (h, w))
                for top, left, h, w in group
            ]
            answers = model.predict(to_device(collate(samples), image.device))
            predictions += [_moved(answer, window, size) for answer, window in zip(answers, group)]
        cut = torch.cat([_cut(part.boxes, window, size) for part, window in zip(predictions, windows)])
        scores = torch.cat([part.scores for part in predictions if part.scores is not None])
        objects = join(predictions)._replace(scores=scores)
        return take(objects, self._suppress(objects, cut))

    def _suppress(self, objects: Instances, cut: Tensor) -> Tensor:
        """(K,) int64: the answers that stay, scores falling. A loop over them: each takes away what it overlaps."""
        assert objects.scores is not None
        scores, boxes, classes = (values.cpu() for values in (objects.scores, objects.boxes, objects.classes))
        order = scores.argsort(descending=True, stable=True)[: self.most]
        order = order[cut.cpu()[order].int().argsort(stable=True)]
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        kept: list[int] = []
        while len(order):
            best, order = int(order[0]), order[1:]
            kept.append(best)
            low, high = boxes[order, :2].maximum(boxes[best, :2]), boxes[order, 2:].minimum(boxes[best, 2:])
            shared = (high - low).clamp(min=0).prod(1)
            area = areas[order].minimum(areas[best])
            if self.measure == "union":
                area = areas[order] + areas[best] - shared
            order = order[(classes[order] != classes[best]) | (shared < self.overlap * area)]
        index = torch.tensor(kept, dtype=torch.int64)
        return index[scores[index].argsort(descending=True, stable=True)].to(objects.boxes.device)


@dataclass(frozen=True)
class MultiView:
    """Several clips of a video and several crops of each, their scores averaged.

    Feichtenhofer et al., "SlowFast networks" (2019), section 4, take 10 clips and 3 crops; TimeSformer 1 and 3; ViViT 4
    and 3.
    """

    clips: int = 4
    """Begun evenly over the video."""
    crops: int = 3
    """1: the centre; more: spread evenly along the longer side."""
    at_once: int = 8
    """Views that go through the model together; changes no answer but by rounding."""

    def __call__(self, model: Model, batch: Batch) -> list[Target]:
        """One `Label` a video, with scores; a video's views stand one after the other in time, (B, V * T, C, H, W).

        Raises:
            UsageError: frames that are not those of so many views, a model that gives no scores of a whole clip.
        """
        number = self.clips * self.crops
        if batch.images.dim() != 5 or batch.images.shape[1] % number:
            raise UsageError(f"{self.clips} clips with {self.crops} crops are asked of other pictures than such views")
        views = batch.images.unflatten(1, (number, -1)).flatten(0, 1)  # (B * V, T, C, H, W)
        padding = None if batch.padding is None else batch.padding.repeat_interleave(number, 0)
        whole = Batch(views, (), ("",) * len(views), ((0, 0),) * len(views), padding)
        answers = [answer for part in split(whole, self.at_once) for answer in model.predict(part)]
        purpose = "views are for models that classify videos"
        scores = [expect(expect(answer, Label, purpose).scores, Tensor, purpose) for answer in answers]
        means = torch.stack(scores).unflatten(0, (-1, number)).mean(1)
        multiple = getattr(model.head, "labels", "single") == "multi"
        return [Label((row > 0.5).nonzero()[:, 0] if multiple else row.argmax()[None], row) for row in means]


def preparation(infer: Inference, preprocessing: Preprocessing) -> Preprocessing:
    """How pictures are prepared: as the model says, but not resized where `infer` cuts them."""
    return replace(preprocessing, resize="native") if isinstance(infer, SlicedObjects) else preprocessing


def views_of(infer: Inference) -> tuple[int, int]:
    """Of a video: how many clips, and crops of each, are prepared (`data.clips.looks`)."""
    return (infer.clips, infer.crops) if isinstance(infer, MultiView) else (1, 1)


def starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows that cover a length, the last one ending with it."""
    return [*range(0, length - window, stride), length - window]


def scores_of(answer: Target) -> Tensor:
    """The class probabilities (K, H, W) of a dense prediction."""
    purpose = "windows and scales are for models that give every pixel a class"
    return expect(expect(answer, Regions, purpose).scores, Tensor, purpose)


def _without_padding(batch: Batch, number: int) -> Tensor:
    """(C, H, W): one image of a batch."""
    image = batch.images[number]
    if batch.padding is None:
        return image
    real = ~batch.padding[number]
    return image[..., : int(real.any(1).sum()), : int(real.any(0).sum())]


def _moved(answer: Target, window: tuple[int, int, int, int], size: tuple[int, int]) -> Instances:
    """Objects of a window as objects of the picture. Raises UsageError for a model of another task."""
    objects = expect(answer, Instances, "slices are for models that find objects")
    top, left, _, _ = window
    shift = torch.tensor([left, top, left, top], device=objects.boxes.device)
    bitmaps = objects.masks
    if bitmaps is not None:
        bitmaps = bitmaps._replace(boxes=bitmaps.boxes + shift, size=size)
    return objects._replace(boxes=objects.boxes + shift, masks=bitmaps)


def _cut(boxes: Tensor, window: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """(N,) bool: boxes of the picture that reach the border of their window where the picture goes on."""
    top, left, height, width = window
    near = torch.stack([boxes[:, 0] - left, boxes[:, 1] - top, left + width - boxes[:, 2], top + height - boxes[:, 3]])
    inner = torch.tensor([left > 0, top > 0, left + width < size[1], top + height < size[0]], device=boxes.device)
    return ((near < NEAR) & inner[:, None]).any(0)


def _resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True).clamp(0, 1)
