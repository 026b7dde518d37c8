"""A number for each picture, from the mean of its patches."""

import torch
from patchform.tasks.counting import Count
from torch import nn
from torch.nn import functional as F

from patchform.heads.base import Head, number_of
from patchform.records import Loss


class Counter(Head):
    """A linear layer, and a smooth ramp that is never below 0.

    Args:
        features: of the backbone, which has a summary of `features.width`.
        classes: not used.
    """

    tasks = ("counting",)

    def __init__(self, features, *, classes):
        super().__init__()
        self.linear = nn.Linear(features.width, 1)

    def forward(self, features, targets=None):
        """(B,) numbers of at least 0."""
        return F.softplus(self.linear(features.summary)[:, 0])

    def loss(self, raw, targets):
        """The squared error, over images; the count is the one that `Head` gives for a loss of this name."""
        wanted = torch.stack([target.number for target in targets]).to(raw.device)
        return {"loss": Loss((raw.float() - wanted).square().sum(), number_of(targets))}

    def decode(self, raw, sizes):
        """One `Count` an image."""
        return [Count(number) for number in raw.float()]
