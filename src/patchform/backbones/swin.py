"""Swin: hierarchical vision transformer using shifted windows (Liu et al., ICCV 2021, arXiv:2103.14030).

    image --4x4 patches--> stage 1 --merge 2x2--> stage 2 --merge--> stage 3 --merge--> stage 4 --norm, mean--> summary
                             | /4                   | /8               | /16              | /32
                             v                      v                  v                  v
                            map                    map                map                map

A stage alternates blocks whose windows tile the grid with blocks whose tiling is displaced by half a window, so that
neighbours meet in every second block. Maps are the stages' outputs before any norm.
"""

from __future__ import annotations

from torch import Tensor, nn

from patchform.backbones.base import Backbone
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.blocks import Block
from patchform.layers.drop import rising
from patchform.layers.patches import Patches
from patchform.layers.patterns import Windows
from patchform.layers.positions import RelativeBias
from patchform.records import Features, Published, Variant
from patchform.weights.rules import DROP, Rules, prefix, reshape


class Swin(Backbone):
    """Shifted-window transformer, version 1.

    Args:
        in_channels: C of the images.
        image_size: native input, pixels; a stage whose native grid is smaller than the window gets one of
            that size.
        patch: side of a patch, pixels.
        width: channels of the first stage; doubles with every stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        window: side of a window, cells.
        mlp_ratio: hidden width of the perceptrons over the stage's.
        drop_path: stochastic depth of the last block, rising linearly from 0.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        patch: int = 4,
        width: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        window: int = 7,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.channels = tuple(width << stage for stage in range(len(depths)))
        self.strides = tuple(patch << stage for stage in range(len(depths)))
        self.width = self.channels[-1]
        rates = iter(rising(drop_path, sum(depths)))

        self.patches = Patches(in_channels, width, patch)
        self.patches_norm = nn.LayerNorm(width)
        self.stages, self.merges = nn.ModuleList(), nn.ModuleList()
        for channels, stride, depth, stage_heads in zip(self.channels, self.strides, depths, heads):
            if self.stages:
                self.merges.append(PatchMerging(channels // 2))
            side = min(window, *grids.cells(image_size, stride))
            self.stages.append(
                nn.ModuleList(
                    Block(
                        channels,
                        stage_heads,
                        pattern=Windows((side, side), (side // 2, side // 2) if number % 2 else (0, 0)),
                        position=RelativeBias(stage_heads, (side, side)),
                        mlp_ratio=mlp_ratio,
                        eps=1e-5,
                        drop_path=next(rates),
                    )
                    for number in range(depth)
                )
            )
        self.norm = nn.LayerNorm(self.width)
        blocks.start(self.stages)
        blocks.start(self.merges)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> one map a stage, tokens (B, N, D) and summary (B, D)."""
        if padding is not None:
            images = images.masked_fill(padding[:, None], 0)
        x = self.patches_norm(self.patches(images))  # (B, H, W, D) throughout
        maps, hidden = [], None
        for merge, stage, stride in zip([nn.Identity(), *self.merges], self.stages, self.strides):
            x = merge(x)
            hidden = None if padding is None else grids.shrink_mask(padding, stride)
            for block in stage:  # type: ignore[attr-defined]
                x = block(x, padding=hidden)
            maps.append(x.permute(0, 3, 1, 2))
        tokens = self.norm(x).flatten(1, 2)
        summary = grids.masked_mean(tokens, hidden)
        return Features(tuple(maps), self.strides, grids.size_of(images), tokens, summary, hidden)

    def layers(self) -> list[nn.Module]:
        """The blocks of all stages."""
        return [block for stage in self.stages for block in stage]  # type: ignore[attr-defined]


class PatchMerging(nn.Module):
    """Join 2x2 cells and project to twice the width (section 3.1).

    Args:
        width: D; the output has 2D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, ceil(H / 2), ceil(W / 2), 2D)."""
        x = nn.functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        squares = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H/2, row, W/2, column, D)
        return self.reduction(self.norm(squares.permute(0, 1, 3, 4, 2, 5).flatten(3)))  # column-major, as published


def _row(
    width: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int = 7, image_size: int = 224
) -> Variant:
    size = {"width": width, "depths": depths, "heads": heads, "window": window}
    return Variant(build=Swin, image_size=image_size, options=size)


