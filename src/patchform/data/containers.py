"""Files of videos by their first bytes: which demuxer reads them, and how long they are by their own account.

The suffixes of such files are in `data.listing`. A playlist that names other files or addresses is no video.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from patchform.data.file_kinds import kind_of
from patchform.errors import DataError

_HEAD = 4096
_STILL = (b"avif", b"avis", b"heic", b"heix", b"mif1")
"""Brands of pictures in a container of videos."""
_SEGMENT = b"\x18S\x80g"
"""What frames and tables of Matroska lie in."""
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


class Container(NamedTuple):
    """A kind of file."""

    at: int
    """Where the bytes are that tell it."""
    magic: bytes
    demuxer: str
    """FFmpeg's name."""
    length: Callable[[BinaryIO, int], int]
    """From an open file and its bytes to those that it has at least, by its own account; 0 where it gives none."""


def demuxer(head: bytes) -> str:
    """The name of the demuxer for a file that begins so. Raises DataError, which says what the bytes are."""
    return _container(head).demuxer


def is_cut(path: Path) -> bool:
    """Whether a video is shorter than it says, or ends within a part.

    Of AVI the lengths of its RIFF chunks count, of Matroska that of its segment (RFC 8794, section 4), of MP4 the end
    of its last box of frames or tables (ISO/IEC 14496-12, section 4.2), of ASF and FLV the length in their properties,
    of FLV, MPEG-PS and MPEG-TS whether the last tag or packet is whole. The last two, and what was written as it was
    recorded, with its length left open, can be cut between two packets without a trace.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD)
        file.seek(0)
        return _container(head).length(file, size) > size


def _container(head: bytes) -> Container:
    if not head:
        raise DataError("the file is empty")
    still = head[4:8] == b"ftyp" and head[8:12] in _STILL
    for container in _CONTAINERS:
        if head.startswith(container.magic, container.at) and not still and _repeats(head, container):
            return container
    raise DataError(f"not a video but {kind_of(head).what}", remedy=f"{READ} can be read")


READ = "MP4, MOV, 3GP, MKV, WebM, AVI, WMV, FLV, MPEG, GIF and folders of frames"


def _repeats(head: bytes, container: Container) -> bool:
    """Whether packets of a transport stream follow each other: its mark is but a letter."""
    if container.demuxer != "mpegts":
        return True
    step = 188 + container.at
    marks = head[container.at :: step][:8]
    return len(marks) > 1 and set(marks) == {0x47}


def _boxes_end(file: BinaryIO, size: int) -> int:
    position, end = 0, 0
    while position + 16 <= size:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:], "big") if length == 1 else length
        if length < 8:  # 0: up to the end
            break
        position += length
        if head[4:8] in (b"mdat", b"moov", b"moof"):
            end = position
    return end


def _chunks_end(file: BinaryIO, size: int) -> int:
    """Of an AVI, which has several beyond a gigabyte; while it is recorded, the length is 0 or the highest."""
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            break
        position += 8 + length
    return position - 8 if position else 0  # some writers count their own head


def _segment_end(file: BinaryIO, size: int) -> int:
    head = file.read(_HEAD)
    length, position = _matroska_length(head, 4)
    if head[position + length : position + length + 4] != _SEGMENT:
        return 0
    length, position = _matroska_length(head, position + length + 4)
    return position + length if length else 0


def _matroska_length(data: bytes, position: int) -> tuple[int, int]:
    """A length that is written in one to eight bytes, 0 where it is left open, and the position behind it."""
    bits = 7 * (9 - data[position].bit_length())
    end = position + bits // 7
    length = int.from_bytes(data[position:end], "big") & ((1 << bits) - 1)
    return (0 if length == (1 << bits) - 1 else length), end


def _properties_length(file: BinaryIO, size: int) -> int:
    head = file.read(_HEAD)
    start = head.find(_ASF_PROPERTIES)
    live = start >= 0 and head[start + 88 : start + 89] != b"" and bool(head[start + 88] & 1)
    return 0 if start < 0 or live else int.from_bytes(head[start + 40 : start + 48], "little")


def _tag_end(file: BinaryIO, size: int) -> int:
    """Of an FLV: what its first tag says, and behind each tag stands its length."""
    head = file.read(_HEAD)
    said = head.find(b"filesize\0")
    if 0 <= said <= len(head) - 17 and (whole := struct.unpack_from(">d", head, said + 9)[0]) > size:
        return int(min(whole, 1 << 62))
    file.seek(max(0, size - 4))
    length = int.from_bytes(file.read(4), "big")
    file.seek(max(0, size - 4 - length))
    tag = file.read(4)
    is_tag = tag[:1] in (b"\x08", b"\x09", b"\x12") and int.from_bytes(tag[1:], "big") == length - 11
    return size if is_tag and 11 <= length < size else size + 1


def _packet_end(file: BinaryIO, size: int) -> int:
    """Of the last packet of an MPEG program stream: its start codes are above those of what it carries."""
    start = max(0, size - (1 << 17))
    file.seek(start)
    tail = file.read()
    position = len(tail)
    while (position := tail.rfind(b"\0\0\1", 0, position)) >= 0:
        code = tail[position + 3 : position + 4]
        if code and code[0] >= 0xBB:
            return start + position + 6 + int.from_bytes(tail[position + 4 : position + 6], "big")
        if code in (b"\xb9", b"\xba"):
            break
    return 0


def _packets(length: int) -> Callable[[BinaryIO, int], int]:
    def end(file: BinaryIO, size: int) -> int:
        return size + -size % length

    return end


_CONTAINERS = (
    *(Container(4, b, "mov", _boxes_end) for b in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")),
    Container(0, b"\x1aE\xdf\xa3", "matroska", _segment_end),
    Container(8, b"AVI ", "avi", _chunks_end),
    Container(0, _ASF, "asf", _properties_length),
    Container(0, b"FLV", "flv", _tag_end),
    Container(0, b"\0\0\1\xba", "mpeg", _packet_end),
    Container(0, b"\x47", "mpegts", _packets(188)),
    Container(4, b"\x47", "mpegts", _packets(192)),
)
