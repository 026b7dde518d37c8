"""Linear layers and convolutions with the fastest kernel of a CPU, where no gradient is wanted.

With a gradient, on other devices and under a compiler they are torch's own.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

_NARROW = 128
"""Up to this width oneDNN's float32 products to a larger one are 1.1 to 1.9 times faster than MKL's, else about as
fast; those in bfloat16 are faster at any, for the bias is not copied first."""
_ROWS = 4096, 3136
"""Of one of these the number of rows is a multiple where oneDNN computes in float32: it keeps a kernel of half a
megabyte for each number, a thousand of them. Pictures of one size make such batches (3136 are the cells of 224 pixels);
pictures of any size would each leave theirs, where torch's own product leaves none. As the shape alone decides, bits
stay equal."""
_KERNELS = "_linear_pointwise", "_convolution_pointwise", "_is_mkldnn_bf16_supported"
"""Private names in `torch.ops.mkldnn`."""


class Linear(nn.Linear):
    """torch's, with another kernel where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D')."""
        if self.bias is None or not plain(x) or not _fused_is_faster(x, self):
            return super().forward(x)
        return _fused(x, self, "none", "")


def linear_gelu(x: Tensor, linear: nn.Linear, gelu: str = "none") -> Tensor:
    """gelu(linear(x)) of a `plain` x, in one kernel where there is one, else in place.

    A fresh tensor of this size costs more than the function itself.
    """
    dtype = _dtype(x)
    tanh = gelu == "tanh" and _fuses(dtype)  # torch's takes longer than the product
    if tanh or _fused_is_faster(x, linear):
        return _fused(x, linear, "gelu", gelu)
    return torch.ops.aten.gelu_(linear(x), approximate=gelu)


def _fused_is_faster(x: Tensor, linear: nn.Linear) -> bool:
    """Whether oneDNN's product is the faster one, and one of few."""
    dtype = _dtype(x)
    if dtype != torch.float32 or not _fuses(dtype):
        return _fuses(dtype)
    rows = x.numel() // linear.in_features
    widens = linear.in_features <= _NARROW and linear.in_features < linear.out_features
    return widens and any(rows % number == 0 for number in _ROWS)


def _fused(x: Tensor, linear: nn.Linear, activation: str, form: str) -> Tensor:
    dtype = _dtype(x)
    weight, bias = linear.weight.to(dtype), linear.bias.to(dtype)
    return torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, activation, [], form)


def conv_gelu(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """gelu(conv(x)) of a `plain` x, in one kernel where there is one, else in place."""
    dtype = _dtype(x)
    if not _fuses(dtype) or conv.bias is None or isinstance(conv.padding, str):
        return torch.ops.aten.gelu_(conv(x))
    shape = conv.padding, conv.stride, conv.dilation, conv.groups
    weight, bias = conv.weight.to(dtype), conv.bias.to(dtype)
    return torch.ops.mkldnn._convolution_pointwise(x.to(dtype), weight, bias, *shape, "gelu", [], "none")


def plain(x: Tensor) -> bool:
    """Whether x lies on a CPU, without gradients, and no trace or compilation is under way."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not traced


def _dtype(x: Tensor) -> torch.dtype:
    """What a product of x is computed in."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _fuses(dtype: torch.dtype) -> bool:
    """Whether oneDNN has the kernels, those that torch.compile uses too."""
    if not _has_kernels():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 and torch.backends.mkldnn.is_available()


@lru_cache(maxsize=1)
def _has_kernels() -> bool:
    """Whether this torch was built with them (macOS' is not), by their private names."""
    return all(hasattr(torch.ops.mkldnn, name) for name in _KERNELS)
