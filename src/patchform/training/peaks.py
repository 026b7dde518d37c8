"""How many bytes tensors take at most, and how many there are room for."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from patchform import system

_MEMINFO, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


class Peak:
    """Bytes of the tensors that were made within `measured`."""

    most = 0
    """At the same time."""
    left = 0
    """Still there at its end."""


@contextmanager
def measured(device: torch.device) -> Iterator[Peak]:
    """Measure what tensors take beyond those that there are.

    On CUDA it is what the allocator says. Elsewhere the results of all operations are followed until they are freed;
    the scratch space that a kernel takes for itself is not seen, and neither is what the allocator cannot use again.

    Args:
        device: "cuda" or "cpu".

    Yields:
        Filled in at the end.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.most = torch.cuda.max_memory_allocated(device) - before
        peak.left = torch.cuda.memory_allocated(device) - before
    else:
        with _Alive() as alive:
            yield peak
        peak.most, peak.left = alive.most, alive.now


class _Alive(TorchDispatchMode):
    """Follows the storages that are made within it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call(*args, **(kwargs or {}))
        inputs = _storages((args, kwargs))
        for pointer, storage in _storages(result).items():
            if pointer not in inputs:  # neither a view nor the input itself
                size = storage.nbytes()
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._freed, size)
        return result

    def _freed(self, size: int) -> None:
        self.now -= size


def _storages(values: Any) -> dict[int, torch.UntypedStorage]:
    tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
    return {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}


def room(device: torch.device) -> int:
    """Bytes that a new process could give to tensors.

    On the CPU: what the system calls available, or less where the process is confined to a group (a container); without
    either, all there is, and no limit where that is not told.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    rooms = system.memory()
    if available := _numbers(_MEMINFO).get("MemAvailable:"):
        rooms.append(available << 10)
    limit, used = (_first(_GROUP / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        rooms.append(limit - used + _numbers(_GROUP / "memory.stat").get("inactive_file", 0))
    return max(0, min(rooms, default=sys.maxsize))


def _numbers(file: Path) -> dict[str, int]:
    """The lines of a name and a number; none where there is no such file."""
    lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _first(file: Path) -> int | None:
    """The number in a file; None where there is no file or it says "max"."""
    text = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return int(text) if text.isdigit() else None
