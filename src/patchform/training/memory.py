"""Memory: how long the C library keeps what a step has freed, and the error when there is none left."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

from patchform import system
from patchform.descriptions import Preprocessing
from patchform.resources import of_memory, out_of_memory

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of mallopt(3), from glibc's malloc.h."""
_LARGEST = 2**31 - 1
"""The highest C int: as good as never."""
_MAPPED_FROM = (1 << 30, 32 << 20)
"""Blocks from this size on are mapped one by one; glibc before 2.35 refuses more than the second."""


def keep_freed_memory() -> bool:
    """Keep glibc from giving freed memory back to the system, for the whole process.

    Unasked, it unmaps freed blocks above 32 MiB at once and cuts free space of 64 MiB off the end of the heap. A
    training step frees all of its activations, so the next one has each page put in, and zeroed, by the system again:
    33,000 page faults a step of ViT-S/16 with 8 images in float32, against 600 with this.

    Processor time without / with it, medians in turns within one process, one thread of a busy machine, glibc 2.36:
    that step 1.08, in bfloat16 1.09, with 32 images in bfloat16 1.03; forward with 64 images in bfloat16 1.16, with 32
    in float32 1.05, with 8 0.98 to 1.01; a step of ViTs of width 96 (not in turns) and 128 on 32-pixel images 1.04 and
    0.98. Memory stays at the peak of the first steps, which it would come back to anyway.

    Returns:
        Whether it was done. False, and nothing changed, with another C library (macOS, Windows, musl). Never raises.
    """
    try:
        if platform.libc_ver()[0] != "glibc":
            return False
        set_option = system.c_library().mallopt
    except (OSError, AttributeError, TypeError):  # no such file, no such function, no CDLL of the process itself
        return False
    trimming_off = bool(set_option(_TRIM_THRESHOLD, _LARGEST))
    return any(set_option(_MMAP_THRESHOLD, size) for size in _MAPPED_FROM) and trimming_off


@contextmanager
def memory_errors(part: int, preprocessing: Preprocessing) -> Iterator[None]:
    """Say what was too large; nothing is ever made smaller unasked."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        height, width = preprocessing.size
        raise of_memory(
            error,
            f"out of memory with {part} images of {height}x{width} at once",
            "lower training.micro_batch (the result stays the same) or training.pixels_at_once, or set"
            " model.checkpointing",
        ) from error
