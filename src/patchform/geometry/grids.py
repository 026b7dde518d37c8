"""Grids of cells: resizing tables that live on one, coordinates, and padding masks seen from a coarser grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size that may be given as one side."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def ceil_div(length: int, step: int) -> int:
    """How many steps cover a length. Without a minus: ONNX divides towards zero."""
    return (length + step - 1) // step


def known(*lengths: int) -> bool:
    """Whether lengths are numbers. While a graph for any size is made they are symbols, and nothing is decided by them:
    a decision would tie the graph to the sizes of the example.
    """
    return all(isinstance(length, int) for length in lengths)


def as_tensor(lengths: Sequence[int], *, device: torch.device | None = None) -> Tensor:
    """(n,) float32 of lengths that may be symbols, which `torch.tensor` makes numbers of."""
    return torch.stack([torch.full((), length, dtype=torch.float32, device=device) for length in lengths])


def size_of(images: Tensor) -> tuple[int, int]:
    """(height, width) of (..., H, W)."""
    return images.shape[-2], images.shape[-1]


def cells(size: int | tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of cells of `stride` pixels that cover an image of `size` pixels."""
    height, width = pair(size)
    return ceil_div(height, stride), ceil_div(width, stride)


def resize(table: Tensor, size: tuple[int, int], *, mode: str = "bicubic") -> Tensor:
    """Resize a table on a grid **by target size**, never by a rounded factor; at its own size it is returned as it is.

    Args:
        table: (H, W, D) floating point.
        size: rows and columns wanted.
        mode: "bicubic", "bilinear" or "nearest" of `torch.nn.functional.interpolate`, corners not aligned; "corners"
            is bilinear with the corners aligned, as `scipy.ndimage.zoom` of order 1.

    Returns:
        (*size, D), of the table's dtype; computed in float32 at least.
    """
    if tuple(table.shape[:2]) == tuple(size):
        return table
    options = {} if mode == "nearest" else {"align_corners": mode == "corners"}
    exact = table.to(torch.promote_types(table.dtype, torch.float32))
    how = "bilinear" if mode == "corners" else mode
    grown = F.interpolate(exact.permute(2, 0, 1)[None], size=size, mode=how, **options)
    return grown[0].permute(1, 2, 0).to(table.dtype)


def coordinates(grid: tuple[int, int], *, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Row and column, each (H*W,) int64, of every cell in row-major order."""
    height, width = grid
    cell = torch.arange(height * width, device=device)
    return cell // width, cell % width


def shrink_mask(padding: Tensor, stride: int) -> Tensor:
    """Padding of pixels -> padding of cells of `stride` pixels: a cell is padding when all its pixels are.

    Args:
        padding: (B, H, W) bool, True on padding.
        stride: side of a cell, pixels.

    Returns:
        (B, ceil(H / stride), ceil(W / stride)) bool.
    """
    height, width = padding.shape[1:]
    rows, columns = cells((height, width), stride)
    whole = F.pad(padding, (0, columns * stride - width, 0, rows * stride - height), value=True)
    return whole.view(padding.shape[0], rows, stride, columns, stride).all(dim=4).all(dim=2)


def masked_mean(tokens: Tensor, padding: Tensor | None) -> Tensor:
    """Mean of (B, N, D) over the tokens that are not padding, (B, D); 0 if all are. Padding is (B, H, W), H * W = N."""
    if padding is None:
        return tokens.mean(1)
    real = (~padding.flatten(1)).to(tokens.dtype)
    return torch.einsum("bnd,bn->bd", tokens, real / real.sum(1, keepdim=True).clamp(min=1))


def squares(grid: tuple[int, int], *, side: int, step: int, device: torch.device | None = None) -> Tensor:
    """Cells of squares that lie `step` cells apart and may overlap: (rows * columns * side**2,) int64, in turn.

    Args:
        grid: rows and columns of squares. They fill a frame of step * (rows - 1) + side rows, columns likewise.
        side: of a square, cells.
        step: from a square to the next, cells.
        device: of the result.
    """
    down, across = (step * torch.arange(n, device=device)[:, None] + torch.arange(side, device=device) for n in grid)
    width = step * (grid[1] - 1) + side
    return (down[:, None, :, None] * width + across[:, None]).flatten()


def bilinear(index: Tensor, pixels: int, cells: int) -> Tensor:
    """Weights of cells in some pixels along one side, when the cells are resized bilinearly, corners not aligned.

    Args:
        index: (P,) int64 numbers of pixels, in 0..pixels - 1.
        pixels: that the side is resized to.
        cells: that it has.

    Returns:
        (P, cells) float32; each row sums to 1.
    """
    centres = ((index + 0.5) * (cells / pixels) - 0.5).clamp(0, cells - 1)
    distances = (centres[:, None] - torch.arange(cells, device=index.device)).abs()
    return (1 - distances).clamp(min=0)
