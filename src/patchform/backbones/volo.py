"""VOLO: vision outlooker for visual recognition (Yuan et al., TPAMI 2022, arXiv:2106.13112).

    image --stem--> outlooker x depths[0] --2x2--> + position --> block x other depths --> [class | p1 p2 ... pN]
                       | /8                                          | /16                         |
                       v                                             v                    class block x 2, norm
                      map                                           map                class -> summary, p -> tokens

    outlooker    the mean of 2x2 cells gives, by a linear layer alone, the weights with which each of the 3x3 cells
                 around it sums the values of those nine; where windows overlap, their outputs are summed
    class block  the class token attends to the patches, which stay as they are (Touvron et al. 2021, CaiT)

The published output is head(class) + 1/2 max over patches of aux_head(patch), after token labelling (Jiang et al.
2021): `head.classifier` reads the summary and `head.auxiliary` the tokens. Sizes are those of the authors' code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.backbones.base import Backbone, shrink_padding, zero_pixels
from patchform.descriptions import Variant
from patchform.geometry import grids
from patchform.layers import blocks
from patchform.layers.attention import real_keys
from patchform.layers.blocks import MLP, Block, ClassBlock, hidden_width
from patchform.layers.convolutions import channels_innermost
from patchform.layers.drop import linear_rates
from patchform.layers.fitting import Fitted, TransferContext, resized
from patchform.layers.norms import BatchNorm2d
from patchform.layers.patches import pad_to_multiple
from patchform.records import Features
from patchform.schema import Natural

PATCH = 8
"""Side of a cell of the outlookers, pixels."""
EPS = 1e-5


class VOLO(Backbone):
    """Outlookers on fine cells, transformer blocks on coarse ones.

    Args:
        in_channels: C of the images.
        image_size: native input, pixels; other sizes work, positions are resized.
        stem: channels of the convolutions in front.
        widths: D of the outlookers, D of the blocks.
        depths: number of outlookers, then blocks of each stage; the stages differ in nothing.
        heads: attention heads of the outlookers, of the blocks.
        mlp_ratio: hidden width of the perceptrons over D.
        qkv_bias: biases of queries, keys, values, and of the values of outlookers.
        class_depth: number of class blocks.
        drop_path: stochastic depth of the last block. It rises linearly from 0 over outlookers and blocks, but
            outlookers and class blocks go without (the authors' code).
    """

    embedding = "stem"
    beyond_maps = ("class_token", "class_blocks", "norm")

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        stem: int = 64,
        widths: tuple[int, int] = (192, 384),
        depths: tuple[int, ...] = (4, 4, 8, 2),
        heads: tuple[int, int] = (6, 12),
        mlp_ratio: float = 3.0,
        qkv_bias: bool = False,
        class_depth: Natural = 2,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.channels, self.strides, self.width = tuple(widths), (PATCH, 2 * PATCH), widths[1]
        rates = iter(linear_rates(drop_path, sum(depths))[depths[0] :])

        self.stem = Stem(in_channels, stem, widths[0])
        self.outlookers = nn.ModuleList(
            Outlooker(widths[0], heads[0], mlp_ratio, qkv_bias=qkv_bias) for _ in range(depths[0])
        )
        self.merge = nn.Conv2d(*widths, 2, stride=2)
        self.position = nn.Parameter(torch.empty(1, *grids.cells(image_size, 2 * PATCH), widths[1]))
        self.stages = nn.ModuleList(
            nn.ModuleList(
                Block(widths[1], heads[1], mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, eps=EPS, drop_path=next(rates))
                for _ in range(depth)
            )
            for depth in depths[1:]
        )
        self.class_token = nn.Parameter(torch.empty(1, 1, widths[1]))
        self.class_blocks = nn.ModuleList(
            ClassBlock(widths[1], heads[1], mlp_ratio, qkv_bias=qkv_bias, eps=EPS) for _ in range(class_depth)
        )
        self.norm = nn.LayerNorm(widths[1], eps=EPS)

        blocks.init_weights(self)
        for table in (self.position, self.class_token):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, images: Tensor, *, padding: Tensor | None = None) -> Features:
        """(B, C, H, W) -> two maps, tokens (B, N, D) and summary (B, D)."""
        images = zero_pixels(images, padding)
        fine, coarse = (shrink_padding(padding, stride) for stride in self.strides)
        x = self.stem(images)  # (B, H, W, D) throughout
        for outlooker in self.outlookers:
            x = outlooker(x, fine)
        if fine is not None:
            x = x.masked_fill(fine[..., None], 0)  # coarse cells at the edge of the picture mix real cells with these
        maps = [x.permute(0, 3, 1, 2)]

        x = self.merge(pad_to_multiple(maps[0], 2)).permute(0, 2, 3, 1)
        x = x + grids.resize(self.position[0], (x.shape[1], x.shape[2]))
        for block in self.layers()[len(self.outlookers) : -len(self.class_blocks)]:
            x = block(x, padding=coarse)
        maps.append(x.permute(0, 3, 1, 2))

        patches = x.flatten(1, 2)
        token = self.class_token.expand(x.shape[0], -1, -1)
        for block in self.class_blocks:
            token = block(token, patches, real_keys(coarse))
        summary, tokens = self.norm(token)[:, 0], self.norm(patches)
        return Features(tuple(maps), self.strides, grids.size_of(images), tokens, summary, coarse)

    def fit(self, name: str, tensor: Tensor, context: TransferContext) -> Fitted:
        """Positions (1, H, W, D) of another grid."""
        if name != "position" or tensor.dim() != 4 or tensor.shape[3] != self.position.shape[3]:
            raise ValueError("it does not depend on the image size")
        to, native = (self.position.shape[1], self.position.shape[2]), (tensor.shape[1], tensor.shape[2])
        return context.resize(tensor[0], to, "bicubic")[None], resized(native, to)

    def layers(self) -> list[nn.Module]:
        """Outlookers, blocks of all stages, class blocks."""
        return [*self.outlookers, *(block for stage in self.stages for block in stage.children()), *self.class_blocks]


class Stem(nn.Module):
    """A strided 7x7 convolution, two 3x3 ones, then patches of 4x4, as in LV-ViT (Jiang et al. 2021).

    Args:
        in_channels: C.
        channels: of the three convolutions.
        width: D.
    """

    def __init__(self, in_channels: int, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, kernel, stride in ((in_channels, 7, 2), (channels, 3, 1), (channels, 3, 1)):
            layers += [
                nn.Conv2d(before, channels, kernel, stride=stride, padding=kernel // 2, bias=False),
                BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        self.convolutions = nn.Sequential(*layers)
        self.proj = nn.Conv2d(channels, width, PATCH // 2, stride=PATCH // 2)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ceil(H / 8), ceil(W / 8), D)."""
        images = channels_innermost(pad_to_multiple(images, PATCH))
        return self.proj(self.convolutions(images)).permute(0, 2, 3, 1)


class Outlooker(nn.Module):
    """x + outlook(norm(x)), then x + mlp(norm(x)) (equations 1 and 2).

    Args:
        width: D.
        heads: attention heads.
        mlp_ratio: hidden width of the perceptron over D.
        qkv_bias: a bias of the values.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, *, qkv_bias: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attention = OutlookAttention(width, heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width, hidden_width(width, mlp_ratio))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, H, W, D) -> the same; padding (B, H, W) is as if it lay beyond the border."""
        x = x + self.attention(self.norm1(x), padding)
        return x + self.mlp(self.norm2(x))


class OutlookAttention(nn.Module):
    """Windows of 3x3 cells, two apart, whose weights come from their centre without keys (section 3.1, algorithm 1).

    Args:
        width: D.
        heads: attention heads; divides D.
        qkv_bias: a bias of the values.
    """

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = False) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.v = nn.Linear(width, width, bias=qkv_bias)
        self.weights = nn.Linear(width, heads * 9 * 9)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, H, W, D) -> the same; padding (B, H, W) has values of zero and is no window's centre."""
        height, width = x.shape[1:3]
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0)
        pooled = _mean_of_four(x)  # (B, H/2, W/2, D)
        if padding is not None:
            pooled = pooled / _mean_of_four((~padding)[..., None].to(x.dtype)).clamp(min=0.25)
        weights = (self.weights(pooled) * self.scale).unflatten(-1, (self.heads, 9, 9)).softmax(-1)
        if padding is not None:
            weights = weights.masked_fill(grids.shrink_mask(padding, 2)[..., None, None, None], 0)

        rows, columns = pooled.shape[1:3]
        frame = (2 * rows + 1, 2 * columns + 1)  # a row above, a column on the left; odd grids one more at the end
        cells = grids.squares((rows, columns), side=3, step=2, device=x.device)
        framed = F.pad(self.v(x), (0, 0, 1, frame[1] - width - 1, 1, frame[0] - height - 1)).flatten(1, 2)
        values = framed.index_select(1, cells).view(*pooled.shape[:3], 9, self.heads, -1).transpose(3, 4)
        mixed = (weights @ values).transpose(3, 4).flatten(4).flatten(1, 3)  # (B, H/2 * W/2 * 9, D)
        sums = torch.zeros_like(framed, dtype=mixed.dtype).index_add(1, cells, mixed).unflatten(1, frame)
        return self.proj(sums[:, 1 : height + 1, 1 : width + 1])


