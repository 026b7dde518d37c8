"""Stand-alone self-attention: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from patchform.descriptions import Score
from patchform.weights.rules import Rules

LAYOUTS: dict[str, Rules] = {}
"""No weights were published. Of the two public implementations that are known, leaderj1001/Stand-Alone-Self-Attention
has a softmax for every channel and MerHS/SASA-pytorch one for all heads: their weights are of other functions."""

SCORES: tuple[Score, ...] = ()
