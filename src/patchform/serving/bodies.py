"""Bodies of requests: counted while they come, few large ones at once, taken apart with bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from patchform.serving.errors import RequestError
from patchform.serving.limits import Limits

FIELD = b"file"
"""Of a form: what pictures are called."""
BOUNDARY = 256
"""Bytes."""
RAW = ("image/", "video/", "application/octet-stream")
FORM = "multipart/form-data"
HOW = (
    "send a picture as image/jpeg or another image type, as application/octet-stream, or in a form: curl -F file=@a.jpg"
)


class Bodies:
    """Reads requests.

    Args:
        limits: of bytes, pictures, and of bodies that are held at once.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._large = asyncio.Semaphore(limits.large)

    @asynccontextmanager
    async def pictures(self, request: Request) -> AsyncIterator[tuple[list[bytes], bool]]:
        """The files that a request brings, and whether it is a form. It counts as held until the context ends.

        Raises:
            RequestError: too large, of another type, or none in it.
            starlette.requests.ClientDisconnect: whoever sent it left.
        """
        kind = _check_head(request)
        declared = request.headers.get("content-length", "0")
        if int(declared) > self._limits.body:  # digits, as h11 has seen
            raise self._too_large()
        async with self._held(request) as body:
            if kind != FORM:
                if not body:
                    raise RequestError(400, "no_picture", "the body is empty")
                yield [body], False
            else:
                yield parts(body, _boundary(request), self._limits.pictures), True

    @asynccontextmanager
    async def _held(self, request: Request) -> AsyncIterator[bytes]:
        body, large = bytearray(), False
        try:
            async for chunk in request.stream():
                if len(body) + len(chunk) > self._limits.body:
                    raise self._too_large()
                if not large and len(body) + len(chunk) > self._limits.small:
                    await self._large.acquire()  # meanwhile nothing more is read of this connection
                    large = True
                body += chunk
            yield bytes(body)
        finally:
            if large:
                self._large.release()

    def _too_large(self) -> RequestError:
        return RequestError(413, "too_large", f"more than {self._limits.body} bytes", close=True)


def _check_head(request: Request) -> str:
    """The type of the body, in lower case."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "wrong_type", "the body is compressed; send it as it is", close=True)
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if kind != FORM and not kind.startswith(RAW):
        raise RequestError(415, "wrong_type", f"this type is not taken; {HOW}", close=True)
    return kind


def _boundary(request: Request) -> bytes:
    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= BOUNDARY:
        raise RequestError(400, "bad_form", f"a form without a boundary, or with one of more than {BOUNDARY} bytes")
    return boundary


def parts(body: bytes, boundary: bytes, most: int) -> list[bytes]:
    """The content of all fields called `file` of a form, in their order.

    Args:
        body: of a request, bounded.
        boundary: between the parts.
        most: files.

    Raises:
        RequestError: it is no form, has other fields, too many or none.
    """
    form = _Form(most)
    parser = MultipartParser(boundary, form.callbacks())  # the body is bounded; at most eight headers of 4 kB a part
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise RequestError(400, "bad_form", "the form is damaged") from None
    if not form.ended:
        raise RequestError(400, "bad_form", "the form is cut off")
    if not form.files:
        raise RequestError(400, "no_picture", "no field of the form is called file; send one: curl -F file=@a.jpg")
    return form.files


class _Form:
    """What a parser finds."""

    def __init__(self, most: int) -> None:
        self.files: list[bytes] = []
        self.ended = False
        self._most = most
        self._name, self._value, self._disposition = bytearray(), bytearray(), b""
        self._content = bytearray()

    def callbacks(self) -> Any:
        """By the names that the parser has for them."""
        names = (
            "part_begin",
            "part_data",
            "part_end",
            "header_field",
            "header_value",
            "header_end",
            "headers_finished",
        )
        return {f"on_{name}": getattr(self, name) for name in names} | {"on_end": self.end}

    def part_begin(self) -> None:
        """A part."""
        if len(self.files) == self._most:
            raise RequestError(413, "too_many", f"more than {self._most} parts of a form")
        self._disposition = b""
        self._content = bytearray()

    def header_field(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's name."""
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        """A piece of its value."""
        self._value += data[start:end]

    def header_end(self) -> None:
        """A header is whole."""
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def headers_finished(self) -> None:
        """What kind of field it is."""
        if parse_options_header(self._disposition)[1].get(b"name") != FIELD:
            raise RequestError(
                422, "unknown_field", "a form has fields called file and no others; options are in the URL"
            )

    def part_data(self, data: bytes, start: int, end: int) -> None:
        """A piece of the content."""
        self._content += data[start:end]

    def part_end(self) -> None:
        """A part is whole."""
        self.files.append(bytes(self._content))

    def end(self) -> None:
        """The form is whole."""
        self.ended = True
