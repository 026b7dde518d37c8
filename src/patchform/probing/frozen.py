"""Features of a frozen backbone: computed once, kept on the disk, and how good a probe of them is.

What is kept is found again by a key, the SHA-256 of all that the numbers follow from: the backbone's architecture and
weights, the preprocessing, the pictures, the output, the precision and the version of patchform. Of a picture its name,
classes, size and time of change count, not its bytes; of a plug-in, not its code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from patchform import __version__
from patchform.data.collate import to_device
from patchform.data.listing import Listing
from patchform.data.loader import evaluation_loader
from patchform.data.pictures import LabelledPictures
from patchform.data.shards import status
from patchform.data.transforms import evaluation_transform
from patchform.device import pick_device
from patchform.errors import DataError, DivergedError, ModelFileError, ResourceError, UsageError
from patchform.metrics.accuracy import Accuracy
from patchform.metrics.base import Scores
from patchform.model import Model
from patchform.records import Batch, Features, Label
from patchform.weights import files

FORMAT = 1
"""Part of every key: a higher one leaves earlier files unread."""
FEATURES, DESCRIPTION = "features-{:09}.safetensors", "features.json"
"""The files of kept features, in a folder that is named by their key: a part by the number of its first picture."""
PART = 1 << 16
"""Pictures of a part: what is written and read at once, so that there is never a second copy of all features."""
ROWS = 1024
"""Samples that a probe is asked of at once."""

Output = Literal["summary", "tokens"]


class Frozen(NamedTuple):
    """What a backbone says of the pictures of a listing, in the order of the listing, on the CPU."""

    summaries: Tensor
    """(N, D) float32."""
    labels: Tensor
    """(N,) int64."""
    names: tuple[str, ...]
    output: Output = "summary"


def features(
    model: Model,
    listing: Listing,
    *,
    output: Output = "summary",
    cache: str | Path | None = None,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Frozen:
    """Features of every picture, each looked at once, prepared as at evaluation; or what was kept of an earlier call.

    Memory grows with N times D.

    Args:
        model: taken over: moved to the device and set to evaluation mode. Its head is not used.
        listing: pictures of one class each.
        output: "summary" is what a classifier sees; "tokens" the mean of the patch tokens.
        cache: folder that keeps features, made if need be; None keeps nothing.
        batch_size: images that go through the backbone at once.
        workers: processes that decode.
        device: "auto" takes the accelerator if there is one.
        precision: bfloat16 runs the backbone under autocast.
        progress: called with (done, all) images after each batch; not when the features were kept.
        say: called with a sentence when kept features are damaged, and so computed anew, or cannot be kept.

    Raises:
        DataError: a picture without exactly one class.
        PatchformError: whatever `outputs` raises.
    """
    if odd := [listing.name(index) for index, item in enumerate(listing.items) if len(item.classes) != 1]:
        raise DataError("an image without exactly one class", where=odd[0], remedy="a probe needs single labels")
    kept = outputs(
        model,
        listing,
        output=output,
        cache=cache,
        batch_size=batch_size,
        workers=workers,
        device=device,
        precision=precision,
        progress=progress,
        say=say,
    )
    labels = torch.tensor([item.classes[0] for item in listing.items])
    return Frozen(kept, labels, tuple(map(listing.name, range(len(listing)))), output)


def outputs(
    model: Model,
    listing: Listing,
    *,
    output: Output = "summary",
    cache: str | Path | None = None,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Tensor:
    """(N, D) float32 on the CPU: the features alone, of pictures with or without classes. Arguments as of `features`.

    Raises:
        DataError: no picture, or one that cannot be read.
        UsageError: the backbone does not give this output or looks at clips; or a cache, and a model that was put
            together by hand.
        DivergedError: features that are not finite.
        ResourceError: the cache cannot be made.
    """
    if not len(listing):
        raise DataError("no picture", where=listing.root)
    if model.backbone.frames is not None:
        raise UsageError("this backbone looks at clips, not at pictures", remedy="take another one")
    place, about, kept = None, {}, None
    if cache is not None:
        about = identity(model, listing, output=output, precision=precision)
        place = _made(Path(cache)) / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        kept = _read(place, about, say)
    if kept is None:
        where = pick_device(device)
        still = dataclasses.replace(model.preprocessing, frames=0)  # of clips, where the backbone sees single frames
        pictures = LabelledPictures(listing, evaluation_transform(still), still)
        batches = (
            to_device(batch._replace(targets=()), where) for batch in evaluation_loader(pictures, batch_size, workers)
        )
        model.to(where).eval()
        with torch.autocast(where.type, torch.bfloat16, enabled=precision == "bfloat16"):
            kept = _computed(model, batches, len(listing), output, progress)
        if place is not None:
            _write(place, about, kept, say)
    return kept


@torch.inference_mode()
def _computed(
    model: Model, batches: Iterable[Batch], count: int, output: Output, progress: Callable[[int, int], None] | None
) -> Tensor:
    """(N, D) float32 on the CPU."""
    kept, done = torch.empty(0), 0
    for batch in batches:
        found = _chosen(model.features(batch), output)
        if not found.isfinite().all():
            raise DivergedError("the backbone gives features that are not finite", where=batch.names[0])
        if not done:
            with torch.inference_mode(False):  # else nothing could be trained on them
                kept = torch.empty(count, found.shape[1])
        kept[done : done + len(found)] = found
        done += len(found)
        if progress:
            progress(done, count)
    return kept


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


def _chosen(found: Features, output: Output) -> Tensor:
    """(B, D)."""
    chosen = found.summary if output == "summary" else None if found.tokens is None else found.tokens.mean(1)
    if chosen is None:
        raise UsageError(f"this backbone gives no {output}", remedy="probe another output")
    return chosen


# -------------------------------------------------------------------------------------------------- kept on the disk


def identity(model: Model, listing: Listing, *, output: Output, precision: str) -> dict[str, Any]:
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
        "output": output,
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


def _made(folder: Path) -> Path:
    """The cache, there before hours of work and not after them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot be made ({error.strerror})", where=folder, remedy="name another cache") from error
    return folder


def _read(place: Path, about: dict[str, Any], say: Callable[[str], None] | None) -> Tensor | None:
    """(N, D) float32, or None when nothing intact is kept there."""
    if not place.exists():
        return None
    kept, count = torch.empty(0), about["pictures"]
    try:
        if files.read_json(_intact(place, DESCRIPTION)) != about:
            raise ModelFileError("they are others")
        for start in range(0, count, PART):
            part = files.read_tensors(_intact(place, FEATURES.format(start)))["features"]
            if not start:
                kept = torch.empty(count, part.shape[1])
            kept[start : start + PART] = part
    except ModelFileError as error:
        if say:
            say(f"the features in {place} are damaged ({error.what}) and are computed anew")
        return None
    return kept


def _intact(place: Path, name: str) -> Path:
    if faults := files.verify(place, (name,)):
        raise ModelFileError(faults[0])
    return place / name


def _write(place: Path, about: dict[str, Any], found: Tensor, say: Callable[[str], None] | None) -> None:
    """Keep features; a full disk is no reason to lose them."""
    try:
        with files.atomic_folder(place) as folder:
            for start in range(0, len(found), PART):
                files.write_tensors(folder / FEATURES.format(start), {"features": found[start : start + PART]})
            files.write_json(folder / DESCRIPTION, about)
    except ResourceError as error:
        if say:
            say(f"the features are not kept: {error}")
