"""From a video to frames: an encoded file, an animated GIF, or a folder of pictures.

A frame has the channels and bits that `preprocessing` asks for, by the rules of `data.images`. A damaged or cut video
is refused, never filled up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchform.data import encoded, python_sets
from patchform.data.images import decode, faults_of, opened, read, to_image, upright_size
from patchform.data.listing import files_of
from patchform.descriptions import Preprocessing
from patchform.errors import DataError

RGB = Preprocessing()
"""How frames are decoded by default: 3 channels of 8 bits."""


class Frame(NamedTuple):
    """One of a stream."""

    time: float
    """Seconds since the first."""
    pixels: Tensor
    """(C, H, W)."""


class Video(ABC):
    """What is in a video. It holds no file open, so it can be handed to another process.

    Attributes:
        path: file or folder.
        size: (height, width) of the frames, upright.
        rate: frames a second, on average.
    """

    path: Path
    size: tuple[int, int]
    rate: float

    @abstractmethod
    def __len__(self) -> int:
        """Number of frames, at least 1."""

    @abstractmethod
    def time(self, index: int) -> float:
        """When a frame is shown, seconds since the first."""

    @abstractmethod
    def _decoded(self, indices: Sequence[int], preprocessing: Preprocessing) -> Iterator[Tensor]:
        """Frames of rising numbers, one at a time."""

    def frames(self, indices: Sequence[int], preprocessing: Preprocessing = RGB) -> Tensor:
        """Some frames, in any order and any number of times; each is decoded once.

        Args:
            indices: 0 <= index < len, at least one.
            preprocessing: channels, bits, background.

        Returns:
            (T, C, H, W) uint8 in 0..255 when bits is 8, float32 in 0..1 when bits is 16.

        Raises:
            DataError: frames that cannot be decoded, or of several sizes.
            UsageError: PyAV is missing.
        """
        rising = sorted(set(indices))
        with faults_of(self.path, "video"):
            decoded = dict(zip(rising, self._decoded(rising, preprocessing), strict=True))
            if len({frame.shape for frame in decoded.values()}) > 1:
                raise DataError("frames of several sizes", remedy="write it anew, at one size")
            return torch.stack([decoded[index] for index in indices])


def open_video(path: Path) -> Video:
    """See what is in a video: of an encoded one the packets are read and one frame is decoded.

    Raises:
        DataError: not a video, damaged, cut short, without a frame, or not a regular file.
        UsageError: PyAV, which encoded ones need, is missing.
    """
    with faults_of(path, "video"):
        if python_sets.is_held(path):
            frames = python_sets.clip(path)
            return open_video(frames) if isinstance(frames, Path) else Frames(path, frames)
        if path.is_dir():
            return Folder(path)
        return Animation(path) if _is_gif(path) else Encoded(path)


def stream(path: Path, preprocessing: Preprocessing = RGB) -> Iterator[Frame]:
    """All frames in order. Memory does not grow with the length, unless it is a GIF, which is read as a whole.

    Raises:
        DataError: while iterating, as `open_video` and `Video.frames`; what comes before the fault is given.
        UsageError: PyAV is missing.
    """
    with faults_of(path, "video"):
        if not path.is_dir() and not _is_gif(path):
            for time, pixels in encoded.everything(path):
                yield Frame(time, to_image(pixels, preprocessing))
            return
        video = open_video(path)
        for index, frame in enumerate(video._decoded(range(len(video)), preprocessing)):
            yield Frame(video.time(index), frame)


class Encoded(Video):
    """A file of packets, which PyAV reads."""

    def __init__(self, path: Path) -> None:
        self.path, self._table = path, encoded.look(path)
        self.size, self.rate = self._table.size, self._table.rate

    def __len__(self) -> int:
        return len(self._table.pts)

    def time(self, index: int) -> float:
        """By the times in the file; of AVI, by its rate."""
        return float(self._table.pts[index] - self._table.pts[0]) * self._table.unit

    def _decoded(self, indices: Sequence[int], preprocessing: Preprocessing) -> Iterator[Tensor]:
        for pixels in encoded.some(self.path, self._table, indices):
            yield to_image(pixels, preprocessing)


class Animation(Video):
    """An animated GIF; one of a single picture is a video of one frame."""

    def __init__(self, path: Path) -> None:
        self.path = path
        image = self._open()
        self.size = (image.height, image.width)
        self._times = [0.0]
        for index in range(image.n_frames):
            image.seek(index)
            self._times.append(self._times[-1] + (image.info.get("duration") or 1000 / encoded.RATE) / 1000)
        self.rate = len(self) / self._times[-1]

    def _open(self) -> Any:
        return opened(read(self.path))[1]

    def __len__(self) -> int:
        return len(self._times) - 1

    def time(self, index: int) -> float:
        """By the durations in the file; where they are 0, as of the usual rate."""
        return self._times[index]

    def _decoded(self, indices: Sequence[int], preprocessing: Preprocessing) -> Iterator[Tensor]:
        image = self._open()
        for index in indices:
            image.seek(index)
            yield to_image(image, preprocessing)


class Folder(Video):
    """A folder of pictures, in the natural order of their names: 2 comes before 10. It has the usual rate."""

    def __init__(self, path: Path) -> None:
        self.path, self.rate = path, encoded.RATE
        self._files = files_of(path)
        if not self._files:
            raise DataError("no picture in the folder")
        self.size = upright_size(self._files[0])

    def __len__(self) -> int:
        return len(self._files)

    def time(self, index: int) -> float:
        """By the usual rate."""
        return index / self.rate

    def _decoded(self, indices: Sequence[int], preprocessing: Preprocessing) -> Iterator[Tensor]:
        for index in indices:
            try:
                yield decode(self._files[index], preprocessing, thorough=False)
            except DataError as error:
                raise DataError(f"{self._files[index].name}: {error.what}", remedy=error.remedy) from None


class Frames(Video):
    """An item of a Python object, asked for anew each time. It has the usual rate."""

    def __init__(self, path: Path, frames: np.ndarray) -> None:
        self.path, self.rate = path, encoded.RATE
        self.size, self._number = (frames.shape[1], frames.shape[2]), len(frames)

    def __len__(self) -> int:
        return self._number

    def time(self, index: int) -> float:
        """By the usual rate."""
        return index / self.rate

    def _decoded(self, indices: Sequence[int], preprocessing: Preprocessing) -> Iterator[Tensor]:
        frames = python_sets.clip(self.path)
        assert not isinstance(frames, Path)
        for index in indices:
            yield to_image(frames[index], preprocessing)


def _is_gif(path: Path) -> bool:
    """Raises DataError for anything that could block or is none."""
    if not path.is_file():
        raise DataError("not a regular file" if path.exists() else "no such file")
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GIF8"
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from None
