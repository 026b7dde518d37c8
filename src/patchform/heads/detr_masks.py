"""DETR with masks (Carion et al., ECCV 2020, arXiv:2005.12872, section 4.4 and figure 8).

    query --attention--> memory  = its weights: a map for each attention head
    cells, attention maps --> conv --> conv --+--> conv --+--> conv --+--> conv --> conv --> mask
                                 finer map --/           /           /
                                             finer map -/           /
                                                         finer map /

ReLU and group norm follow every 3x3 convolution but the last; finer maps come through 1x1 convolutions. The mask is as
fine as the finest map. Masks are made for the queries that need one, in the loss those with an object: no query sees
another's mask. Above a backbone of one stride stand the levels of `layers.pyramids.Levels`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from patchform.errors import DataError, UsageError
from patchform.geometry import masks
from patchform.geometry.maps import over_pixels, reach, to_size
from patchform.heads.base import map_norms
from patchform.heads.detr import DETR, LOSSES, DETROptions, DETRRaw
from patchform.layers.linear import Linear
from patchform.layers.norms import GroupNorm
from patchform.layers.pyramids import Levels
from patchform.outputs import MASK_PIXELS, MaskOutputs, mask_bitmaps
from patchform.records import FeatureInfo, Features, Instances, Loss, Target

GROUPS = 8
"""Of channels that are normalised together, where the channels are so many."""


class MaskInputs(NamedTuple):
    """What masks are made from, beside the output of DETR."""

    attention: Tensor
    """(B, Q, heads, H, W): shares of a query's attention; they add up to 1 over heads and cells."""
    guides: tuple[Tensor, ...]
    """Finer maps, coarse to fine, each (B, C_i, H_i, W_i)."""
    covered: tuple[int, int]
    """Pixels of the input that the cells of a mask lie over."""
    size: tuple[int, int]
    """(H, W) of the input, pixels."""


