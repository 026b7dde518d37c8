"""Attention to a map made smaller: the keys and values of PVT, Twins and their successors (Wang et al., ICCV 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patchform.geometry import grids
from patchform.layers import fitting
from patchform.layers.attention import CrossAttention, never_empty, real_keys
from patchform.layers.blocks import MLP, hidden_width
from patchform.layers.drop import DropPath
from patchform.layers.fitting import Fitted, TransferContext
from patchform.layers.linear import Linear
from patchform.layers.patches import pad_cells


def zero_padding(x: Tensor, padding: Tensor | None) -> Tensor:
    """(B, H, W, D) with zeros on padding (B, H, W), as a convolution finds beyond the border."""
    return x if padding is None else x.masked_fill(padding[..., None], 0)


class PatchProjection(nn.Module):
    """Cut a map into squares and project each: a convolution with kernel = stride, as one matrix product.

    The kernel's row, column and channel axes are joined, channels last as the map has them: `proj.weight` is
    (D', p * p * D).

    Args:
        in_channels: D.
        width: D'.
        side: p, cells.
    """

    def __init__(self, in_channels: int, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.proj = Linear(side * side * in_channels, width)

    @property
    def in_channels(self) -> int:
        """D."""
        return self.proj.in_features // self.side**2

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, ceil(H / p), ceil(W / p), D'); what is missing of the last squares is zero."""
        p = self.side
        rows, columns = grids.cells((x.shape[1], x.shape[2]), p)
        x = pad_cells(x, (rows * p, columns * p))
        squares = x.unflatten(2, (columns, p)).unflatten(1, (rows, p))  # (B, rows, p, columns, p, D)
        return self.proj(squares.transpose(2, 3).flatten(3))

    def fit(self, name: str, tensor: Tensor, context: TransferContext) -> Fitted:
        """Weights (D', p * p * D) for another D: these squares are cut from the picture."""
        cells = self.side**2
        matrix = name == "proj.weight" and tensor.dim() == 2
        if not matrix or tensor.shape[0] != self.proj.out_features or tensor.shape[1] % cells:
            raise ValueError("these squares are of another side or width")
        kernel, own = (x.unflatten(1, (cells, -1)).transpose(1, 2) for x in (tensor, self.proj.weight))
        kernel, note = fitting.channels(kernel, own, context)
        return kernel.transpose(1, 2).flatten(1), note


class Reduction(nn.Module):
    """Squares of cells, each projected to one key and value (Wang et al. 2021, section 3.3).

    Rows and columns that make no whole square are left out, as in the published models.

    Args:
        width: D.
        side: side of a square, cells.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.squares = PatchProjection(width, width, side)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, H, W, D), padding (B, H, W) -> (B, H // r, W // r, D), one row and column at least, and its padding."""
        side, x = self.squares.side, zero_padding(x, padding)
        rows, columns = (torch.sym_max(1, length // side) for length in x.shape[1:3])
        if grids.known(rows, columns):  # nothing is computed of what is left out
            x = x[:, : rows * side, : columns * side]
        squares = self.squares(x)[:, :rows, :columns]
        key_padding = None
        if padding is not None:
            key_padding = grids.shrink_mask(padding[:, : rows * side, : columns * side], side)
        return self.norm(squares), key_padding


class ReducedAttention(CrossAttention):
    """Multi-head attention of all cells to their reduction (Wang et al. 2021, section 3.3).

    Args:
        width: D.
        heads: h; divides D.
        reduction: (map, padding) -> (smaller map, its padding); with None the tokens themselves are keys and values.
        qkv_bias: biases of queries, keys, values.
    """

    def __init__(self, width: int, heads: int, *, reduction: nn.Module | None = None, qkv_bias: bool = True) -> None:
        super().__init__(width, heads, qkv_bias=qkv_bias)
        self.reduction = reduction

    def mix(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """(B, H, W, D), or a sequence (B, N, D) where nothing is reduced, to the same; padding has x's without D."""
        context, key_padding = (x, padding) if self.reduction is None else self.reduction(x, padding)
        allowed = never_empty(real_keys(key_padding))
        return self(x.flatten(1, -2), context.flatten(1, -2), allowed).view(x.shape)


class ReducedBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        width: D.
        heads: attention heads; divides D.
        reduction: of the keys and values.
        mlp: perceptron, (..., D) -> (..., D).
        qkv_bias: biases of queries, keys, values.
        drop_path: rate of stochastic depth of both branches.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        reduction: nn.Module | None,
        mlp: nn.Module,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = ReducedAttention(width, heads, reduction=reduction, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = mlp
        self.residual = DropPath(drop_path)

    def forward(self, x: Tensor, *, padding: Tensor | None = None) -> Tensor:
        """(B, H, W, D), or a sequence (B, N, D) where nothing is reduced, to the same; padding has x's without D."""
        x = self.residual(x, lambda part, pad: self.attention.mix(self.norm1(part), pad), padding)
        return self.residual(x, self.feed_forward, padding)

    def feed_forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """The perceptron's branch: cell by cell."""
        return self.mlp(self.norm2(x))


def patch_projection_block(
    width: int, heads: int, mlp_ratio: float, side: int, *, qkv_bias: bool = True, drop_path: float = 0.0
) -> ReducedBlock:
    """A block of global attention whose keys are squares of `side` x `side` cells, projected (PVT, Twins)."""
    reduction = Reduction(width, side) if side > 1 else None
    mlp = MLP(width, hidden_width(width, mlp_ratio))
    return ReducedBlock(width, heads, reduction=reduction, mlp=mlp, qkv_bias=qkv_bias, drop_path=drop_path)
