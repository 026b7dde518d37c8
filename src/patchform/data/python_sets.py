"""Data sets that are Python objects: anything with `__len__` and `__getitem__`, whose items are (picture, target).

An object is held under a path that no disk has, `python:NAME-DIGEST`, and its items under paths below that. So
listings, samples, checks and pages are those of any data; only who reads a file asks here first. The digest is of all
pictures and targets: a run that is resumed, or judged again, with other data is refused like any other.

Pictures are PIL images, arrays (H, W) or (H, W, C), tensors (C, H, W), or paths of files; uint8, uint16 or floating
point in 0..1. Clips are arrays (T, H, W, C), tensors (T, C, H, W), or paths of videos.
"""

from __future__ import annotations

import copy
import hashlib
import io
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from patchform import system
from patchform.data import hub_sets, jpeg
from patchform.errors import DataError, UsageError, unheard
from patchform.own_parts import PREFIX

PATIENCE, PERIOD = 2.0, 30.0
"""Seconds after which it is said how far a data set was read, first and again."""
MASK = ".mask"
"""Behind the name of an item: its target, as a picture."""
_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Modes of PIL that PNG keeps."""


class Held(NamedTuple):
    """An object, and what was found when it was looked through."""

    items: Any
    names: tuple[str, ...] | None
    """Of the classes that whole numbers stand for; None: the numbers are the names."""
    sums: tuple[bytes, ...]
    """A digest of each picture and its target."""
    sizes: tuple[int, ...]
    """Bytes of each picture."""
    targets: tuple[Any, ...]
    """Those that are small; `LARGE` for others."""
    changes: bool
    """Whether an item differs when it is read again."""

    def target(self, index: int) -> Any:
        """What is known of an item. Raises DataError."""
        kept = self.targets[index]
        return pair(self.items, index)[1] if kept is LARGE else kept

    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        what = "the items of the data set differ each time they are read: no number of the run can be repeated"
        return (what,) if self.changes else ()


LARGE = object()
"""In place of a target that would take memory."""
SMALL = 4096
"""Numbers of one that does not."""
_held: dict[str, Held] = {}
_one_at_a_time = threading.RLock()
"""Files are looked at by several threads, which an object of a user need not expect."""
system.after_fork(  # a loader process that is forked meanwhile must not wait for a thread it lacks
    _one_at_a_time.release, before=_one_at_a_time.acquire, in_parent=_one_at_a_time.release
)


def hold(items: Any, classes: Sequence[str] | None = None, say: Callable[[str], None] = unheard) -> str:
    """Look through an object and hold it for as long as the process lasts.

    Args:
        items: with `__len__` and `__getitem__`, which gives (picture, target).
        classes: names that whole numbers in targets stand for; default: its attribute `classes`, if it has one.
        say: called with how far it is, if that takes longer than `PATIENCE`.

    Returns:
        The path by which it is known.

    Raises:
        UsageError: no such object, or an empty one.
        DataError: an item that cannot be read, with its index.
    """
    items = hub_sets.Columns(items) if hub_sets.are_columns(items) else items
    if not (hasattr(items, "__len__") and hasattr(items, "__getitem__")) or isinstance(items, dict | bytes):
        what = f"{type(items).__name__} is no data set"
        raise UsageError(what, remedy="give a folder, or an object with __len__ and __getitem__ of (picture, target)")
    if not len(items):
        raise UsageError("the data set has no item")
    known = getattr(items, "classes", None) if classes is None else classes
    names = tuple(map(str, known)) if isinstance(known, list | tuple) else None
    sums, sizes, targets = [], [], []
    whole = hashlib.blake2b(repr((len(items), names)).encode(errors="backslashreplace"), digest_size=6)
    due = time.monotonic() + PATIENCE
    for index in range(len(items)):
        if time.monotonic() > due:
            say(f"reading the data set: {index} of {len(items)} items")
            due = time.monotonic() + PERIOD
        picture, target = pair(items, index)
        content = _content(picture, index)
        sums.append(_sum(content, target))
        whole.update(sums[-1])
        sizes.append(len(content))
        targets.append(copy.deepcopy(target) if _is_small(target) else LARGE)  # some hand out one buffer again
    picture, target = pair(items, 0)
    path = f"{PREFIX}{type(items).__name__}-{whole.hexdigest()}"
    changes = _sum(_content(picture, 0), target) != sums[0]
    _held[path] = Held(items, names, tuple(sums), tuple(sizes), tuple(targets), changes)
    return path


def paths_of(data: Any, classes: Sequence[str] | None = None, say: Callable[[str], None] = unheard) -> dict[str, Any]:
    """What `data` is as settings: a path as it is, an object or two, to learn from and to validate on, by their paths.

    `hf:NAME` is a data set of the library `datasets`.

    Raises:
        UsageError, DataError: as `hold`; names of classes beside a path.
    """
    if isinstance(data, str) and data.startswith(hub_sets.PREFIX):
        parts = hub_sets.load(data)
        validation = None if parts.validation is None else hold(parts.validation, classes, say)
        return {"path": hold(parts.train, classes, say), "validation": validation}
    if isinstance(data, str | Path) or data is None:
        if classes is not None:
            raise UsageError("classes are for data that are a Python object", remedy='set data={"classes": [...]}')
        return {"path": data}
    if isinstance(data, tuple) and len(data) == 2:
        first, second = (None if part is None else _path_of(part, classes, say) for part in data)
        return {"path": first, "validation": second}
    return {"path": _path_of(data, classes, say)}


def _path_of(data: Any, classes: Sequence[str] | None, say: Callable[[str], None]) -> str:
    return str(data) if isinstance(data, str | Path) else hold(data, classes, say)


def is_held(path: Path | str) -> bool:
    """Whether a path is one of an object, or of an item of one."""
    return bool(_held) and next(iter(Path(path).parts), "") in _held


def was_held(path: Path | str) -> bool:
    """Whether it is the path of an object, which this process may not know."""
    return str(path).startswith(PREFIX)


def held(path: Path | str) -> Held:
    """The object that a path leads to."""
    return _held[Path(path).parts[0]]


def name(index: int, count: int) -> str:
    """Of an item: its index, with zeros so that all are of one length."""
    return f"{index:0{len(str(count - 1))}d}"


def index_of(path: Path) -> int:
    """The index of an item, by its path."""
    return int(path.name.removesuffix(MASK))


def read(path: Path) -> bytes:
    """The picture of an item, or its mask, as the content of a file. Raises DataError."""
    index = index_of(path)
    picture, target = pair(held(path).items, index)
    if path.name.endswith(MASK):
        return _content(_integers(target, index), index)
    return _content(picture, index)


def clip(path: Path) -> np.ndarray | Path:
    """The frames of an item, (T, H, W, C), or the path of a video. Raises DataError."""
    index = index_of(path)
    picture, _ = pair(held(path).items, index)
    if isinstance(picture, str | Path):
        return Path(picture).expanduser()
    frames = _array(picture)
    if frames is None or frames.ndim != 4 or 0 in frames.shape:
        shape = "" if frames is None else f" of shape {frames.shape}"
        what = f"item {index} of the data set: {type(picture).__name__}{shape} is no clip"
        raise DataError(what, remedy="give an array (T, H, W, C), a tensor (T, C, H, W), or the path of a video")
    return frames


def identity(path: Path) -> tuple[int, int]:
    """Bytes of an item's picture, and a number that stands for its content."""
    one, index = held(path), index_of(path)
    return one.sizes[index], int.from_bytes(one.sums[index][:8], "big")


