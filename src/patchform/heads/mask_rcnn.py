"""Mask R-CNN: Faster R-CNN with a mask for every box (He, Gkioxari, Dollar, Girshick, ICCV 2017, arXiv:1703.06870).

    proposals --what lies in each, 14x14 (RoIAlign)--> 3x3 conv x 4 --2x2 transposed conv--> 28x28 logits of each class

In training the proposals that stand for objects have masks (section 3), in prediction the boxes that are left. The loss
is that of a proposal's own class, a mean over a picture's masks, then over pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.errors import DataError
from patchform.geometry import detections, masks
from patchform.heads.faster_rcnn import FasterRCNN, Raw, RCNNOptions, mean_weights, read_options
from patchform.layers.regions import put_back
from patchform.outputs import MaskedObjectOutputs
from patchform.records import FeatureInfo, Features, Instances, Target


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """How masks are made."""

    convolutions: int = 4
    """3x3, in front of the transposed one."""
    channels: int = 256
    """Of them."""
    size: int = 14
    """Cells a side that a proposal is pooled to; its mask has twice as many."""
    samples: int = 128
    """Proposals of a picture that the loss sees at most: the first of the sample of boxes."""


class MaskRCNN(FasterRCNN):
    """Boxes and their masks.

    Args:
        features: of the backbone.
        classes: number of classes.
        channels_inside: of the levels, and of all convolutions but those of the masks.
        masks: options of `MaskOptions`, by name.
        options: see `FasterRCNN`.

    Raises:
        UsageError: an option out of its range or unknown.
    """

    tasks = ("instance_segmentation",)
    losses = (*FasterRCNN.losses, "mask")

    def __init__(
        self,
        features: FeatureInfo,
        *,
        classes: int,
        channels_inside: int = 256,
        masks: Mapping[str, Any] | None = None,
        **options: Unpack[RCNNOptions],
    ) -> None:
        super().__init__(features, classes=classes, channels_inside=channels_inside, **options)
        self.mask_options = read_options(MaskOptions, masks, "masks")
        self.mask_pool = self.roi_align(self.mask_options.size)
        self.mask = MaskBranch(channels_inside, classes, self.mask_options)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> Raw:
        """The output of Faster R-CNN; with targets, masks of the proposals that stand for objects as well."""
        raw = super().forward(features, targets)
        if targets is None:
            return raw
        cells, places = self.mask_pool(raw.levels, raw.proposals, self._positives(raw), raw.size)
        return raw._replace(masks=self.mask(cells)[places.argsort()])

    def _positives(self, raw: Raw) -> Tensor:
        """(B, P) bool: which proposals have masks in training."""
        assert raw.matches is not None
        place = torch.arange(raw.matches.shape[1], device=raw.matches.device)
        return (raw.matches >= 0) & (place < self.mask_options.samples)

    def sums(self, raw: Raw, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Those of Faster R-CNN, and mask.

        Raises:
            DataError: objects without masks.
        """
        sums = super().sums(raw, targets)
        assert raw.masks is not None
        assert raw.matches is not None
        labels, target_masks = [], []
        images = zip(raw.proposals, raw.matches, self._positives(raw), cast("Sequence[Instances]", targets))
        for proposals, matches, positive, target in images:
            if target.masks is None:
                raise DataError("objects without masks", remedy="detection learns from boxes alone")
            match = matches[positive]
            labels.append(target.classes[match] + 1)
            boxes = proposals[positive] if self.box_options.aligned else proposals[positive] + 0.5
            target_masks.append(masks.sample(target.masks, boxes, match, raw.masks.shape[-1]))
        label = torch.cat(labels)
        logits = raw.masks[torch.arange(label.shape[0], device=label.device), label].float()
        entropy = F.binary_cross_entropy_with_logits(logits, torch.cat(target_masks), reduction="none").mean((1, 2))
        return {**sums, "mask": (entropy * mean_weights([label.shape[0] for label in labels], entropy)).sum()}

    @torch.no_grad()
    def to_outputs(self, raw: Raw, sizes: Tensor) -> MaskedObjectOutputs:
        """Boxes, and how likely each of their pixels is the object; padding is allowed."""
        inside = self.detect(raw)
        cells, places = self.mask_pool(raw.levels, inside.boxes, inside.classes >= 0, raw.size)
        logits, label = self.mask(cells), inside.classes.flatten()[places] + 1
        own = logits.gather(1, label[:, None, None, None].expand(-1, -1, *logits.shape[2:]))[:, 0]
        probs = put_back(own.float().sigmoid(), places, (inside.boxes.shape[0], inside.boxes.shape[1]))
        boxes = detections.to_pictures(inside.boxes, raw.pictures, sizes)
        return MaskedObjectOutputs(boxes, inside.classes, inside.scores, probs, sizes)


class MaskBranch(nn.Module):
    """(K, C, size, size) -> logits (K, 1 + classes, 2 * size, 2 * size)."""

    def __init__(self, channels: int, classes: int, options: MaskOptions) -> None:
        super().__init__()
        widths = [channels, *[options.channels] * options.convolutions]
        self.convs = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1) for pair in pairwise(widths))
        self.enlarge = nn.ConvTranspose2d(widths[-1], options.channels, 2, stride=2)
        self.classify = nn.Conv2d(options.channels, 1 + classes, 1)
        for layer in (*self.convs, self.enlarge, self.classify):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.classify.weight, std=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(K, channels, side, side) -> (K, classes, 2 * side, 2 * side) logits."""
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.classify(F.relu(self.enlarge(x)))
