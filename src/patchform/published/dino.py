"""What DINO and its successors train a backbone with: layouts of a student or a teacher, whose heads are left out."""

from __future__ import annotations

from patchform.weights.rules import Drop, Rule, Rules, prefix

_HEAD = Drop("the projection that it was trained with")
_HEADS = ("head.mlp*", "head.last_layer*", "dino_head.*", "ibot_head.*")
"""Of facebookresearch/dino, bytedance/ibot and facebookresearch/dinov2."""


def layout(backbone: Rules) -> Rules:
    """One part, teacher or student, of a training file whose backbone is named so."""
    heads: list[Rule] = [(pattern, _HEAD) for pattern in _HEADS]
    return Rules(*heads, *prefix(backbone, "backbone.", ""), needs=_HEADS)
