"""Faster R-CNN: boxes in two steps (Ren, He, Girshick, Sun, NeurIPS 2015, arXiv:1506.01497).

    maps --neck--> levels --3x3 conv--> objectness and shifts of every anchor --the best--> regions
                     |                                                                         |
                     +----------- what lies in each region, 7x7 (RoIAlign) --------------------+--> class, shifts

The neck is the paper's to choose:

* "fpn": a feature pyramid (Lin et al., CVPR 2017, arXiv:1612.03144, section 4), one anchor size a level. Above a
  backbone of one stride stand the levels of `layers.pyramids.Levels`.
* "single": the last map behind a 1x1 convolution, with anchors of all sizes: the paper's own form, and on a plain ViT
  what ViT-FRCNN does (Beal et al. 2020, arXiv:2012.09958, section 3; without its residual blocks in between).
* "simple": the simple pyramid of ViTDet (Li et al., ECCV 2022, arXiv:2203.16527, section 3), made from the last map.

RoIAlign is of He et al. 2017. Numbers are torchvision's, but for means: a loss is a mean over a picture's samples, then
over pictures. Each picture draws its samples by itself, whichever are beside it. Regions and anchors inside a crowd are
no background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform import lookup
from patchform.errors import UsageError
from patchform.geometry import anchors, boxes, detections
from patchform.heads.base import Head, number_of
from patchform.layers.necks import NECKS
from patchform.layers.regions import MultiScaleRoIAlign, balanced_sample
from patchform.records import FeatureInfo, Features, Instances, Loss, Target

BETA = 1 / 9
"""Where the smooth L1 loss turns from a parabola to a line."""
SCALES = (10.0, 10.0, 5.0, 5.0)
"""Factors of the shifts of regions (the inverse of their usual spread)."""
SMALLEST = 1e-2
"""Side in pixels below which a box is none."""
O = TypeVar("O")  # noqa: E741


@dataclass(frozen=True, kw_only=True)
class RPNOptions:
    """How regions are proposed. Pairs: in training, in prediction."""

    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width of the anchors of each size."""
    spacing: Literal["stride", "input"] = "stride"
    """How far apart the anchors of neighbouring cells are, see `geometry.anchors.spacing`."""
    candidates: tuple[int, int] = (2000, 1000)
    """Best anchors of each level that compete."""
    kept: tuple[int, int] = (2000, 1000)
    """Regions of a picture that are left."""
    overlap: float = 0.7
    """IoU above which the worse of two regions of a level goes."""
    foreground: float = 0.7
    """IoU with an object from which on an anchor stands for it."""
    background: float = 0.3
    """IoU below which it stands for none."""
    samples: int = 256
    """Anchors of a picture that the loss sees."""
    share: float = 0.5
    """At most of them that stand for objects."""


@dataclass(frozen=True, kw_only=True)
class BoxOptions:
    """How regions are judged."""

    layers: Literal["two_fc", "conv_fc"] = "two_fc"
    """two_fc: two fully connected layers; conv_fc: four 3x3 convolutions and one (Wu and He 2018; ViTDet)."""
    width: int = 1024
    """Of the fully connected layers."""
    size: int = 7
    """Cells a side that a region is read as."""
    side: float = 224
    """Side in pixels of the regions that are read from the level of 16 pixels a cell (Lin et al., equation 1)."""
    aligned: bool = True
    """Whether regions are read where they are; torchvision's weights were trained on half a cell right and down."""
    foreground: float = 0.5
    """IoU with an object from which on a region stands for it; below it, it is background."""
    samples: int = 512
    """Regions of a picture that the loss sees."""
    share: float = 0.25
    """At most of them that stand for objects."""
    overlap: float = 0.5
    """IoU above which the worse of two predicted boxes of a class goes."""
    most: int = 100
    """Predictions of a picture."""


class Proposals(NamedTuple):
    """What is said of every anchor."""

    anchors: tuple[Tensor, ...]
    """Of each level, (A_l, 4) xyxy pixels of the input."""
    objectness: Tensor
    """(B, A) logits."""
    shifts: Tensor
    """(B, A, 4)."""


class Raw(NamedTuple):
    """What Faster R-CNN says."""

    levels: tuple[Tensor, ...]
    """Of the neck, fine to coarse."""
    proposals: Proposals
    size: tuple[int, int]
    """Height and width of the input, pixels."""
    real: Tensor
    """(B, 2) height and width of the picture in the input, pixels."""
    regions: tuple[Tensor, ...]
    """Of each image, (K_i, 4) xyxy pixels of the input."""
    objects: tuple[Tensor, ...]
    """(K_i,) the object that each region stands for, or background; those with an object first. Empty in prediction."""
    logits: Tensor
    """(sum K_i, 1 + classes); background first."""
    shifts: Tensor
    """(sum K_i, 1 + classes, 4); those of the background mean nothing."""
    seeds: Sequence[int] = ()
    """Of each image, for what it draws. Empty in prediction."""
    masks: Tensor | None = None
    """Of Mask R-CNN in training: (M, 1 + classes, size, size) logits of regions that stand for objects."""


