"""The contract of a head: `Features` in, raw numbers out, which it can turn into losses and into predictions."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence, Sized
from typing import Any, ClassVar, NamedTuple, TypedDict, Unpack, cast

import torch
from torch import Tensor, nn

from patchform.errors import DataError, UsageError
from patchform.geometry.grids import bilinear
from patchform.geometry.maps import Mode, over_pixels, reach, to_size
from patchform.layers.convolutions import CellNorm
from patchform.layers.pixel_losses import PixelLosses
from patchform.outputs import EmbeddingOutputs, Outputs, RegionOutputs
from patchform.records import LEAST, FeatureInfo, Features, Loss, Regions, Target


class Head(nn.Module):
    """The numbers of a task. `forward`, `loss` and `decode` of one head live in one file.

    The constructor takes the `FeatureInfo` of the backbone, then, keyword-only, the number of `classes` and its own
    options. `Raw` is whatever NamedTuple (or tensor) suits the head; nothing outside the head reads it.
    """

    tasks: ClassVar[tuple[str, ...]]
    """Names of the tasks whose targets this head learns from and predicts."""
    reads_maps_alone: ClassVar[bool] = False
    """Whether it looks at nothing of the features but their maps."""

    @abstractmethod
    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> Any:
        """Compute the raw output. `targets` only for heads that need them on the way (proposals, denoising)."""

    @abstractmethod
    def loss(self, raw: Any, targets: Sequence[Target]) -> dict[str, Loss]:
        """Losses by name; the sum of their means is minimised."""

    @abstractmethod
    def decode(self, raw: Any, sizes: Sequence[tuple[int, int]]) -> list[Target]:
        """Predictions, one an image, in pixels of `sizes` (height, width)."""

    def to_outputs(self, raw: Any, sizes: Tensor) -> Outputs:
        """The predictions of a batch as tensors, all of whose shapes follow from those that went in: what an exported
        file gives. `decode` is made of the same.

        Args:
            raw: of images without padding.
            sizes: (B, 2) int64, height and width of each picture in pixels, before it was resized to the input. A head
                whose predictions have that size (`Regions`) takes pictures of one size: that of the first.
        """
        raise NotImplementedError

    def counts(self, targets: Sequence[Target]) -> dict[str, Tensor]:
        """() float32 by name of loss: the counts of `loss`. The targets alone tell them, so that a part of a batch is
        divided by the count of the whole batch before the other parts are computed. Here: one loss, over images.
        """
        return {"loss": number_of(targets)}


NO_HEAD = "none"
"""What a model's head is called that is a backbone by itself."""


class NoHead(Head):
    """No head: a backbone by itself. It gives the summary as it is, and learns nothing."""

    tasks: ClassVar[tuple[str, ...]] = ("pretraining",)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> Tensor:
        """(B, D): the summary. Raises UsageError when there is none."""
        if features.summary is None:
            raise UsageError("a backbone without a head gives its summary, and this one has none")
        return features.summary

    def decode(self, raw: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Target]:
        """One `Embedding` an image."""
        return list(self.to_outputs(raw).predictions())

    def to_outputs(self, raw: Tensor, sizes: Tensor | None = None) -> EmbeddingOutputs:
        """The summaries."""
        return EmbeddingOutputs(raw.float())

    def loss(self, raw: Tensor, targets: Sequence[Target]) -> dict[str, Loss]:
        """Raises UsageError."""
        raise UsageError("a backbone without a head learns nothing", remedy="name a head, or a method of pre-training")


def number_of(items: Sized) -> Tensor:
    """() float32."""
    return torch.tensor(float(len(items)))


def map_norms(norm: str, channels: Sequence[int], *, eps: float = 1e-6) -> nn.ModuleList:
    """A norm in front of each map: "layer" or "none". Raises UsageError for any other."""
    if norm not in ("layer", "none"):
        raise UsageError(f'norm is "{norm}"', remedy='it is "layer" or "none"')
    return nn.ModuleList(CellNorm(width, eps=eps) if norm == "layer" else nn.Identity() for width in channels)


