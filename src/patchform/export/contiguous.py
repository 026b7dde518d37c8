"""A graph whose tensors lie in memory in the default order wherever torch asks for it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import is_contiguous_or_false
from torch.overrides import TorchFunctionMode

_ASK = {
    *(torch.conv2d, torch.conv_transpose2d, F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, F.interpolate),
    *(Tensor.flatten, Tensor.reshape, Tensor.contiguous),
}
"""Of a tensor whose channels lie innermost, say, these ask whether lengths are 1, and the graph is for no others."""


class Contiguous(TorchFunctionMode):
    """Within it tensors are copied into the default order of memory before anything asks for theirs.

    Files of ONNX and OpenVINO know no such order, so it costs them nothing.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As torch calls it."""
        if func in _ASK:
            args = tuple(_contiguous(x) if isinstance(x, Tensor) else x for x in args)
        return func(*args, **(kwargs or {}))


def _contiguous(x: Tensor) -> Tensor:
    """The tensor, or a copy; `Tensor.contiguous` would ask."""
    return x if is_contiguous_or_false(x) else x.clone(memory_format=torch.contiguous_format)