class DETRMasks(DETR):
    """DETR, and a mask for each object.

    Args:
        features: of the backbone.
        classes: number of classes.
        channels_inside: D. It is halved with every finer map, and once before: 16 divides it where there are three.
        norm: "layer" normalises the cells of every map first.
        options: see `DETR`; the factors of the losses are those of `factors`.

    Raises:
        UsageError: an option out of its range.
    """

    tasks: ClassVar[tuple[str, ...]] = ("instance_segmentation",)
    factors: ClassVar[Mapping[str, float]] = {**LOSSES, "mask": 1.0, "dice": 1.0}

    def __init__(
        self,
        features: FeatureInfo,
        *,
        classes: int,
        channels_inside: int = 256,
        norm: Literal["layer", "none"] = "none",
        **options: Unpack[DETROptions],
    ) -> None:
        super().__init__(features, classes=classes, channels_inside=channels_inside, norm=norm, **options)
        self.levels = Levels(features.channels, features.strides)
        finer = (number for number, stride in enumerate(self.levels.strides[:-1]) if stride <= features.strides[-1])
        self.finer = tuple(finer)[::-1]
        widths = [self.levels.channels[number] for number in self.finer]
        self.guide_norms = map_norms(norm, widths)
        self.looks = AttentionMaps(channels_inside, self.heads)
        self.masks = MaskConvolutions(channels_inside, self.heads, widths)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> DETRRaw:
        """Classes and boxes, and beside them what masks are made from."""
        raw = super().forward(features)
        levels = self.levels(features.maps)
        guides = [norm(levels[number]) for norm, number in zip(self.guide_norms, self.finer)]
        finest = (guides[-1], self.finer[-1]) if guides else (levels[-1], -1)
        attention = self.looks(raw.states, raw.memory, features.padding)
        return raw._replace(
            mask_inputs=MaskInputs(attention, tuple(guides), self.levels.covered(*finest), features.size)
        )

    def logits(self, raw: DETRRaw, image: Tensor, query: Tensor) -> Tensor:
        """(K, 1, h, w) of the masks of K queries, by their (K,) image and (K,) query."""
        inputs: MaskInputs = raw.mask_inputs
        return self.masks(raw.cells, inputs.attention[image, query], inputs.guides, image)

    def loss(self, raw: DETRRaw, targets: Sequence[Target]) -> dict[str, Loss]:
        """DETR's losses; and "mask", focal, and "dice" of the last layer's masks, over the objects of the batch.

        Raises:
            DataError: objects without masks, or masks of pictures larger than the input.
        """
        truth = self.truth(raw, targets)
        queries = self.match(raw, truth)
        matched = queries[-1] >= 0
        logits = self.logits(raw, truth.image[matched], queries[-1][matched])
        logits = over_pixels(logits, raw.mask_inputs.covered, raw.mask_inputs.size).flatten(1)  # (K, H * W)
        dense = [_dense(target, raw.mask_inputs.size) for target in cast("Sequence[Instances]", targets)]
        target_masks = torch.cat(dense).to(logits.device)[matched].flatten(1).float()
        probs = logits.sigmoid()
        dice = (2 * (probs * target_masks).sum(1) + 1) / (probs.sum(1) + target_masks.sum(1) + 1)
        sums = self.sums(raw, truth, queries) | {
            "mask": self.losses["mask"] * sigmoid_focal_loss(logits, target_masks).mean(1).sum(),
            "dice": self.losses["dice"] * (1 - dice).sum(),
        }
        counts = self.counts(targets)
        return {name: Loss(total, counts[name]) for name, total in sums.items()}

    def decode(self, raw: DETRRaw, sizes: Sequence[tuple[int, int]]) -> list[Target]:
        """One `Instances` an image, as DETR gives them, with masks."""
        found, queries = self.best(raw, torch.tensor(sizes, device=raw.boxes.device))
        covered, whole = reach(raw.mask_inputs.covered, raw.mask_inputs.size), math.prod(raw.mask_inputs.size)
        predictions: list[Target] = []
        for number, (objects, size) in enumerate(zip(found.predictions(), sizes, strict=True)):
            instances = cast("Instances", objects)
            height, width = (max(1, int(side)) for side in raw.pictures[number].tolist())
            kept = queries[number, : len(instances.classes)]
            parts = [
                mask_bitmaps(self.logits(raw, torch.full_like(chunk, number), chunk), covered, (height, width), size)
                for chunk in kept.split(max(1, MASK_PIXELS // max(math.prod(size), whole)))
            ]
            predictions.append(instances._replace(masks=masks.concatenate(parts, size)))
        return predictions

    def to_outputs(self, raw: DETRRaw, sizes: Tensor) -> MaskOutputs:
        """The objects that DETR gives, and their masks."""
        found, queries = self.best(raw, sizes)
        batch, number = queries.shape
        image = torch.arange(batch, device=queries.device)[:, None].expand(batch, number)
        logits = self.logits(raw, image.flatten(), queries.flatten())
        covered = reach(raw.mask_inputs.covered, raw.mask_inputs.size)
        return MaskOutputs(
            found.boxes,
            found.classes,
            found.scores,
            logits.float().view(batch, number, *logits.shape[2:]),
            _repeated(covered, batch, sizes.device),
            _repeated(raw.mask_inputs.size, batch, sizes.device),
            sizes,
        )


def _repeated(size: tuple[int, int], batch: int, device: torch.device) -> Tensor:
    """(batch, 2) int64: a height and width, which may be symbols, for each picture."""
    return torch.stack([torch.full((batch,), side, dtype=torch.int64, device=device) for side in size], 1)


def _dense(objects: Instances, size: tuple[int, int]) -> Tensor:
    """(N, *size) bool: the masks of the objects that are no crowd."""
    if objects.masks is None:
        raise DataError("objects without masks", remedy="learn from data with masks, or with a head of boxes")
    if any(side > limit for side, limit in zip(objects.masks.size, size)):
        raise DataError(f"masks of {tuple(objects.masks.size)} pixels for an input of {tuple(size)}")
    bitmaps = objects.masks if objects.crowd is None else masks.take(objects.masks, ~objects.crowd)
    return masks.to_dense(bitmaps, size)


class AttentionMaps(nn.Module):
    """The weights of an attention, normalised over all heads together.

    Args:
        width: D.
        heads: h; divides D.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k = Linear(width, width), Linear(width, width)
        for layer in (self.q, self.k):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, states: Tensor, memory: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, Q, D), (B, D, H, W), padding (B, H, W) bool -> (B, Q, h, H, W) float32."""
        q = self.q(states).unflatten(2, (self.heads, -1))
        k = self.k(memory.flatten(2).transpose(1, 2)).unflatten(2, (self.heads, -1))
        scores = torch.einsum("bqhd,bnhd->bqhn", q * q.shape[-1] ** -0.5, k)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if padding is not None:
            scores = scores.masked_fill(padding.flatten(1)[:, None, None], torch.finfo(scores.dtype).min / 2)
        return scores.flatten(2).softmax(2).unflatten(2, (self.heads, *memory.shape[2:]))


class MaskConvolutions(nn.Module):
    """From cells and attention maps of queries to masks, finer step by step.

    Args:
        width: D of the cells; it is halved with every step.
        heads: attention maps of a query.
        guides: channels of the finer maps, coarse to fine.

    Raises:
        UsageError: a width that cannot be halved so often.
    """

    def __init__(self, width: int, heads: int, guides: Sequence[int]) -> None:
        super().__init__()
        if width % 2 ** (len(guides) + 1):
            raise UsageError(f"channels_inside is {width}", remedy=f"{2 ** (len(guides) + 1)} divides it")
        widths = [width >> step for step in range(1, len(guides) + 2)]
        self.first = _conv(width + heads, width + heads)
        self.first_norm = _norm(width + heads)
        self.second = NormedConv(width + heads, widths[0])
        self.guides = nn.ModuleList(_conv(before, after, 1) for before, after in zip(guides, widths))
        self.steps = nn.ModuleList(NormedConv(*pair) for pair in pairwise(widths))
        self.last = _conv(widths[-1], 1)

    def forward(self, cells: Tensor, attention: Tensor, guides: Sequence[Tensor], image: Tensor) -> Tensor:
        """Logits of K masks.

        Args:
            cells: (B, D, H, W).
            attention: (K, heads, H, W).
            guides: each (B, C_i, H_i, W_i).
            image: (K,) int64: whose cells and guides.

        Returns:
            (K, 1, h, w), of the last guide's grid.
        """
        cell_weight, attention_weight = self.first.weight.split([cells.shape[1], attention.shape[1]], 1)
        shared = F.conv2d(cells, cell_weight, self.first.bias, padding=1)  # once for all masks of an image
        x = shared[image] + F.conv2d(attention, attention_weight, padding=1)
        x = self.second(F.relu(self.first_norm(x)))
        for step, conv, guide in zip(self.steps, self.guides, guides):
            lateral = conv(guide)[image]
            x = step(lateral + to_size(x, lateral.shape[-2:], "nearest"))
        return self.last(x)


class NormedConv(nn.Module):
    """3x3 convolution, group norm, ReLU.

    Args:
        in_channels, out_channels: C before and behind.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = _conv(in_channels, out_channels)
        self.norm = _norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        return F.relu(self.norm(self.conv(x)))


def _conv(in_channels: int, out_channels: int, kernel: int = 3) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(math.gcd(GROUPS, channels), channels)
