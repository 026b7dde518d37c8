"""Features of a frozen backbone: computed once, kept on the disk, and how good a probe of them is.

What is kept is found again by a key, the SHA-256 of all that the numbers follow from: the backbone's architecture and
weights, the preprocessing, the pictures, the output, the precision and the version of patchform. Of a picture its name,
classes, size and time of change count, not its bytes; of a plug-in, not its code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from patchform import __version__
from patchform.data.collate import by_size, to_device
from patchform.data.listing import Listing
from patchform.data.loader import evaluation_loader
from patchform.data.pictures import LabelledPictures
from patchform.data.shards import status
from patchform.data.transforms import evaluation_transform
from patchform.device import RunOptions, autocast, pick_device
from patchform.errors import DataError, DivergedError, ModelFileError, ResourceError, UsageError
from patchform.metrics.accuracy import Accuracy
from patchform.metrics.base import Scores
from patchform.model import Model
from patchform.probing.last_blocks import last_blocks
from patchform.records import Batch, Label
from patchform.weights import files

FORMAT = 2
"""Part of every key: a higher one leaves earlier files unread."""
FEATURES, DESCRIPTION = "features-{:09}.safetensors", "features.json"
"""The files of kept features, in a folder that is named by their key: a part by the number of its first picture."""
PART = 1 << 16
"""Pictures of a part: what is written and read at once, so that there is never a second copy of all features."""
ROWS = 1024
"""Samples that go through a probe at once."""

Output = Literal["summary", "tokens", "sequence", "blocks"]
"""What a classifier sees; the mean of the patch tokens; all of them; what the last blocks say (`last_blocks`)."""


class Frozen(NamedTuple):
    """Features of the pictures of a listing, in the order of the listing, on the CPU."""

    summaries: Tensor
    """(N, D) float32; (N, T, D) of sequences."""
    labels: Tensor
    """(N,) int64."""
    names: tuple[str, ...]
    output: Output = "summary"


def features(
    model: Model,
    listing: Listing,
    *,
    output: Output = "summary",
    layers: int = 0,
    cache: str | Path | None = None,
    options: RunOptions,
    progress: Callable[[int, int], None] | None = None,
) -> Frozen:
    """Features and labels of every picture, each of one class. Arguments as of `outputs`.

    Raises:
        DataError: a picture without exactly one class.
        PatchformError: whatever `outputs` raises.
    """
    for index, item in enumerate(listing.items):
        if len(item.classes) != 1:
            where = listing.name(index)
            raise DataError("an image without exactly one class", where=where, remedy="a probe needs single labels")
    rows = outputs(model, listing, output=output, layers=layers, cache=cache, options=options, progress=progress)
    labels = torch.tensor([item.classes[0] for item in listing.items])
    return Frozen(rows, labels, tuple(map(listing.name, range(len(listing)))), output)


def outputs(
    model: Model,
    listing: Listing,
    *,
    output: Output = "summary",
    layers: int = 0,
    cache: str | Path | None = None,
    options: RunOptions,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Features of every picture, each looked at once, prepared as at evaluation; or what an earlier call has cached.

    Memory grows with N times D, and of sequences with their length T.

    Args:
        model: taken over: moved to the device and set to evaluation mode. Its head is not used.
        listing: pictures with or without classes; all are read, whatever `options.skip_bad`.
        output: "summary" is what a classifier sees; "tokens" the mean of the patch tokens; "sequence" all of them;
            "blocks" the class tokens of the last blocks and the mean of the patch tokens.
        layers: of "blocks": how many.
        cache: folder that keeps features, made if need be; None keeps nothing.
        options: how the backbone is run. Cached features that are damaged, and so computed anew, or that cannot be
            written are remarked on.
        progress: called with (done, all) images after each batch; not when the features were cached.

    Returns:
        (N, D), or (N, T, D) of sequences, float32 on the CPU.

    Raises:
        DataError: no picture, or one that cannot be read; sequences of pictures of several sizes.
        UsageError: the backbone does not give this output or looks at clips; or a cache, and a model that was put
            together by hand.
        DivergedError: features that are not finite.
        ResourceError: the cache cannot be made.
    """
    if not len(listing):
        raise DataError("no picture", where=listing.root)
    if model.backbone.frames is not None:
        raise UsageError("this backbone looks at clips, not at pictures", remedy="take another one")
    if cache is None:
        return _compute(model, listing, (output, layers), options, progress)
    description = identity(model, listing, output=output, layers=layers, precision=options.precision)
    key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    folder = _make_cache(Path(cache)) / key
    rows = _read(folder, description, options.say)
    if rows is None:
        rows = _compute(model, listing, (output, layers), options, progress)
        _write(folder, description, rows, options.say)
    return rows


