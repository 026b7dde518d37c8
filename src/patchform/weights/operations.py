"""What may happen to tensors between a published layout and ours: each operation is written both ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from patchform.errors import UsageError

Sizes: TypeAlias = Mapping[str, int]
"""Lengths of axes by name, such as {"channels": 3, "patch": 16}."""


class Operation(NamedTuple):
    """What happens to the tensors of a rule between the source and the model."""

    forward: Callable[[tuple[Tensor, ...], torch.Size, Sizes], Tensor]
    """(tensors of the source, shape in the model, sizes) -> tensor of the model; ValueError if they do not suit. The
    result may have another shape than the model's: it is resized then, or refused."""
    backward: Callable[[Tensor, int, Sizes], tuple[Tensor, ...]]
    """(tensor of the model, number of source tensors, sizes) -> tensors of the source."""


copy = Operation(lambda tensors, shape, sizes: tensors[0], lambda tensor, count, sizes: (tensor,))


def join_shares(*shares: int) -> Operation:
    """Concatenate along dim 0 tensors whose lengths are to each other as `shares`: (1, 2) for q and a fused kv."""

    def lengths(total: int, count: int) -> list[int]:
        parts = shares or (1,) * count
        if len(parts) != count or total % sum(parts):
            raise ValueError(f"a length of {total} does not part into shares of {parts}")
        return [total // sum(parts) * part for part in parts]

    def forward(tensors: tuple[Tensor, ...], shape: torch.Size, sizes: Sizes) -> Tensor:
        whole = torch.cat(tensors)
        if [len(tensor) for tensor in tensors] != lengths(len(whole), len(tensors)):
            raise ValueError("the parts are not of the expected lengths")
        return whole

    return Operation(forward, lambda tensor, count, sizes: tensor.split_with_sizes(lengths(len(tensor), count)))


join = join_shares()
"""Concatenate tensors of equal length along dim 0: separate q, k, v into our qkv."""


in_front = Operation(
    lambda tensors, shape, sizes: tensors[0].unsqueeze(0),
    lambda tensor, count, sizes: (tensor.squeeze(0),),
)
"""Put an axis of length 1 in front: a table (N, D) as (1, N, D)."""


side_by_side = Operation(
    lambda tensors, shape, sizes: torch.cat(tensors, 1),
    lambda tensor, count, sizes: tensor.chunk(count, 1),
)
"""Concatenate along dim 1 tokens (1, 1, D) that are apart."""


def _cells(tensor: Tensor, count: int, sizes: Sizes) -> tuple[Tensor, ...]:
    front = sizes["front"]
    if tensor[:, :front].any():
        raise ValueError("its rows for the tokens in front of the cells are no zeros")
    return (tensor[:, front:],)


cells_alone = Operation(lambda tensors, shape, sizes: tensors[0], _cells)
"""A position table (1, P + N, D) whose first P rows, of zeros, the source has not; whoever resizes it adds them."""


def permute(*dims: int) -> Operation:
    """Reorder the axes, as `Tensor.permute` does: axis i of ours is axis dims[i] of the source."""
    inverse = sorted(range(len(dims)), key=dims.__getitem__)
    return Operation(
        lambda tensors, shape, sizes: tensors[0].permute(dims),
        lambda tensor, count, sizes: (tensor.permute(inverse),),
    )


def squeeze(*dims: int) -> Operation:
    """Take away axes of length 1, counted from 0 in the source: a class token (1, 1, D) as (D,)."""

    def backward(tensor: Tensor, count: int, sizes: Sizes) -> tuple[Tensor, ...]:
        for dim in sorted(dims):
            tensor = tensor.unsqueeze(dim)
        return (tensor,)

    return Operation(lambda tensors, shape, sizes: tensors[0].squeeze(dims), backward)


def reshape(*source: int | str) -> Operation:
    """Give a tensor our shape: a convolution's patches (D, C, p, p) as linear weights (D, C*p*p).

    Args:
        source: shape in the source. A length is a number, -1 (once: what is left) or a name such as "patch", which
            `Rules.dump` needs in `sizes`, as our shape does not tell it. A tensor of other named lengths keeps its
            shape, by which whoever resizes it knows it.
    """

    def forward(tensors: tuple[Tensor, ...], shape: torch.Size, sizes: Sizes) -> Tensor:
        (tensor,) = tensors
        if len(source) != tensor.dim() or any(
            isinstance(length, int) and length not in (-1, actual) for length, actual in zip(source, tensor.shape)
        ):
            raise ValueError(f"the source is not of shape {source}")
        named: dict[str, int] = dict(sizes)
        as_named = all(
            named.setdefault(length, actual) == actual
            for length, actual in zip(source, tensor.shape)
            if isinstance(length, str)
        )
        return tensor.reshape(shape) if as_named and tensor.numel() == shape.numel() else tensor

    def backward(tensor: Tensor, count: int, sizes: Sizes) -> tuple[Tensor, ...]:
        for length in source:
            if isinstance(length, str) and length not in sizes:
                raise UsageError(f'this layout needs to know the size "{length}"', remedy="name it in `sizes`")
        return (tensor.reshape([sizes[length] if isinstance(length, str) else length for length in source]),)

    return Operation(forward, backward)


def squares(side: int | None = None) -> Operation:
    """A convolution (D', D, p, p) of non-overlapping squares as linear weights (D', p * p * D), channels last.

    Args:
        side: p; None where as many channels go in as come out.
    """

    def backward(tensor: Tensor, count: int, sizes: Sizes) -> tuple[Tensor, ...]:
        p = side or math.isqrt(tensor.shape[1] // tensor.shape[0])
        return (tensor.unflatten(1, (p, p, -1)).permute(0, 3, 1, 2),)

    return Operation(lambda tensors, shape, sizes: tensors[0].permute(0, 2, 3, 1).flatten(1), backward)
