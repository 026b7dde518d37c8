"""From what is given, a file, bytes or pixels, to what a model takes: for predictions, with no model at hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from patchform.data.clips import looks
from patchform.data.images import MAX_PIXELS, decode, to_image
from patchform.data.inputs import LARGEST_BYTES, Source
from patchform.data.transforms import evaluation_transform
from patchform.data.videos import open_video
from patchform.descriptions import Preprocessing
from patchform.errors import DataError
from patchform.records import Sample


@dataclass(frozen=True)
class Preparation:
    """How pictures and videos of any size become samples, as at evaluation. It can go to another process.

    Args:
        preprocessing: of the model, or what a way of inference makes of it (`inference.preparation`).
        views: of videos, clips and crops of each (`inference.views_of`).
        most_pixels: pictures of more are refused from their header.
        most_bytes: likewise pictures that are given as bytes.

    Raises:
        UsageError: views that the preprocessing does not have.
    """

    preprocessing: Preprocessing
    views: tuple[int, int] = (1, 1)
    most_pixels: int = MAX_PIXELS
    most_bytes: int = LARGEST_BYTES
    _parts: tuple = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = (
            looks(self.preprocessing, self.views) if self.videos else (None, evaluation_transform(self.preprocessing))
        )
        object.__setattr__(self, "_parts", parts)

    @property
    def videos(self) -> bool:
        """Whether the model looks at videos."""
        return self.preprocessing.frames > 0

    def read(self, source: Source) -> Tensor:
        """(C, H, W) decoded pixels, or (T, C, H, W) the frames of a video that are looked at. Raises DataError."""
        content = source.content
        if self.videos:
            return self._frames(source)
        if not isinstance(content, Path | bytes):
            return to_image(content, self.preprocessing)
        if isinstance(content, bytes) and len(content) > self.most_bytes:
            raise DataError(f"more than {self.most_bytes} bytes", where=source.name, remedy="give a smaller picture")
        return decode(content, self.preprocessing, name=source.name, max_pixels=self.most_pixels)

    def sample(self, image: Tensor) -> Sample:
        """Pixels as the model takes them. Raises DataError for those that it does not take."""
        return Sample(self._parts[1](image), None, "", (image.shape[-2], image.shape[-1]))

    def _frames(self, source: Source) -> Tensor:
        content, frames = source.content, self._parts[0]
        if isinstance(content, Path):
            video = open_video(content)
            return video.frames(frames(len(video)), self.preprocessing)
        if getattr(content, "ndim", 0) != 4:
            raise DataError("no video", where=source.name, remedy="give a path, or frames as one array or tensor")
        return torch.stack([to_image(content[index], self.preprocessing) for index in frames(len(content))])
