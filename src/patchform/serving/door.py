"""Connections of a server: a whole request within a time, and none that keep others out by asking nothing.

uvicorn waits for a request for ever, and counts whoever is connected: sixty clients that send half a header shut out
all others of a server of fifty.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from patchform.serving.limits import Limits

CODES = {400: "bad_request", 408: "late", 503: "busy"}


def door(limits: Limits) -> type[Door]:
    """The protocol of a server, for `uvicorn.Config(http=...)`."""
    return type("Door", (Door,), {"limits": limits, "quiet": {}})


class Door(H11Protocol):
    """A connection of HTTP/1.1.

    From its first moment, or the first byte of its next request, it has `limits.receive` seconds to send a whole one;
    then it is closed with 408. Beyond `limits.connections` the one that has asked nothing whole for longest is closed.
    """

    limits: ClassVar[Limits]
    quiet: ClassVar[dict[Door, None]]
    """Connections without a whole request, since it is still coming or since they ask nothing: the longest first."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to count."""
        super().connection_made(transport)
        self._await_request()
        open_ones = sum(not one.transport.is_closing() for one in self.connections)
        if open_ones > self.limits.connections:
            next(iter(self.quiet)).make_room()

    def data_received(self, data: bytes) -> None:
        """Take part of a request."""
        if self._timer is None and self.conn.their_state is h11.IDLE:
            self._await_request()
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._is_whole()

    def on_response_complete(self) -> None:
        """Be ready for another, of which a part may have come already."""
        self._is_whole()
        super().on_response_complete()
        state, begun = self.conn.their_state, self.conn.trailing_data[0]
        if self._timer is None and (state is h11.SEND_BODY or (state is h11.IDLE and begun)):
            self._await_request()
        elif not self.transport.is_closing():
            self.quiet[self] = None

    def make_room(self) -> None:
        """Go, for another connection."""
        if self._timer is not None:
            self.refuse(503, "there are too many connections")
        else:  # an answer that nobody asked for could be taken for that to the next request
            self._is_whole()
            super().shutdown()

    def shutdown(self) -> None:
        """The server ends: what is not whole was not accepted."""
        if self in self.quiet and self.cycle is not None and not self.cycle.response_complete:
            self.refuse(503, "the server is about to end")
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._is_whole()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Of what is no HTTP: in the form of all other errors."""
        self.refuse(400, "this is no request of HTTP/1.1")

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error, if nothing was answered yet, and close the connection."""
        self._is_whole()
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"code": CODES[status], "message": message}).encode()
            head = [("content-type", "application/json"), ("connection", "close"), ("content-length", str(len(body)))]
            head += [("retry-after", "1")] if status == 503 else []
            events: list[Any] = [h11.Response(status_code=status, headers=head), h11.Data(data=body)]
            for event in [*events, h11.EndOfMessage()]:
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _await_request(self) -> None:
        self.quiet.pop(self, None)
        self.quiet[self] = None
        message = f"the request was not whole after {self.limits.receive:g} seconds"
        self._timer = self.loop.call_later(self.limits.receive, self.refuse, 408, message)

    def _is_whole(self) -> None:
        """Or gone."""
        self.quiet.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
