"""Which query stands for which object: the cheapest set of pairs, none of either in two of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def hungarian_match(costs: Sequence[Tensor]) -> list[Tensor]:
    """The pairs of each problem whose costs add up to the least (Kuhn 1955, the Hungarian method).

    All costs go to the processor in one piece and all pairs come back in one.

    Args:
        costs: a tensor (P, Q, N) for each image: P problems, each of Q queries by N objects. NaN counts as dearest.

    Returns:
        (P, N) int64 an image, on its device: the query of each object; -1 where there are more objects than queries.
    """
    from scipy.optimize import linear_sum_assignment

    if not costs:
        return []
    flat = torch.cat([cost.detach().float().flatten() for cost in costs])
    numbers = flat.nan_to_num(nan=torch.finfo(torch.float32).max).cpu().numpy()
    matches, start = [], 0
    for cost in costs:
        pairs = torch.full((cost.shape[0], cost.shape[2]), -1)
        problems = numbers[start : start + cost.numel()].reshape(cost.shape)
        for problem, row in zip(problems, pairs):
            queries, objects = linear_sum_assignment(problem)
            row[torch.from_numpy(objects)] = torch.from_numpy(queries)
        matches.append(pairs)
        start += cost.numel()
    joined = torch.cat([pairs.flatten() for pairs in matches]).to(costs[0].device)
    parts = joined.split([pairs.numel() for pairs in matches])
    return [part.view_as(pairs) for part, pairs in zip(parts, matches)]
