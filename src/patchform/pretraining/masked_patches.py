"""Masked patch prediction, the ViT paper's own experiment (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929, appendix
B.1.2).

    image --> patches --> half of them corrupted --> backbone --> linear --> colours of the corrupted patches
                            8 in 10: a learned vector; 1 in 10: another patch; 1 in 10: as it is

A ViT has its projected patches corrupted, before they are placed. Backbones of other kinds have the pixels of their
coarsest cells corrupted, the learned vector being a colour, and are read from their coarsest map.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.backbones.base import Backbone
from patchform.descriptions import Architecture, Preprocessing
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.heads.base import number_of
from patchform.lookup import no_such
from patchform.pretraining.base import (
    Method,
    MethodHead,
    check_ratio,
    coarsest,
    is_vit,
    patchify,
    random_mask,
    side_of,
    unpatchify,
)
from patchform.records import Batch, Loss

TargetKind = Literal["mean_colour", "small_patch", "pixels"]
LEVELS = 8
"""Of a channel: 3 bits."""
SMALL = 4
"""Rows and columns of a patch made small."""
MASKED, SWAPPED = 0.8, 0.9
"""Of the corrupted patches the first 80 % are masked, the next 10 % another patch; the rest stay."""


class MaskedPatches(Method):
    """Learns to predict what corrupted patches were.

    Args:
        backbone: any.
        preprocessing: of the pictures.
        ratio: share of the patches that is corrupted, between 0 and 1.
        target: "mean_colour", of 3 bits a channel, so one class in 512; "small_patch", 4x4 such colours of the patch
            made small, side by side; "pixels", all of the patch, with the squared error. In the paper all work, the
            last a little worse, and the first is taken.

    Raises:
        UsageError: an option out of its range, or more than 3 channels for a target of colours.
    """

    head: PatchHead

    def __init__(
        self,
        backbone: Backbone,
        preprocessing: Preprocessing,
        *,
        ratio: float = 0.5,
        target: TargetKind = "mean_colour",
        architecture: Architecture | None = None,
    ) -> None:
        check_ratio(ratio)
        if target not in get_args(TargetKind):
            raise no_such("target", target, get_args(TargetKind))
        channels, side = preprocessing.channels, side_of(backbone)
        if target != "pixels" and channels > 3:
            raise UsageError(f"{LEVELS**channels} colours of {channels} channels", remedy="set target to pixels")
        colours = LEVELS**channels
        outputs = {"mean_colour": colours, "small_patch": SMALL**2 * colours, "pixels": side**2 * channels}[target]
        whole = not is_vit(backbone)
        inside = backbone.channels[-1]
        head = PatchHead(inside, channels if whole else inside, outputs, norm=whole)
        super().__init__(backbone, head, preprocessing, architecture)
        self.ratio, self.target, self.colours = ratio, target, colours

    def forward(self, batch: Batch, noise: Tensor | None = None, choice: Tensor | None = None) -> dict[str, Loss]:
        """{"loss": ...} over images: the mean over the corrupted patches, of each image as many.

        Args:
            batch: one crop an image; targets are not looked at.
            noise: (B, N) numbers; the patches of the highest are corrupted. Default: drawn.
            choice: (B, N) numbers in 0..1 that decide how, see `corrupt`. Default: drawn.

        Raises:
            UsageError: pictures of several sizes, or of too few patches.
        """
        images, side = self.pictures(batch), side_of(self.backbone)
        size = grids.size_of(images)
        grid = grids.cells(size, side)
        shape, device = (len(images), grid[0] * grid[1]), images.device
        draws = torch.rand(shape[0], 3, shape[1], device=device).unbind(1)  # image by image, as parts of a batch draw
        noise, choice, swap = draws[0] if noise is None else noise, draws[1] if choice is None else choice, draws[2]
        mask = random_mask(noise, self.ratio).mask
        if is_vit(self.backbone):
            cells = self.backbone.patches(images).flatten(1, 2)
            patches = corrupt(cells, mask, choice, swap, self.head.mask_token[0])
            tokens = self.backbone.through(patches.unflatten(1, grid), size).tokens
            assert tokens is not None
        else:
            replacement = self.head.mask_token[0].repeat(1, side * side)
            patches = corrupt(patchify(images, side), mask, choice, swap, replacement)
            tokens = coarsest(self.backbone(unpatchify(patches, side, size)).maps, grid)
        predicted = self.head.predict(tokens[mask])
        if self.target == "pixels":
            mean = F.mse_loss(predicted, patchify(images, side)[mask].float())
        else:
            colours = self.targets(batch.images)[mask]  # (M, K)
            mean = F.cross_entropy(predicted.unflatten(1, (-1, self.colours)).flatten(0, 1), colours.flatten())
        return {"loss": Loss(mean * len(images), number_of(images))}

    def targets(self, images: Tensor) -> Tensor:
        """(B, N, K) int64 colours of (B, C, H, W) uint8 in 0..255 or float in 0..1: K is 1, or 16 row by row."""
        pixels = images.float() if images.is_floating_point() else images.float() / 255
        side = side_of(self.backbone)
        patches = patchify(pixels, side).unflatten(2, (side, side, -1)).permute(0, 1, 4, 2, 3)  # (B, N, C, p, p)
        cells = SMALL if self.target == "small_patch" else 1
        small = F.adaptive_avg_pool2d(patches.flatten(0, 1), cells).flatten(2)  # (B * N, C, K)
        levels = (small * LEVELS).long().clamp(0, LEVELS - 1)
        weights = LEVELS ** torch.arange(levels.shape[1] - 1, -1, -1, device=levels.device)
        return (levels * weights[:, None]).sum(1).unflatten(0, patches.shape[:2])


class PatchHead(MethodHead):
    """The learned vector that stands for a patch, and the layer that predicts what was there.

    Args:
        inside: D of the backbone's tokens.
        vector: length of what is corrupted: D, or the channels of a colour.
        outputs: numbers predicted of a patch.
        norm: for tokens that are not normalised.
    """

    def __init__(self, inside: int, vector: int, outputs: int, *, norm: bool) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, vector))
        self.before = nn.LayerNorm(inside, eps=1e-6) if norm else nn.Identity()
        self.outputs = nn.Linear(inside, outputs)
        nn.init.trunc_normal_(self.outputs.weight, std=0.02)
        nn.init.zeros_(self.outputs.bias)

    def predict(self, tokens: Tensor) -> Tensor:
        """(M, D) -> (M, outputs) float32."""
        return self.outputs(self.before(tokens)).float()


def corrupt(patches: Tensor, mask: Tensor, choice: Tensor, swap: Tensor, replacement: Tensor) -> Tensor:
    """Patches of which those of `mask` are replaced, or not, as `choice` says.

    Args:
        patches: (B, N, K).
        mask: (B, N) bool, True on what is corrupted.
        choice: (B, N) in 0..1: below 0.8 the replacement, below 0.9 another patch of the picture, else nothing.
        swap: (B, N) in [0, 1): which other patch.
        replacement: (K,) or (1, K).
    """
    count = patches.shape[1]
    step = 1 + (swap * (count - 1)).long()
    other = (torch.arange(count, device=mask.device) + step) % count
    swapped = patches.gather(1, other[..., None].expand_as(patches))
    patches = torch.where((mask & (choice < SWAPPED))[..., None], swapped, patches)
    return torch.where((mask & (choice < MASKED))[..., None], replacement.to(patches.dtype), patches)
