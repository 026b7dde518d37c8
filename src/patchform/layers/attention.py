"""Attention: one door to the kernels (`attend`) and two modules that hold parameters (`Attention`, `CrossAttention`).

Letters: B batch, G groups that attend among themselves, h heads, N queries and K keys of a group, d width of a head,
D = h * d.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.layers.linear import Linear
from patchform.layers.positions import RelativePosition

_EXPLICIT_KEYS = (
    1024  # above it the weights of a training step would cost more memory than the explicit route saves time
)
_recorded: list[Tensor] | None = None

QKVBias: TypeAlias = bool | Literal["no_key"]
"""Biases of queries, keys and values: all, none, or queries and values alone (BEiT, Swin v2, DINOv3)."""


@contextmanager
def recording() -> Iterator[list[Tensor]]:
    """Inside, `attend` takes the explicit route and appends its weights, (B, G, h, N, K), detached, call by call."""
    global _recorded
    outer, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = outer


class GroupMasks(NamedTuple):
    """A mask that many groups share, kept once."""

    masks: Tensor
    """(M, 1, N, K) bool."""
    of_group: Tensor
    """(G,) int32, which of them a group has."""

    def of_all(self) -> Tensor:
        """(G, 1, N, K) bool."""
        return self.masks.index_select(0, self.of_group)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    allowed: Tensor | GroupMasks | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale * q k^T + bias) v over the allowed keys: the only call of an attention kernel in the project.

    Args:
        q: (B, G, h, N, d).
        k: (B, G, h, K, d).
        v: (B, G, h, K, e).
        bias: floating point, broadcasts to (B, G, h, N, K); added to the scaled scores.
        allowed: bool, broadcasts like `bias`; True where a query sees a key. One without any key, as in a picture that
            is all padding, gets finite numbers that mean nothing.
        scale: default d ** -0.5.

    Returns:
        (B, G, h, N, e). The fused and the explicit route agree to rounding.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    mask = _joined(None if bias is None else bias.to(q.dtype), allowed)
    if _recorded is not None or _explicit_is_faster(q, k, mask):
        return _explicit(q, k, v, mask, scale)
    return _fused(q, k, v, mask, scale)


def _joined(bias: Tensor | None, allowed: Tensor | GroupMasks | None) -> Tensor | None:
    """A mask as kernels take it: the bias, and a score that leaves no weight where a key is not allowed."""
    if isinstance(allowed, GroupMasks):
        if bias is not None and bias.dim() <= 3 and not bias.requires_grad:  # of one group: joined once for each mask
            return torch.where(allowed.masks, bias, _masked_score(bias)).index_select(0, allowed.of_group)
        allowed = allowed.of_all()
    if allowed is None or bias is None:
        return bias if allowed is None else allowed
    return torch.where(allowed, bias, _masked_score(bias))


def real_keys(padding: Tensor | None) -> Tensor | None:
    """Padding (B, ...) of keys -> (B, 1, 1, 1, K) bool, True where a key is real; None: all are."""
    return None if padding is None else ~padding.flatten(1)[:, None, None, None]


def never_empty(allowed: Tensor | None) -> Tensor | None:
    """A mask as `attend` takes it, in which a query without any key has all of them: its output is not used."""
    return None if allowed is None else allowed | ~allowed.any(-1, keepdim=True)


def _explicit_is_faster(q: Tensor, k: Tensor, mask: Tensor | None) -> bool:
    """On CPU the fused kernel's backward is 2 to 5 times slower in bfloat16, and refuses masks that need a gradient."""
    if q.device.type != "cpu" or not torch.is_grad_enabled() or k.shape[-2] > _EXPLICIT_KEYS:
        return False  # asked in this order: a graph without gradients is not tied to a number of keys
    trained_mask = mask is not None and mask.requires_grad
    return trained_mask or (q.requires_grad and q.dtype in (torch.bfloat16, torch.float16))


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = (q * scale) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, _masked_score(scores)) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1)
    if _recorded is not None:
        _recorded.append(weights.detach())
    return weights @ v