def pair(items: Any, index: int) -> tuple[Any, Any]:
    """(picture, target) of an item. Raises DataError with its index."""
    try:
        with _one_at_a_time:
            item = items[index]
    except Exception as error:  # the user's own code
        raise DataError(f"item {index} of the data set cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(item, tuple | list) or len(item) != 2:
        what = f"item {index} of the data set is a {type(item).__name__}"
        raise DataError(what, remedy="give (picture, target)")
    return item[0], item[1]


def class_names(value: Any, one: Held, index: int) -> list[str]:
    """Names of a label or of several: whole numbers, names, or a list, array or tensor of such. Raises DataError."""
    if isinstance(value, str):
        return [value]
    array = np.asarray(value if _array(value) is None else _array(value))
    if not array.size:
        return []
    if array.dtype.kind == "U":
        return [str(name) for name in array.flatten()]
    if array.dtype.kind not in "ui" or array.ndim > 1:
        what = f"item {index} of the data set: {type(value).__name__} {str(value)[:60]} is no class"
        raise DataError(what, remedy="give a whole number or a name, or a list of them")
    numbers = array.flatten().tolist()
    if one.names is None:
        return [str(number) for number in numbers]
    if beyond := [number for number in numbers if not 0 <= number < len(one.names)]:
        what = f"item {index} of the data set: class {beyond[0]}, and there are {len(one.names)} names"
        raise DataError(what, remedy="numbers begin at 0; check `classes`")
    return [one.names[number] for number in numbers]


def kept(path: Path) -> dict[str, Held]:
    """What a process that is started afresh has to `keep` of the data of a path: nothing, unless it is of an object."""
    return {path.parts[0]: held(path)} if is_held(path) else {}


def keep(sets: dict[str, Held]) -> None:
    """Hold what another process held."""
    _held.update(sets)


# ------------------------------------------------------------------------------------------------- pictures as files


def _content(picture: Any, index: int) -> bytes:
    """A picture as the content of a file that `data.images` decodes; nothing of it is lost. Raises DataError."""
    if isinstance(picture, str | Path):
        path = Path(picture).expanduser()
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"item {index} of the data set cannot be read: {error.strerror}", where=path) from None
    stream = io.BytesIO()
    if isinstance(picture, Image.Image):
        untouched = jpeg.not_decoded(picture)
        if untouched is not None:
            return untouched
        options: dict[str, Any] = {"exif": picture.getexif()} if picture.getexif() else {}
        if picture.mode in _PNG:
            picture.save(stream, "PNG", compress_level=0, **options)
        else:
            picture.save(stream, "TIFF", **options)
        return stream.getvalue()
    array = _array(picture)
    if array is None:
        what = f"item {index} of the data set: {type(picture).__name__} is no picture"
        raise DataError(what, remedy="give a PIL image, an array, a tensor, or a path")
    if array.dtype.kind == "f":
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not (low >= -0.5 and high <= 1.5):  # also NaN; resampling may overshoot a little
            what = f"item {index} of the data set: floating-point pixels are in 0..1, these in {low:g}..{high:g}"
            raise DataError(what, remedy="give uint8, or divided by 255, and before they are normalised")
        array = _levels(array)
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def _levels(array: np.ndarray) -> np.ndarray:
    """Shares in 0..1 as uint8 if they are all of its levels, as after division by 255; else as uint16."""
    shares = array.astype(np.float64).clip(0, 1)
    levels = np.rint(shares * 255)
    if np.abs(shares * 255 - levels).max(initial=0) < 1e-3:
        return levels.astype(np.uint8)
    return np.rint(shares * 65535).astype(np.uint16)


