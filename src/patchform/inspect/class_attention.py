"""Where the class token looks in the last block (ViT paper, figure 6, without the rollout)."""

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


class ClassAttention(Picture):
    """One map an image."""

    title: ClassVar[str] = "Attention of the class token"
    meaning: ClassVar[str] = (
        "Above the picture as the model gets it, below how much the class token of the last block attends to each patch"
        " (mean over the heads; brighter is more, each map by itself). Attention is where information is taken from,"
        " not a proof of what decided."
    )

    @torch.no_grad()
    def measure(self, model: Model, images: Tensor) -> Tensor | None:
        """(B, H, W) shares of attention, each map at most 1 in sum; None for clips, or no class token."""
        if images.dim() != 4 or getattr(model.backbone, "class_token", None) is None:
            return None
        before = int(getattr(model.backbone, "prefix", 1))
        height, width = grids.cells((images.shape[-2], images.shape[-1]), model.backbone.strides[-1])
        sizes = ((images.shape[-2], images.shape[-1]),) * len(images)
        with recording() as weights:
            model.features(Batch(images, (), ("",) * len(images), sizes))
        last = weights[-1]  # (B, G, h, N, K)
        if last.shape[1] != 1 or last.shape[-1] != before + height * width:
            return None
        return last[:, 0, :, 0, before:].mean(1).unflatten(1, (height, width))

    def draw(self, values: Tensor, images: Tensor) -> bytes:
        """Pictures above, maps below."""
        from matplotlib.figure import Figure  # half a second

        figure = Figure(figsize=(1.4 * len(values), 3.0), layout="constrained")
        above, below = figure.subplots(2, len(values), squeeze=False)
        for upper, lower, image, value in zip(above, below, images, values):
            upper.imshow(to_picture(image))
            lower.imshow(value.float().cpu().numpy(), cmap="magma", vmin=0)
            upper.set_axis_off()
            lower.set_axis_off()
        return to_png(figure)
