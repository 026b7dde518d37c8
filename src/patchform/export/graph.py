"""A model as one graph: uint8 pictures in, the outputs of its task out, batch, height and width free."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as config

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
    with torch.no_grad(), config.patch(backed_size_oblivious=True):
        return torch.export.export(Graph(model), (images, sizes), dynamic_shapes=shapes, strict=False)
