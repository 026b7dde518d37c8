"""Attentive probe: a learned query attends to the tokens of a frozen backbone, and a linear layer classifies what it
finds (Bardes et al. 2024, "V-JEPA", section 4; El-Nouby et al. 2024, "AIM", section 3.3: one query, no perceptron).

    tokens --norm--> keys, values;  query . keys --softmax--> weights;  weights x values --linear--> logits

With one query the keys and values need not be computed for each token: a head's scores are x . (K^T q), and what it
finds is V (sum of weights x). It is the same function at a small share of the products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patchform.errors import DataError, DivergedError
from patchform.layers.attention import attend
from patchform.probing.frozen import Frozen

EPOCHS, BATCH, RATE, DECAY = 60, 64, 1e-3, 0.05
"""Passes over the training pictures, pictures of a step, highest learning rate (cosine, to 0) and weight decay of
AdamW."""
HEAD_WIDTH = 64
"""Of an attention head, as nearly as it divides the width."""


class Attentive(nn.Module):
    """The classifier.

    Args:
        width: D of the tokens.
        classes: C.
        heads: attention heads; divides D.
    """

    def __init__(self, width: int, classes: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.empty(width))
        self.key, self.value = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.classifier = nn.Linear(width, classes)
        for weight in (self.query, self.key.weight, self.value.weight, self.classifier.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        for bias in (self.value.bias, self.classifier.bias):
            nn.init.zeros_(bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, C) logits."""
        x = self.norm(tokens)[:, None, None]  # (B, 1, 1, N, D), the same for every head
        x = x.expand(-1, -1, self.heads, -1, -1)
        keys = self.key.weight.unflatten(0, (self.heads, -1))  # (h, d, D)
        queries = self.query.view(self.heads, 1, -1) @ keys  # (h, 1, D)

        found = attend(queries.expand(x.shape[0], 1, -1, -1, -1), x, x, scale=keys.shape[1] ** -0.5)[
            :, 0, :, 0
        ]  # (B, h, D)
        values = torch.einsum("bhi,hdi->bhd", found, self.value.weight.unflatten(0, (self.heads, -1))).flatten(1)
        return self.classifier(values + self.value.bias)


class AttentiveProbe(NamedTuple):
    """A classifier of tokens."""

    module: Attentive
    classes: tuple[str, ...]
    epochs: int

    @torch.no_grad()
    def scores(self, tokens: Tensor) -> Tensor:
        """(M, N, D) tokens -> (M, C) probabilities on the CPU."""
        return self.module(tokens.to(self.module.query)).softmax(1).cpu()


def fit(
    train: Frozen,
    classes: Sequence[str],
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> AttentiveProbe:
    """Train a probe on tokens. Equal calls give equal bits; the global generator is left as it was.

    Args:
        train: `output` "sequence".
        classes: C names, in the order of the labels.
        epochs: passes over the pictures.
        seed: of the first weights and of the order.
        device: where it is computed.
        progress: called with (done, all) epochs.

    Raises:
        DataError: features that are no tokens.
        DivergedError: the loss is not finite.
    """
    if train.summaries.dim() != 3:
        raise DataError("these features are no tokens", remedy="compute the output sequence")
    width = train.summaries.shape[2]
    heads = next(number for number in range(max(1, width // HEAD_WIDTH), 0, -1) if width % number == 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Attentive(width, len(classes), heads).to(device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=DECAY)
    numbers = torch.Generator().manual_seed(seed)
    count, done = len(train.labels), 0
    steps = epochs * math.ceil(count / BATCH)
    for epoch in range(epochs):
        for part in torch.randperm(count, generator=numbers).split(BATCH):
            optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * done / steps)) / 2
            loss = F.cross_entropy(module(train.summaries[part].to(device)), train.labels[part].to(device))
            if not loss.isfinite():
                raise DivergedError("the loss of the attentive probe is not finite", remedy="scale the features")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
        if progress:
            progress(epoch + 1, epochs)
    return AttentiveProbe(module.eval(), tuple(classes), epochs)
