"""What is known of the package's backbones without building or importing any: a table that is made from them.

`docs/make_model_table.py` writes model_table.json and checks it; tests compare it with the backbones. What is not in
it, such as a backbone of a plug-in, is counted when it is asked for (`commands.models`). This imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from patchform import schema
from patchform.descriptions import Score

FILE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """A variant of a backbone, in numbers."""

    name: str
    """family/size."""
    image_size: int
    """Side of its published input, pixels."""
    parameters: int
    """With a linear layer for 1000 classes."""
    multiply_adds: int
    """Of one image (or clip) of that size, with that layer."""
    published: tuple[Score, ...] = ()
    """What was reported for it."""
    weights: dict[str, str] = field(default_factory=dict)
    """Where its published files are, by tag: family/size.tag is what a file is called here."""

    @property
    def weights_names(self) -> list[str]:
        """What its published files are called here."""
        return [f"{self.name}.{tag}" for tag in self.weights]


@cache
def rows() -> dict[str, ModelRow]:
    """The rows by name, family by family in the order of their tables."""
    listed = json.loads(FILE.read_text(encoding="utf-8"))
    return {values["name"]: schema.build(ModelRow, values, parse=str) for values in listed}


@cache
def families() -> frozenset[str]:
    """Families of which all variants are in the table."""
    return frozenset(name.partition("/")[0] for name in rows())


def weights_places() -> dict[str, str]:
    """Where published files are, by their names here."""
    return {f"{row.name}.{tag}": place for row in rows().values() for tag, place in row.weights.items()}
