"""What a tensor of other sizes or classes becomes in a model: its layers resize, its classifier goes by names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from patchform.backbones.base import Backbone
from patchform.layers import fitting
from patchform.layers.fitting import Fitted, OnGrid, Resizable, TransferContext
from patchform.layers.patches import Patches, Tubelets
from patchform.layers.positions import Learned1D
from patchform.model import Model

CLASSIFIER = r"classifier(\.parts\.\d+)?|classify"
"""How the layer of a head is called whose rows are the classes."""
ROWS = re.compile(
    rf"head\.(({CLASSIFIER}|auxiliary|decoder\.classify|auxiliary_decoder\.2)|auxiliary_decoders\.\d+(\.classify)?)"
    r"\.(weight|bias)"
)
FRESH = "fresh"
"""How the report's note on a classifier begins that stays as it was."""


def sizes_of(model: nn.Module, name: str) -> dict[str, int]:
    """Lengths that a tensor's shape does not tell, from its layers: patch, channels, frames, heads, front."""
    sizes: dict[str, int] = {}
    for layer, _ in _layers_around(model, name):
        if isinstance(layer, Patches | Tubelets):
            sizes |= {"patch": layer.size, "channels": layer.in_channels}
        if isinstance(layer, Tubelets):
            sizes |= {"frames": layer.frames}
        if isinstance(layer, Learned1D):
            sizes |= {"front": layer.prefix}
        if isinstance(heads := getattr(layer, "heads", None), int):
            sizes.setdefault("heads", heads)
    return sizes


class Adapter:
    """`weights.rules.Adapt` for a model: its layers resize, its classifier goes by names."""

    def __init__(
        self,
        target: Model | Backbone,
        level: str,
        context: TransferContext,
        classes: Sequence[str],
        grids: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.target, self.level, self.context, self.grids = target, level, context, grids
        self.source_classes = tuple(classes)
        self.classes = target.classes if isinstance(target, Model) else ()
        self.own = target.state_dict()

    def __call__(self, key: str, tensor: Tensor) -> Fitted:
        """A tensor of the source as the model's of that name, and what was done. Raises ValueError."""
        name = key.removeprefix(self.level)
        own = self.own[name]
        if ROWS.fullmatch(key) and self.source_classes != self.classes and tensor.shape[1:] == own.shape[1:]:
            return self._rows(tensor, own)
        layers = list(_layers_around(self.target, name))
        nearest, parameter = layers[0]
        if isinstance(nearest, OnGrid):
            grid = self.grids.get(key.removesuffix(f".{parameter}"))
            return nearest.fit(parameter, tensor, self.context._replace(native=grid))
        if tensor.shape == own.shape:
            return tensor, ""
        for layer, below in layers:
            if isinstance(layer, Resizable):
                return layer.fit(below, tensor, self.context)
            if isinstance(layer, nn.Conv2d) and tensor.dim() == 4 and tensor[:, :1].shape == own[:, :1].shape:
                return fitting.channels(tensor, own, self.context)
        return tensor, ""

    def _rows(self, tensor: Tensor, own: Tensor) -> Fitted:
        """Rows of a classifier by class names."""
        if not self.source_classes:
            if len(tensor) == len(own):
                return tensor, ""
            if self.context.transfer.head == "auto":
                return own, f"{FRESH}: the source has {len(tensor)} classes without names, the model has {len(own)}"
            raise ValueError("it has other classes: name them (classes), or say that the head is new (head: reinit)")
        if len(self.source_classes) != len(tensor) or len(set(self.source_classes)) < len(self.source_classes):
            raise ValueError(f"{len(tensor)} classes and {len(set(self.source_classes))} different names for them")
        row = {name: number for number, name in enumerate(self.source_classes)}
        shared = [number for number, name in enumerate(self.classes) if name in row]
        rows = own.detach().clone()
        rows[shared] = tensor[[row[self.classes[number]] for number in shared]].to(rows.dtype)
        return rows, f"{len(shared)} of {len(self.classes)} classes by name, the others fresh"


def _layers_around(model: nn.Module, name: str) -> Iterator[tuple[nn.Module, str]]:
    """The layers around a tensor, the nearest first, and its name below each."""
    path, _, below = name.rpartition(".")
    while path:
        yield model.get_submodule(path), below
        path, _, inner = path.rpartition(".")
        below = f"{inner}.{below}"
    yield model, below
