"""Every file of a part of a data set, looked at once before training. Nothing is ever written into it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchform.data import check_cache
from patchform.data.clips import span
from patchform.data.faults import Fault
from patchform.data.images import decode, facts, orientation_of, read
from patchform.data.listing import PICTURE_FORMATS, Item, Listing, PolygonMask, quoted, relative_name
from patchform.data.mask_files import decode_mask
from patchform.data.videos import open_video
from patchform.descriptions import Preprocessing
from patchform.errors import DataError
from patchform.records import IGNORED

THREADS = 4
"""Decoding releases Python's lock."""
EXTREME_ASPECT = 100
"""Pictures whose sides differ by more are noted."""
_FORMATS = {suffix: format_ for format_, suffixes in PICTURE_FORMATS.items() for suffix in suffixes}


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
    ignored: int = 0
    """Pixels of these masks that count for nothing."""
    hints: tuple[Fault, ...] = ()
    """Of pictures without a fault, which may be meant so."""
    sizes: tuple[tuple[int, int], ...] = ()
    """(height, width), of the pictures without a fault: the least of each, those of the middle one by area, and the
    most of each; or none."""

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
        return _restored(cached, len(listing))
    report = _examined(listing, preprocessing, progress)
    if key and key == check_cache.key(listing, preprocessing):  # nothing was edited meanwhile
        check_cache.store(key, _stored(report))
    return report


