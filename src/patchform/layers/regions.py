"""Regions of a picture: RoIAlign from several levels, and a balanced sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from patchform.geometry.anchors import BACKGROUND, spacing


class MultiScaleRoIAlign(nn.Module):
    """Features of each region: RoIAlign of the level that suits its size (Lin et al. 2017, FPN, equation 1).

    RoIAlign is of He et al. 2017 (Mask R-CNN, section 3), with 2 x 2 points a cell.

    Args:
        strides: input pixels per cell of the levels, fine to coarse.
        size: cells a side of the features of a region.
        side: a region of so many pixels a side is read from the level of 16 pixels a cell.
        aligned: whether a region is read where it is, the centre of a cell being at its half; without it, half a cell
            further right and down, as it was before Detectron2.
    """

    def __init__(self, strides: Sequence[float], size: int, *, side: float = 224, aligned: bool = True) -> None:
        super().__init__()
        self.strides, self.size, self.side, self.aligned = tuple(strides), size, side, aligned

    def forward(
        self, levels: Sequence[Tensor], regions: Tensor, real: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Read regions.

        Args:
            levels: (B, C, H_l, W_l).
            regions: (B, P, 4) xyxy pixels.
            real: (B, P) bool: which of them are read, M together.
            size: height and width of the input, pixels.

        Returns:
            (M, C, size, size) float32 or more, level by level; and (M,) int64, the place of each in B * P: to
            `put_back` the output of a head costs less than to sort the features.
        """
        from torchvision.ops import roi_align

        flat = regions.flatten(0, 1)
        image = torch.arange(regions.shape[0], device=flat.device).to(flat)[:, None].expand(-1, regions.shape[1])
        log_stride = 4 + ((flat[:, 2:] - flat[:, :2]).prod(1).sqrt() / self.side).log2() + 1e-6
        reached = log_stride[:, None] >= torch.tensor(self.strides, device=flat.device).log2()
        level = torch.where(real.flatten(), (reached.sum(1) - 1).clamp(min=0), -1)
        rows = [(level == number).nonzero()[:, 0] for number in range(len(self.strides))]
        features = []
        for x, row, stride in zip(levels, rows, self.strides):
            apart = torch.as_tensor(spacing(size, (x.shape[2], x.shape[3]), stride), device=flat.device).flip(0)
            rois = torch.cat([image.flatten()[row, None], flat[row] / torch.cat([apart, apart])], 1)
            exact = x.to(torch.promote_types(x.dtype, torch.float32))  # roi_align has no bfloat16
            features.append(roi_align(exact, rois.to(exact), self.size, sampling_ratio=2, aligned=self.aligned))
        return torch.cat(features), torch.cat(rows)


def put_back(values: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
    """What was made of regions as `MultiScaleRoIAlign` gives them, in the order in which they were asked for.

    Args:
        values: (M, ...).
        places: (M,) int64.
        shape: B and P.

    Returns:
        (B, P, ...): zeros where no region was read.
    """
    every = values.new_zeros(shape[0] * shape[1], *values.shape[1:])
    return every.index_copy(0, places, values).unflatten(0, shape)


def balanced_sample(stands_for: Tensor, number: int, share: float, seed: int) -> Tensor:
    """A sample with a bounded share of positives (Ren et al. 2015, section 3.1.3).

    Args:
        stands_for: (N,) int64 as `geometry.anchors.match_boxes` gives it.
        number: of the sample.
        share: of positives at most.
        seed: of the generator.

    Returns:
        (K,) int64, K <= number: rows, positives first.
    """
    positives, negatives = (stands_for >= 0).nonzero()[:, 0], (stands_for == BACKGROUND).nonzero()[:, 0]
    generator = torch.Generator(stands_for.device).manual_seed(seed)
    positives = _draw(positives, int(number * share), generator)
    return torch.cat([positives, _draw(negatives, number - len(positives), generator)])


def _draw(rows: Tensor, most: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(rows.shape[0], generator=generator, device=rows.device)[:most]]
