"""Pictures whose content is there a second time, in one part or in both. Only files of equal size are read."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from patchform.data.checks.base import Check, Subject
from patchform.data.faults import Faults
from patchform.data.images import MAX_BYTES
from patchform.data.listing import Item, Listing, files_of, relative_name
from patchform.data.shards import open_file, status


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
                pairs.append((relative_name(original.path, first.root), relative_name(item.path, second.root)))
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


def repeated(subject: Subject, faults: Faults) -> None:
    """Pictures whose content is there a second time, apart from those that then have other classes."""
    listing = subject.usable
    for first, other in copies(listing):
        item, copy = listing.items[first], listing.items[other]
        conflict = item.mask is None and item.objects is None and item.classes != copy.classes
        faults.add("class-conflict" if conflict else "picture-repeated", listing.name(other), listing.name(first))


REPEATED = Check(repeated, "searched")
