"""How flax (JAX) stores layers: kernels have their input in front, attention keeps heads apart."""

from __future__ import annotations

import torch
from torch import Tensor

from patchform.weights.operations import Operation, Sizes, permute
from patchform.weights.rules import Rule

dense = permute(1, 0)
"""Linear: (in, out) -> (out, in)."""


def _patches(tensors: tuple[Tensor, ...], shape: torch.Size, sizes: Sizes) -> Tensor:
    kernel = tensors[0].permute(-1, -2, *range(tensors[0].dim() - 2))
    return kernel.reshape(shape) if kernel.numel() == shape.numel() else kernel


def _patches_back(tensor: Tensor, count: int, sizes: Sizes) -> tuple[Tensor, ...]:
    box = (*((sizes["frames"],) if "frames" in sizes else ()), sizes["patch"], sizes["patch"])
    kernel = tensor.reshape(len(tensor), -1, *box)
    return (kernel.permute(*range(2, kernel.dim()), 1, 0),)


patches = Operation(_patches, _patches_back)
"""Convolution (p, p, C, D) -> linear weights of patches (D, C * p * p). The way back needs the size "patch".

In front of p, p there may be the length of a tubelet; the way back needs the size "frames" then."""


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

# ------------------------------------------------------------------------------------------------- rules for layers


def norm(source: str, target: str) -> tuple[Rule, ...]:
    """A layer norm."""
    return (f"{source}/scale", f"{target}.weight"), (f"{source}/bias", f"{target}.bias")


def linear(source: str, target: str) -> tuple[Rule, ...]:
    """A linear layer."""
    return (f"{source}/kernel", f"{target}.weight", dense), (f"{source}/bias", f"{target}.bias")


def embedding(source: str, target: str) -> tuple[Rule, ...]:
    """A convolution that cuts patches or tubelets."""
    return (f"{source}/kernel", f"{target}.weight", patches), (f"{source}/bias", f"{target}.bias")


def mlp(source: str, target: str) -> tuple[Rule, ...]:
    """A perceptron with one hidden layer."""
    return *linear(f"{source}/Dense_0", f"{target}.fc1"), *linear(f"{source}/Dense_1", f"{target}.fc2")


def attention(source: str, target: str) -> tuple[Rule, ...]:
    """Queries, keys and values into one matrix, and the projection behind them."""
    return (
        *(
            (tuple(f"{source}/{part}/{kind}" for part in ("query", "key", "value")), f"{target}.qkv.{own}", qkv)
            for kind, own in (("kernel", "weight"), ("bias", "bias"))
        ),
        (f"{source}/out/kernel", f"{target}.proj.weight", out),
        (f"{source}/out/bias", f"{target}.proj.bias"),
    )
