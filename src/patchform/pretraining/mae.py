"""MAE: masked autoencoders are scalable vision learners (He et al., CVPR 2022, arXiv:2111.06377).

    image --> patches --> the visible quarter --> encoder (the backbone) --> narrower, mask tokens, positions
                                                                                  |
                  pixels of the hidden patches <-- loss -- linear <-- decoder ----+

A ViT sees the visible patches alone: at 75 % a quarter of its work. Backbones that need whole grids (Swin, PVT and kin)
see all of the picture, with hidden squares of their coarsest cells behind a learned colour, and the decoder has that
map before it; so SimMIM (Xie et al. 2022) does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from patchform.backbones.base import Backbone
from patchform.descriptions import Architecture, Preprocessing
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.heads.base import number_of
from patchform.layers.blocks import Block
from patchform.layers.positions import RelativePosition, SinCos2D
from patchform.pretraining.base import (
    MaskColour,
    Method,
    MethodHead,
    PatchMask,
    check_ratio,
    coarsest,
    is_vit,
    patchify,
    random_mask,
    side_of,
)
from patchform.records import Batch, Loss

EPS = 1e-6
"""Added to the variance of a patch."""


class Reconstruction(NamedTuple):
    """The output of the decoder."""

    patches: Tensor
    """(B, N, p * p * C): pixels of all patches as `patchify` orders them, normalised as the method's targets are."""
    mask: Tensor
    """(B, N) bool, True where the backbone did not see."""


class MAE(Method):
    """Learns to fill in the pixels of hidden patches.

    Args:
        backbone: any; a ViT must have its positions outside attention ("learned_1d", or "sincos_2d" as the authors).
        preprocessing: of the pictures.
        ratio: share of the patches that is hidden, between 0 and 1.
        width, depth, heads: of the decoder. The authors' are those of all their models; for a backbone as small as
            ViT-S such a decoder works more than the backbone.
        norm_pixels: whether targets are pixels less the mean of their patch over its deviation (section 4.1).

    Raises:
        UsageError: an option out of its range.
    """

    head: Decoder

    def __init__(
        self,
        backbone: Backbone,
        preprocessing: Preprocessing,
        *,
        ratio: float = 0.75,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        norm_pixels: bool = True,
        architecture: Architecture | None = None,
    ) -> None:
        channels, whole = preprocessing.channels, not is_vit(backbone)
        decoder = Decoder(
            backbone.channels[-1],
            side_of(backbone) ** 2 * channels,
            width=width,
            depth=depth,
            heads=heads,
            paint=MaskColour(channels) if whole else None,
        )
        super().__init__(backbone, decoder, preprocessing, architecture)
        self.ratio, self.norm_pixels = check_ratio(ratio), norm_pixels
        if is_vit(backbone):
            if any(isinstance(module, RelativePosition) for module in backbone.modules()):
                what = "positions inside attention need all patches, and this method leaves some out"
                raise UsageError(what, remedy="set model.options.position to sincos_2d or learned_1d")
            _init_weights(backbone)

    def forward(self, batch: Batch, noise: Tensor | None = None) -> dict[str, Loss]:
        """{"loss": ...} over images: the mean squared error over the pixels of the hidden patches.

        Args:
            batch: one crop an image; targets are not looked at.
            noise: (B, N) numbers; the patches of the highest are hidden. Default: drawn.

        Raises:
            UsageError: pictures of several sizes, or of too few patches.
        """
        images = self.pictures(batch)
        patches, mask = self.reconstruct(images, noise)
        error = (patches.float() - self.targets(images)).square().mean(2)
        return {"loss": Loss(((error * mask).sum(1) / mask.sum(1)).sum(), number_of(images))}

    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """The pixels of every patch of normalised images (B, C, H, W), from those that stay visible."""
        side = side_of(self.backbone)
        grid = grids.cells(grids.size_of(images), side)
        if noise is None:
            noise = torch.rand(len(images), grid[0] * grid[1], device=images.device)
        hidden = random_mask(noise, self.ratio)
        if is_vit(self.backbone):
            tokens = self.backbone.encode_visible(images, hidden.order[:, : hidden.visible])
            return Reconstruction(self.head.pixels(tokens, grid, hidden), hidden.mask)
        assert self.head.paint is not None
        features = self.backbone(self.head.paint(images, hidden.mask, side))
        return Reconstruction(self.head.pixels(coarsest(features.maps, grid), grid), hidden.mask)

    def targets(self, images: Tensor) -> Tensor:
        """(B, N, p * p * C) float32: the pixels of normalised images that the decoder learns."""
        patches = patchify(images, side_of(self.backbone)).float()
        if not self.norm_pixels:
            return patches
        variance, mean = torch.var_mean(patches, 2, keepdim=True)  # unbiased, as the authors' code has it
        return (patches - mean) / (variance + EPS).sqrt()


class Decoder(MethodHead):
    """A narrow transformer from the backbone's tokens to pixels.

    Args:
        inside: D of the backbone's tokens.
        pixels: of a patch, all channels.
        width, depth, heads: its own.
        paint: hides patches from a backbone that needs all of them; None: there are mask tokens for those left out.
    """

    def __init__(
        self, inside: int, pixels: int, *, width: int, depth: int, heads: int, paint: MaskColour | None = None
    ) -> None:
        super().__init__()
        if width % 4 or width % heads:
            raise UsageError(f"a decoder of width {width} and {heads} heads", remedy="both 4 and the heads divide it")
        self.paint = paint
        self.before = nn.Identity() if paint is None else nn.LayerNorm(inside, eps=1e-6)  # maps are not normalised
        self.embed = nn.Linear(inside, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width)) if paint is None else None
        self.position = SinCos2D()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pred = nn.Linear(width, pixels)
        _init_weights(self)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)

    def pixels(self, tokens: Tensor, grid: tuple[int, int], hidden: PatchMask | None = None) -> Tensor:
        """Pixels of all patches.

        Args:
            tokens: (B, P + K, D): P tokens that are no patches, then the K visible patches in the order of `hidden`;
                without it, the cells of the whole grid.
            grid: rows and columns of patches.
            hidden: which patches are not among the tokens.

        Returns:
            (B, N, pixels).
        """
        x, count = self.embed(self.before(tokens)), grid[0] * grid[1]
        if hidden is not None and self.mask_token is not None:
            before = x.shape[1] - hidden.visible
            masked = self.mask_token.to(x.dtype).expand(len(x), count - hidden.visible, -1)
            shuffled = torch.cat([x[:, before:], masked], 1)
            restore = hidden.order.argsort(1)[..., None].expand_as(shuffled)
            x = torch.cat([x[:, :before], shuffled.gather(1, restore)], 1)
        x = self.position(x, grid)
        for block in self.blocks:
            x = block(x)
        return self.pred(self.norm(x[:, -count:]))


def _init_weights(module: nn.Module) -> None:
    """Matrices as Glorot and Bengio (2010) have them, biases 0 (appendix A.1)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
