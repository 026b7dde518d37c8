"""The pre-norm transformer block, the perceptrons inside such blocks, and a block for a class token."""

from __future__ import annotations

from typing import Literal, TypeAlias, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.layers.attention import Attention, CrossAttention, QKVBias
from patchform.layers.drop import DropPath
from patchform.layers.linear import Linear, conv_gelu, linear_gelu, plain
from patchform.layers.norms import LayerScale
from patchform.layers.pattern_tables import Grid
from patchform.layers.patterns import Global, Pattern
from patchform.layers.positions import RelativePosition

GELU: TypeAlias = Literal["none", "tanh", "quick"]
"""Exact (erf), its tanh approximation, which the original JAX code of ViT computes, or the rougher x sigmoid(1.702 x)
(Hendrycks and Gimpel 2016, section 2), which CLIP's computes."""
Perceptron: TypeAlias = Literal["gelu", "swiglu"]
"""`MLP` or `SwiGLU`."""


class FormOptions(TypedDict, total=False):
    """Of a `Block`, what some published weights need and papers seldom name."""

    gelu: GELU
    """Form of the activation."""
    qkv_bias: bool
    """Biases of queries, keys, values."""
    mlp: Perceptron
    """What follows the attention."""


class BlockOptions(FormOptions, total=False):
    """Those, and the width of a `Block`'s perceptron."""

    mlp_ratio: float
    """Hidden width of the perceptron over the block's."""


def hidden_width(width: int, ratio: float) -> int:
    """Of a perceptron: `ratio` times `width`, rounded, for 2.7 * 10 is a little less than 27 in floating point."""
    return max(1, round(width * ratio))


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> the same."""
        return x * torch.sigmoid(1.702 * x)


class MLP(nn.Module):
    """Linear, GELU, Linear.

    Args:
        width: D.
        hidden: inner width.
        gelu: form of the activation; "none" is the exact error function.
    """

    def __init__(self, width: int, hidden: int, *, gelu: GELU = "none") -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.act = QuickGELU() if gelu == "quick" else nn.GELU(approximate=gelu)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if isinstance(self.act, QuickGELU) or not plain(x):
            return self.fc2(self.act(self.fc1(x)))
        return self.fc2(linear_gelu(x, self.fc1, self.act.approximate))


class SwiGLU(nn.Module):
    """Linear, one half gated by the SiLU of the other, linear (Shazeer 2020, section 2; DINOv2's ViT-g).

    Args:
        width: D.
        hidden: inner width, of each half.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, 2 * hidden)  # the gate, then what is gated
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, value = self.fc1(x).chunk(2, -1)
        return self.fc2(F.silu(gate) * value)


def perceptron(name: Perceptron, width: int, hidden: int, *, gelu: GELU = "none") -> MLP | SwiGLU:
    """The perceptron of that name, whose inner width is `hidden`, or two thirds of it where one half gates the other.

    The two thirds, which keep the number of parameters, are rounded up to a multiple of 8 as DINOv2 has them.
    """
    if name == "swiglu":
        return SwiGLU(width, (hidden * 2 // 3 + 7) // 8 * 8)
    return MLP(width, hidden, gelu=gelu)


class ConvolutionalMLP(nn.Module):
    """Linear, depthwise 3x3 convolution, GELU, linear (PVT v2, Wang et al. 2022, section 3.3).

    Args:
        width: D.
        hidden: inner width.
        relu: whether a ReLU comes before the convolution; PVT v2's models with linear attention have it.
    """

    def __init__(self, width: int, hidden: int, *, relu: bool = False) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.before = nn.ReLU(inplace=True) if relu else nn.Identity()
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, H, W, D) -> the same; the convolution has zeros on padding (B, H, W)."""
        x = self.before(self.fc1(x))
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0)
        x = x.permute(0, 3, 1, 2)
        x = conv_gelu(x, self.conv) if plain(x) else F.gelu(self.conv(x))
        return self.fc2(x.permute(0, 2, 3, 1))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) (Dosovitskiy et al. 2021, equations 2 and 3; Swin, equation 3).

    Args:
        width: D.
        heads: attention heads; divides D.
        pattern: which keys a query attends to.
        position: position inside attention.
        mlp_ratio: hidden width of the perceptron over D.
        qkv_bias: biases of queries, keys, values; or not of keys.
        gelu: form of the activation.
        mlp: the kind of perceptron; "swiglu" has two thirds of the hidden width.
        eps: of the layer norms.
        layer_scale: initial factor on both branches; None has no factors.
        drop_path: rate of stochastic depth of both branches.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        pattern: Pattern | None = None,
        position: RelativePosition | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: QKVBias = True,
        gelu: GELU = "none",
        mlp: Perceptron = "gelu",
        eps: float = 1e-6,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.pattern = pattern or Global()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, heads, position=position, qkv_bias=qkv_bias)
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp: nn.Module = perceptron(mlp, width, hidden_width(width, mlp_ratio), gelu=gelu)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.residual = DropPath(drop_path)

    def forward(self, x: Tensor, *, grid: Grid | None = None, padding: Tensor | None = None) -> Tensor:
        """Mix the tokens.

        Args:
            x: (B, H, W, D), or a sequence (B, N, D) for global attention.
            grid: rows and columns of the cells of a sequence, for positions inside attention.
            padding: x's shape without D, bool, True on padding.
        """
        x = self.residual(x, lambda part, pad: self.attention_branch(part, grid, pad), padding)
        return self.residual(x, lambda part: self.scale2(self.mlp(self.norm2(part))))

    def attention_branch(self, x: Tensor, grid: Grid | None, padding: Tensor | None) -> Tensor:
        """The attention branch."""
        return self.scale1(self.attend(self.norm1(x), grid, padding))

    def attend(self, x: Tensor, grid: Grid | None, padding: Tensor | None) -> Tensor:
        """Attention by the pattern, without norm and factor."""
        groups = self.pattern.gather(x, padding)
        grid, shape = grid or groups.grid, tuple(x.shape[1:-1])
        mixed = self.attention(groups.tokens, grid=grid, allowed=groups.allowed, gather_keys=groups.gather_keys)
        return self.pattern.scatter(mixed, shape)


class ClassBlock(nn.Module):
    """A token attends to all others and itself, and is alone updated (Touvron et al. 2021, CaiT, section 3).

    Args:
        width: D.
        heads: attention heads; divides D.
        mlp_ratio: hidden width of the perceptron over D.
        qkv_bias: biases of queries, keys, values.
        eps: of the layer norms.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, *, qkv_bias: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attention = CrossAttention(width, heads, qkv_bias=qkv_bias)
        self.mlp = MLP(width, hidden_width(width, mlp_ratio))

    def forward(self, token: Tensor, others: Tensor, allowed: Tensor | None = None) -> Tensor:
        """(B, 1, D), (B, N, D) -> (B, 1, D); allowed (B, 1, 1, 1, N) bool of the others."""
        context = self.norm1(torch.cat([token, others], 1))
        allowed = None if allowed is None else F.pad(allowed, (1, 0), value=True)
        token = token + self.attention(context[:, :1], context, allowed)
        return token + self.mlp(self.norm2(token))


def init_weights(module: nn.Module) -> None:
    """Initial values of a transformer's layers: truncated normal 0.02 for matrices, 0 for biases (ViT's successors)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
