"""What an earlier check of the same pictures found, so that it need not be made again.

A file each in checks/ of the cache folder (PATCHFORM_CACHE), never in a data set. Its name is a digest of all that the
outcome depends on: names, sizes, times and inodes of the pictures, content of the masks, all that is listed of them,
how they are decoded, and the code itself. A file that is damaged, or a folder that cannot be used, is as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import PIL

from patchform import __version__
from patchform.data import encoded
from patchform.data.images import read
from patchform.data.listing import Listing, files_of
from patchform.data.shards import status
from patchform.descriptions import Preprocessing
from patchform.errors import DataError
from patchform.weights.hub import cache

KEPT = 200
"""Files that stay; the oldest go first."""
_CODE = (
    *("check_cache.py", "checks/examination.py", "clips.py", "containers.py", "encoded.py", "file_kinds.py"),
    *("images.py", "jpeg.py", "listing.py", "mask_files.py", "shards.py", "videos.py", "../geometry/masks.py"),
)


def key(listing: Listing, preprocessing: Preprocessing) -> str | None:
    """The digest; None where a file cannot be looked at."""
    digest = hashlib.blake2b(digest_size=20)
    p = preprocessing
    decoding: tuple[Any, ...] = (p.channels, p.bits, p.background)
    if listing.videos:
        decoding += (encoded.version(), p.frames, p.frame_step, p.sampling)
    for name in _CODE:
        digest.update(_sum((Path(__file__).parent / name).read_bytes()))
    try:
        digest.update(repr((__version__, PIL.__version__, decoding, listing.classes, listing.sizes_annotated)).encode())
        digest.update(_sum(listing.as_bytes()))
        for item in listing.items:
            for file in files_of(item.path):
                digest.update(repr(status(file)).encode())
            if isinstance(item.mask, Path):
                digest.update(item.mask.name.encode(errors="surrogateescape") + b"\0" + _sum(read(item.mask)))
    except (OSError, DataError):
        return None
    return digest.hexdigest()


def load(digest: str) -> dict[str, Any] | None:
    """What was stored under a digest; None where there is nothing, or nothing whole."""
    try:
        content = json.loads((_folder() / f"{digest}.json").read_bytes())
        result: dict[str, Any] = content["found"]
        return result if content["sum"] == _sum(_text(result)).hex() and content["key"] == digest else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, RecursionError):
        return None


def store(digest: str, result: dict[str, Any]) -> None:
    """Write it so that it appears whole or not at all; does nothing where that cannot be done."""
    with suppress(OSError, RuntimeError):
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".tmp-{os.getpid()}-{threading.get_ident()}-{digest}"
        try:
            unfinished.write_bytes(_text({"key": digest, "sum": _sum(_text(result)).hex(), "found": result}))
            os.replace(unfinished, folder / f"{digest}.json")
        finally:
            unfinished.unlink(missing_ok=True)
        for file in sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)[:-KEPT]:
            file.unlink(missing_ok=True)


def _folder() -> Path:
    """Raises RuntimeError where there is no home."""
    return cache() / "checks"


def _text(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _sum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=20).digest()