class Cells(NamedTuple):
    """Logits of the cells of a map."""

    logits: Tensor
    """(B, classes, h, w)."""
    covered: tuple[int, int]
    """(H', W') pixels of the input that the cells lie over; the last ones may reach beyond it."""

    def enlarged(self, size: tuple[int, int], mode: Mode = "bilinear") -> Tensor:
        """(B, classes, *size) float32: each cell over its own pixels, resized, what lies beyond the input cut off.

        Where the cells are of whole pixels and end with the input, it is the plain resize.
        """
        return over_pixels(self.logits, self.covered, size, mode)

    def sampled(self, size: tuple[int, int], rows: Tensor, columns: Tensor) -> Tensor:
        """(B, classes, rows, columns) float32: of `enlarged`, bilinear, these rows and columns of pixels alone.

        Two products with matrices: in training a fraction of the time that resizing takes, and deterministic on a GPU.
        """
        height, width = reach(self.covered, size)
        down = bilinear(rows, height, self.logits.shape[-2])
        across = bilinear(columns, width, self.logits.shape[-1])
        with torch.autocast(self.logits.device.type, enabled=False):
            return down @ self.logits.float().contiguous() @ across.t()


class DenseRaw(NamedTuple):
    """The output of a dense head."""

    cells: Cells
    auxiliary: tuple[Cells, ...]
    """Of decoders that only help in training."""
    padding: Tensor | None
    """(B, *size) bool, True on padding."""
    size: tuple[int, int]
    """(H, W) of the input, pixels."""


class LossOptions(TypedDict, total=False):
    """The losses of every dense head."""

    losses: Mapping[str, float] | None
    """Factor of each loss by name (`layers.pixel_losses`: cross_entropy, focal, ohem, dice); cross_entropy alone."""
    class_weights: Sequence[float] | None
    """One positive number a class; None weighs all alike."""
    smoothing: float
    """Share of the target that is spread evenly over the classes, in [0, 1); 0."""


class PixelOptions(LossOptions, total=False):
    """How every dense head learns from pixels."""

    pixel_stride: int
    """In training only every so-manyth row and column of pixels is learnt from, beginning anywhere: the same loss from
    fewer pixels, drawn anew each time. 1 takes all."""


