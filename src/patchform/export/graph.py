"""A model as one graph: uint8 pictures in, the outputs of its task out, batch, height and width free."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._prims_common import is_contiguous_or_false
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as config
from torch.overrides import TorchFunctionMode

from patchform.model import Model
from patchform.outputs import Outputs
from patchform.records import Batch


class Graph(nn.Module):
    """What is exported: pixels are normalised inside, decisions are made inside.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """(B, C, H, W) or (B, T, C, H, W) uint8 without padding, and (B, 2) int64: see `Head.to_outputs`."""
        features = self.model.features(Batch(images, (), (), ()))
        return self.model.head.to_outputs(self.model.head(features), sizes)


def example(model: Model, size: Sequence[int], *, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Inputs of a graph: random pictures of a (height, width). Two, since one image would be taken for a constant."""
    frames = (model.preprocessing.frames,) if model.preprocessing.frames else ()
    shape = (batch, *frames, model.preprocessing.channels, *size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images, torch.tensor([[size[0], size[1]]]).expand(batch, 2).contiguous()


def trace(model: Model, size: Sequence[int]) -> ExportedProgram:
    """The graph of a model for any batch, height and width; of clips any length.

    Args:
        model: in evaluation mode.
        size: height and width of the example; no graph is tied to it.

    Raises:
        torch.export's errors: a model that cannot be free.
    """
    images, sizes = example(model, size)
    free: dict[int, Any] = {axis: Dim.DYNAMIC for axis in range(images.dim()) if axis != images.dim() - 3}
    shapes = free, {0: Dim.DYNAMIC}
    if model.backbone.prefers_channels_last:  # such weights make torch ask whether lengths are 1, and guard the answer
        model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    # torch else takes no free length for 1: one picture, one row of cells
    with torch.no_grad(), config.patch(backed_size_oblivious=True), _Contiguous():
        return torch.export.export(Graph(model), (images, sizes), dynamic_shapes=shapes, strict=False)


_LOOK_AT_STRIDES = {
    *(torch.conv2d, torch.conv_transpose2d, F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__),
    *(Tensor.flatten, Tensor.reshape, Tensor.contiguous, F.scaled_dot_product_attention),
}
"""What asks whether lengths are 1 when a tensor does not lie in memory as it does by default, and guards the answer."""


class _Contiguous(TorchFunctionMode):
    """Within it, tensors are brought into the default order of memory before anything asks for theirs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LOOK_AT_STRIDES:
            args = tuple(_contiguous(x) if isinstance(x, Tensor) else x for x in args)
        return func(*args, **(kwargs or {}))


def _contiguous(x: Tensor) -> Tensor:
    """The tensor, or a copy; `Tensor.contiguous` would ask."""
    return x if is_contiguous_or_false(x) else x.clone(memory_format=torch.contiguous_format)
