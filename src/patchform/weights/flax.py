"""How flax (JAX) stores layers: kernels have their input in front, attention keeps heads apart."""

from __future__ import annotations

import torch
from torch import Tensor

from patchform.weights.operations import Operation, Sizes, permute

dense = permute(1, 0)
"""Linear: (in, out) -> (out, in)."""


def _patches(tensors: tuple[Tensor, ...], shape: torch.Size, sizes: Sizes) -> Tensor:
    kernel = tensors[0].permute(3, 2, 0, 1)
    return kernel.reshape(shape) if kernel.numel() == shape.numel() else kernel


def _patches_back(tensor: Tensor, count: int, sizes: Sizes) -> tuple[Tensor, ...]:
    p = sizes["patch"]
    return (tensor.reshape(len(tensor), -1, p, p).permute(2, 3, 1, 0),)


patches = Operation(_patches, _patches_back)
"""Convolution (p, p, C, D) -> linear weights of patches (D, C * p * p). The way back needs the size "patch"."""


def _qkv(tensors: tuple[Tensor, ...], shape: torch.Size, sizes: Sizes) -> Tensor:
    if tensors[0].dim() == 2:  # biases (h, d)
        return torch.cat([t.flatten() for t in tensors])
    return torch.cat([t.flatten(1).t() for t in tensors])  # kernels (D, h, d)


def _qkv_back(tensor: Tensor, count: int, sizes: Sizes) -> tuple[Tensor, ...]:
    parts, heads = tensor.chunk(count), sizes["heads"]
    if tensor.dim() == 1:
        return tuple(t.unflatten(0, (heads, -1)) for t in parts)
    return tuple(t.t().unflatten(1, (heads, -1)) for t in parts)


qkv = Operation(_qkv, _qkv_back)
"""Query, key, value (D, h, d) or (h, d) -> (3D, D) or (3D,). The way back needs the size "heads"."""

out = Operation(
    lambda tensors, shape, sizes: tensors[0].flatten(0, 1).t(),
    lambda tensor, count, sizes: (tensor.t().unflatten(0, (sizes["heads"], -1)),),
)
"""Output projection (h, d, D) -> (D, D). The way back needs the size "heads"."""
