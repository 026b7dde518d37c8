"""What a masked autoencoder makes of hidden patches (He et al. 2022, MAE, figures 2 to 4)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from patchform.drawing import to_picture
from patchform.geometry import grids
from patchform.inspect.base import Picture, to_png
from patchform.model import Model
from patchform.pretraining.base import patchify, side_of, unpatchify
from patchform.pretraining.mae import EPS, MAE


class Reconstructions(Picture):
    """Two pictures an image: what is visible, and that with the hidden patches filled in."""

    title: ClassVar[str] = "Reconstructions"
    meaning: ClassVar[str] = (
        "From top to bottom: what the model sees, what it makes of it, and the picture. Visible patches are shown as"
        " they are. A model that learnt from pixels less the mean of their patch is lent the mean and the contrast of"
        " each hidden patch. Blur is what a mean over all that is possible looks like, no fault."
    )

    @torch.no_grad()
    def measure(self, model: Model, images: Tensor) -> Tensor | None:
        """(B, 2, C, H, W) float in 0..1, the same patches hidden at each call; None for other models."""
        if not isinstance(model, MAE):
            return None
        side, size = side_of(model.backbone), grids.size_of(images)
        pixels = model.normalise(images)
        rows, columns = grids.cells(size, side)
        noise = torch.rand(len(images), rows * columns, generator=torch.Generator().manual_seed(0)).to(pixels.device)
        reconstruction, patches = model.reconstruct(pixels, noise), patchify(pixels, side)
        filled = reconstruction.patches.to(patches.dtype)
        if model.norm_pixels:
            variance, mean = torch.var_mean(patches, 2, keepdim=True)
            filled = filled * (variance + EPS).sqrt() + mean
        mask = reconstruction.mask[..., None]
        shown = (torch.where(mask, torch.zeros_like(patches), patches), torch.where(mask, filled, patches))
        both = torch.stack([unpatchify(each, side, size) for each in shown], 1)
        return (both * model.std + model.mean).clamp(0, 1)

    def draw(self, values: Tensor, images: Tensor) -> bytes:
        """Three rows."""
        from matplotlib.figure import Figure  # half a second

        figure = Figure(figsize=(1.4 * len(values), 4.4), layout="constrained")
        axes = figure.subplots(3, len(values), squeeze=False)
        for column, (image, (seen, filled)) in enumerate(zip(images, values)):
            for row, picture in enumerate((seen, filled, image)):
                axes[row][column].imshow(to_picture(picture))
                axes[row][column].set_axis_off()
        return to_png(figure)
