"""ViTDet: layouts of the weights that it starts from, those of a plain ViT."""

from __future__ import annotations

import torch.nn.functional as F

from patchform.published import vit
from patchform.weights.operations import Operation
from patchform.weights.rules import Drop, Rules

_CELLS = Operation(
    lambda tensors, shape, sizes: tensors[0][:, 1:],
    lambda tensor, count, sizes: (F.pad(tensor, (0, 0, 1, 0)),),
)
"""Positions without that of the class token, which is zero on the way back."""

LAYOUTS = {
    "timm": Rules(
        ("cls_token", Drop("there is no class token")),
        ("pos_embed", "backbone.position.table", _CELLS),
        *vit.LAYOUTS["mae"],
    )
}
"""timm: ViTs with a class token, which is left out, and files of pre-training by facebookresearch/mae. Detectron2's own
files of ViTDet have a second, relative position and are another function."""
