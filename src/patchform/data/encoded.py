"""Encoded videos by way of PyAV: which frames a file has, some of them, all of them; and a small writer.

* Containers are recognised by their first bytes and read by the demuxer of that kind and no other (`data.containers`).
* A frame is found by the time at which it is shown. Times come from the packets, which are read without being decoded,
  so frames at varying distances and frames that are stored in another order are found as well. To get there the decoder
  starts at the key frame before. AVI and MPEG-PS lack such times: their frames are counted from the first.
* Quarter turns that the file asks for are made. Sound is left alone. Pixels that are not square stay as they are.
* Decoding takes one thread. Nothing stays open between two calls, so processes may share what they know of a file.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchform.data import containers
from patchform.data.images import to_image
from patchform.descriptions import Preprocessing
from patchform.errors import DataError, ResourceError, UsageError

STEADY = {"x264-params": "mbtree=0"}
"""Macroblock trees, on by default, look at memory that was never written in pictures of 64 pixels: each writing would
give another file."""
RATE = 25.0
"""Frames a second where none is stated."""
LARGEST = 1 << 26
"""Pixels of a frame: twice those of 8K."""
_HEAD = 4096
_COUNTED = ("avi", "mpeg")
"""Demuxers of files whose frames do not all say when they are shown: they are counted from the first."""


class Table(NamedTuple):
    """Which frames a file has."""

    pts: Sequence[int]
    """When each is shown, in units of `unit`, rising; for AVI their numbers."""
    keys: tuple[int, ...]
    """Positions in `pts` where decoding can start, rising; the first is 0."""
    unit: float
    """Seconds."""
    rate: float
    """Frames a second, on average."""
    size: tuple[int, int]
    """(height, width) of the frames, turned as they are shown."""


def library() -> Any:
    """PyAV. Raises UsageError when it is missing."""
    try:
        import av
    except ImportError as error:
        raise UsageError("videos need PyAV", remedy='pip install "patchform[video]"') from error
    return av


def version() -> str:
    """Of PyAV; empty when it is missing."""
    try:
        return str(library().__version__)
    except UsageError:
        return ""


def look(path: Path) -> Table:
    """The frames of a file. Its packets are read, and the first frame is decoded.

    Raises:
        DataError: not a video, cut short, or without a frame. Or what PyAV raises.
        UsageError: PyAV is missing.
    """
    with _opened(path) as (container, stream):
        counted = container.format.name in _COUNTED
        cut, shown = containers.is_cut(path), list[tuple[int | None, bool]]()
        for packet in container.demux(stream):
            cut = cut or packet.is_corrupt
            if packet.size and not packet.is_discard:
                shown.append((packet.pts, packet.is_keyframe))
        if cut:
            raise DataError("the video is cut short")
        if not shown:
            raise DataError("the video has no frame")
        if counted:
            pts, keys = list(range(len(shown))), {0}
        else:
            pts = sorted({time for time, _ in shown if time is not None})
            if len(pts) < len(shown):
                raise DataError("the video does not say when each frame is shown")
            positions = {time: position for position, time in enumerate(pts)}
            keys = {0, *(positions[time] for time, key in shown if key and time is not None)}
        unit = float(1 / (stream.average_rate or RATE) if counted else stream.time_base)
        rate = (len(pts) - 1) / ((pts[-1] - pts[0]) * unit) if len(pts) > 1 else float(stream.average_rate or RATE)
    _, first = next(everything(path))
    return Table(_short(pts), tuple(sorted(keys)), unit, rate, first.shape[:2])


def some(path: Path, table: Table, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Frames of the given numbers, which rise.

    A frame that the file lists and the decoder leaves out is as the one before, or after where there is none.

    Yields:
        (H, W, 3) uint8 RGB, upright.

    Raises:
        DataError: frames are missing at the end. Or what PyAV raises.
    """
    with _opened(path) as (container, stream):
        frames = _timed_frames(container, stream)
        before: Any = None
        current: Any = None
        for index in indices:
            time = table.pts[index]
            key = bisect_right(table.keys, index) - 1
            if key > 0 and (current is None or current[0] < table.pts[table.keys[key]]):
                before, (current, frames) = None, _seek(container, stream, table, key)
            while current is None or current[0] < time:
                before, current = current, next(frames, None)
                if current is None:
                    raise DataError(f"frame {index} of {len(table.pts)} cannot be decoded")
            yield _upright(current[1] if current[0] == time or before is None else before[1])


