"""Faster R-CNN: boxes in two steps (Ren, He, Girshick, Sun, NeurIPS 2015, arXiv:1506.01497).

    maps --neck--> levels --3x3 conv--> objectness and deltas of every anchor --the best--> proposals
                     |                                                                         |
                     +----------- what lies in each proposal, 7x7 (RoIAlign) ------------------+--> class, deltas

The neck is the paper's to choose:

* "fpn": a feature pyramid (Lin et al., CVPR 2017, arXiv:1612.03144, section 4), one anchor size a level. Above a
  backbone of one stride stand the levels of `layers.pyramids.Levels`.
* "single": the last map behind a 1x1 convolution, with anchors of all sizes: the paper's own form, and on a plain ViT
  what ViT-FRCNN does (Beal et al. 2020, arXiv:2012.09958, section 3; without its residual blocks in between).
* "simple": the simple pyramid of ViTDet (Li et al., ECCV 2022, arXiv:2203.16527, section 3), made from the last map.

RoIAlign is of He et al. 2017. Numbers are torchvision's, but for means: a loss is a mean over a picture's samples, then
over pictures. Each picture draws its samples by itself. Proposals and anchors inside a crowd are no background.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypedDict, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from patchform import lookup
from patchform.errors import UsageError
from patchform.geometry import anchors, boxes, detections
from patchform.heads.base import Head, number_of
from patchform.layers.necks import NECKS
from patchform.layers.regions import MultiScaleRoIAlign, balanced_sample, put_back
from patchform.outputs import ObjectOutputs, Outputs
from patchform.records import FeatureInfo, Features, Instances, Loss, Target
from patchform.schema import Range

BETA = 1 / 9
"""Where the smooth L1 loss turns from a parabola to a line."""
SCALES = (10.0, 10.0, 5.0, 5.0)
"""Factors of the deltas of proposals (the inverse of their usual spread)."""
SMALLEST = 1e-2
"""Side in pixels below which a box is none."""
PYRAMID = (4, 8, 16, 32, 64)
"""Pixels a cell of the usual levels, whose anchors a single level has all."""
O = TypeVar("O")  # noqa: E741


@dataclass(frozen=True, kw_only=True)
class RPNOptions:
    """How proposals are made. Pairs: in training, in prediction."""

    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width of the anchors of each size."""
    cells: Annotated[float, Range(above=0, most=1000)] = 8.0
    """Side of an anchor in cells of its level, where `anchor_sizes` does not say it."""
    spacing: Literal["stride", "input"] = "stride"
    """How far apart the anchors of neighbouring cells are, see `geometry.anchors.spacing`."""
    candidates: tuple[int, int] = (2000, 1000)
    """Best anchors of each level that compete."""
    kept: tuple[int, int] = (2000, 1000)
    """Proposals of a picture."""
    overlap: float = 0.7
    """IoU above which the worse of two proposals of a level goes."""
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
    """How proposals are classified and refined."""

    layers: Literal["two_fc", "conv_fc"] = "two_fc"
    """two_fc: two fully connected layers; conv_fc: four 3x3 convolutions and one (Wu and He 2018; ViTDet)."""
    width: int = 1024
    """Of the fully connected layers."""
    size: int = 7
    """Cells a side that a proposal is pooled to."""
    side: float = 224
    """Side in pixels of the proposals that are pooled from the level of 16 pixels a cell (Lin et al., equation 1)."""
    aligned: bool = True
    """Whether proposals are pooled where they are; torchvision's weights were trained on half a cell right and down."""
    foreground: float = 0.5
    """IoU with an object from which on a proposal stands for it; below it, it is background."""
    samples: int = 512
    """Proposals of a picture that the loss sees."""
    share: float = 0.25
    """At most of them that stand for objects."""
    overlap: float = 0.5
    """IoU above which the worse of two predicted boxes of a class goes."""
    most: int = 100
    """Predictions of a picture."""


class RPNOutput(NamedTuple):
    """Objectness and deltas of all anchors, A of them."""

    anchors: tuple[Tensor, ...]
    """Of each level, (A_l, 4) xyxy pixels of the input."""
    objectness: Tensor
    """(B, A) logits."""
    deltas: Tensor
    """(B, A, 4)."""


