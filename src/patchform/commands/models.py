"""List the backbones: parameters, multiply-adds, published scores and weights."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING

from patchform import lookup, model_table
from patchform.model_table import ModelRow

if TYPE_CHECKING:
    from patchform.descriptions import Variant

EXAMPLE = 'patchform models "swin/*"'
CLASSES = 1000
"""Of the linear head that is counted too: as in the papers' tables."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A pattern."""
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help='such as "swin/*" (default: all)')


def run(arguments: argparse.Namespace) -> int:
    """Print a table."""
    rows = models(arguments.pattern)
    if not rows:
        raise lookup.no_backbone(arguments.pattern)
    if arguments.json:
        print(json.dumps([_plain(row) for row in rows], indent=1))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("backbone", "input", "parameters", "multiply-adds", "files", "published", "source")
    table.columns[0].no_wrap = True
    for column in table.columns[1:5]:
        column.justify = "right"
    for row in rows:
        scores = "\n".join(f"{name} {value:g}" for score in row.published for name, value in score.scores.items())
        sources = "\n".join(score.source for score in row.published)
        numbers = (f"{row.parameters / 1e6:.3g} M", f"{row.multiply_adds / 1e9:.3g} G", str(len(row.weights) or "-"))
        table.add_row(row.name, str(row.image_size), *numbers, scores or "-", sources or "-")
    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)
    print(f"counted with a linear layer for {CLASSES} classes; one image of the input size")
    if named := next((name for row in rows for name in row.weights_names), None):
        print(f'files: published weights, as patchform weights list "{arguments.pattern}" names them, such as {named}')
    return 0


def models(pattern: str = "*") -> list[ModelRow]:
    """Every backbone whose name matches a shell pattern: from the table, or counted where it is not in that.

    Args:
        pattern: "swin/*", "vit", "*/nano".
    """
    table = model_table.rows()
    return [table.get(name) or counted(name) for name in lookup.backbone_names(pattern)]


def counted(name: str) -> ModelRow:
    """The row of a backbone, made from itself on no device: nothing is allocated."""
    _, variant = lookup.backbone(name)
    family, _, size = name.partition("/")
    known = lookup.published(family)
    parameters, multiply_adds = count(name, variant)
    return ModelRow(
        name=name,
        image_size=variant.image_size,
        parameters=parameters,
        multiply_adds=multiply_adds,
        published=tuple(score for score in known.scores if score.variant == size),
        weights={row.tag: row.place for row in known.weights if row.variant == size},
    )


def count(name: str, variant: Variant) -> tuple[int, int]:
    """Parameters and multiply-adds of a variant with a linear layer for 1000 classes, at its published input size.

    Multiply-adds are those of matrix products and convolutions, attention's among them; normalisation, activations
    and additions are not counted, as in the papers.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from patchform.descriptions import Preprocessing
    from patchform.model import build_model
    from patchform.records import Batch

    size = (variant.image_size, variant.image_size)
    with torch.device("meta"), torch.no_grad():
        classes, preprocessing = tuple(map(str, range(CLASSES))), Preprocessing(size=size)
        model = build_model(
            "classification", backbone=name, head="linear", classes=classes, preprocessing=preprocessing
        )
        model.eval().requires_grad_(False)
        clip = () if model.backbone.frames is None else (model.backbone.frames,)
        batch = Batch(torch.empty(1, *clip, 3, *size), (), ("",), (size,))
        with FlopCounterMode(display=False) as counter:
            model.head(model.features(batch))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2


def _plain(row: ModelRow) -> dict[str, object]:
    fields = ("scores", "source", "image_size", "training")
    published = [{field: getattr(score, field) for field in fields} for score in row.published]
    return {**dataclasses.asdict(row), "published": published, "weights": row.weights_names}
