"""A server from its beginning to its end: port, processes, signals."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import uvicorn

from patchform import system
from patchform.errors import FolderError, ResourceError, UsageError
from patchform.serving import app
from patchform.serving.dispatch import Dispatcher
from patchform.serving.door import door
from patchform.serving.guard import Guard
from patchform.serving.jobs import Card
from patchform.serving.limits import Limits
from patchform.serving.model_process import Opening
from patchform.serving.processes import GoneError

ENDING = (signal.SIGTERM, signal.SIGINT)
"""Signals by which a server is told to end."""
BACKLOG, IDLE = 2048, 75
"""Connections that wait to be taken; seconds that one may ask nothing, more than those of common proxies: who closes
first meets no request of the other."""
SLEEP = ("OMP_WAIT_POLICY", "PASSIVE")
"""For the process of the model: threads that wait for others sleep. By default they turn in circles for that long, and
where others want the cores too, a batch took a second and a half in place of 70 ms."""


class Place(NamedTuple):
    """Where a server listens."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    """What clients must know."""

    def check(self) -> None:
        """Raise UsageError for a place that others reach, without a token."""
        if self.token is None and not self.is_loopback():
            remedy = "give --token, or stay on 127.0.0.1"
            raise UsageError(f"anybody could ask a server on {self.host}", remedy=remedy)
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise UsageError("a token that no header can hold", remedy="take letters and digits")

    def is_loopback(self) -> bool:
        """Whether this machine alone reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def bound(self) -> socket.socket:
        """A socket that holds the port. Raises FolderError: it is in use; UsageError: it cannot be had."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        # the protocol is named, since asyncio else does not know TCP, and lets small answers wait for 40 ms
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            if not system.WINDOWS:  # there it would share the port with another
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((self.host, self.port))
            found.listen(1)  # of two that hold a port that was left a moment ago, the second sees it here
        except OSError as error:
            found.close()
            if error.errno in (errno.EADDRINUSE, errno.EACCES) and self.port:
                remedy = "take another: --port 8001, or 0 for any that is free"
                what = "is in use" if error.errno == errno.EADDRINUSE else "may not be used"
                raise FolderError(f"port {self.port} {what}", remedy=remedy) from error
            raise UsageError(f"no server can be on {self.host} ({error.strerror})", remedy="give --host") from error
        return found


def serve(
    opening: Opening,
    place: Place,
    limits: Limits,
    decoders: int,
    *,
    begun: Callable[[str, Card], None],
    log: Callable[[str], None],
) -> int:
    """Serve a model until a signal ends it.

    Args:
        opening: of the model.
        place: where.
        limits: what it takes.
        decoders: processes that decode.
        begun: called with the address and what the model is, once pictures are answered.
        log: called with a line of JSON for each request.

    Returns:
        0; or 128 + the number of a second signal, which did not wait for what was accepted.

    Raises:
        PatchformError: the port cannot be had, the model not opened, or not any more.
    """
    place.check()
    os.environ.setdefault(*SLEEP)
    dispatcher = Dispatcher(opening, limits, decoders)
    guard = Guard(
        app.build(dispatcher),
        token=place.token,
        answered=dispatcher.counters.answered,
        log=log,
        busy=lambda: dispatcher.refusal(1),
    )
    with contextlib.closing(place.bound()) as listener:
        return asyncio.run(_serve(dispatcher, guard, listener, begun))


async def _serve(
    dispatcher: Dispatcher, guard: Guard, listener: socket.socket, begun: Callable[[str, Card], None]
) -> int:
    server = Server(guard, dispatcher.limits)
    with server.signals():
        try:
            opened = asyncio.ensure_future(dispatcher.open())
            await asyncio.wait({opened, server.told}, return_when=asyncio.FIRST_COMPLETED)
            if not opened.done():
                return 0
            _raise_if_failed(opened)
            assert dispatcher.card is not None
            assert dispatcher.failed is not None
            dispatcher.failed.add_done_callback(lambda _: server.end())
            begun(_address(listener), dispatcher.card)
            await server.serve(sockets=[listener])
        finally:
            await dispatcher.close()
    if dispatcher.failed.done():
        raise dispatcher.failed.result()
    return server.code


def _raise_if_failed(opened: asyncio.Future[None]) -> None:
    error = opened.exception()
    if isinstance(error, GoneError):
        raise ResourceError(
            f"the model was not opened: {error}", remedy="see whether there is enough memory"
        ) from error
    if error is not None:
        raise error


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn that refuses what comes for a moment before it closes its port, and ends by patchform's signals.

    Attributes:
        told: done once it was told to end.
        code: to end with.
    """

    def __init__(self, guard: Guard, limits: Limits) -> None:
        patience = max(1, round(limits.stop - limits.farewell))
        config = uvicorn.Config(
            guard, http=door(limits), ws="none", lifespan="off", loop="asyncio", log_config=None, access_log=False,
            server_header=False, backlog=BACKLOG, timeout_keep_alive=IDLE, timeout_graceful_shutdown=patience,
        )  # fmt: skip
        super().__init__(config)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it logs what clients send
        self._guard, self._limits = guard, limits
        self.told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.code = 0

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Be told to end by them, for as long as this lasts; in the main thread alone."""
        loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            one: signal.signal(one, lambda number, _: loop.call_soon_threadsafe(self.end, number)) for one in ENDING
        }
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are captured already, from before the model is opened."""
        yield

    def end(self, number: int = 0) -> None:
        """Refuse what comes, and end once what was accepted is answered; told so again, at once."""
        if self.told.done():
            self.force_exit = self.should_exit = True
            self.code = 128 + number if number else self.code
            return
        self.told.set_result(None)
        self._guard.stopping = True
        asyncio.get_running_loop().call_later(self._limits.farewell, self._close)

    def _close(self) -> None:
        self.should_exit = True