class Raw(NamedTuple):
    """The output of Faster R-CNN."""

    levels: tuple[Tensor, ...]
    """Of the neck, fine to coarse."""
    rpn: RPNOutput
    size: tuple[int, int]
    """Height and width of the input, pixels."""
    pictures: Tensor
    """(B, 2) height and width of the picture in the input, pixels."""
    proposals: Tensor
    """(B, P, 4) xyxy pixels of the input: those of an image, then zeros."""
    real: Tensor
    """(B, P) bool: which of them are proposals."""
    matches: Tensor | None
    """(B, P) the object of each proposal, or background; those with an object first. None in prediction."""
    logits: Tensor
    """(B, P, 1 + classes); background first."""
    deltas: Tensor
    """(B, P, 1 + classes, 4); those of the background mean nothing."""
    seeds: Sequence[int] = ()
    """Of each image, for what it draws. Empty in prediction."""
    masks: Tensor | None = None
    """Of Mask R-CNN in training: (M, 1 + classes, size, size) logits of proposals that stand for objects."""


class RCNNOptions(TypedDict, total=False):
    """Options of R-CNN with masks and without, see `FasterRCNN`."""

    neck: Literal["fpn", "single", "simple"]
    norm: Literal["layer", "none"]
    anchor_sizes: Sequence[float] | None
    score_threshold: float
    proposals: Mapping[str, Any] | None
    boxes: Mapping[str, Any] | None


