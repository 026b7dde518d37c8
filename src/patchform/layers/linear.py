"""Linear layers and convolutions with the fastest kernel of a CPU, where no gradient is wanted.

With a gradient, on other devices and under a compiler they are torch's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_NARROW = 128
"""Up to this width oneDNN's float32 products are 1.1 to 1.5 times faster than MKL's, above it 0.95 times; those in
bfloat16 are at any, for the bias is not copied first."""


class Linear(nn.Linear):
    """torch's, with another kernel where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D')."""
        if self.bias is None or not plain(x) or not _fused_is_faster(self, _dtype(x)):
            return super().forward(x)
        return _fused(x, self, "none", "")


def linear_gelu(x: Tensor, linear: nn.Linear, gelu: str = "none") -> Tensor:
    """gelu(linear(x)) of a `plain` x, in one kernel where there is one, else in place.

    A fresh tensor of this size costs more than the function itself.
    """
    dtype = _dtype(x)
    if _fused_is_faster(linear, dtype) or (
        gelu == "tanh" and _fuses(dtype)
    ):  # torch's tanh takes longer than the product
        return _fused(x, linear, "gelu", gelu)
    return torch.ops.aten.gelu_(linear(x), approximate=gelu)


def _fused_is_faster(linear: nn.Linear, dtype: torch.dtype) -> bool:
    """Whether oneDNN's product is the faster one."""
    return _fuses(dtype) and (dtype != torch.float32 or min(linear.weight.shape) <= _NARROW)


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
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 and torch.backends.mkldnn.is_available()
