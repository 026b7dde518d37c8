"""Ways to ask a model for the class of every pixel: of the whole picture, window by window, or at several scales.

Each is a callable (model, batch) -> predictions, one an image, in pixels of the image before resizing. `Model.predict`
is one: the whole picture at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from patchform.errors import UsageError
from patchform.model import Model
from patchform.records import Batch, Regions, Target

Ask: TypeAlias = Callable[[Model, Batch], list[Target]]


@dataclass(frozen=True)
class Sliding:
    """Window by window, the probabilities averaged where windows overlap.

    The last window of a row or column ends at the border, so every window lies inside the picture; a picture that one
    window covers is asked for as a whole. Windows go along the longer side and a pixel is decided as soon as no window
    will see it any more: what is held grows with the shorter side of a picture and with `window`, not with its length.
    Predictions have no scores.
    """

    window: tuple[int, int]
    """Height and width, pixels of the model's input."""
    stride: tuple[int, int]
    """From one window to the next; at most the window."""
    at_once: int = 4
    """Windows that go through the model together; changes no answer."""

    def __call__(self, model: Model, batch: Batch) -> list[Target]:
        """One `Regions` an image."""
        if not all(0 < step <= side for step, side in zip(self.stride, self.window)):
            raise UsageError(f"a stride of {self.stride} does not cover the picture with windows of {self.window}")
        found: list[Target] = []
        for number, size in enumerate(batch.sizes):
            image = batch.images[number]
            if batch.padding is not None:
                real = ~batch.padding[number]
                image = image[..., : int(real.any(1).sum()), : int(real.any(0).sum())]
            tall = image.shape[-2] >= image.shape[-1]
            classes = self._decided(model, image if tall else image.mT, turned=not tall)
            classes = classes if tall else classes.mT
            if classes.shape != size:
                classes = F.interpolate(classes[None, None].float(), size=size, mode="nearest-exact")[0, 0].long()
            found.append(Regions(classes))
        return found

    def _decided(self, model: Model, image: Tensor, *, turned: bool) -> Tensor:
        """(H, W) int64 of (C, H, W), no wider than tall; `turned`: it is the picture with its axes swapped."""
        (h, w), (down, across) = (pair[::-1] if turned else pair for pair in (self.window, self.stride))
        height, width = image.shape[-2:]
        h, w = min(h, height), min(w, width)
        decided = torch.empty(height, width, dtype=torch.int64, device=image.device)
        tops, lefts = starts(height, h, down), starts(width, w, across)
        total: Tensor | None = None  # (K, h, W): sums of probabilities of the rows that windows still see
        seen = torch.zeros(h, width, device=image.device)
        for number, top in enumerate(tops):
            for left, scores in self._windows(model, image[..., top : top + h, :], lefts, w, turned):
                if total is None:
                    total = scores.new_zeros(len(scores), h, width)
                total[:, :, left : left + w] += scores
                seen[:, left : left + w] += 1
            assert total is not None
            done = (tops[number + 1] if number + 1 < len(tops) else height) - top
            decided[top : top + done] = (total[:, :done] / seen[:done]).argmax(0)
            total, seen = (F.pad(x[..., done:, :], (0, 0, 0, done)) for x in (total, seen))
        return decided

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
class Scaled:
    """At several scales, mirrored too: the mean of the probabilities, in pixels of the image before resizing."""

    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    """Of the model's input; each is resized bilinearly."""
    mirrored: bool = True

    def __call__(self, model: Model, batch: Batch) -> list[Target]:
        """One `Regions` an image, with scores."""
        pixels = batch.images if batch.images.is_floating_point() else batch.images.float() / 255
        total: list[Tensor] | None = None
        for scale in self.scales:
            size = tuple(max(1, round(scale * side)) for side in pixels.shape[-2:])
            images, padding = _resized(pixels, size), batch.padding
            if padding is not None:
                padding = F.interpolate(padding[:, None].float(), size=size, mode="nearest-exact")[:, 0] > 0
            for mirror in (False, True)[: 1 + self.mirrored]:
                if mirror and padding is not None:  # padding is at the right: mirror each image by itself
                    images = _mirrored(images, padding)
                elif mirror:
                    images = images.flip(-1)
                answers = model.predict(batch._replace(images=images, padding=padding))
                scores = [scores_of(answer) for answer in answers]
                scores = [each.flip(-1) for each in scores] if mirror else scores
                total = scores if total is None else [a + b for a, b in zip(total, scores)]
        assert total is not None
        means = [each / (len(self.scales) * (1 + self.mirrored)) for each in total]
        return [Regions(each.argmax(0), each) for each in means]


def starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows that cover a length, the last one ending with it."""
    return [*range(0, length - window, stride), length - window]


def scores_of(answer: Target) -> Tensor:
    """The class probabilities (K, H, W) of a dense prediction."""
    scores = cast("Regions", answer).scores
    if scores is None or scores.dim() != 3:
        raise UsageError("windows and scales are for models that give every pixel a class")
    return scores


def _resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True).clamp(0, 1)


def _mirrored(images: Tensor, padding: Tensor) -> Tensor:
    """Each image mirrored inside its own width, which begins at the left."""
    mirrored = images.clone()
    for image, hidden, out in zip(images, padding, mirrored):
        width = int((~hidden).any(0).sum())
        out[..., :width] = image[..., :width].flip(-1)
    return mirrored
