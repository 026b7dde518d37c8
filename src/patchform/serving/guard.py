"""Around all answers: who may ask, what each answer carries, and a line of the log for each."""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
import traceback
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from itertools import chain
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from patchform.serving.errors import RETRY, RequestError
from patchform.serving.jobs import Refusal

MODULES = ("page", "answers", "controls", "dom", "indexed", "masks", "picture", "server", "stage")
"""Scripts of the page."""
OPEN = frozenset(
    {
        "/live",
        "/ready",
        "/metrics",
        "/openapi.json",
        "/",
        "/page.css",
        "/icon.svg",
        *(f"/{name}.js" for name in MODULES),
    }
)
"""What needs no token: it says nothing of the model."""
PREDICT = "/predict"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
LEFT = 499
"""Status in the log of a request whose sender left."""
LINGER, LINGER_BYTES = 0.5, 50_000_000
"""Seconds and bytes that are read of a request after its last answer."""
MOST_HEADERS, HEAD = 100, 32_000
"""Of a request; bytes of all together."""
SHOWN = 200
"""Characters of a path in the log."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI around an application.

    Args:
        app: answers.
        token: without which nothing of the model is told; None: anybody may ask who names a loopback address.
        answered: called with the status of each answer.
        log: called with a line of JSON.
        busy: why a picture more is not taken, asked before anything of it is read; None: it is.

    Attributes:
        stopping: the server is about to end: what comes is refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        answered: Callable[[int], None],
        log: Callable[[str], None],
        busy: Callable[[], Refusal | None],
    ) -> None:
        self._app, self._token, self._answered, self._log, self._busy = app, token, answered, log, busy
        self.stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, name = time.monotonic(), secrets.token_hex(8)
        scope.setdefault("state", {})["request"] = name
        seen: dict[str, Any] = {}

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                self._dress(message, name)
            await send(message)

        try:
            refused = self._refused(scope)
            if refused is None:
                await self._app(scope, receive, sent)
            else:
                await answer(refused, name)(scope, receive, sent)
        except Exception as error:
            seen["error"] = "".join(traceback.format_exception(error))
            if "status" not in seen:
                bug = RequestError(500, "bug", "the server failed; its log says why")
                await answer(bug, name)(scope, receive, sent)
        finally:
            self._note(scope, name, seen, time.monotonic() - begin)

    def _refused(self, scope: Scope) -> RequestError | None:
        path, headers = scope["path"], dict(scope["headers"])
        if scope["http_version"] not in ("1.0", "1.1"):
            return RequestError(505, "wrong_version", "this server speaks HTTP/1.1", close=True)
        if len(scope["headers"]) > MOST_HEADERS or sum(map(len, chain(*scope["headers"]))) > HEAD:
            return RequestError(
                431, "too_many_headers", f"more than {MOST_HEADERS} headers or {HEAD} bytes", close=True
            )
        if self.stopping and path not in ("/live", "/metrics"):
            return RequestError(503, "stopping", "the server is about to end", close=True)
        if self._token is None:
            host = headers.get(b"host", b"").decode("latin-1").rpartition(":")
            if (host[0] if host[1] and host[2].isdigit() else "".join(host)).lower() not in LOOPBACK:
                remedy = "name this machine as localhost, or start the server with a token"
                return RequestError(
                    421, "wrong_host", f"this server answers its own machine alone; {remedy}", close=True
                )
        elif path not in OPEN:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token.encode()):
                return RequestError(401, "no_token", "send the header Authorization: Bearer TOKEN", close=True)
        refusal = self._busy() if path == PREDICT and scope["method"] == "POST" else None
        return None if refusal is None else RequestError.of(refusal)

    def _dress(self, message: MutableMapping[str, Any], name: str) -> None:
        given = {key.lower() for key, _ in message["headers"]}
        own = HEADERS | {"x-request-id": name} | ({"connection": "close"} if self.stopping else {})
        more = [(key.encode(), value.encode()) for key, value in own.items() if key.encode() not in given]
        message["headers"] = [*message["headers"], *more]

    def _note(self, scope: Scope, name: str, seen: dict[str, Any], seconds: float) -> None:
        status = seen.get("status", LEFT)
        self._answered(status)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request": name,
            "client": (scope.get("client") or ("",))[0],
            "method": scope["method"][:SHOWN],
            "path": scope["path"][:SHOWN],
            "status": status,
            "ms": round(1e3 * seconds, 1),
        }
        self._log(json.dumps(line | ({"error": seen["error"]} if "error" in seen else {})))


def answer(error: RequestError, name: str) -> JSONResponse:
    """The response that an error is.

    Args:
        error: what is wrong.
        name: of the request.
    """
    headers = {"retry-after": "1"} if error.code in RETRY else {}
    headers |= {"www-authenticate": "Bearer"} if error.status == 401 else {}
    headers |= {"connection": "close"} if error.close else {}
    kind = Last if error.close else JSONResponse
    return kind(error.record() | {"request": name}, error.status, headers)


class Last(JSONResponse):
    """The last response of a connection. What is still sent is read for a moment: a connection that is closed on unread
    bytes is reset, and the answer lost.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        read, more = 0, True
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while more and read < LINGER_BYTES:
                    message = await receive()
                    more = message.get("more_body", False)
                    read += len(message.get("body", b""))
        await send({"type": "http.response.body", "body": b""})
