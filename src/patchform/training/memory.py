"""How the C library keeps memory between the steps of a training run on the CPU."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters in glibc's malloc.h."""
_LARGEST = 2**31 - 1
"""What fits into the C int."""


def keep_freed_memory() -> bool:
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_TRIM_THRESHOLD, _LARGEST) and libc.mallopt(_MMAP_THRESHOLD, 1 << 30))
