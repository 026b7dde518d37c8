"""What a classifier sees of all tokens: a class token, a mean, or what a learned query finds.

Each is called as `summary(tokens, raw, padding)`: tokens (B, P + N, D) normalised, class tokens and registers in front;
the same before the last norm; padding (B, H, W) bool of the N cells, True on padding. It gives (B, S), `width` wide.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from patchform.geometry import grids
from patchform.layers.attention import CrossAttention, never_empty, real_keys
from patchform.layers.blocks import GELU, MLP, hidden_width
from patchform.lookup import no_such

SummaryName: TypeAlias = Literal["class", "mean", "class_and_mean", "mean_then_norm", "attention"]
EPS = 1e-6  # of the norms


class Summary(nn.Module):
    """One vector of all tokens.

    Attributes:
        width: S.
        last_norm: the backbone's last norm, where the summary has it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.last_norm: nn.LayerNorm | None = None

    @abstractmethod
    def forward(self, tokens: Tensor, raw: Tensor, padding: Tensor | None) -> Tensor:
        """(B, P + N, D) twice and (B, H, W) -> (B, S)."""


class ClassTokens(Summary):
    """The class tokens side by side.

    Args:
        width: D.
        count: of class tokens, which come first.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__(count * width)
        self.count = count

    def forward(self, tokens: Tensor, raw: Tensor, padding: Tensor | None) -> Tensor:
        """-> (B, count * D)."""
        return tokens[:, 0] if self.count == 1 else tokens[:, : self.count].flatten(1)


class Mean(Summary):
    """The mean of the patch tokens.

    Args:
        width: D.
        prefix: P, tokens in front of the cells.
    """

    def __init__(self, width: int, prefix: int) -> None:
        super().__init__(width)
        self.prefix = prefix

    def forward(self, tokens: Tensor, raw: Tensor, padding: Tensor | None) -> Tensor:
        """-> (B, D)."""
        return grids.masked_mean(tokens[:, self.prefix :], padding)


class ClassAndMean(Mean):
    """The class token beside the mean of the patch tokens: what DINOv2's linear classifiers see (Oquab et al. 2023)."""

    def __init__(self, width: int, prefix: int) -> None:
        super().__init__(width, prefix)
        self.width = 2 * width

    def forward(self, tokens: Tensor, raw: Tensor, padding: Tensor | None) -> Tensor:
        """-> (B, 2 D)."""
        return torch.cat([tokens[:, 0], super().forward(tokens, raw, padding)], 1)


class MeanThenNorm(Mean):
    """The norm of the mean, in place of the mean of normalised tokens (He et al. 2022, MAE, fine-tuned; "fc_norm")."""

    def __init__(self, width: int, prefix: int) -> None:
        super().__init__(width, prefix)
        self.last_norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, tokens: Tensor, raw: Tensor, padding: Tensor | None) -> Tensor:
        """-> (B, D)."""
        assert self.last_norm is not None
        return self.last_norm(super().forward(raw, raw, padding))


class AttentionPool(Summary):
    """A learned query attends to the patch tokens, and a perceptron follows (Zhai et al. 2022, big_vision).

    Args:
        width: D.
        heads: attention heads; divides D.
        prefix: P, tokens in front of the cells.
        mlp_ratio: hidden width of the perceptron over D.
        gelu: form of the activation.
        qkv_bias: biases of queries, keys, values.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        prefix: int,
        *,
        mlp_ratio: float = 4.0,
        gelu: GELU = "none",
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(width)
        self.prefix = prefix
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.attention = CrossAttention(width, heads, qkv_bias=qkv_bias)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width, hidden_width(width, mlp_ratio), gelu=gelu)
        nn.init.trunc_normal_(self.query, std=width**-0.5)

    def forward(self, tokens: Tensor, raw: Tensor, padding: Tensor | None) -> Tensor:
        """-> (B, D)."""
        query, cells = self.query.expand(tokens.shape[0], -1, -1), tokens[:, self.prefix :]
        found = self.attention(query, cells, never_empty(real_keys(padding)))[:, 0]
        return found + self.mlp(self.norm(found))


def class_tokens_of(name: SummaryName, count: int | None) -> int:
    """How many class tokens a backbone with this summary has: as many as are named, else one if it is read.

    Raises:
        UsageError: no such summary.
    """
    if name not in get_args(SummaryName):
        raise no_such("summary", name, get_args(SummaryName))
    return int(name in ("class", "class_and_mean")) if count is None else count


def summary_of(
    name: SummaryName, width: int, heads: int, *, classes: int, prefix: int, mlp_ratio: float, gelu: GELU
) -> Summary:
    """The summary of that name, of D wide tokens behind `prefix` others, of which the first are class tokens."""
    if name == "class":
        return ClassTokens(width, classes)
    if name == "attention":
        return AttentionPool(width, heads, prefix, mlp_ratio=mlp_ratio, gelu=gelu)
    kinds = {"mean": Mean, "class_and_mean": ClassAndMean, "mean_then_norm": MeanThenNorm}
    return kinds[name](width, prefix)