def _array(value: Any) -> np.ndarray | None:
    """An array, or a tensor with its channels behind."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor  # bfloat16 is unknown to NumPy
        return (tensor.movedim(-3, -1) if tensor.dim() >= 3 else tensor).numpy()
    return None


def _integers(mask: Any, index: int) -> Any:
    """A mask as uint8 or uint16 numbers (H, W), or as the picture or path that it is. Raises DataError."""
    if isinstance(mask, str | Path | Image.Image):
        return mask
    array = _array(mask)
    if array is None or array.dtype.kind not in "uib" or array.ndim != 2:
        shape = "" if array is None else f" of {array.dtype} and shape {array.shape}"
        what = f"item {index} of the data set: its target is a {type(mask).__name__}{shape}"
        raise DataError(what, remedy="give a mask: whole numbers (H, W), a PIL image, or a path")
    if array.size and (array.min() < 0 or array.max() > 65535):
        raise DataError(f"item {index} of the data set: a mask of numbers beyond 0..65535", remedy="255 is ignored")
    return array.astype(np.uint8 if not array.size or array.max() < 256 else np.uint16)


def _is_small(target: Any) -> bool:
    """Whether a target, or a part of one, can be kept for every item."""
    if isinstance(target, dict | list | tuple):
        parts = target.values() if isinstance(target, dict) else target
        return len(target) <= SMALL and all(map(_is_small, parts))
    array = _array(target)
    return not isinstance(target, Image.Image | Path) and (array is None or array.size <= SMALL)


def _sum(content: bytes, target: Any) -> bytes:
    digest = hashlib.blake2b(content, digest_size=12)
    _add(digest, target)
    return digest.digest()


def _add(digest: hashlib.blake2b, value: Any) -> None:
    """Take a target into a digest, whatever it is made of."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(str(key).encode(errors="backslashreplace"))
            _add(digest, value[key])
    elif isinstance(value, Image.Image):
        digest.update(repr((value.mode, value.size)).encode() + value.tobytes())
    elif isinstance(value, list | tuple):
        for part in value:
            _add(digest, part)
    elif (array := _array(value)) is not None:
        digest.update(repr((array.dtype, array.shape)).encode() + np.ascontiguousarray(array).tobytes())
    else:
        digest.update(repr(value).encode(errors="backslashreplace"))
