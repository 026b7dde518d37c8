"""Faults of a data set, found and counted before training. Nothing is ever written into it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from patchform.data import check_cache
from patchform.data.clips import span
from patchform.data.faults import Fault
from patchform.data.images import MAX_BYTES, decode, facts, is_turned, read
from patchform.data.listing import Item, Listing, PolygonMask, files_of, quoted, relative_name
from patchform.data.mask_files import decode_mask
from patchform.data.shards import open_file, status
from patchform.data.videos import open_video
from patchform.descriptions import Preprocessing
from patchform.errors import DataError
from patchform.records import IGNORED

THREADS = 4
"""Decoding releases Python's lock."""
EXTREME_ASPECT = 100
"""Pictures whose sides differ by more are noted."""
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WebP", ".npy": "NumPy"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of a check."""

    checked: int
    """Pictures opened."""
    faults: tuple[Fault, ...]
    """At most one a picture, whose name is `where`, in the order of the listing."""
    notes: tuple[str, ...]
    """Things that are no faults, each with its count."""
    pixels: tuple[int, ...] | None = None
    """Of each class in the masks of the pictures without a fault; None where there are no masks."""

    @property
    def used(self) -> int:
        """Pictures without a fault."""
        return self.checked - len(self.faults)

    def usable(self, listing: Listing) -> Listing:
        """The listing that was checked, without the pictures that have a fault."""
        bad = {fault.where for fault in self.faults}
        return replace(listing, items=tuple(item for item in listing.items if _name(item, listing) not in bad))


def check(
    listing: Listing,
    preprocessing: Preprocessing,
    *,
    skip_bad: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Listing, Report]:
    """Decode every picture, and mask, once; of a video, read all packets and decode the first and the last frame.

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
        raise DataError(f"no {listing.thing}", where=listing.root)
    report = examine(listing, preprocessing, progress=progress)
    bad = len(report.faults)
    if bad > skip_bad * len(listing):
        listed = "; ".join(f"{fault.where}: {fault.what}" for fault in report.faults[:5])
        raise DataError(
            f"{bad} of {len(listing)} {listing.thing}s cannot be used: {listed}{'; ...' * (bad > 5)}",
            where=listing.root,
            remedy="mend or remove them, or set data.skip_bad",
        )
    usable = report.usable(listing)
    lost = [name for name, had, has in zip(listing.classes, listing.counts(), usable.counts()) if had and not has]
    if lost:
        raise DataError(f"no usable {listing.thing} is left of class {quoted(lost)}", where=listing.root)
    return usable, report


def without_bad(listing: Listing, preprocessing: Preprocessing, skip_bad: float) -> tuple[Listing, tuple[str, ...]]:
    """The listing as `check` leaves it, and remarks on it; where no bad picture is put up with, as it is, unread."""
    if not skip_bad:
        return listing, ()
    usable, report = check(listing, preprocessing, skip_bad=skip_bad)
    return usable, (*report.notes, *(f"left out {fault.where}: {fault.what}" for fault in report.faults))


def examine(
    listing: Listing, preprocessing: Preprocessing, *, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Look at everything as `check` does and report all faults; never stops at one. Arguments as there.

    When nothing has changed since an earlier time, what was found then is given again (`data.check_cache`).
    """
    key = check_cache.key(listing, preprocessing)
    cached = check_cache.load(key) if key else None
    if cached is not None:
        if progress:
            progress(len(listing), len(listing))
        faults = tuple(Fault(*fault) for fault in cached["faults"])
        pixels = None if cached["pixels"] is None else tuple(cached["pixels"])
        return Report(checked=len(listing), faults=faults, notes=tuple(cached["notes"]), pixels=pixels)
    report = _examined(listing, preprocessing, progress)
    if key and key == check_cache.key(listing, preprocessing):  # nothing was edited meanwhile
        rows = [fault[:3] for fault in report.faults]
        check_cache.store(key, {"faults": rows, "notes": report.notes, "pixels": report.pixels})
    return report


def _examined(listing: Listing, preprocessing: Preprocessing, progress: Callable[[int, int], None] | None) -> Report:
    faults: list[Fault] = []
    pixels = torch.zeros(IGNORED + 1, dtype=torch.int64)
    remarks: dict[str, list[str]] = defaultdict(list)
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(partial(_examine, listing=listing, preprocessing=preprocessing), listing.items)
        for done, (item, (fault, own, counts)) in enumerate(zip(listing.items, results), 1):
            if counts is not None:
                pixels += counts
            if fault:
                faults.append(Fault(fault[0], _name(item, listing), fault[1]))
            for remark in own:
                remarks[remark].append(_name(item, listing))
            if progress:
                progress(done, len(listing))
    notes = tuple(f"{len(names)} {remark}: {quoted(names, 3)}" for remark, names in sorted(remarks.items()))
    if listing.mask_codes is None:
        return Report(checked=len(listing), faults=tuple(faults), notes=notes)
    of_classes = tuple(pixels[: len(listing.classes)].tolist())
    notes += _remarks_on_masks(listing, of_classes)
    return Report(checked=len(listing), faults=tuple(faults), notes=notes, pixels=of_classes)