def everything(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    """All frames in order, one at a time: seconds since the first, and (H, W, 3) uint8 RGB, upright.

    Raises:
        DataError: behind the last frame, of a video that is cut short; of one without a frame. Or what PyAV raises.
    """
    with _opened(path) as (container, stream):
        counted = container.format.name in _COUNTED
        unit = float(1 / (stream.average_rate or RATE) if counted else stream.time_base)
        start: int | None = None
        for time, frame in _timed_frames(container, stream):
            start = time if start is None else start
            yield (time - start) * unit, _upright(frame)
        if containers.is_cut(path):
            raise DataError("the video is cut short")
        if start is None:
            raise DataError("the video has no frame that can be decoded")


def write(path: Path, frames: Iterable[Any], rate: float = RATE) -> None:
    """Write an MP4 file that players know: H.264 where PyAV has libx264, else MPEG-4.

    The file appears whole or not at all. A side of an odd number of pixels is made even by repeating the last ones.

    Args:
        path: of the file, whatever its ending.
        frames: pictures of one size, anything that `images.to_image` takes; one at a time.
        rate: frames a second.

    Raises:
        UsageError: PyAV is missing, no frame, or a rate that is none.
        DataError: frames of several sizes.
        ResourceError: it cannot be written.
    """
    av = library()
    if not 0.01 <= rate <= 1000:
        raise UsageError(f"{rate} frames a second", remedy="give a rate in 0.01..1000")
    unfinished = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with av.open(os.fspath(unfinished), "w", format="mp4") as container:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            stream: Any = None
            size: tuple[int, int] | None = None
            for number, frame in enumerate(frames):
                pixels = to_image(frame, Preprocessing()).permute(1, 2, 0).numpy()
                if stream is None:
                    size = pixels.shape[:2]
                    options = STEADY if codec == "libx264" else {}
                    stream = container.add_stream(codec, Fraction(rate).limit_denominator(1001), options=options)
                    stream.height, stream.width = (side + side % 2 for side in size)
                    stream.pix_fmt = "yuv420p"
                if pixels.shape[:2] != size:
                    raise DataError(f"frame {number} is of another size than the first", where=path)
                margins = [(0, side % 2) for side in size] + [(0, 0)]
                encoded = av.VideoFrame.from_ndarray(np.pad(pixels, margins, mode="edge"), format="rgb24")
                encoded.pts, encoded.time_base = number, 1 / stream.codec_context.framerate
                container.mux(stream.encode(encoded))
            if stream is None:
                raise UsageError("no frame to write", where=path)
            container.mux(stream.encode())
        os.replace(unfinished, path)
    except OSError as error:
        raise ResourceError(f"cannot be written ({error.strerror})", where=path) from error
    finally:
        unfinished.unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------------------- small print


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its stream of pictures. A file object, not a name: names can be addresses."""
    av = library()
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from None
    with file:
        head = file.read(_HEAD)
        file.seek(0)
        with av.open(file, format=containers.demuxer(head), metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None:
                sound = len(container.streams) > 0
                raise DataError("there are no pictures in it, sound alone" if sound else "the video is cut short")
            if stream.codec_context is None:
                raise DataError("its codec is not known to PyAV", remedy="write it anew, as H.264")
            if stream.codec_context.width * stream.codec_context.height > LARGEST:
                raise DataError(f"frames of more than {LARGEST / 1e6:.0f} million pixels")
            stream.codec_context.thread_count = 1
            yield container, stream


def _short(pts: list[int]) -> Sequence[int]:
    """The same numbers; as a range where they are one."""
    same = range(pts[0], pts[-1] + 1, max(1, (pts[-1] - pts[0]) // max(1, len(pts) - 1)))
    return same if list(same) == pts else array("q", pts)


def _timed_frames(container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
    """Frames as they are decoded, each with its time as in a `Table`."""
    for number, frame in enumerate(container.decode(stream)):
        if container.format.name in _COUNTED:
            yield number, frame
        elif frame.pts is not None:
            yield frame.pts, frame


def _seek(container: Any, stream: Any, table: Table, key: int) -> tuple[tuple[int, Any] | None, Iterator[Any]]:
    """The first frame from a key frame on, or from an earlier one where containers err; and those after it."""
    time = table.pts[table.keys[key]]
    for position in range(key, -1, -1):
        container.seek(int(table.pts[table.keys[position]]), stream=stream)
        frames = _timed_frames(container, stream)
        current = next(frames, None)
        if current is not None and current[0] <= time:
            break
    return current, frames


def _upright(frame: Any) -> np.ndarray:
    """(H, W, 3) uint8."""
    pixels: np.ndarray = frame.reformat(format="rgb24", threads=1).to_ndarray()  # unasked, it starts threads: slower
    return np.rot90(pixels, round(frame.rotation / 90) % 4) if frame.rotation else pixels
