"""Several processes that do one work: `torchrun --nproc-per-node 2 -m patchform train ...`, on one machine or many.

All of them read the same recipe and run the same lines; the first alone writes. Alone, a process finds nothing here to
wait for. Only numbers and text go from one to another, never pickles.
"""

from __future__ import annotations

import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

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
MEETING = 120.0
"""Seconds in which all processes of a run must have come: they are started together."""
_stores: Any = dist  # torch has no types for them
ANSWER = 10.0
"""Seconds in which what listens at the meeting place must have answered: another program never does."""


@contextmanager
def process_group() -> Iterator[Rank]:
    """Work with the processes that torchrun started beside this one, if it did; the rank of this one.

    On GPUs each process takes the one of its number on its machine.

    Raises:
        UsageError: there are several, and what torchrun says of each is not there or is no place.
        ResourceError: the port is taken, nobody can be reached, or not all come within `MEETING` seconds.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or dist.is_initialized():
        yield rank_and_world()
        return
    if missing := [name for name in _TORCHRUN if name not in os.environ]:
        remedy = "start it with torchrun, or unset WORLD_SIZE"
        raise UsageError(f"WORLD_SIZE is set and {missing[0]} is not", remedy=remedy)
    if torch.cuda.is_available():
        local = _number("LOCAL_RANK", 0) if "LOCAL_RANK" in os.environ else 0
        torch.cuda.set_device(local % torch.cuda.device_count())
    rank, store = _meet()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _peer_errors():
        dist.init_process_group(backend, store=store, rank=rank.rank, world_size=rank.world_size, timeout=PATIENCE)
    try:
        yield rank_and_world()
    finally:
        dist.destroy_process_group()


def _meet() -> tuple[Rank, Any]:
    """Wait until all processes are there; the rank of this one, and what they share.

    torch alone waits for hours for one that never comes, and for ever for another program on the port.
    """
    rank = Rank(_number("RANK", 0), _number("WORLD_SIZE", 1))
    port, host = _number("MASTER_PORT", 0), os.environ["MASTER_ADDR"]
    if not (rank.rank < rank.world_size and port < 2**16):
        raise UsageError(f"RANK {rank.rank} of {rank.world_size} at port {port} is no place", remedy=_START)
    end = time.monotonic() + MEETING
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    store = _store(host, port, rank, serves=rank.is_main and not agent, end=end)
    if agent:
        store = _stores.PrefixStore(f"patchform/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    # the first one answers each of them: a store of another run has old keys and nobody who answers
    others = [str(number) for number in range(1, rank.world_size)]
    mark = secrets.token_hex(8)
    if rank.is_main:
        _wait(store, [f"here/{other}" for other in others], rank, end)
        for other in others:
            store.set(f"seen/{store.get(f'here/{other}').decode()}", "")
    else:
        store.set(f"here/{rank.rank}", mark)
        _wait(store, [f"seen/{mark}"], rank, end)
    return rank, store


_START = "start it with torchrun, or unset WORLD_SIZE"


def _number(name: str, least: int) -> int:
    text = os.environ[name]
    if not text.isdecimal() or int(text) < least:
        raise UsageError(f"{name} is {text!r}, not a number from {least}", remedy=_START)
    return int(text)


def _store(host: str, port: int, rank: Rank, *, serves: bool, end: float) -> Any:
    """The place where they meet: made by the first one, where no agent of torchrun has made it already."""
    where = f"{host}:{port}"
    if not serves:
        _reach(host, port, end)
    else:
        _resolve(host, time.monotonic())
        with socket.socket() as probe:  # of what torch says at length
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                what = f"port {port} of this machine cannot be had ({error.strerror})"
                raise ResourceError(what, remedy="name another MASTER_PORT (torchrun --master-port)") from None
    made: queue.Queue[Any] = queue.Queue()

    def make() -> None:
        try:
            made.put(
                _stores.TCPStore(host, port, rank.world_size, serves, timedelta(minutes=1), wait_for_workers=False)
            )
        except Exception as error:
            made.put(error)

    threading.Thread(target=make, daemon=True).start()
    try:
        store = made.get(timeout=ANSWER)
    except queue.Empty:
        what = "what listens there is no process of this run"
        raise ResourceError(what, where=where, remedy="name another MASTER_PORT (torchrun --master-port)") from None
    if isinstance(store, Exception):
        reason = str(store).split("\n")[0][:200]
        raise ResourceError(f"the processes cannot meet ({reason})", where=where, remedy=_ADDRESS) from store
    return store


_ADDRESS = "name the machine of the first process as MASTER_ADDR, and a free port of it as MASTER_PORT"


def _resolve(host: str, end: float) -> None:
    """Wait until a name is known: that of a container may come late. Raises UsageError."""
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except (socket.gaierror, UnicodeError) as error:
            if time.monotonic() > end:
                raise UsageError(f"MASTER_ADDR {host!a} is no machine ({error})", remedy=_ADDRESS) from None
            time.sleep(0.5)


def _reach(host: str, port: int, end: float) -> None:
    """Wait until something listens at a place. Raises ResourceError."""
    _resolve(host, min(end, time.monotonic() + ANSWER))
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                what = f"the first process did not come within {MEETING:.0f} seconds ({error.strerror or error})"
                raise ResourceError(what, where=f"{host}:{port}", remedy=_ADDRESS) from None
            time.sleep(0.2)


def _wait(store: Any, keys: list[str], rank: Rank, end: float) -> None:
    """Wait for keys, in small steps: a signal is heard meanwhile. Raises ResourceError."""
    waiting = list(keys)
    try:
        while waiting := [key for key in waiting if not store.check([key])]:
            if time.monotonic() > end:
                missing = f"{len(waiting)} of {rank.world_size} processes" if rank.is_main else "the first process"
                raise ResourceError(
                    f"{missing} did not come within {MEETING:.0f} seconds",
                    remedy="start all of them together, with one MASTER_ADDR and MASTER_PORT",
                )
            time.sleep(0.05)
    except RuntimeError as error:  # of torch: the first one is gone
        raise ResourceError(
            "another process of this run ended before all had come", remedy="see what it says"
        ) from error


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
