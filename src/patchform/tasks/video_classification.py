"""Video classification: which class, or which classes, a clip shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from PIL import Image
from torch import Tensor

from patchform import drawing
from patchform.data.clips import evaluation_clips, training_clips
from patchform.data.listing import Listing
from patchform.data.samples import Samples
from patchform.descriptions import Preprocessing
from patchform.records import Target
from patchform.settings import AugmentationSettings
from patchform.tasks.classification import Classification


class VideoClassification(Classification):
    """Labels of whole clips: all that `Classification` is, of clips, and pictures that show frames."""

    name: ClassVar[str] = "video_classification"
    classes: ClassVar[int] = 400
    frames: ClassVar[int] = 8
    unit: ClassVar[str] = "videos"
    recognised: ClassVar[Literal["by layout", "last", "named"]] = "by layout"

    def training_samples(
        self, listing: Listing, preprocessing: Preprocessing, augmentation: AugmentationSettings, seed: int
    ) -> Samples[Any]:
        """A clip of each video."""
        return training_clips(listing, preprocessing, augmentation, seed)

    def evaluation_samples(
        self, listing: Listing, preprocessing: Preprocessing, seed: int = 0, *, views: tuple[int, int] = (1, 1)
    ) -> Samples[Any]:
        """Clips of each video."""
        return evaluation_clips(listing, preprocessing, seed, views=views)

    def draw(self, image: Tensor, target: Target, classes: Sequence[str]) -> Image.Image:
        """Some frames of the clip (T, C, H, W), above the best classes with bars, or the names of the true ones."""
        return super().draw(drawing.contact_sheet(image), target, classes)