def _remarks_on_masks(listing: Listing, pixels: Sequence[int]) -> tuple[str, ...]:
    absent = [name for name, number in zip(listing.classes, pixels) if number == 0]
    notes: tuple[str, ...] = (f"no mask has a pixel of class {quoted(absent)}",) if absent else ()
    zero = dict(listing.mask_codes.ids).get(0, IGNORED) if listing.mask_codes else IGNORED
    if zero != IGNORED and pixels[zero] == 0:
        notes += ("no mask has a 0: if their numbers begin at 1, set data.zero to ignore",)
    return notes


def overlap(first: Listing, second: Listing) -> tuple[tuple[str, str], ...]:
    """Names of pictures of equal content in both listings, such as of training and validation.

    Only files of equal size are read. A content that occurs several times is paired once for each item of `second`.
    """
    by_size: dict[int, list[Item]] = defaultdict(list)
    for item in first.items:
        by_size[_bytes(item.path)].append(item)
    digests: dict[int, dict[bytes, Item]] = {}
    pairs = []
    for item in second.items:
        size = _bytes(item.path)
        if size in by_size:
            if size not in digests:
                digests[size] = {_digest(candidate): candidate for candidate in reversed(by_size[size])}
            original = digests[size].get(_digest(item))
            if original is not None:
                pairs.append((_name(original, first), _name(item, second)))
    return tuple(pairs)


def copies(listing: Listing) -> tuple[tuple[int, int], ...]:
    """Indices of pictures of equal content, each with that of the first one.

    Only files of equal size and middle are read as a whole.
    """
    paths = [item.path for item in listing.items]
    sizes = {index: _bytes(path) for index, path in enumerate(paths)}
    middles = {index: (sizes[index], _middle(paths[index])) for index in _alike(sizes)}
    first: dict[bytes, int] = {}
    pairs = []
    for index in _alike(middles):
        digest = _digest(listing.items[index])
        if first.setdefault(digest, index) != index:
            pairs.append((first[digest], index))
    return tuple(pairs)


def _alike(values: Mapping[int, object]) -> list[int]:
    """The keys whose value another one has too."""
    times = Counter(values.values())
    return [index for index, value in values.items() if times[value] > 1]


def _bytes(path: Path) -> int:
    """Of a file, or of all frames in a folder."""
    return sum(status(file).size for file in files_of(path))


def _middle(path: Path) -> bytes:
    """A few thousand bytes: beginnings of pictures are alike. Of a folder, of the frame in the middle."""
    files = files_of(path)
    path = files[len(files) // 2]
    with open_file(path, MAX_BYTES) as file:
        file.seek(status(path).size // 2)
        return file.read(4096)


def _digest(item: Item) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for path in files_of(item.path):
        with open_file(path, MAX_BYTES) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.digest()


def _name(item: Item, listing: Listing) -> str:
    return relative_name(item.path, listing.root)


def _examine(
    item: Item, listing: Listing, preprocessing: Preprocessing
) -> tuple[tuple[str, str] | None, tuple[str, ...], Tensor | None]:
    """Why a picture cannot be used, if so: (kind, reason); remarks, and how many pixels of its mask have each class."""
    if listing.videos:
        return *_examine_video(item, preprocessing), None
    try:
        data = read(item.path)
        height, width = decode(data, preprocessing).shape[-2:]
    except DataError as error:
        return ("picture-bad", error.what), (), None
    if item.objects is not None and tuple(item.objects.size) != (height, width):
        (tall, wide), turned = item.objects.size, is_turned(data) and item.objects.size == (width, height)
        reason = f"annotated as {wide} x {tall} pixels, it has {width} x {height}"
        return ("size-turned", f"{reason} upright") if turned else ("size-differs", reason), (), None
    counts, turned = None, False
    if item.mask is not None and listing.mask_codes is not None:
        try:
            mask = item.mask if isinstance(item.mask, PolygonMask) else read(item.mask)
            counts = torch.bincount(
                decode_mask(mask, listing.mask_codes, (height, width)).flatten(), minlength=IGNORED + 1
            )
            turned = is_turned(data) and isinstance(mask, bytes) and not is_turned(mask)
        except DataError as error:
            reason = "; ".join(part for part in (error.what, error.remedy) if part)
            what = "its regions" if isinstance(item.mask, PolygonMask) else f"mask {item.mask.name}"
            return ("mask-bad", f"{what}: {reason}"), (), None
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


def _examine_video(item: Item, preprocessing: Preprocessing) -> tuple[tuple[str, str] | None, tuple[str, ...]]:
    """The same of a video: all packets, or the names of the frames, and the first and last frame are looked at."""
    try:
        video = open_video(item.path)
        video.frames([0, len(video) - 1], preprocessing)
    except DataError as error:
        return ("video-bad", error.what), ()
    needed = span(preprocessing)
    short = preprocessing.frames > 0 and len(video) < needed
    return None, (f"videos have less than {needed} frames, and repeat the last one",) * short
