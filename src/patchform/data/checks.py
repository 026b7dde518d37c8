"""Faults of a data set, found and counted before training. Nothing is ever written into it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from patchform.data.images import decode, facts, read
from patchform.data.listing import Item, Listing, quoted, relative_name
from patchform.errors import DataError
from patchform.records import Preprocessing

THREADS = 4
"""Decoding releases Python's lock."""
EXTREME_ASPECT = 100
"""Pictures whose sides differ by more are noted."""
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WebP", ".npy": "NumPy"}


class Fault(NamedTuple):
    """A picture that cannot be used."""

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
    """Decode every picture once.

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
    """Decode every picture once and report all faults; never stops at one. Arguments as in `check`."""
    faults: list[Fault] = []
    remarks: dict[str, list[str]] = defaultdict(list)
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(partial(_examine, preprocessing=preprocessing), listing.items)
        for done, (item, (fault, found)) in enumerate(zip(listing.items, results), 1):
            if fault:
                faults.append(Fault(_name(item, listing), fault))
            for remark in found:
                remarks[remark].append(_name(item, listing))
            if progress:
                progress(done, len(listing))
    notes = tuple(f"{len(names)} {remark}: {quoted(names, 3)}" for remark, names in sorted(remarks.items()))
    return Report(checked=len(listing), faults=tuple(faults), notes=notes)


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


def _examine(item: Item, preprocessing: Preprocessing) -> tuple[str | None, tuple[str, ...]]:
    """Reason why a picture cannot be used, if any, and remarks on it."""
    try:
        data = read(item.path)
        height, width = decode(data, preprocessing).shape[-2:]
    except DataError as error:
        return error.what, ()
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
    )
    return None, tuple(text for text, holds in remarks if holds)
