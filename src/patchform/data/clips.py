"""Which frames of a video are a clip, and clips as samples.

uniform: the video is cut into T parts, equal to a frame, and of each one frame is taken: the middle one, in training
any (Wang et al. 2016, "Temporal segment networks", section 3.1). dense: T frames, `frame_step` apart: from the middle
of the video, in training from any start (Feichtenhofer et al. 2019, "SlowFast networks", section 4). A video with fewer
frames than its clip spans repeats the last one. Frames are counted, whatever the time between them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from patchform.data.listing import Listing
from patchform.data.samples import Samples, labels_of
from patchform.data.transforms import Fit, Transform, along, training_transform
from patchform.data.videos import Video, open_video
from patchform.descriptions import Preprocessing
from patchform.errors import UsageError
from patchform.records import Sample
from patchform.settings import AugmentationSettings

KNOWN = 10_000
"""Videos of which it is remembered which frames they have."""

Pick = Callable[[int], list[int]]
"""From the number of frames of a video to those that are taken."""


def span(preprocessing: Preprocessing) -> int:
    """Frames that a video needs for a clip that repeats none."""
    p = preprocessing
    return p.frames if p.sampling == "uniform" else (p.frames - 1) * p.frame_step + 1


def training_frames(preprocessing: Preprocessing, count: int) -> list[int]:
    """Numbers of the frames of a clip of a video of `count` frames, drawn from torch's global numbers."""
    p = preprocessing
    if p.sampling == "uniform":
        return _uniform(count, torch.rand(p.frames, dtype=torch.float64).tolist())
    return _dense(p, count, int(torch.randint(_starts(p, count), ())))