class RCNNOptions(TypedDict, total=False):
    """What is asked for, with masks or without: see `FasterRCNN`."""

    neck: Literal["fpn", "single", "simple"]
    norm: Literal["layer", "none"]
    anchor_sizes: Sequence[float] | None
    score_threshold: float
    proposals: Mapping[str, Any] | None
    boxes: Mapping[str, Any] | None


class FasterRCNN(Head):
    """Proposes regions, then judges them.

    Args:
        features: of the backbone.
        classes: number of classes.
        neck: "fpn", "single" or "simple", see above.
        channels_inside: of the levels, and of all convolutions.
        norm: "layer" normalises the cells of each map first; "none" takes them as they are.
        anchor_sizes: square roots of the areas of anchors, pixels: one a level, fine to coarse, or all on the single
            one. Default: 8 cells of each level; 32, 64, 128, 256, 512 on the single one.
        score_threshold: predictions below it are not given.
        proposals: options of `RPNOptions`, by name.
        boxes: options of `BoxOptions`, by name.

    Raises:
        UsageError: an option out of its range or unknown.
    """

    tasks = ("detection",)
    losses: ClassVar[tuple[str, ...]] = ("objectness", "proposal", "classification", "box")

    def __init__(
        self,
        features: FeatureInfo,
        *,
        classes: int,
        neck: Literal["fpn", "single", "simple"] = "fpn",
        channels_inside: int = 256,
        norm: Literal["layer", "none"] = "none",
        anchor_sizes: Sequence[float] | None = None,
        score_threshold: float = 0.05,
        proposals: Mapping[str, Any] | None = None,
        boxes: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if neck not in NECKS:
            raise lookup.no_such("neck", neck, NECKS)
        if norm not in ("layer", "none"):
            raise UsageError(f'norm is "{norm}"', remedy='it is "layer" or "none"')
        if not 0 <= score_threshold < 1:
            raise UsageError(f"score_threshold is {score_threshold}", remedy="it lies in [0, 1)")
        self.classes, self.score_threshold = classes, score_threshold
        self.box_options = read_options(BoxOptions, boxes, "boxes")
        self.neck = NECKS[neck](features.channels, features.strides, channels_inside, norm)
        proposing = read_options(RPNOptions, proposals, "proposals")
        self.rpn = RPN(channels_inside, self.neck.strides, anchor_sizes, proposing)
        self.read = self.reader(self.box_options.size)
        self.box_head = BoxHead(channels_inside, classes, self.box_options)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> Raw:
        """All proposals and what is said of the regions: with targets of a sample, without them of the best."""
        levels = self.neck(features.maps)
        real = detections.picture_sizes(features)
        proposals = self.rpn(levels, features.size)
        regions = self.rpn.best(proposals, real, training=targets is not None)
        objects: tuple[Tensor, ...] = ()
        seeds: list[int] = []
        if targets is not None:
            seeds = torch.randint(2**62, (len(targets),)).tolist()
            regions, objects = self._sampled(regions, cast("Sequence[Instances]", targets), seeds)
        cells, rows = self.read(levels, regions, features.size)
        logits, shifts = (said[rows] for said in self.box_head(cells))
        return Raw(tuple(levels), proposals, features.size, real, regions, objects, logits, shifts, seeds)

    def reader(self, size: int) -> MultiScaleRoIAlign:
        """Reads regions as `size` x `size` cells."""
        strides = self.neck.strides[: self.neck.read]
        return MultiScaleRoIAlign(strides, size, side=self.box_options.side, aligned=self.box_options.aligned)

    def _sampled(
        self, regions: Sequence[Tensor], targets: Sequence[Instances], seeds: Sequence[int]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Of each image the regions that the loss sees, and the object of each. The objects' own boxes are regions."""
        chosen, objects = [], []
        for candidates, target, seed in zip(regions, targets, seeds):
            own = target.boxes if target.crowd is None else target.boxes[~target.crowd]
            candidates = torch.cat([candidates, own.to(candidates)])
            found = anchors.match(
                candidates, target, self.box_options.foreground, self.box_options.foreground, rescue=False
            )
            rows = balanced_sample(found, self.box_options.samples, self.box_options.share, seed)
            chosen.append(candidates[rows])
            objects.append(found[rows])
        return tuple(chosen), tuple(objects)

    def loss(self, raw: Raw, targets: Sequence[Target]) -> dict[str, Loss]:
        """Over images: objectness, proposal (shifts of anchors), classification and box (shifts of regions)."""
        count = number_of(targets)
        return {name: Loss(total, count) for name, total in self.sums(raw, targets).items()}

    def counts(self, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Of each the number of images."""
        return dict.fromkeys(self.losses, number_of(targets))

    def sums(self, raw: Raw, targets: Sequence[Target]) -> dict[str, Tensor]:
        """() by name of loss."""
        truth = cast("Sequence[Instances]", targets)
        found = self.rpn.loss(raw.proposals, truth, raw.seeds)
        labels, wanted = [], []
        for region, number, target in zip(raw.regions, raw.objects, truth):
            first = int((number >= 0).sum())
            classes = target.classes.new_zeros(len(number))
            classes[:first] = target.classes[number[:first]] + 1
            labels.append(classes)
            wanted.append(boxes.encode(target.boxes[number[:first]].float(), region[:first], SCALES))
        label = torch.cat(labels)
        weight = shares([len(region) for region in raw.regions], raw.logits)
        entropy = F.cross_entropy(raw.logits.float(), label, reduction="none")
        rows = label.nonzero()[:, 0]
        off = F.smooth_l1_loss(raw.shifts[rows, label[rows]].float(), torch.cat(wanted), beta=BETA, reduction="none")
        return {**found, "classification": (entropy * weight).sum(), "box": (off.sum(1) * weight[rows]).sum()}

    def decode(self, raw: Raw, sizes: Sequence[tuple[int, int]]) -> list[Target]:
        """One `Instances` an image: the best boxes that do not overlap, at most `boxes.most`."""
        return [
            found._replace(boxes=detections.to_pictures(found.boxes, real, size))
            for found, real, size in zip(self.best(raw), raw.real, sizes)
        ]

    def best(self, raw: Raw) -> list[Instances]:
        """What is predicted, in pixels of the input."""
        counts, predicted = [len(region) for region in raw.regions], []
        parts = zip(raw.regions, raw.logits.float().softmax(1).split(counts), raw.shifts.split(counts), raw.real)
        for region, scores, shifts, real in parts:
            row, label = (scores[:, 1:] > self.score_threshold).nonzero(as_tuple=True)
            score = scores[row, label + 1]
            found = detections.clip(boxes.decode(shifts[row, label + 1].float(), region[row], SCALES), real)
            large = ((found[:, 2:] - found[:, :2]) >= SMALLEST).all(1)
            found, label, score = found[large], label[large], score[large]
            kept = detections.nms(found, score, label, overlap=self.box_options.overlap, most=self.box_options.most)
            predicted.append(Instances(found[kept], label[kept], score[kept]))
        return predicted


class RPN(nn.Module):
    """The region proposal network (section 3.1): an objectness and four shifts for every anchor.

    Args:
        channels: of the levels.
        strides: of the levels.
        sizes: of the anchors, see `FasterRCNN`.
        options: the rest.
    """

    def __init__(
        self, channels: int, strides: Sequence[float], sizes: Sequence[float] | None, options: RPNOptions
    ) -> None:
        super().__init__()
        sizes = sizes or ([8 * stride for stride in strides] if len(strides) > 1 else (32, 64, 128, 256, 512))
        each = [[size] for size in sizes] if len(strides) > 1 else [list(sizes)]
        if len(each) != len(strides):
            raise UsageError(f"{len(each)} anchor_sizes for {len(strides)} levels", remedy="give one a level")
        if options.spacing not in ("stride", "input"):
            raise UsageError(f'spacing is "{options.spacing}"', remedy='it is "stride" or "input"')
        self.strides, self.options = tuple(strides), options
        self.forms = [anchors.cell_anchors(size, options.ratios) for size in each]
        number = len(self.forms[0])
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness, self.shifts = nn.Conv2d(channels, number, 1), nn.Conv2d(channels, 4 * number, 1)
        for conv in (self.conv, self.objectness, self.shifts):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(cast(Tensor, conv.bias))

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Proposals:
        """Of levels (B, C, H_l, W_l) of an input of `size` (height, width) pixels."""
        objectness, shifts, placed = [], [], []
        for x, stride, forms in zip(levels, self.strides, self.forms, strict=True):
            inside = F.relu(self.conv(x))
            objectness.append(self.objectness(inside).permute(0, 2, 3, 1).flatten(1))
            shifts.append(self.shifts(inside).permute(0, 2, 3, 1).reshape(len(x), -1, 4))
            grid = (x.shape[2], x.shape[3])
            apart = anchors.spacing(size, grid, stride, self.options.spacing)
            placed.append(anchors.grid_anchors(forms.to(x.device), grid, apart))
        return Proposals(tuple(placed), torch.cat(objectness, 1).float(), torch.cat(shifts, 1).float())

    @torch.no_grad()
    def best(self, proposals: Proposals, real: Tensor, *, training: bool) -> tuple[Tensor, ...]:
        """Of each image the (K_i, 4) regions that are left, inside the picture."""
        most, kept = (pair[0 if training else 1] for pair in (self.options.candidates, self.options.kept))
        counts = [len(each) for each in proposals.anchors]
        scores, regions, levels = [], [], []
        parts = zip(proposals.anchors, proposals.objectness.split(counts, 1), proposals.shifts.split(counts, 1))
        for number, (placed, objectness, shifts) in enumerate(parts):
            score, rows = objectness.topk(min(most, len(placed)), 1)
            scores.append(score)
            regions.append(boxes.decode(shifts.gather(1, rows[..., None].expand(-1, -1, 4)), placed[rows]))
            levels.append(torch.full_like(rows, number))
        found = []
        for score, region, level, size in zip(torch.cat(scores, 1), torch.cat(regions, 1), torch.cat(levels, 1), real):
            region = detections.clip(region, size)
            large = ((region[:, 2:] - region[:, :2]) >= SMALLEST / 10).all(1)
            region, score, level = region[large], score[large], level[large]
            found.append(region[detections.nms(region, score, level, overlap=self.options.overlap, most=kept)])
        return tuple(found)

    def loss(self, proposals: Proposals, targets: Sequence[Instances], seeds: Sequence[int]) -> dict[str, Tensor]:
        """Sums over images, each of a sample of the anchors."""
        placed, options = torch.cat(proposals.anchors), self.options
        rows, labels, firsts, wanted = [], [], [], []
        for number, (target, seed) in enumerate(zip(targets, seeds)):
            found = anchors.match(placed, target, options.foreground, options.background, rescue=True)
            row = balanced_sample(found, options.samples, options.share, seed + 1)
            labels.append(found[row] >= 0)
            first = row[: int(labels[-1].sum())]
            rows.append(row + number * len(placed))
            firsts.append(first + number * len(placed))
            wanted.append(boxes.encode(target.boxes[found[first]].float(), placed[first]))
        row, label = torch.cat(rows), torch.cat(labels)
        weight = shares([len(each) for each in rows], proposals.objectness)
        said = proposals.objectness.flatten()[row]
        objectness = F.binary_cross_entropy_with_logits(said, label.float(), weight=weight, reduction="sum")
        moved = proposals.shifts.flatten(0, 1)[torch.cat(firsts)]
        off = F.smooth_l1_loss(moved, torch.cat(wanted), beta=BETA, reduction="none")
        return {"objectness": objectness, "proposal": (off.sum(1) * weight[label]).sum()}


class BoxHead(nn.Module):
    """(K, C, size, size) -> class logits (K, 1 + classes) and shifts (K, 1 + classes, 4)."""

    def __init__(self, channels: int, classes: int, options: BoxOptions) -> None:
        super().__init__()
        if options.layers not in ("two_fc", "conv_fc"):
            raise UsageError(f'layers is "{options.layers}"', remedy='it is "two_fc" or "conv_fc"')
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4 * (options.layers == "conv_fc"))
        )
        inputs = [channels * options.size**2, options.width][: 2 - bool(self.convs)]
        self.layers = nn.ModuleList(nn.Linear(before, options.width) for before in inputs)
        self.classify = nn.Linear(options.width, 1 + classes)
        self.shift = nn.Linear(options.width, 4 * (1 + classes))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.zeros_(cast(Tensor, layer.bias))
        nn.init.normal_(self.classify.weight, std=0.01)  # Girshick 2015, Fast R-CNN, section 2.3
        nn.init.normal_(self.shift.weight, std=0.001)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(K, channels, side, side) -> (K, classes + 1) logits, (K, classes, 4) deltas."""
        for conv in self.convs:
            x = F.relu(conv(x))
        x = x.flatten(1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.classify(x), self.shift(x).unflatten(1, (-1, 4))


def read_options(kind: type[O], given: Mapping[str, Any] | None, name: str) -> O:
    """The record `kind` with what is given by name; the rest as it is. Raises UsageError for an unknown name."""
    lookup.check_options(kind, given or {}, of=name)
    return kind(**(given or {}))


def shares(counts: Sequence[int], like: Tensor) -> Tensor:
    """(sum of counts,) float32: weights that make a sum one of means over the samples of a picture."""
    each = [1 / max(1, count) for count in counts]
    return torch.cat([torch.full((count,), weight, device=like.device) for count, weight in zip(counts, each)])
