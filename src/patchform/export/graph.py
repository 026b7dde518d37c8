"""A model as one graph: uint8 pictures in, the outputs of its task out, batch, height and width free."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as config

from patchform.export.contiguous import Contiguous
from patchform.export.options import ExportOptions
from patchform.export.resizing import ResizeInside
from patchform.layers.pattern_tables import one_graph
from patchform.model import Model
from patchform.outputs import Outputs
from patchform.prediction import SURE
from patchform.records import Batch
from patchform.tasks.base import Task


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


class FileGraph(nn.Module):
    """A graph as a file holds it: outputs by name, among them what follows from the others by the model's thresholds.

    Args:
        model: in evaluation mode.
        task: of the model.
        resizes: take pictures of any size, and resize them as the model's preprocessing says.
    """

    thresholds: Tensor

    def __init__(self, model: Model, task: Task, *, resizes: bool = False) -> None:
        super().__init__()
        self.inner, self.task = Graph(model), task  # not "graph": a traced module has such a thing
        self.resize = ResizeInside(model.preprocessing) if resizes else nn.Identity()
        thresholds = model.thresholds or (SURE,) * len(model.classes)
        self.register_buffer("thresholds", torch.tensor(thresholds), persistent=False)

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """As of `Graph`; without `sizes` pictures are of the size that they have before they are resized inside."""
        if sizes is None:
            height, width = images.shape[-2:]
            rows = torch.ones_like(images.flatten(1)[:, :1], dtype=torch.int64)  # (B, 1)
            sizes = torch.cat([rows * height, rows * width], 1)
        outputs = self.inner(self.resize(images), sizes)
        return dict(zip(outputs._fields, outputs)) | self.task.derived(outputs, self.thresholds)


def example(model: Model, size: Sequence[int], *, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Inputs of a graph: random pictures of a (height, width). Two, since one image would be taken for a constant."""
    frames = (model.preprocessing.frames,) if model.preprocessing.frames else ()
    shape = (batch, *frames, model.preprocessing.channels, *size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    if model.preprocessing.bits == 16:
        images = images / 255
    return images, torch.tensor([[size[0], size[1]]]).expand(batch, 2).contiguous()


def trace(model: Model, size: Sequence[int]) -> ExportedProgram:
    """The graph of a model for any batch, height and width; of clips any length.

    Args:
        model: in evaluation mode.
        size: height and width of the example; no graph is tied to it.

    Raises:
        torch.export's errors: a model that cannot be free.
    """
    return _trace(Graph(model), model, example(model, size), _free(model))


def trace_file(model: Model, task: Task, options: ExportOptions, size: tuple[int, int] | None) -> ExportedProgram:
    """The graph of a file.

    Args:
        model: in evaluation mode.
        task: of the model.
        options: `resize_inside` and `batch` count.
        size: (height, width) that it is for alone; None: any.

    Raises:
        torch.export's errors: a model that cannot be so.
    """
    inputs = example(model, size or _example_size(model), batch=options.batch or 2)
    axes = _free(model)
    if options.batch:
        del axes[0]
    if size is not None:
        axes = {axis: free for axis, free in axes.items() if axis == 0}
    graph = FileGraph(model, task, resizes=options.resize_inside)
    given = inputs if takes_sizes(task, options) else inputs[:1]
    return _trace(graph, model, given, axes)


def takes_sizes(task: Task, options: ExportOptions) -> bool:
    """Whether a file has to be told the sizes of pictures before they were resized."""
    return task.in_pixels and not options.resize_inside


def _trace(graph: nn.Module, model: Model, inputs: tuple[Tensor, ...], axes: dict[int, Any]) -> ExportedProgram:
    """Axes of the pictures are free; that of the sizes follows."""
    free = (axes, {axis: Dim.DYNAMIC for axis in axes if axis == 0})[: len(inputs)]
    if model.backbone.prefers_channels_last:  # of such weights torch asks whether lengths are 1
        graph = copy.deepcopy(graph).to(memory_format=torch.contiguous_format)
    # torch else takes no free length for 1: one picture, one row of cells
    lengths = config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), lengths, Contiguous(), one_graph():
        return torch.export.export(graph, inputs, dynamic_shapes=free, strict=False)


def _free(model: Model) -> dict[int, Any]:
    """All axes of pictures but that of the channels."""
    axes = 5 if model.preprocessing.frames else 4
    return {axis: Dim.DYNAMIC for axis in range(axes) if axis != axes - 3}


def _example_size(model: Model) -> tuple[int, int]:
    """A size that is neither square nor native, and not large: nothing should be tied to it."""
    height, width = model.preprocessing.size
    stride = max(model.backbone.feature_info.strides)
    return _near(height, stride), _near(width, stride) + stride


def _near(side: int, stride: int) -> int:
    """A few cells, at most as many as the side has."""
    return max(2, min(side // stride, 8)) * stride
