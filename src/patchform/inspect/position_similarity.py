"""Which places a model holds for alike: cosine similarity of position embeddings (ViT paper, figure 7, centre)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from patchform.geometry import grids
from patchform.inspect.base import Picture, to_png
from patchform.layers.positions import Position
from patchform.model import Model

MOST_TILES = 12
"""Rows and columns of tiles that are drawn; a larger grid is thinned out."""


class PositionSimilarity(Picture):
    """One tile a place of the grid: how much its embedding resembles those of all places."""

    title: ClassVar[str] = "Position embeddings"
    meaning: ClassVar[str] = (
        "Each tile belongs to one place of the picture and shows the cosine similarity of its position embedding with"
        " those of all places (Dosovitskiy et al. 2021, figure 7). A bright spot around the own place, and rows and"
        " columns that stand out, mean that the model has learnt where its patches lie."
    )

    @torch.no_grad()
    def measure(self, model: Model, images: Tensor) -> Tensor | None:
        """(H, W, H, W) in -1..1; None where no absolute position is added to the tokens."""
        position = getattr(model.backbone, "position", None)
        if not isinstance(position, Position) or type(position) is Position:
            return None
        grid = grids.cells((images.shape[-2], images.shape[-1]), model.backbone.strides[0])
        before = getattr(position, "prefix", 0)
        nothing = model.mean.new_zeros(1, before + grid[0] * grid[1], model.backbone.channels[-1])
        table = F.normalize(position(nothing, grid)[0, before:], dim=-1)  # (H*W, D)
        return (table @ table.T).unflatten(1, grid).unflatten(0, grid)

    def draw(self, values: Tensor, images: Tensor) -> bytes:
        """Tiles in the order of the places."""
        from matplotlib.figure import Figure  # half a second

        rows, columns = (
            sorted(set(torch.linspace(0, n - 1, min(n, MOST_TILES)).int().tolist())) for n in values.shape[:2]
        )
        figure = Figure(figsize=(5.5, 5.5 * len(rows) / len(columns)), layout="constrained")
        tiles = figure.subplots(len(rows), len(columns), squeeze=False)
        for line, row in zip(tiles, rows):
            for tile, column in zip(line, columns):
                shown = tile.imshow(values[row, column].cpu().numpy(), vmin=-1, vmax=1, cmap="viridis")
                tile.set_axis_off()
        figure.colorbar(shown, ax=tiles, shrink=0.7, label="cosine similarity")
        return to_png(figure)
