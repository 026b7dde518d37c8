"""Pre-training: nothing is known of the pictures, and what is learnt is a representation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from PIL import Image
from torch import Tensor

from patchform import drawing, page
from patchform.data.checks import copies, names
from patchform.data.checks.base import Check
from patchform.data.listing import Listing
from patchform.data.multi_crop import MultiCrop
from patchform.data.pictures import LabelledPictures, ViewedPictures
from patchform.data.samples import Samples
from patchform.data.transforms import evaluation_transform, training_transform
from patchform.descriptions import Preprocessing
from patchform.metrics import agreement
from patchform.metrics.agreement import Agreement
from patchform.metrics.base import Metric
from patchform.metrics.representation import Representation
from patchform.records import Embedding, Label, Target
from patchform.settings import AugmentationSettings
from patchform.tasks.base import DIGITS, SAME_OBJECT, Evidence, Task

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
    checks: ClassVar[tuple[Check, ...]] = (names.ENCODING, names.CONTROL, copies.REPEATED)
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

    def agreement(self, reference: Target, answer: Target, *, overlap: float = SAME_OBJECT) -> Agreement:
        """Numbers, and the angle between the two."""
        return agreement.of_embeddings(cast("Embedding", reference), cast("Embedding", answer))

    def record(self, target: Target, classes: Sequence[str]) -> dict[str, Any]:
        """{"embedding": [...]}."""
        scores = cast("Embedding", target).scores
        return {"embedding": [round(value, DIGITS) for value in scores.float().tolist()]}

    def words(self, target: Target, classes: Sequence[str]) -> str:
        """How many numbers it is."""
        return f"an embedding of {len(cast('Embedding', target).scores)} numbers"

    def sections(self, evidence: Evidence) -> Iterable[page.Section]:
        """Pictures, each with those of which the model thinks most alike."""
        examples = list(evidence.examples(evidence.evenly(SEARCHED)))
        count, rows = len(examples), []
        if count > 1:
            vectors = torch.stack([cast("Embedding", example.prediction).scores for example in examples])
            directions = torch.nn.functional.normalize(vectors, dim=1)
            for first in range(count)[:: -(-count // SHOWN)]:
                nearest = (directions @ directions[first]).topk(min(NEAREST + 1, count)).indices.tolist()
                row = (first, *(index for index in nearest if index != first))[: NEAREST + 1]
                pictures = [page.picture(examples[index].image, Path(examples[index].name).name) for index in row]
                rows.append(page.gallery(map(page.figure, pictures)))
        note = f"The first of each row, and the {NEAREST} pictures with the most similar embeddings, the nearest first."
        yield page.Section("Neighbours", "<br>".join(rows), note)