def _masked_score(scores: Tensor) -> float:
    """Of a key that is not allowed: its weight is 0 beside any other, and finite where there is no other."""
    return torch.finfo(scores.dtype).min / 2


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    # Groups fold into the batch: q, k and v are slices of one projection, and this is the one view that copies none of
    # them. A mask that differs between groups is copied over the batch instead, which costs less than copying those.
    if mask is not None:
        mask = mask.expand(*(1,) * (5 - mask.dim()), *mask.shape)
        numbers = grids.known(*mask.shape[:2], *q.shape[:2])  # else the kernel asks whether there is one group
        if numbers and mask.shape[0] == mask.shape[1] == 1:
            mask = mask[0]
        else:
            mask = mask.expand(*q.shape[:2], *mask.shape[2:]).flatten(0, 1)
    folded_q, folded_k, folded_v = (t.flatten(0, 1) for t in (q, k, v))
    mixed = F.scaled_dot_product_attention(folded_q, folded_k, folded_v, attn_mask=mask, scale=scale)
    if not grids.known(*q.shape):  # kernels differ in the order in memory: a graph may hold no view of it
        mixed = mixed.contiguous()
    return mixed.unflatten(0, q.shape[:2])


class Attention(nn.Module):
    """Multi-head self-attention within groups (Vaswani et al. 2017, section 3.2.2).

    Queries, keys and values come from one matrix, `qkv.weight` (3D, D); every published layout joins into it.

    Args:
        width: D.
        heads: h; divides D.
        position: position inside attention: a relative bias, rotary embeddings, or None.
        qkv_bias: which of the three projections have biases.
    """

    def __init__(
        self, width: int, heads: int, *, position: RelativePosition | None = None, qkv_bias: QKVBias = True
    ) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"{heads} attention heads do not divide a width of {width}")
        self.heads = heads
        self.qkv = QKV(width) if qkv_bias == "no_key" else Linear(width, 3 * width, bias=qkv_bias)
        self.position = position
        self.proj = Linear(width, width)

    def forward(
        self,
        tokens: Tensor,
        *,
        grid: tuple[int, int] | None = None,
        allowed: Tensor | GroupMasks | None = None,
        gather_keys: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Attend within each group.

        Args:
            tokens: (B, G, N, D).
            grid: rows and columns of the cells of a group, for positions; tokens in front of them are not cells.
            allowed: bool, broadcasts to (B, G, h, N, K).
            gather_keys: makes the keys, and likewise the values, of a group from those of all groups:
                (B, G, h, N, d) -> (B, G, h, K, d). Default: the group's own.

        Returns:
            (B, G, N, D).
        """
        parts = self.qkv(tokens).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(2, 3) for part in parts)  # each (B, G, h, N, d)
        if gather_keys is not None:
            k, v = gather_keys(k), gather_keys(v)
        bias = None
        if self.position is not None:
            q, k, bias = self.position(q, k, grid)
        mixed = attend(q, k, v, bias=bias, allowed=allowed, scale=(self.qkv.in_features // self.heads) ** -0.5)
        return self.proj(mixed.transpose(2, 3).flatten(3))


class QKV(Linear):
    """Queries, keys and values, of which the keys have no bias. `qv_bias` (2D,) holds that of queries, then values."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 3 * width, bias=False)
        self.qv_bias = nn.Parameter(torch.zeros(2 * width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., 3D)."""
        q, v = self.qv_bias.chunk(2)
        return F.linear(x, self.weight, torch.cat([q, torch.zeros_like(q), v]))


class CrossAttention(nn.Module):
    """Multi-head attention of queries to a context, which keys and values are made from.

    Args:
        width: D.
        heads: h; divides D.
        qkv_bias: whether queries, keys and values have biases.
        project: whether a projection follows.
    """

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True, project: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"{heads} attention heads do not divide a width of {width}")
        self.heads = heads
        self.q = Linear(width, width, bias=qkv_bias)
        self.kv = Linear(width, 2 * width, bias=qkv_bias)
        self.proj = Linear(width, width) if project else nn.Identity()

    def forward(self, queries: Tensor, context: Tensor, allowed: Tensor | None = None) -> Tensor:
        """(B, N, D) and (B, K, D) -> (B, N, D); allowed broadcasts to (B, 1, h, N, K)."""
        (q,), (k, v) = split_heads(self.q(queries), self.heads), split_heads(self.kv(context), self.heads, parts=2)
        return self.proj(join_heads(attend(q, k, v, allowed=allowed)))


def split_heads(x: Tensor, heads: int, *, parts: int = 1) -> Tensor:
    """(B, N, parts * h * d) -> (parts, B, 1, h, N, d), as `attend` takes them."""
    return x[:, None].unflatten(-1, (parts, heads, -1)).permute(3, 0, 1, 4, 2, 5)


def join_heads(x: Tensor) -> Tensor:
    """(B, 1, h, N, d) -> (B, N, h * d)."""
    return x[:, 0].transpose(1, 2).flatten(2)
