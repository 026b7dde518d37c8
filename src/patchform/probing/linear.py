"""Linear probe: multinomial logistic regression on the features of a frozen backbone, solved to its one optimum.

With features z of mean 0 and deviation 1 (over the training pictures), the mean of the cross-entropy of
softmax(W z + b) plus decay / 2 times the sum of the squares of W is minimised with L-BFGS in float64 over all pictures
at once: no learning rate, no random numbers. (Alain and Bengio 2017 probe with such a layer; Radford et al. 2021,
appendix A.3, with this very solver and a search for the decay.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from patchform.data.dataset import split_listing
from patchform.data.listing import Item, Listing
from patchform.errors import DivergedError, UsageError
from patchform.heads.linear import Linear
from patchform.model import Model
from patchform.probing.frozen import Frozen, Output, scored

DECAYS = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Tried from strong to weak, each from the optimum of the one before."""
HELD_OUT = 0.2
"""Share of each class of the training pictures on which decays are compared."""
ITERATIONS = 1000
STEEPEST = 1e-6
"""Largest entry of the gradient at what counts as the optimum."""
CONSTANT = 1e-6
"""A feature whose deviation is at most this share of its mean is no more than rounding and is not blown up."""
ELEMENTS = 1 << 22
"""Features or logits that are float64 at once: 32 MiB."""


class Tried(NamedTuple):
    """A decay, and how good its probe is on the pictures that were held out."""

    decay: float
    top1: float
    log_loss: float


class Probe(NamedTuple):
    """A linear classifier of features as they are: the standardisation is inside."""

    weight: Tensor
    """(C, D) float32."""
    bias: Tensor
    """(C,) float32."""
    classes: tuple[str, ...]
    decay: float
    tried: tuple[Tried, ...] = ()
    """Empty when there was nothing to choose."""
    output: Output = "summary"

    def scores(self, summaries: Tensor) -> Tensor:
        """(M, D) features -> (M, C) probabilities."""
        return torch.nn.functional.linear(summaries, self.weight, self.bias).softmax(1)

    def into(self, model: Model) -> Model:
        """A classifier, ready to be saved: the backbone of `model`, which is shared, under a linear head with this
        probe.

        Raises:
            UsageError: a probe of another backbone, or of another output than the summary.
        """
        if self.output != "summary" or self.weight.shape[1] != model.backbone.width:
            raise UsageError("not a probe of this model's summary", remedy="fit one on features of this model")
        head = Linear(model.backbone.feature_info, classes=len(self.classes))
        head.classifier.load_state_dict({"weight": self.weight, "bias": self.bias})
        architecture = model.architecture
        if architecture is not None:
            architecture = replace(architecture, task="classification", head="linear", head_options={})
        classifier = Model(
            model.backbone, head, classes=self.classes, preprocessing=model.preprocessing, architecture=architecture
        )
        return classifier.to(model.mean.device).eval()


