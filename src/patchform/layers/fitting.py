"""How a layer takes up weights of another size: it has `fit(name, tensor, context) -> (tensor, what was done)`.

`fit` is called with the name of a parameter below the layer and a tensor whose shape is not the parameter's. It raises
ValueError, with the reason, for what cannot be or was not allowed. Here is the arithmetic that layers share.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from patchform.geometry import grids
from patchform.settings import Transfer

Fitted: TypeAlias = tuple[Tensor, str]


class TransferContext(NamedTuple):
    """What is allowed, and the conventions of the source of the weights."""

    transfer: Transfer
    corners: bool = False
    """Position tables are resized with the corners aligned (`weights.rules.Rules`)."""
    from_images: bool = False
    """They are of single pictures, for a model of clips."""

    def grid_of(self, cells: int) -> tuple[int, int]:
        """Rows and columns of a table of so many cells: `transfer.grid` or a halving of it, else a square."""
        rows, columns = self.transfer.grid or (side := math.isqrt(cells), side)
        while rows * columns > cells and not (rows % 2 or columns % 2):
            rows, columns = rows // 2, columns // 2
        if rows * columns != cells:
            raise ValueError(f"its {cells} cells are not {rows} x {columns}: name the grid of the source")
        return rows, columns

    def resize(self, table: Tensor, size: tuple[int, int], mode: str) -> Tensor:
        """`grids.resize` in the mode of the layer or in that of the source of the weights."""
        return grids.resize(table, size, mode="corners" if self.corners else mode)


@runtime_checkable
class Resizable(Protocol):
    """A layer that takes up weights of another size."""

    def fit(self, name: str, tensor: Tensor, context: TransferContext) -> Fitted:
        """The tensor for the parameter `name`, and what was done."""


def resized(native: tuple[int, int], to: tuple[int, int], what: str = "grid") -> str:
    """What was done, in words."""
    return f"{what} {native[0]} x {native[1]} to {to[0]} x {to[1]}"


def fit_line(tensor: Tensor, own: Tensor, context: TransferContext, mode: str) -> Fitted:
    """A table (N, D) along one axis, of another length."""
    if tensor.dim() != 2 or tensor.shape[1] != own.shape[1]:
        raise ValueError("it is no table of this width")
    return context.resize(tensor[:, None], (len(own), 1), mode)[:, 0], f"{len(tensor)} rows to {len(own)}"


def channels(kernel: Tensor, own: Tensor, context: TransferContext) -> Fitted:
    """A kernel (D, C, ...) of the first layer for another number of channels, by `Transfer.channels`.

    Args:
        kernel: of the source.
        own: (D, C', ...) the parameter as it is now; of its shape beyond C' only for "new".
        context: holds the method.
    """
    before, after, method = kernel.shape[1], own.shape[1], context.transfer.channels
    note = f"{before} channels to {after}"
    if method == "refuse":
        raise ValueError(f"{note}: say how (channels: repeat, average, slice or new)")
    if method == "new":
        return own.detach().clone(), f"{note}, fresh"
    if method == "slice":
        if after > before:
            raise ValueError(f"{note}: there are not so many to slice")
        return kernel[:, :after], f"{note}, sliced"
    if method == "average":
        return (kernel.sum(1, keepdim=True) / after).expand(-1, after, *kernel.shape[2:]), f"{note}, averaged"
    times = -(-after // before)
    return kernel.repeat(1, times, *(1,) * (kernel.dim() - 2))[:, :after] * (before / after), f"{note}, repeated"


def resample(kernel: Tensor, side: int) -> Tensor:
    """Patch kernels (..., p, p) for patches of `side` pixels (Beyer et al. 2023, FlexiViT, section 3.4).

    With B the bicubic, antialiased resizing of a patch as a matrix, the new kernel is the w' of least norm with
    <w', B x> = <w, x> for every patch x, or the nearest to that if the patch shrinks. Computed in float64.
    """
    before = kernel.shape[-1]
    basis = torch.eye(before * before, dtype=torch.float64, device=kernel.device).unflatten(1, (1, before, before))
    resized_basis = F.interpolate(basis, size=(side, side), mode="bicubic", antialias=True)
    inverse = torch.linalg.pinv(resized_basis.flatten(1))  # (side * side, p * p): its rows are columns of B
    return (kernel.double().flatten(-2) @ inverse.t()).unflatten(-1, (side, side)).to(kernel.dtype)
