"""RetinaNet: focal loss for dense object detection (Lin et al., ICCV 2017, arXiv:1708.02002).

    maps --feature pyramid--> P3, P4, P5 --3x3 conv, stride 2--> P6 --ReLU, 3x3 conv, stride 2--> P7
    each level --4 x (3x3 conv, ReLU), 3x3 conv--> class logits of every anchor
               --the same, other weights---------> deltas of every anchor

The weights of the two towers serve all levels (section 4). Above a backbone of one stride stand the levels of
`layers.pyramids.Levels`. Numbers are those of torchvision's RetinaNet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.errors import UsageError
from patchform.geometry import anchors as anchoring
from patchform.geometry.boxes import decode, encode
from patchform.geometry.detections import clip, nms, pick, picture_sizes, to_pictures
from patchform.heads.base import Head, map_norms, number_of
from patchform.layers.norms import GroupNorm
from patchform.layers.pyramids import FPN, Coarser, Levels
from patchform.lookup import check_options, no_such
from patchform.outputs import ObjectOutputs
from patchform.records import FeatureInfo, Features, Instances, Loss, Target
from patchform.schema import Natural

ALPHA, GAMMA = 0.25, 2
"""Alpha and gamma of the focal loss (table 1b)."""
PRIOR = 0.01
"""Probability that an anchor is an object of a class, before training (section 4.1)."""
FOREGROUND, BACKGROUND = 0.5, 0.4
"""IoU with an object from which on, and below which, an anchor stands for it or for none (section 4, Anchors)."""
BETA = 1 / 9
"""Where the smooth L1 loss becomes linear, as in the authors' Detectron."""
CANDIDATES, OVERLAP = 1000, 0.5
"""Best predictions of each level that compete, and the IoU from which on one suppresses another (section 4.1)."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What implementations of the paper do differently. The defaults are the paper's.

    Raises:
        UsageError: a field out of its range.
    """

    convolutions: Natural = 4
    """Of each tower, before its last."""
    norm: Literal["none", "group"] = "none"
    """Behind each of them: "group" is group normalisation, at most 32 groups."""
    coarser: Natural = 2
    """Levels above the backbone's."""
    source: Literal["map", "pyramid"] = "map"
    """What the first of them is made from: the backbone's coarsest map, or the pyramid's."""
    octave: int = 3
    """Sizes of anchors on a level: its size times 2 ** (0 / octave), 2 ** (1 / octave), ..."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width of anchors."""
    spacing: Literal["stride", "input"] = "stride"
    """Pixels between the anchors of neighbouring cells: "input" divides the input's sides by the numbers of cells,
    rounded down, as torchvision does; it differs on coarse levels of most sizes."""

    def __post_init__(self) -> None:
        if not self.ratios or min(self.ratios) <= 0:
            raise UsageError(f"ratios are {self.ratios}", remedy="give one or more positive numbers")


class Raw(NamedTuple):
    """Logits and deltas of N anchors: level by level, fine to coarse; cell by cell; those of a cell together."""

    logits: Tensor
    """(B, N, classes)."""
    deltas: Tensor
    """(B, N, 4), see `geometry.boxes.encode`."""
    anchors: Tensor
    """(N, 4) xyxy float32 pixels of the input."""
    counts: tuple[int, ...]
    """Number of anchors of each level."""
    pictures: Tensor
    """(B, 2) height and width of the picture in each input."""


