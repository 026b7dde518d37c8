"""What the machine says no to, in one line: a disk that is full or cannot be written, memory that ran out."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patchform.errors import ResourceError

_OTHER_PLACE = "name a folder that can be written"
_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within your quota",
    errno.EFBIG: "raise the largest size of a file (ulimit -f)",
    errno.EROFS: _OTHER_PLACE,
    errno.EACCES: _OTHER_PLACE,
    errno.EPERM: _OTHER_PLACE,
    errno.ENOTDIR: _OTHER_PLACE,
    errno.EISDIR: _OTHER_PLACE,
    errno.ENOENT: "make the folder that it lies in",
    errno.ESTALE: "connect the disk again",
    errno.EIO: "the disk or the way to it is at fault: see the system's log",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.ELOOP: "mend the links that lead there",
    errno.EMFILE: "allow more open files (ulimit -n), or take fewer workers",
    errno.ENFILE: "close other programs: the system has no more open files to give",
    errno.ENOMEM: "free memory",
}
_OF_MEMORY = (
    *("can't allocate memory", "cannot allocate memory", "out of memory", "unable to allocate", "alloc_failed"),
    *("not enough memory", "bad_alloc", "unable to mmap", "can't start new thread"),
)
"""Words of torch, CUDA and the C library when there is no memory left."""
_SHARED = ("</torch_", "shared memory")
"""Words of torch when memory that processes share is short."""
_FILES = "too many open files"
"""Which that memory is, too."""


def refused(error: OSError, path: object = None, needed: int = 0) -> ResourceError:
    """The line on a file that could not be written, or read.

    Args:
        error: of the system.
        path: of the file; default: what the error says.
        needed: bytes that were to be written; 0: not known.
    """
    where = path if path is not None else error.filename
    facts = [error.strerror or str(error) or type(error).__name__, *_room(where, error)]
    what = f"cannot write{f' {needed} bytes' if needed else ''}" if path is not None else "the system refuses"
    return ResourceError(
        f"{what} ({'; '.join(facts)})",
        where=where if isinstance(where, str | os.PathLike) else None,
        remedy=_REMEDIES.get(error.errno or 0, _OTHER_PLACE),
    )


def _room(path: object, error: OSError) -> list[str]:
    """What is free where a path lies, if the error is about room."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, None) or not isinstance(path, str | os.PathLike):
        return []
    try:
        home = next(folder for folder in (Path(path), *Path(path).absolute().parents) if folder.exists())
        return [f"{shutil.disk_usage(home).free} bytes are free"]
    except (OSError, StopIteration):
        return []


@contextmanager
def writing(path: object, needed: int = 0) -> Iterator[None]:
    """Whatever the system refuses within is said of a path that is written. Raises ResourceError for OSError."""
    try:
        yield
    except BrokenPipeError:
        raise  # nobody reads any more: no fault of a disk
    except OSError as error:
        raise refused(error, path, needed) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the machine, of a device, or what processes share of it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in (*_OF_MEMORY, *_SHARED, _FILES))


def of_memory(error: BaseException, what: str, remedy: str) -> ResourceError:
    """The line on an error of `out_of_memory`."""
    if _FILES in str(error).lower():
        return ResourceError(f"{what}: no more open files", remedy=_REMEDIES[errno.EMFILE])
    if any(words in str(error).lower() for words in _SHARED):
        return ResourceError(
            f"{what}: no more shared memory", where="/dev/shm", remedy="enlarge it (docker run --shm-size 8g), or take"
            " fewer workers"
        )  # fmt: skip
    return ResourceError(what, remedy=remedy)


def as_resource(error: Exception) -> ResourceError | None:
    """The line on any error of the machine, whatever raised it; None for others."""
    if isinstance(error, OSError) and error.errno is not None:
        return refused(error)
    if out_of_memory(error):
        return of_memory(error, "out of memory", "take fewer pictures at once, smaller ones, or fewer workers")
    return None