class FasterRCNN(Head):
    """Makes proposals, then classifies and refines them.

    Args:
        features: of the backbone.
        classes: number of classes.
        neck: "fpn", "single" or "simple", see above.
        channels_inside: of the levels, and of all convolutions.
        norm: "layer" normalises the cells of each map first; "none" takes them as they are.
        anchor_sizes: square roots of the areas of anchors, pixels: one a level, fine to coarse, or all on the single
            one. Default: `cells` (8) of each level; on the single one as on levels of 4 to 64 pixels a cell.
        score_threshold: predictions below it are not given.
        proposals: options of `RPNOptions`, by name.
        boxes: options of `BoxOptions`, by name.

    Raises:
        UsageError: an option out of its range or unknown.
    """

    tasks = ("detection",)
    reads_maps_alone = True
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
        rpn_options = read_options(RPNOptions, proposals, "proposals")
        self.rpn = RPN(channels_inside, self.neck.strides, anchor_sizes, rpn_options)
        self.pool = self.roi_align(self.box_options.size)
        self.box_head = BoxHead(channels_inside, classes, self.box_options)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> Raw:
        """All anchors, and classes and deltas of proposals: with targets of a sample, without them of the best."""
        levels = self.neck(features.maps)
        pictures = detections.picture_sizes(features)
        rpn = self.rpn(levels, features.size)
        proposals, real = self.rpn.propose(rpn, pictures, training=targets is not None)
        matches: Tensor | None = None
        seeds: list[int] = []
        if targets is not None:
            seeds = torch.randint(2**62, (len(targets),)).tolist()
            each = [boxes[own] for boxes, own in zip(proposals, real)]
            proposals, matches = self._sample(each, cast("Sequence[Instances]", targets), seeds)
            real = matches != anchors.NEITHER
        cells, places = self.pool(levels, proposals, real, features.size)
        shape = (real.shape[0], real.shape[1])
        logits, deltas = (put_back(x, places, shape) for x in self.box_head(cells))
        return Raw(tuple(levels), rpn, features.size, pictures, proposals, real, matches, logits, deltas, seeds)

    def roi_align(self, size: int) -> MultiScaleRoIAlign:
        """Pools proposals to `size` x `size` cells."""
        strides = self.neck.strides[: self.neck.read]
        return MultiScaleRoIAlign(strides, size, side=self.box_options.side, aligned=self.box_options.aligned)

    def _sample(
        self, proposals: Sequence[Tensor], targets: Sequence[Instances], seeds: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Proposals that the loss sees and their matches, padded by zeros and NEITHER, which no proposal is that is
        drawn. The objects' own boxes are proposals.
        """
        options, sampled, matches = self.box_options, [], []
        for candidates, target, seed in zip(proposals, targets, seeds):
            own = target.boxes if target.crowd is None else target.boxes[~target.crowd]
            candidates = torch.cat([candidates, own.to(candidates)])
            match = anchors.match(candidates, target, options.foreground, options.foreground, rescue=False)
            index = balanced_sample(match, options.samples, options.share, seed)
            sampled.append(candidates[index])
            matches.append(match[index])
        return pad_sequence(sampled, True), pad_sequence(matches, True, padding_value=anchors.NEITHER)

    def loss(self, raw: Raw, targets: Sequence[Target]) -> dict[str, Loss]:
        """Over images: objectness, proposal (deltas of anchors), classification and box (deltas of proposals)."""
        count = number_of(targets)
        return {name: Loss(total, count) for name, total in self.sums(raw, targets).items()}

    def counts(self, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Of each the number of images."""
        return dict.fromkeys(self.losses, number_of(targets))

    def sums(self, raw: Raw, targets: Sequence[Target]) -> dict[str, Tensor]:
        """() by name of loss."""
        instances = cast("Sequence[Instances]", targets)
        rpn_losses = self.rpn.loss(raw.rpn, instances, raw.seeds)
        assert raw.matches is not None
        image, place = (raw.matches >= 0).nonzero(as_tuple=True)
        each = list(zip(instances, raw.matches))
        label = torch.zeros_like(raw.matches)
        label[image, place] = torch.cat([target.classes[match[match >= 0]] for target, match in each]) + 1
        objects = torch.cat([target.boxes[match[match >= 0]] for target, match in each]).float()
        weight = raw.real / raw.real.sum(1, keepdim=True).clamp(min=1)
        entropy = F.cross_entropy(raw.logits.float().flatten(0, 1), label.flatten(), reduction="none")
        deltas = raw.deltas[image, place, label[image, place]].float()
        wanted = boxes.encode(objects, raw.proposals[image, place], SCALES)
        smooth_l1 = F.smooth_l1_loss(deltas, wanted, beta=BETA, reduction="none").sum(1)
        box = (smooth_l1 * weight[image, place]).sum()
        return {**rpn_losses, "classification": (entropy * weight.flatten()).sum(), "box": box}

    def decode(self, raw: Raw, sizes: Sequence[tuple[int, int]]) -> list[Target]:
        """One `Instances` an image: the best boxes that do not overlap, at most `boxes.most`."""
        return self.to_outputs(raw, torch.tensor(sizes)).predictions()

    @torch.no_grad()
    def to_outputs(self, raw: Raw, sizes: Tensor) -> Outputs:
        """The same as tensors; padding is allowed."""
        detected = self.detect(raw)
        return detected._replace(boxes=detections.to_pictures(detected.boxes, raw.pictures, sizes))

    def detect(self, raw: Raw) -> ObjectOutputs:
        """What is predicted, in pixels of the input."""
        scores = raw.logits.float().softmax(2)[..., 1:]  # (B, P, classes)
        classes = torch.arange(self.classes, device=scores.device).expand_as(scores)
        # scores of a proposal add up to less than 1: no more of them can be above the threshold
        above = int(1.001 / self.score_threshold) if self.score_threshold else self.classes
        if above < self.classes:
            scores, classes = scores.topk(above, 2)
        deltas = raw.deltas.gather(2, (classes + 1)[..., None].expand(-1, -1, -1, 4)).float()
        decoded = boxes.decode(deltas, raw.proposals[:, :, None], SCALES)
        box = detections.clip(decoded, raw.pictures[:, None, None])
        large = ((box[..., 2:] - box[..., :2]) >= SMALLEST).all(3)
        competes = (scores > self.score_threshold) & large & raw.real[..., None]
        scores = torch.where(competes, scores, -math.inf).flatten(1)
        box, classes = box.flatten(1, 2), classes.flatten(1)
        kept = detections.nms(box, scores, classes, self.classes, self.box_options.overlap, self.box_options.most)
        box, classes, scores = (detections.pick(values, kept) for values in (box, classes, scores))
        return ObjectOutputs.of(box, classes, scores, kept >= 0)


class RPN(nn.Module):
    """The region proposal network (section 3.1): an objectness and four deltas for every anchor.

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
        sizes = sizes or [options.cells * cell for cell in (strides if len(strides) > 1 else PYRAMID)]
        per_level = [[size] for size in sizes] if len(strides) > 1 else [list(sizes)]
        if len(per_level) != len(strides):
            raise UsageError(f"{len(per_level)} anchor_sizes for {len(strides)} levels", remedy="give one a level")
        self.strides, self.options = tuple(strides), options
        self.cell_anchors = [anchors.cell_anchors(level, options.ratios) for level in per_level]
        number = len(self.cell_anchors[0])
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness, self.shifts = nn.Conv2d(channels, number, 1), nn.Conv2d(channels, 4 * number, 1)
        for conv in (self.conv, self.objectness, self.shifts):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(cast(Tensor, conv.bias))

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> RPNOutput:
        """Of levels (B, C, H_l, W_l) of an input of `size` (height, width) pixels."""
        objectness, deltas, grid_anchors = [], [], []
        for x, stride, cell_anchors in zip(levels, self.strides, self.cell_anchors, strict=True):
            hidden = F.relu(self.conv(x))
            objectness.append(anchors.by_anchor(self.objectness(hidden), 1)[..., 0])
            deltas.append(anchors.by_anchor(self.shifts(hidden), 4))
            grid = (x.shape[2], x.shape[3])
            spacing = anchors.spacing(size, grid, stride, self.options.spacing)
            grid_anchors.append(anchors.grid_anchors(cell_anchors.to(x.device), grid, spacing))
        return RPNOutput(tuple(grid_anchors), torch.cat(objectness, 1).float(), torch.cat(deltas, 1).float())

    @torch.no_grad()
    def propose(self, raw: RPNOutput, pictures: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
        """(B, P, 4) proposals inside the picture, zeros where an image has fewer; and (B, P) bool, where it has one."""
        candidates, most = (pair[0 if training else 1] for pair in (self.options.candidates, self.options.kept))
        counts = [level.shape[0] for level in raw.anchors]
        scores, decoded, levels = [], [], []
        parts = zip(raw.anchors, raw.objectness.split(counts, 1), raw.deltas.split(counts, 1))
        for number, (level_anchors, objectness, deltas) in enumerate(parts):
            score, index = objectness.topk(torch.sym_min(candidates, level_anchors.shape[0]), 1)
            scores.append(score)
            decoded.append(boxes.decode(detections.pick(deltas, index), level_anchors[index]))
            levels.append(torch.full_like(index, number))
        box = detections.clip(torch.cat(decoded, 1), pictures[:, None])
        large = ((box[..., 2:] - box[..., :2]) >= SMALLEST / 10).all(2)
        score = torch.where(large, torch.cat(scores, 1), -math.inf)
        kept = detections.nms(box, score, torch.cat(levels, 1), len(levels), self.options.overlap, most)
        real = kept >= 0
        return torch.where(real[..., None], detections.pick(box, kept), 0), real

    def loss(self, raw: RPNOutput, targets: Sequence[Instances], seeds: Sequence[int]) -> dict[str, Tensor]:
        """Sums over images, each of a sample of the anchors."""
        all_anchors, options = torch.cat(raw.anchors), self.options
        samples, labels, positives, target_deltas = [], [], [], []
        for number, (target, seed) in enumerate(zip(targets, seeds)):
            match = anchors.match(all_anchors, target, options.foreground, options.background, rescue=True)
            sample = balanced_sample(match, options.samples, options.share, seed + 1)
            labels.append(match[sample] >= 0)
            positive = sample[: int(labels[-1].sum())]
            samples.append(sample + number * len(all_anchors))
            positives.append(positive + number * len(all_anchors))
            target_deltas.append(boxes.encode(target.boxes[match[positive]].float(), all_anchors[positive]))
        label = torch.cat(labels)
        weight = mean_weights([len(sample) for sample in samples], raw.objectness)
        logits = raw.objectness.flatten()[torch.cat(samples)]
        objectness = F.binary_cross_entropy_with_logits(logits, label.float(), weight=weight, reduction="sum")
        deltas = raw.deltas.flatten(0, 1)[torch.cat(positives)]
        smooth_l1 = F.smooth_l1_loss(deltas, torch.cat(target_deltas), beta=BETA, reduction="none").sum(1)
        return {"objectness": objectness, "proposal": (smooth_l1 * weight[label]).sum()}


class BoxHead(nn.Module):
    """(K, C, size, size) -> class logits (K, 1 + classes) and deltas (K, 1 + classes, 4)."""

    def __init__(self, channels: int, classes: int, options: BoxOptions) -> None:
        super().__init__()
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


def read_options(kind: type[O], options: Mapping[str, Any] | None, name: str) -> O:
    """The record `kind` with options by name; the rest as it is. Raises UsageError for an unknown name."""
    lookup.check_options(kind, options or {}, of=name)
    return kind(**(options or {}))


def mean_weights(counts: Sequence[int], like: Tensor) -> Tensor:
    """(sum of counts,) float32: weights that make a sum one of means over the samples of a picture."""
    return torch.cat([torch.full((count,), 1 / max(1, count), device=like.device) for count in counts])