def _compute(
    model: Model,
    listing: Listing,
    asked: tuple[Output, int],
    options: RunOptions,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """(N, ..., D) float32 on the CPU of an output and a number of layers."""
    device = pick_device(options.device)
    single = dataclasses.replace(model.preprocessing, frames=0)  # of clips, where the backbone sees single frames
    pictures = LabelledPictures(listing, evaluation_transform(single), single)
    model.to(device).eval()
    rows, done = torch.empty(0), 0
    with torch.inference_mode(), autocast(device, options.precision):
        for batch in evaluation_loader(pictures, options.batch_size, options.workers):
            on_device = to_device(batch._replace(targets=()), device)
            by_picture = by_size(on_device, partial(_selected, model, *asked))
            if {row.shape for row in by_picture} != {(rows if done else by_picture[0][None]).shape[1:]}:
                remedy = "use a run whose preprocessing.resize is crop or squash"
                raise DataError("pictures of several sizes have sequences of several lengths", remedy=remedy)
            batch_rows = torch.stack(by_picture)
            if not batch_rows.isfinite().all():
                raise DivergedError("the backbone gives features that are not finite", where=batch.names[0])
            if not done:
                with torch.inference_mode(False):  # else nothing could be trained on them
                    rows = torch.empty(len(listing), *batch_rows.shape[1:])
            rows[done : done + len(batch_rows)] = batch_rows
            done += len(batch_rows)
            if progress:
                progress(done, len(listing))
    return rows


def scored(
    scores_of: Callable[[Tensor], Tensor],
    test: Frozen,
    classes: Sequence[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """The accuracy of a probe.

    Args:
        scores_of: from (M, D) features to (M, C) scores of the classes.
        test: features and truth.
        classes: C names.
        progress: called with (done, all) samples.
    """
    metric, done = Accuracy(classes), 0
    for summaries, labels in zip(test.summaries.split(ROWS), test.labels.split(ROWS)):
        scores = scores_of(summaries)
        best = scores.argmax(1, keepdim=True)
        metric.update(list(map(Label, best, scores)), list(map(Label, labels.split(1))))
        done += len(labels)
        if progress:
            progress(done, len(test.labels))
    return metric.compute()


def _selected(model: Model, output: Output, layers: int, batch: Batch) -> Tensor:
    """(B, D), or (B, T, D) of sequences, of pictures of one size."""
    if output == "blocks":
        return last_blocks(model, batch, layers)
    features = model.features(batch)
    rows = features.summary if output == "summary" else features.tokens
    if rows is None:
        raise UsageError(
            f"this backbone gives no {'summary' if output == 'summary' else 'tokens'}", remedy="probe another output"
        )
    return rows.mean(1) if output == "tokens" else rows


# -------------------------------------------------------------------------------------------------- kept on the disk


def identity(model: Model, listing: Listing, *, output: Output, layers: int = 0, precision: str) -> dict[str, Any]:
    """All that features follow from, as plain JSON values.

    Raises:
        UsageError: the model was put together by hand.
        DataError: a picture is not there.
    """
    if model.architecture is None:
        raise UsageError("this model was put together by hand and has no names", remedy="keep none of its features")
    return {
        "format": FORMAT,
        "patchform": __version__,
        "backbone": model.architecture.backbone,
        "options": json.loads(json.dumps(model.architecture.backbone_options)),
        "weights": _digest_of_weights(model.backbone),
        "preprocessing": json.loads(json.dumps(dataclasses.asdict(model.preprocessing))),
        "data": _digest_of_data(listing),
        "pictures": len(listing),
        "output": f"{output} {layers}" if layers else output,
        "precision": precision,
    }


def _digest_of_weights(backbone: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in backbone.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest_of_data(listing: Listing) -> str:
    digest = hashlib.sha256(listing.as_bytes())
    for index, item in enumerate(listing.items):
        try:
            state = status(item.path)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", where=listing.name(index)) from error
        digest.update(f"{state.size} {state.mtime_ns}\n".encode())
    return digest.hexdigest()


def _make_cache(folder: Path) -> Path:
    """The cache, there before hours of work and not after them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot be made ({error.strerror})", where=folder, remedy="name another cache") from error
    return folder


def _read(folder: Path, description: dict[str, Any], say: Callable[[str], None]) -> Tensor | None:
    """(N, ..., D) float32, or None when nothing intact is cached there."""
    if not folder.exists():
        return None
    rows, count = torch.empty(0), description["pictures"]
    try:
        if files.read_json(_intact(folder, DESCRIPTION)) != description:
            raise ModelFileError("they are others")
        start = 0
        while start < count:
            part = files.read_tensors(_intact(folder, FEATURES.format(start)))["features"]
            if not start:
                rows = torch.empty(count, *part.shape[1:])
            rows[start : start + len(part)] = part
            start += len(part)
    except ModelFileError as error:
        say(f"the features in {folder} are damaged ({error.what}) and are computed anew")
        return None
    return rows


def _intact(folder: Path, name: str) -> Path:
    if faults := files.verify(folder, (name,)):
        raise ModelFileError(faults[0])
    return folder / name


def _write(folder: Path, description: dict[str, Any], rows: Tensor, say: Callable[[str], None]) -> None:
    """Cache features; a full disk is no reason to lose them."""
    try:
        with files.atomic_folder(folder) as unfinished:
            size = PART if rows.dim() == 2 else max(1, PART // rows.shape[1])
            for start in range(0, len(rows), size):
                files.write_tensors(unfinished / FEATURES.format(start), {"features": rows[start : start + size]})
            files.write_json(unfinished / DESCRIPTION, description)
    except ResourceError as error:
        say(f"the features are not kept: {error}")
