"""Several processes that do one work: `torchrun --nproc-per-node 2 -m patchform train ...`, on one machine or many.

All of them read the same recipe and run the same lines; the first alone writes. Alone, a process finds nothing here to
wait for. Only numbers and text go from one to another, never pickles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from patchform.errors import Interrupted, PeerError, ResourceError, UsageError

T = TypeVar("T")
PATIENCE = timedelta(hours=12)
"""Longest wait for another process: all wait for the first one's validation. One that ended is noticed at once."""
BUCKET = 1 << 24
"""Numbers that are added up in one go, so that the room for them does not grow with the model."""


class Rank(NamedTuple):
    """Which process this is, of how many."""

    rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @property
    def single(self) -> bool:
        """Whether there is no other."""
        return self.world_size == 1


SINGLE = Rank(0, 1)
_TORCHRUN = ("RANK", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def process_group() -> Iterator[Rank]:
    """Work with the processes that torchrun started beside this one, if it did; the rank of this one.

    On GPUs each process takes the one of its number on its machine.

    Raises:
        UsageError: there are several, and what torchrun says of each is not there.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or dist.is_initialized():
        yield rank_and_world()
        return
    if missing := [name for name in _TORCHRUN if name not in os.environ]:
        remedy = "start it with torchrun, or unset WORLD_SIZE"
        raise UsageError(f"WORLD_SIZE is set and {missing[0]} is not", remedy=remedy)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield rank_and_world()
    finally:
        dist.destroy_process_group()


def rank_and_world() -> Rank:
    """The rank of this process."""
    if not (dist.is_available() and dist.is_initialized()):
        return SINGLE
    return Rank(dist.get_rank(), dist.get_world_size())


def all_or_none(work: Callable[[], T]) -> T:
    """The result of `work`; where it fails in one process, all of them fail.

    Raises:
        PatchformError: what `work` raised here.
        Interrupted: it was interrupted elsewhere.
        PeerError: it failed in another process.
    """
    if rank_and_world().single:
        return work()
    error: Exception | None = None
    try:
        result = work()
    except Exception as fault:
        error = fault
    code = torch.tensor(0 if error is None else getattr(error, "exit_code", 1))
    with _peer_errors():
        dist.all_reduce(code, dist.ReduceOp.MAX)
    if error is not None:
        raise error
    if worst := int(code):
        raise Interrupted(worst) if worst > 128 else PeerError(worst)
    return result


def broadcast_text(work: Callable[[], str]) -> str:
    """The text that `work` gives in the first process, in all of them; errors as `all_or_none`."""
    rank = rank_and_world()
    text = all_or_none(lambda: work() if rank.is_main else "")
    if rank.single:
        return text
    data = text.encode(errors="surrogateescape")
    length = torch.tensor(len(data))
    with _peer_errors():
        dist.broadcast(length, 0)
        letters = torch.zeros(int(length), dtype=torch.uint8)
        if rank.is_main:
            letters.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(letters, 0)
    return bytes(letters.tolist()).decode(errors="surrogateescape")


def all_reduce_sum(tensors: Sequence[Tensor]) -> None:
    """Put into each tensor its sum over all processes; they have the same shapes, types and devices in each."""
    _in_buckets(tensors, lambda together: dist.all_reduce(together))


def all_reduce_mean(tensors: Sequence[Tensor]) -> None:
    """Put into each tensor its mean over all processes, likewise."""
    if not rank_and_world().single and tensors:
        all_reduce_sum(tensors)
        torch._foreach_div_(list(tensors), rank_and_world().world_size)


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Put into each tensor what it holds in the first process."""
    _in_buckets(tensors, lambda together: dist.broadcast(together, 0))


@torch.no_grad()
def _in_buckets(tensors: Sequence[Tensor], work: Callable[[Tensor], object]) -> None:
    """Let all processes work on the tensors together, in place and many at once."""
    if rank_and_world().single:
        return
    for part in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in part])
        with _peer_errors():
            work(flat)
        for tensor, values in zip(part, flat.split([tensor.numel() for tensor in part])):
            tensor.copy_(values.view(tensor.shape))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of one type and device, of about `BUCKET` numbers."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for group in kinds.values():
        cuts, size = [0], 0
        for number, tensor in enumerate(group):
            if size and size + tensor.numel() > BUCKET:
                cuts.append(number)
                size = 0
            size += tensor.numel()
        yield from (group[start:end] for start, end in pairwise([*cuts, len(group)]))


@contextmanager
def _peer_errors() -> Iterator[None]:
    """A process that ended in the middle of things is missed by all."""
    try:
        yield
    except RuntimeError as error:
        raise ResourceError("another process of this run ended", remedy="resume the run") from error
