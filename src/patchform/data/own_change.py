"""A change of pixels that is the user's own, behind all others: `augmentation.name` (see `own_parts`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from patchform import own_parts
from patchform.errors import UsageError
from patchform.settings import AugmentationSettings


@dataclass(frozen=True)
class OwnChange:
    """A change of pixels, held to the shape and the type that they have."""

    name: str
    change: Callable[[Tensor], Tensor]

    def __call__(self, image: Tensor) -> Tensor:
        """(C, H, W), or a clip (T, C, H, W), to the same. Raises UsageError where it is not the same."""
        changed = self.change(image.clone())
        if not isinstance(changed, Tensor) or (changed.shape, changed.dtype) != (image.shape, image.dtype):
            before = f"{tuple(image.shape)} {image.dtype}"
            after = f"{tuple(changed.shape)} {changed.dtype}" if isinstance(changed, Tensor) else type(changed).__name__
            what = f"the augmentation {self.name} makes {after} of {before}"
            raise UsageError(what, remedy="it must keep shape and type, and move nothing")
        return changed


def own_change(augmentation: AugmentationSettings) -> tuple[OwnChange, ...]:
    """The one that the settings name, if they do. Raises UsageError if it is not there."""
    name = augmentation.name
    return () if name is None else (OwnChange(name, own_parts.made("augmentation", augmentation)),)
