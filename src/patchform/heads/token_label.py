"""Classes of the image and of every token (Jiang et al. 2021, token labelling; eval rule of LV-ViT, VOLO and Dual-ViT).

    summary --classifier--> (B, C) -----------------+--> logits
    tokens  --auxiliary---> (B, N, C) --max over N--+

A teacher says what is in each token (`loss.teacher` with the kind token_labels). Without one the image's classes are
every token's target: that is what the authors' loss does with targets that have no tokens. Where the embeddings of two
images are mixed (`augmentation.mix_token`) the image has a share of both, and each token what is in its own image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from patchform.errors import DataError, UsageError
from patchform.heads.base import Head, number_of
from patchform.outputs import LabelOutputs
from patchform.records import FeatureInfo, Features, Label, Loss, Target


class Raw(NamedTuple):
    """Logits of the image and of its tokens."""

    summary: Tensor
    """(B, C)."""
    tokens: Tensor
    """(B, N, C)."""
    padding: Tensor | None
    """(B, N) bool, True on padding."""


class TokenLabel(Head):
    """Logits from the summary and, added at a weight, the best of the tokens'.

    Args:
        features: of the backbone; the last of its channels is the width of the tokens.
        classes: number of classes C, one an image.
        smoothing: share of the target that is spread evenly over the classes, in [0, 1).
        auxiliary_weight: of the tokens, in the logits and in the loss.

    Raises:
        UsageError: an option out of its range.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    learns_tokens: ClassVar[bool] = True

    def __init__(
        self,
        features: FeatureInfo,
        *,
        classes: int,
        smoothing: float = 0.0,
        auxiliary_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise UsageError(f"smoothing is {smoothing}", remedy="it lies in [0, 1)")
        if auxiliary_weight < 0:
            raise UsageError(f"auxiliary_weight is {auxiliary_weight}", remedy="it is 0 or more")
        self.classes, self.smoothing, self.auxiliary_weight = classes, smoothing, auxiliary_weight
        self.classifier = nn.Linear(features.width, classes)
        self.auxiliary = nn.Linear(features.channels[-1], classes)
        for layer in (self.classifier, self.auxiliary):
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> Raw:
        """Logits of the summary and of each token."""
        if features.summary is None or features.tokens is None:
            raise UsageError("token labels need a summary and tokens, and this backbone lacks one of them")
        padding = None if features.padding is None else features.padding.flatten(1)
        return Raw(self.classifier(features.summary), self.auxiliary(features.tokens), padding)

    def logits(self, raw: Raw) -> Tensor:
        """(B, C): the summary's, plus at its weight, class by class, the highest of the tokens that are not padding."""
        tokens = raw.tokens
        if raw.padding is not None:
            hidden = raw.padding & ~raw.padding.all(1, keepdim=True)  # an image that is nothing else keeps its tokens
            tokens = tokens.masked_fill(hidden[..., None], float("-inf"))
        return raw.summary + self.auxiliary_weight * tokens.amax(1)

    def loss(self, raw: Raw, targets: Sequence[Target]) -> dict[str, Loss]:
        """Over images: "loss", cross-entropy of the image; "auxiliary", at its weight, mean of that of its tokens.

        Smoothed are the targets of images, and of tokens without targets of their own.

        Raises:
            DataError: an image without exactly one class.
            UsageError: targets of tokens on another grid than theirs.
        """
        probs = self._probs(targets, raw.summary.device)  # (B, C)
        image = -(probs * raw.summary.float().log_softmax(1)).sum(1)
        token_probs = self._token_probs(targets, probs, raw.tokens.shape[1])
        token = -(token_probs * raw.tokens.float().log_softmax(2)).sum(2)  # (B, N)
        valid = torch.ones_like(token) if raw.padding is None else (~raw.padding).to(token.dtype)
        auxiliary = (token * valid).sum(1) / valid.sum(1).clamp(min=1)
        count = number_of(targets)
        return {"loss": Loss(image.sum(), count), "auxiliary": Loss(self.auxiliary_weight * auxiliary.sum(), count)}

    def counts(self, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Of both the number of images."""
        return dict.fromkeys(("loss", "auxiliary"), number_of(targets))

    def decode(self, raw: Raw, sizes: Sequence[tuple[int, int]]) -> list[Target]:
        """One `Label` an image: its best class, and `scores` (C,), the softmax of `logits`."""
        return self.to_outputs(raw).predictions()

    def to_outputs(self, raw: Raw, sizes: Tensor | None = None) -> LabelOutputs:
        """Scores and the best class."""
        return LabelOutputs.of_best(self.logits(raw).float().softmax(1))

    def class_logits(self, raw: Raw) -> Tensor:
        """(B, C): `logits`."""
        return self.logits(raw)

    def token_logits(self, raw: Raw, features: Features) -> Tensor:
        """(B, N, C)."""
        return raw.tokens

    def _token_probs(self, targets: Sequence[Target], probs: Tensor, count: int) -> Tensor:
        """(B, N, C), or (B, 1, C) where each image's are all alike: what is known of tokens, else `probs` (B, C)."""
        rows = []
        for label, image in zip(cast("Sequence[Label]", targets), probs):
            cells = image[None] if label.tokens is None else label.tokens.to(image).flatten(1).t()
            if cells.shape[0] not in (1, count):
                raise UsageError(f"targets of {cells.shape[0]} tokens for {count}")
            rows.append(cells)
        if any(row.shape[0] > 1 for row in rows):
            rows = [row.expand(count, -1) for row in rows]
        return torch.stack(rows)

    def _probs(self, targets: Sequence[Target], device: torch.device) -> Tensor:
        """(B, C) float: the soft scores of an image, or 1 at its class; smoothed."""
        rows = []
        for label in cast("Sequence[Label]", targets):
            if label.scores is None and len(label.classes) != 1:
                raise DataError("an image without exactly one class", remedy="this head learns one class an image")
            zeros = torch.zeros(self.classes, device=label.classes.device)
            rows.append(label.scores if label.scores is not None else zeros.index_fill(0, label.classes, 1.0))
        return torch.stack(rows).to(device, torch.float32) * (1 - self.smoothing) + self.smoothing / self.classes