class RetinaNet(Head):
    """One stage: a class and a box for each of the anchors of all levels.

    Args:
        features: of the backbone.
        classes: number of classes.
        channels_inside: of the pyramid and the towers.
        norm: "layer" normalises the cells of each map first; "none" takes them as they are.
        finest: pixels a cell of the finest level: maps that are finer are not used (8: P3, 4: P2).
        sizes: of the anchors, pixels, a number for each level, fine to coarse; None: 4 times the level's stride, which
            makes 32, 64, ... 512 of the paper.
        losses: factor of each loss by name: "focal", of the classes, and one or more of "l1", "smooth_l1" (of deltas)
            and "giou" (of the boxes). None: focal and l1, both 1.
        form: fields of `Options` by name.
        score_threshold: predictions at or below it are left out, in [0, 1).
        detections: so many an image at most.

    Raises:
        UsageError: an option out of its range.
    """

    tasks = ("detection",)
    reads_maps_alone = True

    def __init__(
        self,
        features: FeatureInfo,
        *,
        classes: int,
        channels_inside: int = 256,
        norm: Literal["layer", "none"] = "none",
        finest: int = 8,
        sizes: Sequence[float] | None = None,
        losses: Mapping[str, float] | None = None,
        form: Mapping[str, Any] | None = None,
        score_threshold: float = 0.05,
        detections: int = 100,
    ) -> None:
        super().__init__()
        if not 0 <= score_threshold < 1 or detections < 1:
            raise UsageError("score_threshold lies in [0, 1), detections is 1 or more")
        check_options(Options, form or {}, of="form")
        self.options = Options(**(form or {}))
        self.losses = _check_losses({"focal": 1.0, "l1": 1.0} if losses is None else losses)
        self.score_threshold, self.detections = score_threshold, detections

        self.maps = Levels(features.channels, features.strides, finest=finest)
        widths = self.maps.channels
        self.norms = map_norms(norm, widths)
        self.pyramid = FPN(widths, channels_inside)
        source_channels = widths[-1] if self.options.source == "map" else channels_inside
        self.coarser = Coarser(source_channels, channels_inside, self.options.coarser)
        coarsest = self.maps.strides[-1]
        self.strides = (*self.maps.strides, *(coarsest * 2**n for n in range(1, self.options.coarser + 1)))
        self.register_buffer("cell_anchors", _cell_anchors(self.strides, sizes, self.options), persistent=False)
        anchors = self.cell_anchors.shape[1]
        self.classify = Tower(channels_inside, self.options, anchors=anchors, outputs=classes)
        self.move = Tower(channels_inside, self.options, anchors=anchors, outputs=4)
        nn.init.constant_(_bias(self.classify.output), -math.log((1 - PRIOR) / PRIOR))

    cell_anchors: Tensor
    """(levels, A, 4)."""

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> Raw:
        """Logits and deltas of every anchor, and the anchors."""
        maps = [norm(x) for norm, x in zip(self.norms, self.maps(features.maps))]
        levels = self.pyramid(maps)
        levels += self.coarser(maps[-1] if self.options.source == "map" else levels[-1])
        grids = [(x.shape[2], x.shape[3]) for x in levels]
        anchors = [
            anchoring.grid_anchors(of_cell, grid, anchoring.spacing(features.size, grid, stride, self.options.spacing))
            for of_cell, grid, stride in zip(self.cell_anchors.float(), grids, self.strides)
        ]
        return Raw(
            torch.cat([self.classify(x) for x in levels], 1),
            torch.cat([self.move(x) for x in levels], 1),
            torch.cat(anchors),
            tuple(of_level.shape[0] for of_level in anchors),
            picture_sizes(features),
        )

    def loss(self, raw: Raw, targets: Sequence[Target]) -> dict[str, Loss]:
        """The losses by name, over images.

        Each is the sum over an image's anchors, divided by the number of those that stand for an object (at least 1).
        So does torchvision; the paper divides by the objects' anchors of all images together.
        """
        instances = cast("Sequence[Instances]", targets)
        logits, device = raw.logits.float(), raw.logits.device
        with torch.no_grad():
            matches = torch.stack(
                [anchoring.match(raw.anchors, target, FOREGROUND, BACKGROUND, rescue=True) for target in instances]
            )  # (B, N)
            weight = 1 / (matches >= 0).sum(1).clamp(min=1)  # (B,)
            image, anchor = (matches != anchoring.BACKGROUND).nonzero(as_tuple=True)  # (M,)
            first = torch.tensor([0, *(len(target.boxes) for target in instances[:-1])], device=device).cumsum(0)
            match = matches[image, anchor]
            positive, index = match >= 0, match.clamp(min=0) + first[image]
            classes = torch.cat([target.classes for target in instances]).to(device)[index]

        # every anchor as background, then corrected where it is not: few are, and no target of logits' size is made
        others = logits[image, anchor]  # (M, classes)
        of_class = others.gather(1, classes[:, None])[:, 0]
        correction = torch.where(
            positive, _object_focal(of_class) - _background_focal(of_class), -_background_focal(others).sum(1)
        )
        focal = (weight * _background_focal(logits).sum((1, 2))).sum() + (weight[image] * correction).sum()

        image, anchor, index = image[positive], anchor[positive], index[positive]
        boxes = torch.cat([target.boxes for target in instances]).to(device).float()[index]
        deltas = raw.deltas[image, anchor].float()
        sums = {"focal": focal}
        for name in self.losses.keys() - {"focal"}:
            sums[name] = (weight[image] * BOX_LOSSES[name](deltas, raw.anchors[anchor], boxes)).sum()
        count = number_of(targets)
        return {name: Loss(factor * sums[name], count) for name, factor in self.losses.items()}

    def counts(self, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Of each the number of images."""
        return dict.fromkeys(self.losses, number_of(targets))

    def decode(self, raw: Raw, sizes: Sequence[tuple[int, int]]) -> list[Target]:
        """One `Instances` an image: per level the best candidates, then the best of each class among those."""
        return self.to_outputs(raw, torch.tensor(sizes)).predictions()

    @torch.no_grad()
    def to_outputs(self, raw: Raw, sizes: Tensor) -> ObjectOutputs:
        """The same as tensors; padding is allowed."""
        number_of_classes, start = raw.logits.shape[2], 0
        top_logits, top_index, logits = [], [], raw.logits.flatten(1)
        for count in raw.counts:
            length = count * number_of_classes
            top = logits[:, start : start + length].topk(torch.sym_min(CANDIDATES, length))
            top_logits.append(top.values)
            top_index.append(top.indices + start)
            start += length
        scores, index = torch.cat(top_logits, 1).float().sigmoid(), torch.cat(top_index, 1)  # (B, K)
        anchor, classes = index // number_of_classes, index % number_of_classes
        boxes = clip(decode(pick(raw.deltas, anchor).float(), raw.anchors[anchor]), raw.pictures[:, None])
        visible = (boxes[..., 2:] > boxes[..., :2]).all(2)  # not in the padding
        scores = torch.where((scores > self.score_threshold) & visible, scores, -math.inf)
        kept = nms(boxes, scores, classes, number_of_classes, OVERLAP, self.detections)
        return ObjectOutputs.of(
            to_pictures(pick(boxes, kept), raw.pictures, sizes), pick(classes, kept), pick(scores, kept), kept >= 0
        )


class Tower(nn.Module):
    """Convolutions over a level, and numbers for each anchor of its cells.

    Args:
        channels: of the level and of all convolutions but the last.
        options: how many convolutions, and their norm.
        anchors: A of a cell.
        outputs: numbers for each.
    """

    def __init__(self, channels: int, options: Options, *, anchors: int, outputs: int) -> None:
        super().__init__()
        grouped = options.norm == "group"
        self.outputs = outputs
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=not grouped) for _ in range(options.convolutions)
        )
        self.norms = nn.ModuleList(
            GroupNorm(math.gcd(32, channels), channels) if grouped else nn.Identity() for _ in self.convolutions
        )
        self.output = nn.Conv2d(channels, anchors * outputs, 3, padding=1)
        for conv in (*self.convolutions, self.output):
            nn.init.normal_(conv.weight, std=0.01)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H*W*A, outputs)."""
        for conv, norm in zip(self.convolutions, self.norms):
            x = F.relu(norm(conv(x)), inplace=True)
        return anchoring.by_anchor(self.output(x), self.outputs)


# ------------------------------------------------------------------------------------------------- parts of the losses


def _background_focal(logits: Tensor) -> Tensor:
    """Focal loss (equation 5) of each logit of an absent class."""
    return (1 - ALPHA) * logits.sigmoid() ** GAMMA * F.softplus(logits)


def _object_focal(logits: Tensor) -> Tensor:
    """Focal loss of each logit of a present class."""
    return ALPHA * (-logits).sigmoid() ** GAMMA * F.softplus(-logits)


def _l1(deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
    return (deltas - encode(boxes, anchors)).abs().sum(1)


def _smooth_l1(deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
    return F.smooth_l1_loss(deltas, encode(boxes, anchors), beta=BETA, reduction="none").sum(1)


def _giou(deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
    from torchvision.ops import generalized_box_iou_loss

    return generalized_box_iou_loss(decode(deltas, anchors), boxes)


BOX_LOSSES = {"l1": _l1, "smooth_l1": _smooth_l1, "giou": _giou}
"""Of (F, 4) deltas, their anchors and their objects' boxes: (F,)."""


def _check_losses(losses: Mapping[str, float]) -> dict[str, float]:
    for name, factor in losses.items():
        if name != "focal" and name not in BOX_LOSSES:
            raise no_such("loss", name, ("focal", *BOX_LOSSES))
        if not 0 < factor < math.inf:
            raise UsageError(f"{name} has the factor {factor}", remedy="it is a positive number")
    if "focal" not in losses or len(losses) < 2:
        raise UsageError(
            f"losses are {', '.join(losses) or 'none'}", remedy=f"name focal and of {', '.join(BOX_LOSSES)}"
        )
    return dict(losses)


def _cell_anchors(strides: Sequence[float], sizes: Sequence[float] | None, options: Options) -> Tensor:
    """(levels, A, 4)."""
    sizes = [4 * stride for stride in strides] if sizes is None else sizes
    if len(sizes) != len(strides) or min(sizes) < 1:
        raise UsageError(f"sizes are {tuple(sizes)}", remedy=f"give {len(strides)} numbers of 1 or more, one a level")
    octaves = [[int(size * 2 ** (step / options.octave)) for step in range(options.octave)] for size in sizes]
    return torch.stack([anchoring.cell_anchors(octave, options.ratios) for octave in octaves])


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
