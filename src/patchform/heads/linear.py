"""One linear layer on the summary: the classification head of nearly every paper.

Dosovitskiy et al., "An Image Is Worth 16x16 Words" (2021), section 3.1: one hidden layer with tanh at pre-training
time (`hidden`), a single linear layer at fine-tuning time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from patchform.errors import DataError, UsageError
from patchform.heads.base import Head, number_of
from patchform.outputs import LabelOutputs
from patchform.records import FeatureInfo, Features, Label, Loss, Target


class LabelOptions(TypedDict, total=False):
    """How every head of labels learns, see `Linear`."""

    dropout: float
    smoothing: float
    class_weights: Sequence[float] | None
    labels: Literal["single", "multi"]


class Linear(Head):
    """Logits of each class from `features.summary`.

    Weights start as a normal distribution of deviation 0.02 cut at two deviations, biases as zeros: the first loss is
    then near ln(classes), as with weights of zero, but the backbone has a gradient from the first step on.

    Args:
        features: of the backbone, whose width is D of the summary.
        classes: number of classes C.
        dropout: rate on the summary (after the hidden layer), in [0, 1).
        smoothing: share of the target that is spread evenly, in [0, 1): over the classes of an image (Szegedy et al.
            2016, section 7), or over yes and no of each class when `labels` is "multi".
        class_weights: C positive numbers; None weighs all alike.
        labels: "single": one class an image, softmax and cross-entropy; "multi": any number of classes, sigmoid and
            binary cross-entropy, averaged over the classes.
        hidden: width of a tanh layer before the classifier; None for none.
        parts: widths of the class tokens that lie side by side in the summary; each gets a linear layer, and their
            logits are averaged (Chen et al. 2021, CrossViT). Empty: one layer sees all.
        temperature: positive number that divides the logits in `decode` (Guo et al. 2017, section 4.2).

    Raises:
        UsageError: an option out of its range.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification", "video_classification")
    reads_summary_alone: ClassVar[bool] = True

    def __init__(
        self,
        features: FeatureInfo,
        *,
        classes: int,
        dropout: float = 0.0,
        smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        labels: Literal["single", "multi"] = "single",
        hidden: int | None = None,
        parts: Sequence[int] = (),
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        for name, rate in (("dropout", dropout), ("smoothing", smoothing)):
            if not 0 <= rate < 1:
                raise UsageError(f"{name} is {rate}", remedy="it lies in [0, 1)")
        if labels not in ("single", "multi"):
            raise UsageError(f'labels is "{labels}"', remedy='it is "single" or "multi"')
        if not 0 < temperature < math.inf:
            raise UsageError(f"temperature is {temperature}", remedy="it is a positive number")
        width = hidden or features.width
        if parts and sum(parts) != width:
            raise UsageError(f"parts of {list(parts)} are not the {width} of what is classified")
        weights = None if class_weights is None else torch.tensor([float(weight) for weight in class_weights])
        if weights is not None and (len(weights) != classes or not ((weights > 0) & weights.isfinite()).all()):
            raise UsageError(
                f"class_weights are {list(class_weights or ())}", remedy=f"give {classes} positive numbers, one a class"
            )
        self.classes, self.smoothing, self.labels, self.temperature = classes, smoothing, labels, temperature
        self.pre_logits = None if hidden is None else nn.Linear(features.width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.classifier = Averaged(parts, classes) if parts else nn.Linear(width, classes)
        self.register_buffer("class_weights", weights, persistent=False)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
                nn.init.zeros_(layer.bias)

    class_weights: Tensor | None

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> Tensor:
        """(B, C) logits."""
        summary = features.summary
        if summary is None:
            raise UsageError("the linear head needs a summary and this backbone gives none", remedy="use another head")
        if self.pre_logits is not None:
            summary = torch.tanh(self.pre_logits(summary))
        return self.classifier(self.dropout(summary))

    def loss(self, raw: Tensor, targets: Sequence[Target]) -> dict[str, Loss]:
        """{"loss": ...} over images; with weights a weighted mean, as `torch.nn.functional.cross_entropy` has it.

        Raises:
            DataError: an image without exactly one class where `labels` is "single".
        """
        logits, probs = raw.float(), self._probs(targets, raw.device)  # float: bfloat16 has 3 digits
        weights = logits.new_ones(self.classes) if self.class_weights is None else self.class_weights.to(logits)
        if self.labels == "multi":
            smooth = probs * (1 - self.smoothing) + self.smoothing / 2
            entropy = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")  # (B, C)
            return {"loss": Loss((entropy @ (weights / weights.sum())).sum(), number_of(targets))}
        smooth = probs * (1 - self.smoothing) + self.smoothing / self.classes
        return {"loss": Loss(-(smooth * logits.log_softmax(1) @ weights).sum(), (probs @ weights).sum())}

    def counts(self, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Number of images; of single labels the sum of the targets' shares, each by the weight of its class."""
        if self.labels == "multi":
            return super().counts(targets)
        probs = self._probs(targets, next(self.parameters()).device)
        return {"loss": (probs if self.class_weights is None else probs @ self.class_weights.to(probs)).sum()}

    def class_logits(self, raw: Tensor) -> Tensor:
        """(B, C): as they are, not divided by `temperature`. Raises UsageError where `labels` is "multi"."""
        if self.labels == "multi":
            raise UsageError("an image of several labels has no one class", remedy='set data.labels to "single"')
        return raw

    def token_logits(self, raw: Tensor, features: Features) -> Tensor:
        """(B, N, C): the classifier above each token, which is right where the summary is the mean of the tokens."""
        layer, tokens = self.classifier, features.tokens
        if not isinstance(layer, nn.Linear) or tokens is None or self.pre_logits is not None:
            return super().token_logits(raw, features)
        return layer(tokens) if tokens.shape[2] == layer.in_features else super().token_logits(raw, features)

    def decode(self, raw: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Target]:
        """One `Label` an image: `scores` (C,) softmax or sigmoid; `classes` the best one, or all above 0.5."""
        return self.to_outputs(raw).predictions()

    def to_outputs(self, raw: Tensor, sizes: Tensor | None = None) -> LabelOutputs:
        """Scores and decisions."""
        logits = raw.float() / self.temperature
        if self.labels == "multi":
            scores = logits.sigmoid()
            return LabelOutputs(scores, scores > 0.5)
        scores = logits.softmax(1)
        return LabelOutputs.of_best(scores)

    def _probs(self, targets: Sequence[Target], device: torch.device) -> Tensor:
        """(B, C) float: 1 (or the soft score) where an image has the class."""
        labels = cast("Sequence[Label]", targets)
        soft = [label.scores for label in labels if label.scores is not None]
        if len(soft) == len(labels):
            return torch.stack(soft).to(device, torch.float32)
        if soft:
            raise UsageError("hard and soft targets in one batch", remedy="give scores to all images or to none")
        if self.labels == "single" and any(len(label.classes) != 1 for label in labels):
            raise DataError("an image without exactly one class", remedy='set labels to "multi"')
        classes = [label.classes for label in labels]
        index = pad_sequence(classes, batch_first=True, padding_value=self.classes).to(device)  # cut off below
        return torch.zeros(len(labels), self.classes + 1, device=device).scatter_(1, index, 1.0)[:, :-1]


class Averaged(nn.Module):
    """The mean of linear layers, one for each part of a vector.

    Args:
        widths: of the parts.
        classes: C.
    """

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(width, classes) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        """(B, sum of the widths) -> (B, C)."""
        parts = x.split([layer.in_features for layer in self.parts], -1)
        return torch.stack([layer(part) for layer, part in zip(self.parts, parts)]).mean(0)
