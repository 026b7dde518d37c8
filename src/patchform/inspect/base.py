"""The contract of a picture of what a model has learnt. A file of this folder holds one; its name is its name."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from patchform.model import Model


class Picture(ABC):
    """Numbers out of a model, and how they are drawn."""

    title: ClassVar[str]
    meaning: ClassVar[str]
    """What one sees in it, and the source."""

    @abstractmethod
    def measure(self, model: Model, images: Tensor) -> Tensor | None:
        """The numbers; None when the model has no such part.

        Args:
            model: in evaluation mode; it is left as it was.
            images: (B, C, H, W) as a batch holds them: uint8 in 0..255 or floating point in 0..1, of the model's size.
        """

    @abstractmethod
    def draw(self, values: Tensor, images: Tensor) -> bytes:
        """A PNG of what `measure` gave for these images."""


def to_png(figure: Any) -> bytes:
    """A matplotlib figure as the content of a PNG file, fine enough for screens of twice the usual density."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=200)
    return stream.getvalue()
