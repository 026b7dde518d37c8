"""Grids of cells: resizing tables that live on one, coordinates, and padding masks seen from a coarser grid."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation: TypeAlias = Literal["bicubic", "bilinear", "nearest", "corners", "antialiased"]


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


def larger(one: int, other: int) -> int:
    """Of two lengths, symbols too."""
    return cast("int", torch.sym_max(one, other))


def smaller(one: int, other: int) -> int:
    """Of two lengths, symbols too."""
    return cast("int", torch.sym_min(one, other))


def size_of(images: Tensor) -> tuple[int, int]:
    """(height, width) of (..., H, W)."""
    return images.shape[-2], images.shape[-1]


def cells(size: int | tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of cells of `stride` pixels that cover an image of `size` pixels."""
    height, width = pair(size)
    return ceil_div(height, stride), ceil_div(width, stride)


def resize(table: Tensor, size: tuple[int, int], *, mode: Interpolation = "bicubic") -> Tensor:
    """Resize a table on a grid **by target size**, never by a rounded factor; at its own size it is returned as it is.

    R T C^T of two small matrices that are made of the sizes: one arithmetic for numbers and symbols, whose gradient
    is the same on any device.

    Args:
        table: (H, W, D) floating point.
        size: rows and columns wanted.
        mode: "bicubic", "bilinear" or "nearest" of `torch.nn.functional.interpolate`, corners not aligned; "corners"
            is bilinear with the corners aligned, as `scipy.ndimage.zoom` of order 1; "antialiased" is bicubic with
            `antialias=True`, which is another kernel where a table grows, too.

    Returns:
        (*size, D), of the table's dtype; computed in float32 at least.
    """
    down, across = (not known(old, new) or old != new for old, new in zip(table.shape, size))
    if not (down or across):
        return table
    exact = table.to(torch.promote_types(table.dtype, torch.float32))
    device = table.device.type
    rounds = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if rounds else nullcontext():  # a graph would hold the context
        if down:
            rows = _weights_of(exact.shape[0], size[0], mode, exact)
            exact = (rows @ exact.flatten(1)).unflatten(1, (exact.shape[1], exact.shape[2]))
        if across:
            columns = _weights_of(exact.shape[1], size[1], mode, exact)
            exact = columns.expand(exact.shape[0], -1, -1).bmm(exact)
    return exact.to(table.dtype)


def _weights_of(cells: int, places: int, mode: Interpolation, like: Tensor) -> Tensor:
    """`_weights` of the dtype and device of `like`: the blocks of a model ask for the same ones."""
    if torch.compiler.is_compiling():
        return _weights(cells, places, mode, like.dtype, like.device)
    return _kept_weights(cells, places, mode, like.dtype, like.device)


@lru_cache(maxsize=64)
def _kept_weights(cells: int, places: int, mode: Interpolation, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():  # they must serve training too
        return _weights(cells, places, mode, dtype, device)


def _weights(cells: int, places: int, mode: Interpolation, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(places, cells): what each cell of a side weighs in each place when the side is resized."""
    place = torch.arange(places, device=device)
    if mode == "antialiased":
        return _antialiased(place, cells, places, dtype)
    if mode == "nearest":  # in float32 as torch has it, also where that is the cell beside the exact one
        first = (place.float() * (torch.full_like(place, cells).float() / places)).long()
        taps, weights = first[:, None], torch.ones_like(first, dtype=dtype)[:, None]
    else:
        if mode == "corners":
            numerator, denominator, before = place * (cells - 1), larger(places - 1, 1), 0
        else:  # a cell more than lies before the centre of the place: ONNX divides negative numbers towards zero
            numerator, denominator, before = (2 * place + 1) * cells + places, 2 * places, 1
        quotient = numerator // denominator
        first = (quotient - before)[:, None]
        t: Tensor = (numerator - quotient * denominator).to(dtype)[:, None] / denominator
        if mode == "bicubic":
            taps = first + torch.arange(-1, 3, device=device)
            weights = torch.cat([_outer(t + 1), _inner(t), _inner(1 - t), _outer(2 - t)], 1)
        else:
            taps, weights = first + torch.arange(2, device=device), torch.cat([1 - t, t], 1)
    chosen = taps.clamp(0, cells - 1)[..., None] == torch.arange(cells, device=device)  # (places, taps, cells)
    return (chosen * weights[..., None]).sum(1)


def _antialiased(place: Tensor, cells: int, places: int, dtype: torch.dtype) -> Tensor:
    """(places, cells): the cubic kernel, as wide as so many cells as a place covers."""
    cell = torch.arange(cells, device=place.device)
    apart = ((2 * cell + 1) * places - ((2 * place + 1) * cells)[:, None]).abs()  # in 2 * places parts of a cell
    distance = apart.to(dtype) / (2 * larger(cells, places))
    near, far = _inner(distance, _A_ANTIALIASED), _outer(distance, _A_ANTIALIASED)
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
    return weights / weights.sum(1, keepdim=True)


_A, _A_ANTIALIASED = -0.75, -0.5
"""Of Keys' cubic convolution (1981), as torch has it, and with antialiasing."""


def _inner(x: Tensor, a: float = _A) -> Tensor:
    """Weight of a cell at a distance in 0..1."""
    return ((a + 2) * x - (a + 3)) * x * x + 1


def _outer(x: Tensor, a: float = _A) -> Tensor:
    """Weight of a cell at a distance in 1..2."""
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a


def coordinates(grid: tuple[int, int], *, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Row and column, each (H*W,) int64, of every cell in row-major order."""
    height, width = grid
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return rows[:, None].expand(height, width).flatten(), columns.expand(height, width).flatten()


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
