"""Weighted k-nearest-neighbour probe (Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination", section 3.4, with its temperature; 20 neighbours as in Caron et al. 2021, "DINO", section 3.2).

The k training pictures that are most similar to a picture, by the cosine of their features, vote for their classes with
weights exp(cosine / temperature). Nothing is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from patchform.errors import UsageError
from patchform.probing.frozen import Frozen

NEIGHBOURS, TEMPERATURE = 20, 0.07
BLOCK = (1024, 16_384)
"""Pictures and training pictures that are compared at once: 64 MiB of similarities."""


def vote(
    train: Frozen,
    summaries: Tensor,
    *,
    classes: int,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    block: tuple[int, int] = BLOCK,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Shares of the votes.

    Of equally similar training pictures the earlier ones are nearer.

    Args:
        train: whose neighbours vote.
        summaries: (M, D) features of the pictures to decide on.
        classes: number of classes C.
        k: neighbours, at least 1; all training pictures if there are fewer.
        temperature: positive; the lower, the more the nearest weighs.
        block: rows and columns of the similarities that are in memory at once; changes no result but by rounding.
        device: where it is computed.

    Returns:
        (M, C) float32 on the CPU, each row sums to 1.

    Raises:
        UsageError: k or temperature out of its range, or features of another width.
    """
    if k < 1 or not temperature > 0:
        raise UsageError(f"{k} neighbours and temperature {temperature}", remedy="both are above 0")
    if summaries.shape[1] != train.summaries.shape[1]:
        raise UsageError(f"features of width {summaries.shape[1]} and {train.summaries.shape[1]}")
    votes, labels = [], train.labels.to(device)
    for part in summaries.split(block[0]):
        rows = F.normalize(part.to(device), dim=1)
        similar, chosen, start = rows.new_empty(len(rows), 0), labels.new_empty(len(rows), 0), 0
        for columns in train.summaries.split(block[1]):
            values, indices = _nearest(rows @ F.normalize(columns.to(device), dim=1).T, k)
            both = torch.cat([similar, values], 1)
            similar, order = (column[:, :k] for column in both.sort(dim=1, descending=True, stable=True))
            chosen = torch.cat([chosen, indices + start], 1).gather(1, order)
            start += len(columns)
        weights = (similar / temperature).softmax(1)  # votes, divided by their sum
        votes.append(weights.new_zeros(len(rows), classes).scatter_add_(1, labels[chosen], weights).cpu())
    return torch.cat(votes) if votes else torch.empty(0, classes)


def _nearest(similar: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(R, C) similarities -> the k highest of each row, the earlier first among equals, and their columns in order."""
    values, indices = similar.topk(min(k, similar.shape[1]))
    cut = (similar >= values[:, -1:]).sum(1) > values.shape[1]  # equals on both sides: topk takes any of them
    if cut.any():
        indices[cut] = similar[cut].argsort(dim=1, descending=True, stable=True)[:, : values.shape[1]]
    indices = indices.sort(1).values
    return similar.gather(1, indices), indices
