"""Sparse ViT: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from patchform.descriptions import Score
from patchform.weights.rules import Rules

LAYOUTS: dict[str, Rules] = {}
"""There are no published weights."""

SCORES: tuple[Score, ...] = ()
