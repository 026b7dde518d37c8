"""Where and when the class token looks in a clip (TimeSformer, figure 7: there a rollout, here the last block)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from patchform.drawing import to_picture
from patchform.geometry import grids
from patchform.inspect.base import Picture, to_png
from patchform.layers.attention import recording
from patchform.model import Model
from patchform.records import Batch

MOST_FRAMES, MOST_CLIPS = 8, 4


class SpaceTimeAttention(Picture):
    """A contact sheet: one map a frame of a clip."""

    title: ClassVar[str] = "Attention over space and time"
    meaning: ClassVar[str] = (
        "Frames of clips as the model gets them, and below each how much a class token attends to its patches, in the"
        " last block that looks at space (mean over the heads; brighter is more, on one scale for a clip). A model that"
        " looks at all frames at once shows here when it looks, too."
    )

    @torch.no_grad()
    def measure(self, model: Model, images: Tensor) -> Tensor | None:
        """(B, T', H, W) shares of attention, T' frames or depths of tubelets; None for pictures, or no class token."""
        if images.dim() != 5 or getattr(model.backbone, "class_token", None) is None:
            return None
        size = (images.shape[-2], images.shape[-1])
        grid = grids.cells(size, model.backbone.strides[-1])
        with recording() as weights:
            model.features(Batch(images, (), ("",) * len(images), (size,) * len(images)))
        before = int(getattr(model.backbone, "prefix", 1))
        maps_of_layers = (_maps(layer, len(images), before, grid) for layer in reversed(weights))
        return next((maps for maps in maps_of_layers if maps is not None), None)

    def draw(self, values: Tensor, images: Tensor) -> bytes:
        """Two rows a clip: frames above, maps below."""
        from matplotlib.figure import Figure  # half a second

        values, clips = values[:MOST_CLIPS], images[:MOST_CLIPS]
        times = torch.linspace(0, values.shape[1] - 1, min(values.shape[1], MOST_FRAMES)).round().long().tolist()
        figure = Figure(figsize=(1.4 * len(times), 2.9 * len(values)), layout="constrained")
        sheet = figure.subplots(2 * len(values), len(times), squeeze=False)
        for row, (clip, maps) in enumerate(zip(clips, values.float().cpu())):
            for column, time in enumerate(times):
                frame = clip[(2 * time + 1) * len(clip) // (2 * len(maps))]  # the middle of a tubelet
                sheet[2 * row, column].imshow(to_picture(frame))
                sheet[2 * row + 1, column].imshow(maps[time].numpy(), cmap="magma", vmin=0, vmax=float(maps.max()))
        for axes in sheet.flat:
            axes.set_axis_off()
        return to_png(figure)


def _maps(weights: Tensor, clips: int, before: int, grid: tuple[int, int]) -> Tensor | None:
    """(B, T', H, W) of the first query, if weights (b, G, h, N, K) are of one frame a group, or of all at once."""
    cells, groups = grid[0] * grid[1], weights.shape[0] * weights.shape[1]
    seen = weights.shape[-1] - before
    if groups % clips or seen <= 0 or seen % cells or (seen > cells and groups > clips):
        return None
    first = weights[:, :, :, 0, before:].mean(2)  # (b, G, seen)
    return first.reshape(clips, -1, *grid)
