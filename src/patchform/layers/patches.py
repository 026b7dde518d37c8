"""From pixels to tokens: plain patches, overlapping ones, a stack of convolutions, tubelets of a clip.

All take any size: an image that no whole number of patches covers is padded at the bottom and the right with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.geometry import grids
from patchform.layers import fitting
from patchform.layers.convolutions import Strided, channels_innermost
from patchform.layers.fitting import Fitted, TransferContext
from patchform.layers.norms import BatchNorm2d


class Patches(nn.Module):
    """Cut into squares and project each (Dosovitskiy et al. 2021, equation 1).

    The same numbers as a convolution with kernel = stride, as one matrix product: `proj.weight` is (D, C * p * p), the
    kernel with its channel, row and column axes joined.

    Args:
        in_channels: C.
        width: D.
        size: side p of a patch, pixels.
        bias: whether the projection has one.
    """

    def __init__(self, in_channels: int, width: int, size: int, *, bias: bool = True) -> None:
        super().__init__()
        self.size = size
        self.proj = nn.Linear(in_channels * size * size, width, bias=bias)  # starts as that convolution would

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ceil(H / p), ceil(W / p), D)."""
        p = self.size
        squares = pad_to_multiple(images, p).unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (B, C, rows, p, columns, p)
        return self.proj(squares.permute(0, 2, 4, 1, 3, 5).flatten(3))

    @property
    def in_channels(self) -> int:
        """C."""
        return self.proj.in_features // self.size**2

    def fit(self, name: str, tensor: Tensor, context: TransferContext) -> Fitted:
        """Kernels (D, C', p', p') of other patches or channels as (D, C * p * p)."""
        own: Tensor = self.proj.weight.unflatten(1, (-1, self.size, self.size))
        if name != "proj.weight" or tensor.dim() != 4 or tensor.shape[0] != own.shape[0]:
            raise ValueError("it is no kernel of patches of this width")
        tensor, notes = to_size(tensor, own, context)
        return tensor.flatten(1), ", ".join(notes)