def fit(
    train: Frozen,
    classes: Sequence[str],
    *,
    decays: Sequence[float] = DECAYS,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Probe:
    """The probe of the training features.

    With several decays, the one with the highest top-1 on a held-out fifth of each class is taken (of equals, the one
    with the lowest log loss) and the probe is fitted again to all. Equal calls give equal bits.

    Args:
        train: features and classes.
        classes: C names, in the order of the labels.
        decays: positive, at least one.
        seed: of the split.
        device: where it is computed; it must know float64.

    Raises:
        UsageError: no decay, or one that is not positive.
        DataError: several decays and no class of two pictures.
        DivergedError: the features are beyond what float64 can fit.
    """
    if not decays or not all(0 < decay < math.inf for decay in decays):
        raise UsageError(f"decays are {list(decays)}", remedy="give positive numbers")
    coefficients: Tensor | None = None
    best, tried = max(decays), []
    if len(set(decays)) > 1:
        inner, outer = _split(train, classes, seed)
        problem, optima = _Problem(inner, len(classes), device), {}
        for decay in sorted(set(decays), reverse=True):
            optima[decay] = coefficients = problem.solve(decay, start=coefficients)
            numbers = scored(problem.probe(coefficients, classes, decay).scores, outer, classes).numbers
            tried.append(Tried(decay, numbers["top1"] or 0.0, numbers["log_loss"] or 0.0))
        best = min(tried, key=lambda result: (-result.top1, result.log_loss)).decay
        coefficients = optima[best]
    problem = _Problem(train, len(classes), device)
    probe = problem.probe(problem.solve(best, start=coefficients), classes, best)
    return probe._replace(tried=tuple(tried), output=train.output)


def _split(train: Frozen, classes: Sequence[str], seed: int) -> tuple[Frozen, Frozen]:
    """Both parts of the features; a picture that is listed twice is on one side."""
    items = tuple(Item(Path(name), (label,)) for name, label in zip(train.names, train.labels.tolist()))
    listing = Listing(classes=tuple(classes), items=items, root=Path())
    held_out = {item.path for item in split_listing(listing, HELD_OUT, seed)[1].items}
    outer = torch.tensor([item.path in held_out for item in items])
    first, second = (
        Frozen(train.summaries[part], train.labels[part], tuple(compress(train.names, part)))
        for part in (~outer, outer)
    )
    return first, second


class _Problem:
    """The regression. Features become float64 and standardised block by block: no second copy of them is made."""

    def __init__(self, train: Frozen, classes: int, device: torch.device | str) -> None:
        self.summaries, self.labels = train.summaries.to(device), train.labels.to(device)
        self.classes, self.count = classes, len(train.labels)
        self.rows = max(1, ELEMENTS // max(self.summaries.shape[1], classes))
        self.mean = torch.zeros(self.summaries.shape[1], dtype=torch.float64, device=device)
        squares = self.mean.clone()
        for block in self.summaries.split(self.rows):
            self.mean += block.double().sum(0) / self.count
        for block in self.summaries.split(self.rows):
            squares += (block.double() - self.mean).square().sum(0) / self.count
        std = squares.sqrt()
        self.std = std.masked_fill(std <= CONSTANT * self.mean.abs(), 1.0)

    def objective(self, coefficients: Tensor, decay: float) -> tuple[Tensor, Tensor]:
        """() value and (C, D + 1) gradient at (C, D + 1) coefficients, the last column of which is b."""
        weight, bias = coefficients[:, :-1], coefficients[:, -1]
        value = decay / 2 * weight.square().sum()
        gradient = torch.cat([decay * weight, torch.zeros_like(bias)[:, None]], 1)
        for block, labels in zip(self.summaries.split(self.rows), self.labels.split(self.rows)):
            z = (block.double() - self.mean) / self.std  # (R, D)
            logs = (z @ weight.T + bias).log_softmax(1)  # (R, C)
            value -= logs.gather(1, labels[:, None]).sum() / self.count
            slope = logs.exp().scatter_add_(1, labels[:, None], -torch.ones_like(logs[:, :1])) / self.count
            gradient[:, :-1] += slope.T @ z
            gradient[:, -1] += slope.sum(0)
        return value, gradient

    def solve(self, decay: float, start: Tensor | None = None) -> Tensor:
        """(C, D + 1) coefficients of the optimum."""
        shape = self.classes, self.summaries.shape[1] + 1
        zeros = torch.zeros(shape, dtype=torch.float64, device=self.mean.device)
        coefficients = zeros if start is None else start.clone()
        solver = torch.optim.LBFGS(
            [coefficients],
            max_iter=ITERATIONS,
            tolerance_grad=STEEPEST,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            value, coefficients.grad = self.objective(coefficients, decay)
            return value

        solver.step(closure)
        if not coefficients.isfinite().all():
            raise DivergedError("no linear probe of these features can be found", remedy="scale them")
        return coefficients.detach()

    def probe(self, coefficients: Tensor, classes: Sequence[str], decay: float) -> Probe:
        """W (x - mean) / std + b as weight and bias of x."""
        weight = coefficients[:, :-1] / self.std
        bias = coefficients[:, -1] - weight @ self.mean
        return Probe(weight.float().cpu(), bias.float().cpu(), tuple(classes), decay)
