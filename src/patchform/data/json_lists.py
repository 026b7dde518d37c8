"""Large JSON documents, an element at a time: only the text is ever whole in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from patchform.errors import DataError

MAX_BYTES = 2_000_000_000
"""Largest document that is read."""
_SPACE = re.compile(r"[ \t\n\r]*")
_BETWEEN = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*")
_CONSTANT = re.compile(r'(?<!["\w])(?:NaN|-?Infinity)(?!["\w])')


def elements(file: Path) -> Iterator[tuple[str, Any]]:
    """The keys of the object that a document is, each with its value, or one by one with the elements of its list.

    An empty list gives (key, None).

    Raises:
        DataError: cannot be read, too large, not UTF-8 (a byte order mark is accepted), cut off, not JSON (with line
            and column; NaN and Infinity are not), not an object, or a key twice.
    """
    text = _text(file)
    decoder = json.JSONDecoder(parse_constant=_refuse)
    at = 0

    def space(position: int) -> int:
        found = _SPACE.match(text, position)
        return found.end() if found else position

    def expect(position: int, wanted: str) -> str:
        if text[position : position + 1] not in tuple(wanted):
            raise json.JSONDecodeError(f"expected {' or '.join(wanted)}", text, position)
        return text[position]

    try:
        at = space(0)
        if text[at : at + 1] == "[":
            raise DataError("a list, where an object is expected", where=file)
        expect(at, "{")
        at, seen = space(at + 1), set()
        more = expect(at, '"}') != "}"
        while more:
            key, at = decoder.raw_decode(text, at)
            if not isinstance(key, str) or key in seen:
                raise DataError(f"the key {key!r} a second time", where=file)
            seen.add(key)
            at = space(at)
            expect(at, ":")
            at = space(at + 1)
            if text[at : at + 1] == "[":
                at = space(at + 1)
                inside = text[at : at + 1] != "]"
                if not inside:
                    yield key, None
                    at += 1
                while inside:
                    element, at = decoder.raw_decode(text, at)
                    yield key, element
                    between = _BETWEEN.match(text, at)
                    if between is None:
                        raise json.JSONDecodeError("expected , or ]", text, space(at))
                    at, inside = between.end(), between[1] == ","
            else:
                value, at = decoder.raw_decode(text, at)
                yield key, value
            at = space(at)
            more = expect(at, ",}") == ","
            at = space(at + 1) if more else at
        if space(at + 1) < len(text):
            raise json.JSONDecodeError("more after the end", text, space(at + 1))
    except json.JSONDecodeError as error:
        what = "cut off" if error.pos >= len(text.rstrip()) else f"not JSON ({error.msg})"
        raise DataError(f"{what} at line {error.lineno}, column {error.colno}", where=file) from None
    except _Constant as error:
        found = _CONSTANT.search(text, at)
        place = json.JSONDecodeError("", text, found.start() if found else at)
        what = f"{error} is no number in JSON, at line {place.lineno}, column {place.colno}"
        raise DataError(what, where=file, remedy="mend the number or remove what has it") from None
    except (ValueError, RecursionError):
        place = json.JSONDecodeError("", text, at)
        what = f"numbers too long or lists too deep after line {place.lineno}, column {place.colno}"
        raise DataError(what, where=file) from None


class _Constant(Exception):
    """NaN or Infinity, which Python's reader would accept."""


def _refuse(name: str) -> NoReturn:
    raise _Constant(name)


def _text(file: Path) -> str:
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            what = f"{size / 1e6:.0f} MB of JSON (limit {MAX_BYTES / 1e6:.0f})"
            raise DataError(what, where=file, remedy="split the data set")
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=file) from None
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start})", where=file) from None
