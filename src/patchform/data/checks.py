"""Faults of a data set, found and counted before training. Nothing is ever written into it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from patchform.data.images import decode, facts, is_turned, read
from patchform.data.listing import Item, Listing, quoted, relative_name
from patchform.data.masks import decode_mask
from patchform.errors import DataError
from patchform.records import IGNORED, Preprocessing

THREADS = 4
"""Decoding releases Python's lock."""
EXTREME_ASPECT = 100
"""Pictures whose sides differ by more are noted."""
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WebP", ".npy": "NumPy"}


class Fault(NamedTuple):
    """A picture, or its mask, that cannot be used."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a check found."""

    checked: int
    """Pictures opened."""
    faults: tuple[Fault, ...]
    """In the order of the listing."""
    notes: tuple[str, ...]
    """Things that are no faults, each with its count."""
    pixels: tuple[int, ...] | None = None
    """Of each class in the masks of the pictures without a fault; None where there are no masks."""

    @property
    def used(self) -> int:
        """Pictures without a fault."""
        return self.checked - len(self.faults)


def check(
    listing: Listing,
    preprocessing: Preprocessing,
    *,
    skip_bad: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Listing, Report]:
    """Decode every picture, and mask, once.

    Args:
        listing: what to check.
        preprocessing: as in training.
        skip_bad: highest share of bad pictures that are left out, in [0, 1).
        progress: called with (done, all) after each picture.

    Returns:
        The listing without bad pictures, and what was found.

    Raises:
        DataError: no picture at all, more bad ones than allowed (the first five are named), or a class that has lost
            its last picture.
    """
    if not listing.items:
        raise DataError("no picture", where=listing.root)
    report = examine(listing, preprocessing, progress=progress)
    bad = {fault.name for fault in report.faults}
    if len(bad) > skip_bad * len(listing):
        listed = "; ".join(f"{fault.name}: {fault.reason}" for fault in report.faults[:5])
        raise DataError(
            f"{len(bad)} of {len(listing)} pictures cannot be used: {listed}{'; ...' * (len(bad) > 5)}",
            where=listing.root,
            remedy="mend or remove them, or set data.skip_bad",
        )
    kept = replace(listing, items=tuple(item for item in listing.items if _name(item, listing) not in bad))
    lost = [name for name, had, has in zip(listing.classes, listing.counts(), kept.counts()) if had and not has]
    if lost:
        raise DataError(f"no usable picture is left of class {quoted(lost)}", where=listing.root)
    return kept, report


def examine(
    listing: Listing, preprocessing: Preprocessing, *, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Decode every picture, and mask, once and report all faults; never stops at one. Arguments as in `check`."""
    faults: list[Fault] = []
    pixels = torch.zeros(IGNORED + 1, dtype=torch.int64)
    remarks: dict[str, list[str]] = defaultdict(list)
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(partial(_examine, listing=listing, preprocessing=preprocessing), listing.items)
        for done, (item, (fault, found, counts)) in enumerate(zip(listing.items, results), 1):
            if counts is not None:
                pixels += counts
            if fault:
                faults.append(Fault(_name(item, listing), fault))
            for remark in found:
                remarks[remark].append(_name(item, listing))
            if progress:
                progress(done, len(listing))
    notes = tuple(f"{len(names)} {remark}: {quoted(names, 3)}" for remark, names in sorted(remarks.items()))
    if listing.coding is None:
        return Report(checked=len(listing), faults=tuple(faults), notes=notes)
    of_classes = tuple(pixels[: len(listing.classes)].tolist())
    notes += _remarks_on_masks(listing, of_classes)
    return Report(checked=len(listing), faults=tuple(faults), notes=notes, pixels=of_classes)


def _remarks_on_masks(listing: Listing, pixels: Sequence[int]) -> tuple[str, ...]:
    absent = [name for name, number in zip(listing.classes, pixels) if number == 0]
    notes: tuple[str, ...] = (f"no mask has a pixel of class {quoted(absent)}",) if absent else ()
    zero = dict(listing.coding.ids).get(0, IGNORED) if listing.coding else IGNORED
    if zero != IGNORED and pixels[zero] == 0:
        notes += ("no mask has a 0: if their numbers begin at 1, set data.zero to ignore",)
    return notes


def overlap(first: Listing, second: Listing) -> tuple[tuple[str, str], ...]:
    """Names of pictures of equal content in both listings, such as of training and validation.

    Only files of equal size are read. A content that occurs several times is paired once for each item of `second`.
    """
    by_size: dict[int, list[Item]] = defaultdict(list)
    for item in first.items:
        by_size[item.path.stat().st_size].append(item)
    digests: dict[int, dict[bytes, Item]] = {}
    pairs = []
    for item in second.items:
        size = item.path.stat().st_size
        if size in by_size:
            if size not in digests:
                digests[size] = {_digest(candidate): candidate for candidate in reversed(by_size[size])}
            twin = digests[size].get(_digest(item))
            if twin is not None:
                pairs.append((_name(twin, first), _name(item, second)))
    return tuple(pairs)


def _digest(item: Item) -> bytes:
    return hashlib.blake2b(read(item.path), digest_size=16).digest()


def _name(item: Item, listing: Listing) -> str:
    return relative_name(item.path, listing.root)


def _examine(
    item: Item, listing: Listing, preprocessing: Preprocessing
) -> tuple[str | None, tuple[str, ...], Tensor | None]:
    """Reason why a picture cannot be used, if any, remarks on it, and how many pixels of its mask have each class."""
    try:
        data = read(item.path)
        height, width = decode(data, preprocessing).shape[-2:]
    except DataError as error:
        return error.what, (), None
    counts, turned = None, False
    if item.mask is not None and listing.coding is not None:
        try:
            mask = read(item.mask)
            counts = torch.bincount(decode_mask(mask, listing.coding, (height, width)).flatten(), minlength=IGNORED + 1)
            turned = is_turned(data) and not is_turned(mask)
        except DataError as error:
            reason = "; ".join(part for part in (error.what, error.remedy) if part)
            return f"mask {item.mask.name}: {reason}", (), None
    format_, animated, deep = facts(data)
    suffix = item.path.suffix.lower()
    remarks = (
        ("pictures hold several frames, the first is used", animated),
        ("pictures of 16 bits are reduced to 8", deep and preprocessing.bits == 8),
        (
            f"pictures have sides in a ratio above {EXTREME_ASPECT}",
            max(height, width) > EXTREME_ASPECT * min(height, width),
        ),
        (f"files named {suffix} are {format_}, and read as such", _FORMATS.get(suffix, suffix[1:].upper()) != format_),
        ("masks hold nothing but ignored pixels", counts is not None and int(counts[:IGNORED].sum()) == 0),
        ("pictures are turned by an orientation tag that their masks do not have", turned),
    )
    return None, tuple(text for text, holds in remarks if holds), counts
