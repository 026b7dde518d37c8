"""List the backbones: parameters, multiply-adds, published scores."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from patchform.descriptions import Score, Variant

EXAMPLE = 'patchform models "swin/*"'
CLASSES = 1000
"""Of the linear head that is counted too: as in the papers' tables."""


class Row(NamedTuple):
    """What is known of a variant."""

    name: str
    image_size: int
    """Side of its published input, pixels."""
    parameters: int
    """With a linear layer for 1000 classes."""
    multiply_adds: int
    """Of one image (or clip) of that size, with that layer."""
    published: tuple[Score, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A pattern."""
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help='such as "swin/*" (default: all)')


def run(arguments: argparse.Namespace) -> int:
    """Print a table."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from patchform import lookup

    with Progress(console=Console(file=sys.stderr), transient=True) as live:
        bar = live.add_task("counting", total=len(lookup.backbones(arguments.pattern)))
        rows = models(arguments.pattern, progress=lambda: live.advance(bar))
    if not rows:
        raise lookup.no_such("backbone", arguments.pattern, lookup.backbones())
    if arguments.json:
        print(json.dumps([_plain(row) for row in rows], indent=1))
        return 0
    table = Table("backbone", "input", "parameters", "multiply-adds", "published", "source")
    for column in table.columns[1:4]:
        column.justify = "right"
    for row in rows:
        scores = "\n".join(f"{name} {value:g}" for score in row.published for name, value in score.scores.items())
        sources = "\n".join(score.source for score in row.published)
        numbers = (f"{row.parameters / 1e6:.3g} M", f"{row.multiply_adds / 1e9:.3g} G")
        table.add_row(row.name, str(row.image_size), *numbers, scores or "-", sources or "-")
    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)
    print(f"counted with a linear layer for {CLASSES} classes; one image of the input size")
    return 0


def models(pattern: str = "*", *, progress: Callable[[], None] = lambda: None) -> list[Row]:
    """Every backbone whose name matches a shell pattern, counted on no device: nothing is allocated.

    Args:
        pattern: "swin/*", "vit", "*/nano".
        progress: called after each.
    """
    from patchform import lookup

    rows = []
    for name in lookup.backbones(pattern):
        _, variant = lookup.backbone(name)
        family, _, size = name.partition("/")
        published = tuple(score for score in lookup.published(family).scores if score.variant == size)
        rows.append(Row(name, variant.image_size, *count(name, variant), published))
        progress()
    return rows


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of the backbones that match a shell pattern, such as ["swin/t", "swin/s"] for "swin/*"."""
    from patchform import lookup

    return lookup.backbones(pattern)


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


def _plain(row: Row) -> dict[str, object]:
    fields = ("scores", "source", "image_size", "training")
    published = [{field: getattr(score, field) for field in fields} for score in row.published]
    return {**row._asdict(), "published": published}
