"""Write the features that a frozen backbone gives of pictures, a row of numbers for each, into one file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from patchform.commands import early_checks, inference_options, terminal
from patchform.errors import FolderError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from patchform.model import Model
    from patchform.probing.frozen import Output

EXAMPLE = "patchform features runs/looked photos/ --out photos.safetensors"
OUTPUTS = ("summary", "tokens")


class Described(NamedTuple):
    """Pictures and their features."""

    features: Tensor
    """(N, D) float32."""
    names: tuple[str, ...]
    """Paths below the folder, in the order of the rows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `features` takes."""
    inference_options.add_backbone_arguments(parser)
    parser.add_argument("data", metavar="DATA", help="folder of pictures, nested or flat, or a tar shard")
    out, output = "safetensors: features (N, D), names in its header", "as a classifier sees it, or the mean token"
    parser.add_argument("--out", metavar="FILE", required=True, help=out)
    parser.add_argument("--output", choices=OUTPUTS, default="summary", help=output)
    inference_options.add_run_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the file and say what is in it."""
    early_checks.backbone(arguments.model, arguments.weights)
    early_checks.data(arguments.data)
    inference_options.constructor_options(arguments.option)
    from patchform.commands.probe import chosen_backbone

    console = terminal.stderr_console()
    with terminal.progress_bars(console) as progress:
        model, weights = chosen_backbone(arguments, say=terminal.above(console))
        described = features(
            model,
            arguments.data,
            out=arguments.out,
            weights=weights,
            output=arguments.output,
            progress=partial(progress, "pictures"),
            say=terminal.above(console),
            **inference_options.run_options(arguments),
        )
    pictures, width = described.features.shape
    if arguments.json:
        print(json.dumps({"out": arguments.out, "pictures": pictures, "width": width}))
    else:
        print(f"{pictures} picture{'s' * (pictures != 1)}, {width} numbers each, in {arguments.out}")
    return 0


def features(
    model: str | Path | Model,
    data: str | Path,
    *,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    output: Output = "summary",
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Described:
    """Features of pictures from the backbone of a model, prepared as at evaluation.

    Args:
        model: run folder of any task; a name of published weights, or of a backbone, with `weights`; or a model.
        data: folder of pictures, nested or flat, or a tar shard; labels are not looked at.
        out: a new file, safetensors: `features` (N, D) float32, and in its header `names`, a JSON list.
        weights: of the backbone, in one of its family's layouts.
        output: "summary" is what a classifier sees; "tokens" the mean of the patch tokens.
        progress: called with (done, all) images after each batch.
        options: of `patchform.device.RunOptions`: batch_size, workers, device, precision, skip_bad, say.

    Raises:
        UsageError: neither a run folder nor a backbone with weights; a file name that does not end in .safetensors.
        FolderError: `out` is there already, or would lie among the pictures.
        PatchformError: whatever loading a model, opening data and `probing.frozen.outputs` raise.
    """
    path = None if out is None else Path(out)
    if path is not None and path.suffix != ".safetensors":
        raise UsageError(f"{path.name} is no name for safetensors", remedy="let it end in .safetensors")
    if path is not None and path.exists():
        raise FolderError("exists already", where=path, remedy="name a new file")

    from patchform.commands.probe import open_backbone
    from patchform.data.checks.examination import without_bad
    from patchform.data.dataset import open_pictures
    from patchform.data.writing import check_apart
    from patchform.device import RunOptions
    from patchform.probing.frozen import outputs
    from patchform.weights import files

    run_options, listing = RunOptions(**options), open_pictures(data)
    if path is not None:
        check_apart(path, data, listing)
    backbone = open_backbone(model, weights, run_options.say)
    usable, notes = without_bad(listing, backbone.preprocessing, run_options.skip_bad)
    for note in (*listing.notes, *notes):
        run_options.say(note)
    rows = outputs(backbone, usable, output=output, options=run_options, progress=progress)
    described = Described(rows, tuple(map(usable.name, range(len(usable)))))
    if path is not None:
        names = json.dumps(described.names)
        files.replace_tensors(path, {"features": rows}, {"output": output, "names": names})
    return described
