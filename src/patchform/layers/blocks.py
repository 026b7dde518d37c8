"""The pre-norm transformer block, and the two-layer perceptron inside it."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from patchform.layers.attention import Attention
from patchform.layers.drop import DropPath
from patchform.layers.norms import LayerScale
from patchform.layers.patterns import Global, Grid, Pattern
from patchform.layers.positions import InsidePosition

GELU: TypeAlias = Literal["none", "tanh"]
"""Exact (erf) or its tanh approximation; the original JAX code of ViT computes the latter."""


class MLP(nn.Module):
    """Linear, GELU, Linear.

    Args:
        width: D.
        hidden: inner width.
        gelu: "none" is the exact error function.
    """

    def __init__(self, width: int, hidden: int, *, gelu: GELU = "none") -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate=gelu)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
            return self.fc2(self.act(self.fc1(x)))
        return self.fc2(_linear_gelu(x, self.fc1, self.act.approximate))


def _linear_gelu(x: Tensor, linear: nn.Linear, gelu: str) -> Tensor:
    """gelu(linear(x)) on a CPU without gradients: in one kernel where there is one, else in place.

    A fresh tensor of this size costs more than the function itself.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():  # what torch.compile uses too
        weight, bias = linear.weight.to(dtype), linear.bias.to(dtype)
        return torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, "gelu", [], gelu)
    return torch.ops.aten.gelu_(linear(x), approximate=gelu)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) (Dosovitskiy et al. 2021, equations 2 and 3; Swin, equation 3).

    Args:
        width: D.
        heads: attention heads; divides D.
        pattern: where a query looks.
        position: position inside attention.
        mlp_ratio: hidden width of the perceptron over D.
        qkv_bias: biases of queries, keys, values.
        gelu: form of the activation.
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
        position: InsidePosition | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        gelu: GELU = "none",
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
        self.mlp = MLP(width, int(width * mlp_ratio), gelu=gelu)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.residual = DropPath(drop_path)

    def forward(self, x: Tensor, *, grid: Grid | None = None, padding: Tensor | None = None) -> Tensor:
        """Mix the tokens.

        Args:
            x: (B, H, W, D), or a sequence (B, N, D) for global attention.
            grid: rows and columns of the cells of a sequence, for positions inside attention.
            padding: x's shape without D, bool, True on padding.
        """
        x = self.residual(x, lambda part, pad: self.look(part, grid, pad), padding)
        return self.residual(x, lambda part: self.scale2(self.mlp(self.norm2(part))))

    def look(self, x: Tensor, grid: Grid | None, padding: Tensor | None) -> Tensor:
        """The attention branch."""
        groups = self.pattern.gather(self.norm1(x), padding)
        mixed = self.attention(groups.tokens, grid=grid or groups.grid, allowed=groups.allowed, widen=groups.widen)
        return self.scale1(self.pattern.scatter(mixed, tuple(x.shape[1:-1])))


def start(module: nn.Module) -> None:
    """Initial values of a transformer's layers: truncated normal 0.02 for matrices, 0 for biases (ViT's successors)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
