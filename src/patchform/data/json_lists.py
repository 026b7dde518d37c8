"""Large JSON documents, an element at a time: only the text is ever whole in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from patchform.data.text_files import read_text
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
        DataError: cannot be read, too large, no text (`text_files`), cut off, not JSON (with line and
            column; NaN and Infinity are not), not an object, or a key twice.
    """
    text = _text(file)
    reader = _Reader(file, text)
    try:
        yield from reader.elements()
    except json.JSONDecodeError as error:
        what = "cut off" if error.pos >= len(text.rstrip()) else f"not JSON ({error.msg})"
        raise DataError(f"{what} at line {error.lineno}, column {error.colno}", where=file) from None
    except _Constant as error:
        match = _CONSTANT.search(text, reader.at)
        position = json.JSONDecodeError("", text, match.start() if match else reader.at)
        what = f"{error} is no number in JSON, at line {position.lineno}, column {position.colno}"
        raise DataError(what, where=file, remedy="mend the number or remove what has it") from None
    except (ValueError, RecursionError):
        position = json.JSONDecodeError("", text, reader.at)
        what = f"numbers too long or lists too deep after line {position.lineno}, column {position.colno}"
        raise DataError(what, where=file) from None


class _Reader:
    """Goes through a text; what is next begins at `at`, and is no space."""

    def __init__(self, file: Path, text: str) -> None:
        self.file, self.text, self.at = file, text, 0
        self.decoder = json.JSONDecoder(parse_constant=_refuse)

    def elements(self) -> Iterator[tuple[str, Any]]:
        self._skip()
        if self.text[self.at : self.at + 1] == "[":
            raise DataError("a list, where an object is expected", where=self.file)
        self._take("{")
        seen: set[str] = set()
        more = self._peek('"}') != "}"
        while more:
            key = self._value()
            if not isinstance(key, str) or key in seen:
                raise DataError(f"the key {key!r} a second time", where=self.file)
            seen.add(key)
            self._take(":")
            if self.text[self.at : self.at + 1] == "[":
                yield from ((key, element) for element in self._list())
            else:
                yield key, self._value()
            more = self._take(",}") == ","
        if not seen:
            self._take("}")
        if self.at < len(self.text):
            raise json.JSONDecodeError("more after the end", self.text, self.at)

    def _list(self) -> Iterator[Any]:
        self._take("[")
        more = self.text[self.at : self.at + 1] != "]"
        if not more:
            yield None
            self._take("]")
        while more:
            element, self.at = self.decoder.raw_decode(self.text, self.at)
            yield element
            between = _BETWEEN.match(self.text, self.at)
            if between is None:
                self._skip()
                raise json.JSONDecodeError("expected , or ]", self.text, self.at)
            self.at, more = between.end(), between[1] == ","

    def _value(self) -> Any:
        value, self.at = self.decoder.raw_decode(self.text, self.at)
        self._skip()
        return value

    def _take(self, expected: str) -> str:
        character = self._peek(expected)
        self.at += 1
        self._skip()
        return character

    def _peek(self, expected: str) -> str:
        if self.text[self.at : self.at + 1] not in tuple(expected):
            raise json.JSONDecodeError(f"expected {' or '.join(expected)}", self.text, self.at)
        return self.text[self.at]

    def _skip(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at


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
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=file) from None
    return read_text(file)
