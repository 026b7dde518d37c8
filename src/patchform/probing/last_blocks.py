"""What the last blocks of a vision transformer say, side by side (Caron et al. 2021, "DINO", appendix F.2, takes the
class tokens of four; Oquab et al. 2023, "DINOv2", section 7.1, joins the mean of the patch tokens).

    [class of block L-n+1 | ... | class of block L | mean of the patch tokens of block L]      all after the final norm

The blocks are listened to from outside, and what they give is taken only where the last of it is, after the norm, what
the backbone itself gives as tokens and summary: no other backbone is guessed to be like that.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from patchform.errors import UsageError
from patchform.model import Model
from patchform.records import Batch

NEAR = 1e-3
"""Largest difference, relative and absolute, of numbers that are the same but for rounding."""


def last_blocks(model: Model, batch: Batch, number: int) -> Tensor:
    """(B, (number + 1) D) of pictures of one size; without a class token, means of patch tokens stand for it.

    Raises:
        UsageError: fewer blocks, or a backbone whose tokens are not those of its last block after its norm.
    """
    backbone, outputs = model.backbone, list[Tensor]()
    blocks = backbone.layers()
    if not 1 <= number <= len(blocks):
        raise UsageError(
            f"the last {number} blocks of {len(blocks)}", remedy="ask for one or more, and no more than there are"
        )

    def listen(block: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output)

    with ExitStack() as stack:
        for block in blocks[-number:]:
            stack.callback(block.register_forward_hook(listen).remove)
        features = model.features(batch)
    tokens, summary, norm = features.tokens, features.summary, getattr(backbone, "norm", None)
    sequences = [x for x in outputs if isinstance(x, Tensor) and x.dim() == 3 and x.shape[-1] == backbone.width]
    if isinstance(norm, nn.Module) and tokens is not None and summary is not None and len(sequences) == number:
        normed = [norm(x) for x in sequences]
        prefix = normed[-1].shape[1] - tokens.shape[1]
        if prefix >= 0 and _alike(normed[-1][:, prefix:], tokens):
            if prefix and _alike(normed[-1][:, 0], summary):
                return torch.cat([*(x[:, 0] for x in normed), tokens.mean(1)], 1)
            if _alike(tokens.mean(1), summary):
                return torch.cat([*(x[:, prefix:].mean(1) for x in normed), tokens.mean(1)], 1)
    what = "the tokens of this backbone are not those of its last block after its norm"
    raise UsageError(what, remedy="leave out the number of layers")


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=NEAR, atol=NEAR)
