"""Whether the data of a JPEG file make a whole picture: the decoder fills what is missing with grey, and only warns.

What is noticed, at the cost of one search for markers:

* pixels that are missing, whatever follows them (an end mark put behind half a file, or into its middle): the decoder
  is given the data without the end mark and a few bytes of no code behind; where it asks for more, some were missing;
* data that are left over when the picture is complete: they were read as other codes than they were written as;
* restart markers that are missing or out of order, and progressive files without their last scans.

With a second decoding (`Stream.padded`): a file of several scans whose last one is cut. What is not noticed: codes that
were changed so that as many pixels come out of as many bytes, less than a block or two missing at the end, and pixels
missing in front of a restart marker. (ISO/IEC 10918-1, annexes B, F and G.)
"""

from __future__ import annotations

import io
import re
from typing import NamedTuple

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from patchform.errors import DataError

_START, _END, _SCAN, _RESTARTS = 0xD8, 0xD9, 0xDA, 0xDD
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), (0xC2,)
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""Behind codes: neither a stuffed 0, nor a restart, nor a fill byte."""
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_NO_CODE = b"\xff\0" * 16
"""Sixteen ones are in no table of codes (annex C), and the decoder looks eight bytes ahead."""
_TAIL = 64
"""Bytes at the end of the data without which no picture is complete."""
_NOT_READ = {0xC3: "lossless JPEG", 0xC5: "hierarchical JPEG", 0xC6: "hierarchical JPEG", 0xC7: "hierarchical JPEG"}
_NOT_READ |= dict.fromkeys((0xCB, 0xCD, 0xCE, 0xCF), "arithmetically coded JPEG") | {0xF7: "JPEG-LS"}


class Component(NamedTuple):
    """A plane of the picture, as the frame header has it."""

    id: int
    across: int
    """Blocks of a unit, and `down` likewise."""
    down: int


class Scan(NamedTuple):
    """A pass over some of the components."""

    components: tuple[int, ...]
    """Ids."""
    band: tuple[int, int]
    """First and last coefficient; 0, 63 in sequential files."""
    low: int
    """Bits that later scans add."""
    start: int
    """Of its data, in the file."""
    end: int
    """Of its data: where the next marker is; -1 where there is none."""


class Layout(NamedTuple):
    """The markers of a file up to its end mark."""

    process: int
    """Marker of the frame header: the way of coding."""
    bits: int
    """Of a sample."""
    size: tuple[int, int]
    """(height, width), as it lies."""
    components: tuple[Component, ...]
    restarts: int
    """Units between two restart markers; 0: there are none."""
    scans: tuple[Scan, ...]
    ended: bool
    """Whether there is an end mark."""

    @property
    def single(self) -> bool:
        """One sequential scan over all components, coded by Huffman's tables."""
        return self.process in _SEQUENTIAL and len(self.scans) == 1

    @property
    def units(self) -> int:
        """Of a scan over all components."""
        (height, width), only = self.size, len(self.components) == 1
        across = 8 * (1 if only else max(component.across for component in self.components))
        down = 8 * (1 if only else max(component.down for component in self.components))
        return -(-width // across) * -(-height // down)


def layout(data: bytes) -> Layout | None:
    """The markers of a file; None for what is none, or ends within its headers."""
    position, frame, restarts, scans = 2, None, 0, list[Scan]()
    try:
        while True:
            while data[position + 1] == 0xFF:
                position += 1
            marker = data[position + 1]
            if data[position] != 0xFF:
                return None
            if marker == _END:
                break
            if marker == 1 or 0xD0 <= marker <= _START:
                position += 2
                continue
            body = data[position + 4 : position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")]
            position += 4 + len(body)
            if marker in _FRAMES and frame is None:
                frame = marker, body
            elif marker == _RESTARTS and len(body) == 2:
                restarts = int.from_bytes(body, "big")
            elif marker == _SCAN:
                match = _MARKER.search(data, position)
                end = match.start() if match else -1
                count = body[0]
                chosen = tuple(body[1 : 1 + 2 * count : 2])
                scans.append(Scan(chosen, (body[-3], body[-2]), body[-1] & 15, position, end))
                if match is None:
                    break
                position = end
    except IndexError:
        pass
    if frame is None or len(frame[1]) < 6 or not scans:
        return None
    marker, body = frame
    parts = [body[index : index + 3] for index in range(6, len(body) - 2, 3)]
    components = tuple(Component(part[0], part[1] >> 4 or 1, part[1] & 15 or 1) for part in parts)
    size = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    ended = data[position : position + 2] == b"\xff\xd9"
    return Layout(marker, body[0], size, components, restarts, tuple(scans), ended) if components else None


class Stream(io.BytesIO):
    """A file for PIL to read, which asks for more than there is where pixels are missing. Others are as they are.

    Raises DataError for restart markers or scans that are missing.
    """

    def __init__(self, data: bytes) -> None:
        self.layout = layout(data)
        self._tail = 0
        if self.layout is None or not self.layout.ended:
            super().__init__(data)
            return
        _refuse_gaps(data, self.layout)
        if not self.layout.single:
            super().__init__(data)
            return
        scan = self.layout.scans[0]
        super().__init__(data[: scan.end] + _NO_CODE)
        if not self.layout.restarts:
            self._tail = max(scan.start, scan.start + len(data[scan.start : scan.end].rstrip(b"\0\xff")) - _TAIL)

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file, but the last bytes are given on their own."""
        position = self.tell()
        if position < self._tail and (size is None or size < 0 or position + size > self._tail):
            size = self._tail - position
        return super().read(size)

    def finish(self) -> None:
        """Raise DataError if the picture, which was just loaded, was complete before all was read."""
        if self._tail and self.layout is not None and self.tell() <= self._tail > self.layout.scans[0].start:
            raise DataError("the picture is damaged: data are left over behind the last pixel")

    def padded(self) -> bytes | None:
        """A file of several scans with bytes of no code behind its last one, which change nothing where that is whole.

        None for files of which that is not so: their pixels tell nothing.
        """
        found = self.layout
        if found is None or not found.ended or found.single or found.process not in (*_SEQUENTIAL, *_PROGRESSIVE):
            return None
        data, end = self.getvalue(), found.scans[-1].end
        return data[:end] + _NO_CODE * 4 + data[end:]


def not_decoded(image: Image.Image) -> bytes | None:
    """The bytes of a JPEG file that PIL has opened and not yet decoded, at its full size; None for any other image."""
    if not isinstance(image, JpegImageFile) or not image.fp or not image.tile or image.decoderconfig:
        return None
    image.fp.seek(0)
    return image.fp.read()


def unread_process(data: bytes) -> str | None:
    """What kind of JPEG it is, where PIL does not read that kind; else None."""
    found = layout(data)
    if found is None:
        return None
    if found.process in _NOT_READ:
        return f"a {_NOT_READ[found.process]} picture"
    return None if found.bits == 8 else f"a JPEG picture of {found.bits} bits"


def _refuse_gaps(data: bytes, found: Layout) -> None:
    """Raise DataError for restart markers that do not follow each other, and for scans that are missing."""
    if found.single and found.restarts:
        scan = found.scans[0]
        numbers = [match[1][0] & 7 for match in _RESTART.finditer(data, scan.start, scan.end)]
        expected = -(-found.units // found.restarts) - 1
        if len(numbers) not in (expected, expected + 1) or any(n != i % 8 for i, n in enumerate(numbers)):
            raise DataError(f"the picture is damaged: {len(numbers)} restart markers, or not in order; {expected} due")
    if found.process in _SEQUENTIAL:
        seen = {id_ for scan in found.scans for id_ in scan.components}
        if missing := sum(component.id not in seen for component in found.components):
            raise DataError(f"the picture is cut short: {missing} of {len(found.components)} components are missing")
    if found.process in _PROGRESSIVE:
        whole = {id_ for scan in found.scans if scan.band[0] == 0 and scan.low == 0 for id_ in scan.components}
        begun = {
            (id_, c) for s in found.scans if s.low for id_ in s.components for c in range(s.band[0], s.band[1] + 1)
        }
        done = {
            (id_, c) for s in found.scans if not s.low for id_ in s.components for c in range(s.band[0], s.band[1] + 1)
        }
        bands = {id_ for id_, coefficient in done | begun if coefficient}
        ids = {component.id for component in found.components}
        if ids - whole or begun - done or (bands and ids - bands):
            raise DataError("the picture is cut short: its last scans are missing")
