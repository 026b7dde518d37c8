"""Pre-training: nothing is known of the pictures, and what is learnt is a representation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from PIL import Image
from torch import Tensor

from patchform import drawing, page
from patchform.data.listing import Listing
from patchform.data.multi_crop import MultiCrop
from patchform.data.pictures import LabelledPictures, ViewedPictures
from patchform.data.samples import Samples
from patchform.data.transforms import evaluation_transform, training_transform
from patchform.metrics.base import Metric
from patchform.metrics.representation import Representation
from patchform.records import Embedding, Label, Preprocessing, Target
from patchform.settings import AugmentationSettings
from patchform.tasks.base import DIGITS, Evidence, Task

SEARCHED, SHOWN, NEAREST = 400, 6, 5
"""Pictures of a report that are compared with each other, that are shown, and how many neighbours beside each."""


class Pretraining(Task):
    """Embeddings of whole images. No number of theirs selects a model: a run keeps the last one."""

    name: ClassVar[str] = "pretraining"
    target: ClassVar[type] = Embedding
    head: ClassVar[str] = "mae"
    models: ClassVar[Literal["heads", "pretraining"]] = "pretraining"
    labelled: ClassVar[bool] = False
    recognised: ClassVar[Literal["by layout", "last", "named"]] = "named"
    better = "knn"

    def training_samples(
        self, listing: Listing, preprocessing: Preprocessing, augmentation: AugmentationSettings, seed: int
    ) -> Samples[Any]:
        """Pictures, or several crops of each; with labels where classes are known, which nothing learns from."""
        if augmentation.views > 1:
            return ViewedPictures(listing, MultiCrop(preprocessing, augmentation), preprocessing, seed)
        return LabelledPictures(listing, training_transform(preprocessing, augmentation), preprocessing, seed)

    def evaluation_samples(
        self, listing: Listing, preprocessing: Preprocessing, seed: int = 0, *, views: tuple[int, int] = (1, 1)
    ) -> Samples[Any]:
        """Pictures, with labels where classes are known."""
        return LabelledPictures(listing, evaluation_transform(preprocessing), preprocessing, seed)

    def made_up(
        self, listing: Listing, size: tuple[int, int], augmentation: AugmentationSettings, generator: torch.Generator
    ) -> Target:
        """No class."""
        return Label(torch.empty(0, dtype=torch.int64))

    def metric(self, classes: Sequence[str]) -> Metric:
        """Neighbours' agreement where classes are known, effective rank and spread."""
        return Representation()

    def draw(self, image: Tensor, target: Target, classes: Sequence[str]) -> Image.Image:
        """The image above the size of its embedding."""
        scores = cast("Embedding", target).scores
        return drawing.caption(image, [drawing.Line(f"{len(scores)} numbers, length {float(scores.norm()):.3g}")])

    def record(self, target: Target, classes: Sequence[str]) -> dict[str, Any]:
        """{"embedding": [...]}."""
        scores = cast("Embedding", target).scores
        return {"embedding": [round(value, DIGITS) for value in scores.float().tolist()]}

    def sections(self, evidence: Evidence) -> Iterable[page.Section]:
        """Pictures, each with those of which the model thinks most alike."""
        known = list(evidence.examples(evidence.evenly(SEARCHED)))
        rows = []
        if len(known) > 1:
            vectors = torch.stack([cast("Embedding", one.prediction).scores for one in known])
            directions = torch.nn.functional.normalize(vectors, dim=1)
            for first in range(len(known))[:: -(-len(known) // SHOWN)]:
                nearest = (directions @ directions[first]).topk(min(NEAREST + 1, len(known))).indices.tolist()
                shown = [known[index] for index in (first, *(one for one in nearest if one != first))][: NEAREST + 1]
                rows.append(page.gallery(page.figure(page.picture(one.image, Path(one.name).name)) for one in shown))
        said = (
            f"The first of each row, and the {NEAREST} pictures whose embeddings are most similar, the nearest first."
        )
        yield page.Section("Neighbours", "<br>".join(rows) or page.NOTHING, said)