def _extent(sizes: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """`Report.sizes`."""
    if not sizes:
        return ()
    middle = sorted(sizes, key=lambda size: (size[0] * size[1], size))[len(sizes) // 2]
    heights, widths = zip(*sizes)
    return (min(heights), min(widths)), middle, (max(heights), max(widths))


def _stored(report: Report) -> dict[str, Any]:
    """As plain values."""
    rows = {name: [fault[:3] for fault in getattr(report, name)] for name in ("faults", "hints")}
    return {**rows, **{name: getattr(report, name) for name in ("notes", "pixels", "ignored", "sizes")}}


def _restored(stored: dict[str, Any], checked: int) -> Report:
    """What `_stored` gave. Raises KeyError or TypeError for anything else."""
    return Report(
        checked=checked,
        faults=tuple(Fault(kind, where, what) for kind, where, what in stored["faults"]),
        hints=tuple(Fault(kind, where, what, fatal=False) for kind, where, what in stored["hints"]),
        notes=tuple(stored["notes"]),
        pixels=None if stored["pixels"] is None else tuple(stored["pixels"]),
        ignored=stored["ignored"],
        sizes=tuple((height, width) for height, width in stored["sizes"]),
    )


class _Look(NamedTuple):
    """What is found at one item: why it cannot be used, as (kind, reason), or what else there is to say."""

    fault: tuple[str, str] | None = None
    hint: tuple[str, str] | None = None
    remarks: tuple[str, ...] = ()
    pixels: Tensor | None = None
    """(IGNORED + 1,) of each class in its mask."""
    size: tuple[int, int] | None = None


def _examined(listing: Listing, preprocessing: Preprocessing, progress: Callable[[int, int], None] | None) -> Report:
    faults: list[Fault] = []
    hints: list[Fault] = []
    sizes: list[tuple[int, int]] = []
    pixels = torch.zeros(IGNORED + 1, dtype=torch.int64)
    remarks: dict[str, list[str]] = defaultdict(list)
    with ThreadPoolExecutor(THREADS) as pool:
        looks = pool.map(partial(_examine, listing=listing, preprocessing=preprocessing), listing.items)
        for done, (item, look) in enumerate(zip(listing.items, looks), 1):
            name = _name(item, listing)
            if look.pixels is not None:
                pixels += look.pixels
            if look.fault:
                faults.append(Fault(look.fault[0], name, look.fault[1]))
            if look.hint:
                hints.append(Fault(look.hint[0], name, look.hint[1], fatal=False))
            if look.size:
                sizes.append(look.size)
            for remark in look.remarks:
                remarks[remark].append(name)
            if progress:
                progress(done, len(listing))
    masks = listing.mask_codes is not None
    of_classes = tuple(pixels[: len(listing.classes)].tolist()) if masks else None
    return Report(
        checked=len(listing),
        faults=tuple(faults),
        hints=tuple(hints),
        notes=tuple(f"{len(names)} {remark}: {quoted(names, 3)}" for remark, names in sorted(remarks.items())),
        pixels=of_classes,
        ignored=int(pixels[IGNORED]),
        sizes=_extent(sizes),
    )


def _name(item: Item, listing: Listing) -> str:
    return relative_name(item.path, listing.root)


def _examine(item: Item, listing: Listing, preprocessing: Preprocessing) -> _Look:
    """Look at a picture, its mask, and its size for its objects; or at a video."""
    if listing.videos:
        return _examine_video(item, preprocessing)
    try:
        data = read(item.path)
        height, width = decode(data, preprocessing).shape[-2:]
    except DataError as error:
        return _Look(("picture-bad", "; ".join(part for part in (error.what, error.remedy) if part)))
    turned = orientation_of(data)
    if item.objects is not None and tuple(item.objects.size) != (height, width):
        (tall, wide), lies = item.objects.size, turned >= 2 and item.objects.size == (width, height)
        reason = f"annotated as {wide} x {tall} pixels, it has {width} x {height}"
        return _Look(("size-turned", f"{reason} upright") if lies else ("size-differs", reason))
    pixels, bare = None, False
    if item.mask is not None and listing.mask_codes is not None:
        try:
            mask = item.mask if isinstance(item.mask, PolygonMask) else read(item.mask)
            values = decode_mask(mask, listing.mask_codes, (height, width))
            pixels = torch.bincount(values.flatten(), minlength=IGNORED + 1)
            bare = isinstance(mask, PolygonMask) or orientation_of(mask) < 2
        except DataError as error:
            reason = "; ".join(part for part in (error.what, error.remedy) if part)
            what = "its regions" if isinstance(item.mask, PolygonMask) else f"mask {item.mask.name}"
            return _Look(("mask-bad", f"{what}: {reason}"))
    untold = turned in (2, 3, 4) or (turned >= 5 and (height == width or not listing.sizes_annotated))
    asks = untold and (bare or (item.objects is not None and len(item.objects.boxes) > 0))
    format_, animated, deep = facts(data)
    suffix = item.path.suffix.lower()
    remarks = (
        ("pictures hold several frames, the first is used", animated),
        ("pictures of 16 bits are reduced to 8", deep and preprocessing.bits == 8),
        (
            f"pictures have sides in a ratio above {EXTREME_ASPECT}",
            max(height, width) > EXTREME_ASPECT * min(height, width),
        ),
        (
            f"files named {suffix} are {format_}, and read as such",
            suffix != "" and _FORMATS.get(suffix, suffix[1:].upper()) != format_,
        ),
        ("masks hold nothing but ignored pixels", pixels is not None and int(pixels[:IGNORED].sum()) == 0),
    )
    return _Look(
        hint=("orientation-untold", f"tag {turned}") if asks else None,
        remarks=tuple(text for text, holds in remarks if holds),
        pixels=pixels,
        size=(height, width),
    )


def _examine_video(item: Item, preprocessing: Preprocessing) -> _Look:
    """The same of a video: all packets, or the names of the frames, and the first and last frame are looked at."""
    try:
        video = open_video(item.path)
        video.frames([0, len(video) - 1], preprocessing)
    except DataError as error:
        return _Look(("video-bad", error.what))
    needed = span(preprocessing)
    short = preprocessing.frames > 0 and len(video) < needed
    return _Look(remarks=(f"videos have less than {needed} frames, and repeat the last one",) * short, size=video.size)
