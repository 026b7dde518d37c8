"""Write what a frozen backbone says of pictures, a row of numbers for each, into one file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from patchform.commands import inference_options
from patchform.errors import FolderError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from patchform.probing.frozen import Output

EXAMPLE = "patchform features runs/looked photos/ --out photos.safetensors"
OUTPUTS = ("summary", "tokens")


class Described(NamedTuple):
    """Pictures and what was said of them."""

    features: Tensor
    """(N, D) float32."""
    names: tuple[str, ...]
    """Paths below the folder, in the order of the rows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `features` takes."""
    parser.add_argument("model", metavar="MODEL", help="run folder, or name of a backbone (with --weights)")
    parser.add_argument("data", metavar="DATA", help="folder of pictures, nested or flat, or a tar shard")
    parser.add_argument(
        "--out", metavar="FILE", required=True, help="safetensors: features (N, D), names in its header"
    )
    parser.add_argument("--weights", metavar="FILE", help="weights of the backbone that MODEL names")
    parser.add_argument(
        "--output", choices=OUTPUTS, default="summary", help="as a classifier sees it, or the mean token"
    )
    parser.add_argument(
        "--batch-size", type=inference_options.IMAGES, default=32, metavar="N", help="images at once; changes no number"
    )
    parser.add_argument(
        "--workers", type=inference_options.WORKERS, default=0, metavar="N", help="processes that decode"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument(
        "--skip-bad",
        type=inference_options.SKIPPED,
        default=0.0,
        metavar="SHARE",
        help="unreadable pictures to put up with",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the file and say what is in it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    to_people = Console(file=sys.stderr, soft_wrap=True, highlight=False, markup=False)
    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=to_people, transient=True) as live:
        bar = live.add_task("", total=None)
        found = features(
            arguments.model,
            arguments.data,
            out=arguments.out,
            weights=arguments.weights,
            output=arguments.output,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            device=arguments.device,
            skip_bad=arguments.skip_bad,
            progress=lambda done, count: live.update(bar, completed=done, total=count),
            say=to_people.print,
        )
    pictures, width = found.features.shape
    if arguments.json:
        print(json.dumps({"out": arguments.out, "pictures": pictures, "width": width}))
    else:
        print(f"{pictures} picture{'s' * (pictures != 1)}, {width} numbers each, in {arguments.out}")
    return 0


def features(
    model: str | Path,
    data: str | Path,
    *,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    output: Output = "summary",
    batch_size: int = 32,
    workers: int = 0,
    device: str = "auto",
    skip_bad: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Described:
    """What the backbone of a model says of pictures, prepared as at evaluation.

    Args:
        model: run folder of any task, or a backbone's name, with `weights`.
        data: folder of pictures, nested or flat, or a tar shard; labels are not looked at.
        out: a new file, safetensors: `features` (N, D) float32, and in its header `names`, a JSON list.
        weights: of the backbone, in one of its family's layouts.
        output: "summary" is what a classifier sees; "tokens" the mean of the patch tokens.
        batch_size: images that go through the backbone at once.
        workers: processes that decode.
        device: "auto" takes the accelerator if there is one.
        skip_bad: highest share of unreadable pictures that are left out, in [0, 1).
        progress: called with (done, all) images after each batch.
        say: called with each remark, a sentence.

    Raises:
        UsageError: neither a run folder nor a backbone with weights; a file name that does not end in .safetensors.
        FolderError: `out` is there already.
        PatchformError: whatever loading a model, opening data and `probing.frozen.outputs` raise.
    """
    place = None if out is None else Path(out)
    if place is not None and place.suffix != ".safetensors":
        raise UsageError(f"{place.name} is no name for safetensors", remedy="let it end in .safetensors")
    if place is not None and place.exists():
        raise FolderError("exists already", where=place, remedy="name a new file")

    from patchform.commands.probe import open_backbone
    from patchform.data.checks import check
    from patchform.data.dataset import open_pictures
    from patchform.probing.frozen import outputs
    from patchform.weights import files

    backbone = open_backbone(model, weights)
    listing = open_pictures(data)
    notes = listing.notes
    if skip_bad:
        listing, report = check(listing, backbone.preprocessing, skip_bad=skip_bad)
        notes += (*report.notes, *(f"left out {fault.where}: {fault.what}" for fault in report.faults))
    for note in notes:
        say(note)
    found = outputs(
        backbone,
        listing,
        output=output,
        batch_size=batch_size,
        workers=workers,
        device=device,
        progress=progress,
        say=say,
    )
    described = Described(found, tuple(map(listing.name, range(len(listing)))))
    if place is not None:
        names = json.dumps(described.names, ensure_ascii=False)
        files.replace_tensors(place, {"features": found}, {"output": output, "names": names})
    return described
