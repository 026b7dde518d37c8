"""What stands beside the graph in an ONNX file, read without the graph: a file of gigabytes is asked in a millisecond.

The outermost message of the format (onnx.proto, `ModelProto`) is a row of fields, each a number, a kind and, but for
numbers, its length: the graph, field 7, is stepped over, and `metadata_props`, field 14, is read.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

from patchform.errors import ModelFileError

METADATA = 14
LARGEST = 1 << 26
"""Bytes of an entry that are still read: 64 MiB."""
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


def read_notes(path: Path) -> dict[str, str]:
    """`metadata_props` of an ONNX file.

    Raises:
        ModelFileError: it cannot be read, or is no ONNX file, or a cut one.
    """
    try:
        with path.open("rb") as stream:
            return _notes(stream, path.stat().st_size)
    except OSError as error:
        raise ModelFileError(f"cannot be read ({error.strerror})", where=path) from error
    except (ValueError, UnicodeDecodeError) as error:
        raise ModelFileError(f"not an ONNX file, or a damaged one ({error})", where=path) from None


def _notes(stream: BinaryIO, size: int) -> dict[str, str]:
    notes: dict[str, str] = {}
    if not size:
        raise ValueError("it is empty")
    while stream.tell() < size:
        tag = _number(stream)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _number(stream)
            continue
        length = _number(stream) if kind == _LENGTH else _FIXED.get(kind)
        if not field or length is None:
            raise ValueError(f"byte {stream.tell()} means nothing")
        if stream.tell() + length > size:
            raise ValueError("it ends too early")
        if field == METADATA and kind == _LENGTH:
            if length > LARGEST:
                raise ValueError(f"notes of {length} bytes")
            notes |= [_entry(stream.read(length))]
        else:
            stream.seek(length, 1)
    return notes


def _entry(message: bytes) -> tuple[str, str]:
    """Key and value: fields 1 and 2 of `StringStringEntryProto`."""
    stream = io.BytesIO(message)
    texts = {1: "", 2: ""}
    while stream.tell() < len(message):
        tag = _number(stream)
        if tag & 7 != _LENGTH:
            raise ValueError("a note that is no text")
        texts[tag >> 3] = stream.read(_number(stream)).decode()
    return texts[1], texts[2]


def _number(stream: BinaryIO) -> int:
    """A varint: 7 bits a byte, the lowest first, at most ten bytes."""
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise ValueError("it ends too early")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError(f"byte {stream.tell()} means nothing")