def evaluation_frames(preprocessing: Preprocessing, clips: int, count: int) -> list[int]:
    """Numbers of the frames of clips that are evenly spread over a video of `count` frames, one clip after the other.

    uniform: clip v takes the frame (v + 1/2) / `clips` into each part. dense: the first clip begins with the video, the
    last one ends with it; one alone lies in the middle.
    """
    p = preprocessing
    if p.sampling == "uniform":
        positions = [(clip + 0.5) / clips for clip in range(clips)]
        return [frame for position in positions for frame in _uniform(count, [position] * p.frames)]
    last = _starts(p, count) - 1
    starts = [last // 2] if clips == 1 else [round(clip * last / (clips - 1)) for clip in range(clips)]
    return [frame for start in starts for frame in _dense(p, count, start)]


def _uniform(count: int, positions: list[float]) -> list[int]:
    """One frame of each of as many parts as there are positions, which say how far into it, in [0, 1)."""
    number = len(positions)
    if count < number:
        return [min(frame, count - 1) for frame in range(number)]
    ends = [part * count // number for part in range(number + 1)]
    return [start + int(position * (end - start)) for start, end, position in zip(ends, ends[1:], positions)]


def _dense(preprocessing: Preprocessing, count: int, start: int) -> list[int]:
    p = preprocessing
    return [min(start + frame * p.frame_step, count - 1) for frame in range(p.frames)]


def _starts(preprocessing: Preprocessing, count: int) -> int:
    """How many frames of a video of `count` a dense clip can begin with."""
    return max(1, count - span(preprocessing) + 1)


class Clips(Samples[Tensor]):
    """Clips of the videos of a listing as samples: images (T, C, H, W), which are uint8, or float32 for 16 bits.

    Videos are decoded as a whole and kept in memory if the whole set fits (`samples.CACHE_BYTES`); else only the frames
    that are asked for.

    Args:
        listing: what there is.
        transform: from the pixels of the frames to the model's input.
        preprocessing: how frames are decoded.
        seed: of the frames and of the random transforms.
        pick: which frames; it may draw from torch's global numbers.

    Raises:
        UsageError: the preprocessing is one of pictures.
    """

    def __init__(
        self, listing: Listing, transform: Transform, preprocessing: Preprocessing, seed: int = 0, *, pick: Pick
    ) -> None:
        super().__init__(listing, preprocessing, seed)
        if not preprocessing.frames:
            raise UsageError(
                "the data are videos, and preprocessing.frames is 0", remedy="set it to the frames of a clip"
            )
        self.transform, self.pick = transform, pick
        self._videos: dict[int, Video] = {}

    def _sample(self, index: int) -> Sample:
        pixels = self._frames(index)
        return Sample(
            image=self.transform(pixels),
            target=labels_of(self.listing.items[index]),
            name=self.listing.name(index),
            size=(pixels.shape[-2], pixels.shape[-1]),
        )

    def _frames(self, index: int) -> Tensor:
        """(T, C, H, W): the frames that are picked."""
        whole = self._cached(index)
        if whole is None:
            p, video = self.preprocessing, self._video(index)
            height, width = video.size
            if not self._fits(len(video) * p.channels * height * width * (1 if p.bits == 8 else 4)):
                return video.frames(self.pick(len(video)), p)
            whole = video.frames(range(len(video)), p)
            self._store(index, whole)
        return whole[self.pick(len(whole))]

    def _video(self, index: int) -> Video:
        video = self._videos.get(index)
        if video is None:
            video = open_video(self.listing.items[index].path)
            if len(self._videos) < KNOWN:
                self._videos[index] = video
        return video


def training_clips(
    listing: Listing, preprocessing: Preprocessing, augmentation: AugmentationSettings, seed: int
) -> Clips:
    """A clip of each video, drawn anew in each epoch; all its frames are changed alike.

    Raises:
        UsageError: as `transforms.training_transform`.
    """
    pick = partial(training_frames, preprocessing)
    return Clips(listing, training_transform(preprocessing, augmentation), preprocessing, seed, pick=pick)


def evaluation_clips(
    listing: Listing, preprocessing: Preprocessing, seed: int = 0, *, views: tuple[int, int] = (1, 1)
) -> Clips:
    """Each video as the model is judged on it.

    Args:
        listing: of videos.
        preprocessing: of the model.
        seed: of nothing.
        views: V1 clips (`evaluation_frames`), and of each V2 crops along the side that has more to spare.

    Returns:
        Samples with images (V1 * V2 * T, C, H, W): clip by clip, of each crop by crop, of each frame by frame.

    Raises:
        UsageError: as `looks`.
    """
    pick, fit = looks(preprocessing, views)
    return Clips(listing, fit, preprocessing, seed, pick=pick)


def looks(preprocessing: Preprocessing, views: tuple[int, int]) -> tuple[Pick, Transform]:
    """Which frames of a video are asked for, and what becomes of them, as `evaluation_clips` has it.

    Raises:
        UsageError: no view, or several crops where pictures are not cropped.
    """
    clips, crops = views
    if clips < 1 or crops < 1:
        raise UsageError(f"{clips} clips of {crops} crops are no view", remedy="give numbers above 0")
    if crops > 1 and preprocessing.resize != "crop":
        raise UsageError(f"{crops} crops with preprocessing.resize {preprocessing.resize}", remedy="ask for one")
    return partial(evaluation_frames, preprocessing, clips), Crops(preprocessing, crops)


class Crops:
    """Resize frames and crop each clip once or several times."""

    def __init__(self, preprocessing: Preprocessing, crops: int) -> None:
        self.frames, self.crops = preprocessing.frames, crops
        self.fit = Fit(preprocessing)

    def __call__(self, image: Tensor) -> Tensor:
        """(V1 * T, C, H, W) -> (V1 * V2 * T, C, H', W')."""
        if self.crops == 1:
            return self.fit(image)
        crops = along(self.fit.covering(image), self.fit.preprocessing.size, self.crops)
        clips = [crop.unflatten(0, (-1, self.frames)) for crop in crops]
        return torch.stack(clips, 1).flatten(0, 2)
