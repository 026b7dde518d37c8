"""What systems do differently: locks of files, forks, the memory there is, words of a command line, names of files.

Nothing else imports a module, or names a call, that only some systems have (`tests/test_house.py` looks for them); what
differs in signals is in `signals.py`. What Windows does is told from its documentation: no test ran there.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    _windows_locks: Any = msvcrt
    _BY_BYTES = True
else:
    _BY_BYTES = False

WINDOWS = os.name == "nt"
_FAR = 1 << 30
"""The byte that a lock is on, where a locked one cannot be read by others: beyond whatever the file holds."""
_SPECIAL = re.compile(r"""[\s"&|<>^()%!,;='`$@{}#]""")
"""What cmd.exe or PowerShell take for more than a letter."""
_NO_LETTERS = re.compile(r'[<>:"|?*\x00-\x1f]|[ .]$')
_DEVICE = re.compile(r"(con|prn|aux|nul|com[1-9¹²³]|lpt[1-9¹²³])\s*(\..*)?$", re.IGNORECASE)
"""Names that Windows has for devices, with any ending."""


def try_lock(file: int, *, shared: bool = False) -> bool:
    """Lock an open file, unless another holds it. The lock ends when the file is closed, so with its process.

    Args:
        file: descriptor, open for writing unless `shared`.
        shared: who only wants to know. Where there are no such locks, it is held until the file is closed all the same.

    Raises:
        OSError: the file system knows no locks.
    """
    try:
        if not _BY_BYTES:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        place = os.lseek(file, 0, os.SEEK_CUR)
        os.lseek(file, _FAR, os.SEEK_SET)
        try:
            _windows_locks.locking(file, _windows_locks.LK_NBLCK, 1)
        finally:
            os.lseek(file, place, os.SEEK_SET)
        return True
    except (BlockingIOError, PermissionError):  # the second is Windows' word for it
        return False


def after_fork(
    in_child: Callable[[], object],
    *,
    before: Callable[[], object] | None = None,
    in_parent: Callable[[], object] | None = None,
) -> None:
    """Have functions called around every fork of this process; nothing where none is ever forked."""
    if hasattr(os, "register_at_fork"):
        others = {"before": before, "after_in_parent": in_parent}
        os.register_at_fork(after_in_child=in_child, **{name: call for name, call in others.items() if call})


def flush_folder(folder: Path) -> None:
    """Put the names in a folder onto the disk. Windows opens no folders: there the file system sees to it."""
    if WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cores() -> int:
    """Cores that this process may use: of a container with a share of the machine's time, as many as that is."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(found, _share_of_time())))


def _share_of_time() -> float:
    """Cores' worth of time that Linux gives this group of processes; infinite without a limit."""
    for quota, period in _LIMITS_OF_TIME:
        try:
            words = [
                *quota.read_text(encoding="utf-8").split(),
                *(period.read_text(encoding="utf-8").split() if period else []),
            ]
            return int(words[0]) / int(words[1]) if int(words[0]) > 0 else math.inf
        except (OSError, ValueError, IndexError, ZeroDivisionError):  # no such file, or "max"
            continue
    return math.inf


_GROUPS = Path("/sys/fs/cgroup")
_LIMITS_OF_TIME = (
    (_GROUPS / "cpu.max", None),
    (_GROUPS / "cpu/cpu.cfs_quota_us", _GROUPS / "cpu/cpu.cfs_period_us"),
)
"""Microseconds of processor time, and in how many: of the second and the first version of control groups."""


def memory() -> list[int]:
    """Bytes of memory: what the machine has and, where the system tells by the same call, what is available."""
    if hasattr(os, "sysconf"):
        return [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    told = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    try:
        known = ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(told))  # type: ignore[attr-defined]
    except (AttributeError, OSError):
        return []
    return [told.total, told.available] if known else []


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 5),
    )


def c_library() -> Any:
    """The functions of the C library that this process runs on. Raises OSError or TypeError where it is not told."""
    return ctypes.CDLL(None)


def quoted(word: str) -> str:
    """A word as it is typed on a command line of this system."""
    if not WINDOWS:
        return shlex.quote(word)
    if word and not _SPECIAL.search(word):
        return word
    # a backslash means itself but before a quotation mark, where it must be doubled
    inner = re.sub(r'(\\*)"', r'\1\1\\"', word)
    return '"' + re.sub(r"(\\+)$", r"\1\1", inner) + '"'


def joined(words: Iterable[str]) -> str:
    """Words as one command line."""
    return " ".join(map(quoted, words))


def is_file_name(name: str) -> bool:
    """Whether the system takes a name for a file; Windows takes others for devices or streams, or cuts them."""
    return not WINDOWS or not (_NO_LETTERS.search(name) or _DEVICE.match(name))


def file_name(name: str) -> str:
    """A name, or one like it that the system takes for a file."""
    return name if is_file_name(name) else "_" * bool(_DEVICE.match(name)) + _NO_LETTERS.sub("_", name)
