"""A small client of HTTP/1.1 for benchmarks of servers: many connections in one process, and bytes no client sends.

It measures what a client sees: seconds from the first byte that it sends to the last that it gets.
"""

import asyncio
import json
import time
from contextlib import suppress
from statistics import median
from typing import Any, NamedTuple

TIMEOUT = 60.0


class Reply(NamedTuple):
    """What came back."""

    status: int
    """0: the connection ended without an answer."""
    headers: dict[str, str]
    body: bytes
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A connection that is opened when it is needed, and kept."""

    def __init__(self, host: str, port: int, token: str | None = None) -> None:
        self.host, self.port, self.token = host, port, token
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None

    def head(self, method: str, path: str, length: int | None, kind: str, **more: str) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}"]
        lines += [f"Authorization: Bearer {self.token}"] if self.token else []
        lines += [f"Content-Type: {kind}"] if kind else []
        lines += [f"Content-Length: {length}"] if length is not None else []
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    async def post(self, path: str, body: bytes, kind: str = "image/jpeg") -> Reply:
        return await self.send(self.head("POST", path, len(body), kind) + body)

    async def get(self, path: str) -> Reply:
        return await self.send(self.head("GET", path, None, ""))

    async def send(self, data: bytes) -> Reply:
        """Bytes as they are, and the reply to them."""
        begin = time.perf_counter()
        try:
            async with asyncio.timeout(TIMEOUT):
                await self.open()
                with suppress(ConnectionError):  # it may answer before it has read all
                    self.writer.write(data)
                    await self.writer.drain()
                return await self.reply(begin)
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError, OSError):
            self.close()
            return Reply(0, {}, b"", time.perf_counter() - begin)

    async def reply(self, begin: float) -> Reply:
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        status = int(first.split()[1])
        if status == 100:
            return await self.reply(begin)
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Reply(status, headers, body, time.perf_counter() - begin)


def form(*files: bytes, name: str = "file") -> tuple[bytes, str]:
    """A body of multipart/form-data, and its type."""
    line = "--frontier"
    head = f'{line}\r\nContent-Disposition: form-data; name="{name}"; filename="a.jpg"\r\n\r\n'.encode()
    return b"".join(head + file + b"\r\n" for file in files) + f"{line}--\r\n".encode(), (
        "multipart/form-data; boundary=frontier"
    )


def share(values: list[float], part: float) -> float:
    """The value below which a part of all lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


def summary(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: the middle, nine of ten, 99 of 100."""
    if not seconds:
        return {}
    return {"p50": 1e3 * median(seconds), "p90": 1e3 * share(seconds, 0.9), "p99": 1e3 * share(seconds, 0.99)}