def _mean_of_four(x: Tensor) -> Tensor:
    """Mean of 2x2 cells, of those that are there, (B, H, W, D) -> (B, ceil(H / 2), ceil(W / 2), D)."""
    return F.avg_pool2d(x.permute(0, 3, 1, 2), 2, ceil_mode=True).permute(0, 2, 3, 1)


def _row(
    width: int,
    depths: tuple[int, ...],
    heads: tuple[int, int],
    *,
    stem: int = 64,
    mlp_ratio: float = 3.0,
    image_size: int = 224,
) -> Variant:
    size = {"stem": stem, "widths": (width, 2 * width), "depths": depths, "heads": heads, "mlp_ratio": mlp_ratio}
    return Variant(build=VOLO, image_size=image_size, options=size)


VARIANTS = {
    "nano": Variant(
        build=VOLO,
        image_size=32,
        options={"stem": 8, "widths": (12, 24), "depths": (1, 1, 1), "heads": (2, 3), "class_depth": 1},
    ),
    "d1": _row(192, (4, 4, 8, 2), (6, 12)),
    "d1_384": _row(192, (4, 4, 8, 2), (6, 12), image_size=384),
    "d2": _row(256, (6, 4, 10, 4), (8, 16)),
    "d2_384": _row(256, (6, 4, 10, 4), (8, 16), image_size=384),
    "d3": _row(256, (8, 8, 16, 4), (8, 16)),
    "d3_448": _row(256, (8, 8, 16, 4), (8, 16), image_size=448),
    "d4": _row(384, (8, 8, 16, 4), (12, 16)),
    "d4_448": _row(384, (8, 8, 16, 4), (12, 16), image_size=448),
    "d5": _row(384, (12, 12, 20, 4), (12, 16), stem=128, mlp_ratio=4.0),
    "d5_448": _row(384, (12, 12, 20, 4), (12, 16), stem=128, mlp_ratio=4.0, image_size=448),
    "d5_512": _row(384, (12, 12, 20, 4), (12, 16), stem=128, mlp_ratio=4.0, image_size=512),
}