VARIANTS = {
    "nano": Variant(
        build=Swin,
        image_size=32,
        options={"patch": 2, "width": 16, "depths": (2, 2), "heads": (1, 2), "window": 4, "mlp_ratio": 2.0},
    ),
    "t": _row(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "s": _row(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "b": _row(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "l": _row(192, (2, 2, 18, 2), (6, 12, 24, 48)),
    "b384": _row(128, (2, 2, 18, 2), (4, 8, 16, 32), window=12, image_size=384),
    "l384": _row(192, (2, 2, 18, 2), (6, 12, 24, 48), window=12, image_size=384),
}

_PATCHES = reshape(-1, "channels", "patch", "patch")
_STAGES = (
    ("patch_embed.proj.weight", "patches.proj.weight", _PATCHES),
    ("patch_embed.proj.bias", "patches.proj.bias"),
    ("patch_embed.norm.{p}", "patches_norm.{p}"),
    ("layers.{s}.blocks.{b}.attn.relative_position_bias_table", "stages.{s}.{b}.attention.position.table"),
    ("layers.{s}.blocks.{b}.attn.relative_position_index", DROP),
    ("layers.{s}.blocks.{b}.attn_mask", DROP),
    ("layers.{s}.blocks.{b}.attn.{m}.{p}", "stages.{s}.{b}.attention.{m}.{p}"),
    ("layers.{s}.blocks.{b}.mlp.{m}.{p}", "stages.{s}.{b}.mlp.{m}.{p}"),
    ("layers.{s}.blocks.{b}.norm{n}.{p}", "stages.{s}.{b}.norm{n}.{p}"),
    ("norm.{p}", "norm.{p}"),
)
_MICROSOFT = Rules(*_STAGES, ("layers.{s}.downsample.{m}.{p}", "merges.{s}.{m}.{p}"))
_TIMM = Rules(*_STAGES, ("layers.{s+1}.downsample.{m}.{p}", "merges.{s}.{m}.{p}"))  # at the start of the next stage
_TORCHVISION = Rules(
    ("features.0.0.weight", "patches.proj.weight", _PATCHES),
    ("features.0.0.bias", "patches.proj.bias"),
    ("features.0.2.{p}", "patches_norm.{p}"),
    ("features.*.attn.relative_position_index", DROP),
    *(
        (f"features.{2 * s + 1}.{{b}}.{theirs}", f"stages.{s}.{{b}}.{ours}")
        for s in range(4)
        for theirs, ours in (
            ("attn.relative_position_bias_table", "attention.position.table"),
            ("attn.{m}.{p}", "attention.{m}.{p}"),
            ("mlp.0.{p}", "mlp.fc1.{p}"),
            ("mlp.3.{p}", "mlp.fc2.{p}"),
            ("norm{n}.{p}", "norm{n}.{p}"),
        )
    ),
    *((f"features.{2 * s + 2}.{{m}}.{{p}}", f"merges.{s}.{{m}}.{{p}}") for s in range(3)),
    ("norm.{p}", "norm.{p}"),
)

LAYOUTS = {
    "microsoft": Rules(*prefix(_MICROSOFT, "", "backbone."), ("head.{p}", "head.classifier.{p}")),
    "timm": Rules(*prefix(_TIMM, "", "backbone."), ("head.fc.{p}", "head.classifier.{p}")),
    "torchvision": Rules(*prefix(_TORCHVISION, "", "backbone."), ("head.{p}", "head.classifier.{p}")),
}

PUBLISHED = tuple(
    Published(
        variant=variant,
        scores={"imagenet-1k top-1": top1},
        source="Liu et al. 2021, table 1",
        image_size=384 if "384" in variant else 224,
        training=training,
    )
    for variant, top1, training in (
        ("t", 81.3, "imagenet-1k"),
        ("s", 83.0, "imagenet-1k"),
        ("b", 83.5, "imagenet-1k"),
        ("b384", 84.5, "imagenet-1k"),
        ("b", 85.2, "imagenet-22k"),
        ("b384", 86.4, "imagenet-22k"),
        ("l", 86.3, "imagenet-22k"),
        ("l384", 87.3, "imagenet-22k"),
    )
)
