"""Text as people's tools write it: UTF-8, or UTF-16 and UTF-32 that say so in their first bytes; nothing is guessed."""

from __future__ import annotations

import codecs
from pathlib import Path

from patchform.errors import DataError

_MARKS = (  # the longer ones first: UTF-32 begins as UTF-16 does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL = frozenset(range(32)) - set(b"\t\n\r\f") | {127}
_LOOKED_AT = 1 << 16


def read_text(file: Path) -> str:
    """The text of a file, without its byte order mark. Raises DataError."""
    try:
        return decoded(file.read_bytes(), file)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=file) from None


def decoded(data: bytes, where: object) -> str:
    """The text of bytes.

    Raises:
        DataError: neither UTF-8 nor what its first bytes say, with the byte, the line and what it seems to be.
    """
    encoding = _marked(data) or "utf-8-sig"
    name = "UTF-8" if encoding == "utf-8-sig" else f"{encoding.upper()}, as its first bytes say, nor UTF-8"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        seems = _resemblance(data, error.start) if encoding == "utf-8-sig" else ""
        what = f"not {name} (byte {error.start}, line {line}{', ' * bool(seems)}{seems})"
        raise DataError(what, where=where, remedy="save it as UTF-8") from None
    if encoding == "utf-8-sig" and "\0" in text:
        seems = "UTF-16 without a byte order mark, or no text at all"
        raise DataError(f"not UTF-8 (zeros from byte {data.index(0)}: {seems})", where=where, remedy="save it as UTF-8")
    return text


def beginning(file: Path, size: int) -> str:
    """The first so many bytes as text, to tell by what is in a file; "" where it cannot be read."""
    try:
        with file.open("rb") as stream:
            data = stream.read(size)
    except OSError:
        return ""
    zeros = data[:_LOOKED_AT].count(0)
    unmarked = "utf-16-be" if data[:1] == b"\0" else "utf-16-le" if zeros * 4 > len(data[:_LOOKED_AT]) else "utf-8-sig"
    return data.decode(_marked(data) or unmarked, errors="replace")


def _marked(data: bytes) -> str | None:
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)


def _resemblance(data: bytes, at: int) -> str:
    """What bytes that are no UTF-8 look like, with the word that holds the one at `at`."""
    head = data[max(0, at - _LOOKED_AT) : at + _LOOKED_AT]
    if 0 in head:
        return "UTF-16 without a byte order mark, or no text at all"
    if _CONTROL & set(head):
        return "no text"
    word = (data[:at].split() or [b""])[-1][-20:] if at and not data[at - 1 : at].isspace() else b""
    word += (data[at:].split() or [b""])[0][:20]
    return f'Latin-1 or Windows-1252, as it seems: "{word.decode("cp1252", errors="replace")}"'