class OverlappingPatches(nn.Module):
    """Project squares that overlap (PVT v2, Wang et al. 2022, section 3.2).

    Args:
        in_channels: C.
        width: D.
        size: side of a square, pixels, odd.
        stride: pixels from one to the next.
    """

    def __init__(self, in_channels: int, width: int, size: int, stride: int) -> None:
        super().__init__()
        self.proj = Strided(in_channels, width, size, stride=stride, padding=size // 2)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ceil(H / stride), ceil(W / stride), D), channels innermost in memory too."""
        return self.proj(channels_innermost(images)).permute(0, 2, 3, 1)


class ConvolutionalStem(nn.Module):
    """Strided 3x3 convolutions with norm and ReLU, then a 1x1 one to D (Xiao et al. 2021).

    Args:
        in_channels: C.
        width: D.
        channels: width of each 3x3 convolution; each halves the picture.
    """

    def __init__(self, in_channels: int, width: int, channels: Sequence[int]) -> None:
        super().__init__()
        widths = [in_channels, *channels]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), BatchNorm2d(after), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.proj = nn.Conv2d(widths[-1], width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ceil(H / 2**n), ceil(W / 2**n), D) for n convolutions."""
        return self.proj(self.convolutions(images)).permute(0, 2, 3, 1)


class Tubelets(nn.Module):
    """Cut a clip into boxes of a few frames and project each (Arnab et al. 2021, ViViT, section 3.2).

    Where the last box is not full, the last frame is repeated.

    Args:
        in_channels: C.
        width: D.
        size: side p of a box, pixels.
        frames: its length f; `proj.weight` is (D, C * f * p * p).
    """

    def __init__(self, in_channels: int, width: int, size: int, frames: int) -> None:
        super().__init__()
        self.size, self.frames = size, frames
        self.proj = nn.Linear(in_channels * frames * size * size, width)

    def forward(self, clips: Tensor) -> Tensor:
        """(B, T, C, H, W) -> (B, ceil(T / f), ceil(H / p), ceil(W / p), D)."""
        p, f = self.size, self.frames
        clips = pad_to_multiple(clips, p)
        steps = grids.ceil_div(clips.shape[1], f)
        missing = steps * f - clips.shape[1]
        if not grids.known(missing) or missing:
            clips = torch.cat([clips, clips[:, -1:].expand(-1, missing, -1, -1, -1)], 1)
        boxes = clips.unflatten(4, (-1, p)).unflatten(3, (-1, p)).unflatten(1, (steps, f))
        return self.proj(boxes.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4))  # C, f, p, p joined

    @property
    def in_channels(self) -> int:
        """C."""
        return self.proj.in_features // (self.frames * self.size**2)

    def fit(self, name: str, tensor: Tensor, context: TransferContext) -> Fitted:
        """Kernels (D, C', p', p') of single frames, or (D, C', f, p', p') of other patches or channels, flat.

        Single frames go into a box as section 3.4 of the paper has it.
        """
        own: Tensor = self.proj.weight.unflatten(1, (-1, self.frames, self.size, self.size))
        if name != "proj.weight" or tensor.dim() not in (4, 5) or tensor.shape[0] != own.shape[0]:
            raise ValueError("it is no kernel of patches or tubelets of this width")
        if tensor.dim() == 5 and tensor.shape[2] != self.frames:
            raise ValueError(f"tubelets of {tensor.shape[2]} frames do not become such of {self.frames}")
        inflated = []
        if tensor.dim() == 4:
            tensor = self._inflate(tensor, context)
            inflated.append(f"1 frame to {self.frames}, {context.transfer.frames}")
        tensor, notes = to_size(tensor, own, context)
        return tensor.flatten(1), ", ".join(inflated + notes)

    def _inflate(self, kernel: Tensor, context: TransferContext) -> Tensor:
        """(D, C, p, p) -> (D, C, f, p, p)."""
        if context.transfer.frames == "refuse":
            raise ValueError(f"single frames to tubelets of {self.frames}: say how (frames: central or average)")
        if context.transfer.frames == "average":
            return (kernel / self.frames).unsqueeze(2).expand(-1, -1, self.frames, -1, -1)
        inflated = kernel.new_zeros(*kernel.shape[:2], self.frames, *kernel.shape[2:])
        inflated[:, :, self.frames // 2] = kernel
        return inflated


def to_size(kernel: Tensor, own: Tensor, context: TransferContext) -> tuple[Tensor, list[str]]:
    """A kernel (D, C', ..., p', p') with the channels and pixels of our own (D, C, ..., p, p), and what was done."""
    notes = []
    if kernel.shape[1] != own.shape[1]:
        kernel, note = fitting.channels(kernel, own, context)
        notes.append(note)
    before, after = kernel.shape[-1], own.shape[-1]
    if kernel.shape[-2:] != own.shape[-2:]:
        if context.transfer.patch == "refuse":
            raise ValueError(f"patches of {before} pixels to {after}: say that this is meant (patch: resample)")
        kernel = fitting.resample(kernel, after)
        notes.append(f"patches of {before} pixels to {after}")
    return kernel, notes


def pad_to(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., H, W) with zeros at the bottom and the right up to `size`; untouched where nothing is missing."""
    bottom, right = size[0] - images.shape[-2], size[1] - images.shape[-1]
    if grids.known(bottom, right) and not (bottom or right):
        return images
    return F.pad(images, (0, right, 0, bottom))


def pad_cells(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W, D) with zeros at the bottom and the right up to `size`; untouched where nothing is missing."""
    bottom, right = size[0] - x.shape[1], size[1] - x.shape[2]
    if grids.known(bottom, right) and not (bottom or right):
        return x
    return F.pad(x, (0, 0, 0, right, 0, bottom))


def pad_to_multiple(images: Tensor, side: int) -> Tensor:
    """(..., H, W) with zeros at the bottom and the right, so that `side` divides both."""
    rows, columns = grids.cells(grids.size_of(images), side)
    return pad_to(images, (rows * side, columns * side))