class DenseHead(Head):
    """A class for every pixel. A head of this kind has a `forward` that ends with `raw`; all the rest is here.

    Args:
        features: of the backbone.
        classes: number of classes, at most 255.
        auxiliary_weight: factor of the losses of each auxiliary decoder.
        pixel_stride: see `PixelOptions`.
        losses: see `LossOptions`.

    Raises:
        UsageError: an option out of its range.
    """

    tasks: ClassVar[tuple[str, ...]] = ("semantic_segmentation",)
    reads_maps_alone: ClassVar[bool] = True

    def __init__(
        self,
        features: FeatureInfo,
        *,
        classes: int,
        auxiliary_weight: float = 0.0,
        pixel_stride: int = 1,
        **losses: Unpack[LossOptions],
    ) -> None:
        super().__init__()
        if auxiliary_weight < 0:
            raise UsageError(f"auxiliary_weight is {auxiliary_weight}", remedy="it is 0 or more")
        self.strides, self.auxiliary_weight = features.strides, auxiliary_weight
        self.pixel_stride = pixel_stride
        self.losses = PixelLosses(classes, **losses)

    @abstractmethod
    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> DenseRaw:
        """Logits of cells; auxiliary ones only in training."""

    def covered(self, features: Features, number: int) -> tuple[int, int]:
        """Height and width in pixels of what the cells of a map lie over."""
        height, width = features.maps[number].shape[-2:]
        return height * self.strides[number], width * self.strides[number]

    def raw(self, features: Features, cells: Cells, auxiliary: Sequence[Cells] = ()) -> DenseRaw:
        """What `forward` gives. Padding of cells stands in for that of pixels where nobody knows it."""
        padding = features.pixel_padding
        if padding is None and features.padding is not None:
            rows, columns = features.padding.shape[1:]
            whole = rows * self.strides[-1], columns * self.strides[-1]
            padding = Cells(features.padding[:, None], whole).enlarged(features.size, "nearest")[:, 0] > 0
        return DenseRaw(cells, tuple(auxiliary), padding, features.size)

    def loss(self, raw: DenseRaw, targets: Sequence[Target]) -> dict[str, Loss]:
        """The losses by name, over pixels, and "auxiliary" if there are such decoders; 0 if all pixels are ignored.

        Raises:
            DataError: a mask that is not of the size of the images that went in.
        """
        regions = cast("Sequence[Regions]", targets)
        for region in regions:
            if region.classes.shape != raw.size:
                raise DataError(f"a mask of {tuple(region.classes.shape)} pixels for an input of {tuple(raw.size)}")
        device = raw.cells.logits.device
        rows, columns = (self._sampled(side).to(device) for side in raw.size)
        classes = torch.stack([region.classes for region in regions]).to(device)
        classes = classes[:, rows[:, None], columns].long()
        losses = self.losses(raw.cells.sampled(raw.size, rows, columns), classes)
        (sampled, *_) = (loss.count for loss in losses.values())
        sums = {name: loss.sum for name, loss in losses.items()}
        if raw.auxiliary:
            auxiliary = [self.losses(cells.sampled(raw.size, rows, columns), classes) for cells in raw.auxiliary]
            total = torch.stack([loss.sum for losses in auxiliary for loss in losses.values()]).sum()
            sums["auxiliary"] = self.auxiliary_weight * total
        # the sampled pixels speak for all: which they are is drawn, the count must be known before
        count = sampled if len(rows) * len(columns) == math.prod(raw.size) else self._count(targets)
        return {name: Loss(total * (count / sampled.clamp(min=LEAST)), count) for name, total in sums.items()}

    def _sampled(self, side: int) -> Tensor:
        """Rows, or columns, of pixels that are learnt from."""
        step = min(self.pixel_stride, side) if self.training else 1
        start = int(torch.randint(step, ())) if step > 1 else 0
        return torch.arange(start, side, step)

    def counts(self, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Of each loss the number of pixels that are not ignored; with class weights the sum of theirs."""
        return dict.fromkeys((*self.losses.losses, "auxiliary"), self._count(targets))

    def _count(self, targets: Sequence[Target]) -> Tensor:
        masks = [region.classes.to(self.losses.class_weights.device) for region in cast("Sequence[Regions]", targets)]
        return torch.stack([self.losses.weigh(mask.long()).sum() for mask in masks]).sum()

    def decode(self, raw: DenseRaw, sizes: Sequence[tuple[int, int]]) -> list[Target]:
        """One `Regions` an image, of its size: the input without its padding, stretched over it."""
        predictions: list[Target] = []
        for number, size in enumerate(sizes):
            logits = Cells(raw.cells.logits[number, None], raw.cells.covered).enlarged(raw.size)
            if raw.padding is not None:
                picture = ~raw.padding[number]
                logits = logits[:, :, : max(1, int(picture.any(1).sum())), : max(1, int(picture.any(0).sum()))]
            predictions.extend(_classified(logits, size).predictions())
        return predictions

    def to_outputs(self, raw: DenseRaw, sizes: Tensor) -> RegionOutputs:
        """Classes and scores of pixels, at the size of the first picture."""
        return _classified(raw.cells.enlarged(raw.size), _first(sizes))


def _classified(logits: Tensor, size: tuple[int, int]) -> RegionOutputs:
    """Logits (B, classes, H, W) of pictures' pixels, stretched over (height, width), as predictions."""
    scores = to_size(logits, size).softmax(1)
    return RegionOutputs(scores.argmax(1).to(torch.uint8), scores)


def _first(sizes: Tensor) -> tuple[int, int]:
    """The first (height, width) of (B, 2) int64, as numbers; in a graph they are symbols."""
    height, width = (cast("int", side.item()) for side in sizes[0])
    torch._check(height > 0)
    torch._check(width > 0)
    return height, width
