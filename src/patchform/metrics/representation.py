"""Whether a representation holds something: its neighbours agree on classes, and it fills its dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from patchform.errors import DataError
from patchform.metrics.base import Metric, Scores, finite, same_number, share
from patchform.records import Embedding, Label, Target

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""Those of `probing.neighbours`."""
ROWS = 1024
"""Embeddings whose similarities are in memory at once."""
ALIKE, FLAT = 0.05, 1.5
"""Spread and effective rank below which a representation is said to have collapsed."""


class Representation(Metric):
    """Judges embeddings by themselves, and by classes where they are known. None of its numbers selects a model.

    Numbers: `knn`, the share of images whose class the votes of their 20 nearest neighbours among the other images
    name (Wu et al. 2018, section 3.4; each image is left out of its own vote), None where not every image has exactly
    one class; `effective_rank`, the exponential of the entropy of the singular values as shares of their sum (Roy and
    Vetterli 2007), in 1..min(N, D); `spread`, the deviation of the embeddings of length 1 around their mean, 0 where
    all are alike and 1 where they point everywhere. A note says when the last two are those of a collapse.
    """

    def __init__(self) -> None:
        self._vectors: list[Tensor] = []
        self._classes: list[Tensor] = []

    def update(self, predictions: Sequence[Target], targets: Sequence[Target]) -> None:
        """Take in a batch: `Embedding`, and `Label` of one class or none.

        Raises:
            DataError: not one prediction an image.
            DivergedError: an embedding that is not finite.
        """
        same_number(predictions, targets)
        for prediction, target in zip(cast("Sequence[Embedding]", predictions), cast("Sequence[Label]", targets)):
            self._vectors.append(finite(prediction.scores.float().cpu()))
            self._classes.append(target.classes.cpu())

    def compute(self) -> Scores:
        """The numbers of all that was taken in; memory grows with the number of images times D."""
        samples = len(self._vectors)
        numbers: dict[str, float | None] = dict.fromkeys(("knn", "effective_rank", "spread"))
        if not samples:
            return Scores(0, None, numbers, {})
        vectors = torch.stack(self._vectors)
        if all(len(classes) == 1 for classes in self._classes):
            numbers["knn"] = left_out_accuracy(vectors, torch.cat(self._classes))
        rank, spread = effective_rank(vectors), _spread(vectors)
        numbers |= {"effective_rank": rank, "spread": spread}
        notes: tuple[str, ...] = ()
        if samples > 1 and (spread < ALIKE or rank < FLAT):
            measured = f"spread {spread:.3f} of 1, effective rank {rank:.1f} of {min(vectors.shape)}"
            notes = (f"the embeddings of all pictures are nearly alike ({measured}): the representation has collapsed",)
        return Scores(samples, None, numbers, {}, notes)


def left_out_accuracy(vectors: Tensor, classes: Tensor, *, k: int = NEIGHBOURS) -> float | None:
    """Share of images whose class is that of the votes of their neighbours, themselves left out; None for one image.

    Args:
        vectors: (N, D).
        classes: (N,) int64.
        k: neighbours; all others if there are fewer.

    Raises:
        DataError: not one class a vector.
    """
    if len(vectors) != len(classes):
        raise DataError(f"{len(vectors)} embeddings for {len(classes)} classes", remedy="give one for each")
    if len(vectors) < 2:
        return None
    directions, right = F.normalize(vectors, dim=1), 0
    for start in range(0, len(vectors), ROWS):
        similar = directions[start : start + ROWS] @ directions.T
        rows = torch.arange(len(similar))
        similar[rows, rows + start] = -math.inf
        nearest, neighbours = similar.topk(min(k, len(vectors) - 1))
        votes = torch.zeros(len(similar), int(classes.max()) + 1)
        votes.scatter_add_(1, classes[neighbours], (nearest / TEMPERATURE).softmax(1))
        right += int((votes.argmax(1) == classes[start : start + ROWS]).sum())
    return share(right, len(vectors))


def effective_rank(vectors: Tensor) -> float:
    """Of (N, D), N >= 1; 1 where all are 0."""
    values = torch.linalg.svdvals(vectors.double())
    total = values.sum()
    if total == 0:
        return 1.0
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())


def _spread(vectors: Tensor) -> float:
    directions = F.normalize(vectors.double(), dim=1)
    return float((directions - directions.mean(0)).square().sum(1).mean().sqrt())
