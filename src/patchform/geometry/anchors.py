"""Anchors: boxes of given sizes and forms around every cell of a map, and which object each of them stands for.

Faster R-CNN (Ren et al. 2015, section 3.1) has them; numbers, order and rounding are those of torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from patchform.geometry.grids import as_tensor, coordinates, known
from patchform.records import Instances

BACKGROUND, NEITHER = -1, -2
"""What `match_boxes` says of anchors without an object, and of those that count for nothing."""
CROWDED = 0.7
"""Share of an anchor inside a crowd region above which it is no background (Girshick et al.'s Detectron)."""


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors around the point 0, 0.

    Args:
        sizes: square roots of their areas, pixels.
        ratios: height / width.

    Returns:
        (len(ratios) * len(sizes), 4) xyxy float32 in whole pixels; sizes vary fastest.
    """
    size, height = torch.tensor(sizes, dtype=torch.float32), torch.tensor(ratios, dtype=torch.float32).sqrt()
    width = 1 / height
    half = torch.stack([(width[:, None] * size).flatten(), (height[:, None] * size).flatten()], 1) / 2
    return torch.cat([-half, half], 1).round()


def spacing(
    size: tuple[int, int], grid: tuple[int, int], stride: float, rule: Literal["stride", "input"] = "stride"
) -> tuple[float, float] | Tensor:
    """Pixels from row to row and from column to column of a map.

    Cells of a stride that is itself rounded (CrossViT) may cover less than the input; they are then farther apart.

    Args:
        size: height and width of the input, pixels.
        grid: rows and columns of the map.
        stride: pixels a cell, as the map's maker says.
        rule: "input" divides the sides by the numbers of cells, rounded down, as torchvision does; it
            differs on coarse maps of most sizes.

    Returns:
        Two numbers; (2,) float32 where the sizes are symbols.
    """
    if rule == "input":
        return size[0] // grid[0], size[1] // grid[1]
    if not known(*size, *grid):
        return (as_tensor(size) / as_tensor(grid)).clamp(min=stride)
    return max(stride, size[0] / grid[0]), max(stride, size[1] / grid[1])


def grid_anchors(forms: Tensor, grid: tuple[int, int], spacing: tuple[float, float] | Tensor) -> Tensor:
    """Anchors of every cell of a map; the first cell's lie around the picture's corner.

    Args:
        forms: (A, 4), see `cell_anchors`.
        grid: rows and columns of the map.
        spacing: pixels from row to row and from column to column.

    Returns:
        (rows * columns * A, 4) xyxy float32: cell by cell in row-major order, the forms of a cell together.
    """
    rows, columns = coordinates(grid, device=forms.device)
    y, x = rows * spacing[0], columns * spacing[1]
    return (torch.stack([x, y, x, y], 1)[:, None] + forms).flatten(0, 1)


def by_anchor(x: Tensor, numbers: int) -> Tensor:
    """What a convolution says of anchors, in the order of `grid_anchors`: (B, A * n, H, W) -> (B, H * W * A, n)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, numbers)


def match_boxes(
    anchors: Tensor,
    boxes: Tensor,
    *,
    foreground: float,
    background: float,
    rescue: bool = True,
    crowd: Tensor | None = None,
) -> Tensor:
    """Which object each anchor (or proposal) of a picture stands for (Ren et al. 2015, section 3.1.2).

    It is the object that it overlaps most. As in torchvision, an anchor that is a rescue of one object stands for the
    object that it overlaps most itself, which may be another.

    Args:
        anchors: (N, 4) xyxy.
        boxes: (M, 4) xyxy, M may be 0.
        foreground: IoU from which on an anchor stands for its object.
        background: IoU below which it stands for none.
        rescue: whether the anchors that overlap an object more than all others do so from any IoU above 0 on, so that
            every object has one.
        crowd: (M,) bool, regions that are no object; what lies in them by more than `CROWDED` is no background either.

    Returns:
        (N,) int64: row of `boxes`, `BACKGROUND` or `NEITHER`.
    """
    from torchvision.ops import box_iou

    if not boxes.shape[0]:
        return torch.full((anchors.shape[0],), BACKGROUND, device=anchors.device)
    overlaps = box_iou(boxes, anchors)  # (M, N)
    if crowd is not None:
        overlaps = overlaps.masked_fill(crowd[:, None], -1)
    most, number = overlaps.max(0)
    matched = torch.where(most < foreground, torch.where(most < background, BACKGROUND, NEITHER), number)
    if rescue:
        highest = overlaps.amax(1, keepdim=True)
        matched = torch.where(((overlaps == highest) & (highest > 0)).any(0), number, matched)
    if crowd is not None:
        inside = (share_inside(anchors, boxes[crowd]) > CROWDED).any(1)
        matched = torch.where((matched == BACKGROUND) & inside, NEITHER, matched)
    return matched


def match(candidates: Tensor, target: Instances, foreground: float, background: float, *, rescue: bool) -> Tensor:
    """`match_boxes`, of (N, 4) anchors or regions and the objects of a picture; its crowds are none."""
    crowd = None if target.crowd is None else target.crowd.to(candidates.device)
    boxes = target.boxes.to(candidates.device).float()
    return match_boxes(candidates, boxes, foreground=foreground, background=background, rescue=rescue, crowd=crowd)


def share_inside(boxes: Tensor, regions: Tensor) -> Tensor:
    """(N, 4) and (M, 4) xyxy -> (N, M): the share of each box's area inside each region; 0 for empty boxes."""
    start = torch.maximum(boxes[:, None, :2], regions[:, :2])
    end = torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    both = (end - start).clamp(min=0).prod(2)
    return both / (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=1e-6)[:, None]
