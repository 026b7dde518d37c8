"""Predictions of a model of clips along a video: one after the other, and the video with them written below."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchform.data.clips import evaluation_frames
from patchform.data.clips import span as frames_of_a_clip
from patchform.data.collate import collate, to_device
from patchform.data.encoded import write
from patchform.data.transforms import evaluation_transform
from patchform.data.videos import open_video, stream
from patchform.descriptions import Preprocessing
from patchform.errors import UsageError
from patchform.inference import Inference
from patchform.model import Model
from patchform.records import Sample, Target
from patchform.tasks.base import Task

AT_ONCE = 8
"""Clips that go through the model together."""


class Moment(NamedTuple):
    """The prediction for a part of a video. Those of a video follow one another, from its first to its last frame."""

    start: float
    end: float
    """Seconds."""
    target: Target


@dataclass(frozen=True)
class Along:
    """How a video is gone along: the model looks at the frames of `span` seconds, every so many seconds."""

    every: float
    """Seconds from one clip to the next."""
    span: float | None = None
    """Seconds that a clip spans. None: as many frames as the model learnt from, if it was taught by dense sampling;
    one that was taught by uniform sampling has seen whole videos, and does not know."""

    def __post_init__(self) -> None:
        for name, seconds in (("every", self.every), ("span", self.span)):
            if seconds is not None and not 0 < seconds < float("inf"):
                raise UsageError(f"{name} is {seconds} seconds", remedy="give a number above 0")

    def seconds(self, preprocessing: Preprocessing, rate: float) -> float:
        """Of a clip, at so many frames a second. Raises UsageError where it is not known."""
        if self.span is not None:
            return self.span
        if preprocessing.sampling == "uniform":
            raise UsageError("the model was taught by whole videos", remedy="say how many seconds a clip spans (span)")
        return frames_of_a_clip(preprocessing) / rate


def moments(
    model: Model,
    path: Path,
    along: Along,
    *,
    device: torch.device | str = "cpu",
    infer: Inference = Model.predict,
) -> Iterator[Moment]:
    """Answers along a video. Memory grows with the frames of a clip, not with those of the video.

    The prediction for a clip counts for the `every` seconds around its middle; the first from the beginning on, the
    last to the end. A video that is shorter than a clip gets one.

    Args:
        model: of clips, in evaluation mode, on `device`.
        path: of the video.
        along: which clips.
        device: where it runs.
        infer: how predictions are made of a batch of clips.

    Raises:
        DataError: a video that cannot be read.
        UsageError: the span of a clip is not known.
    """
    video = open_video(path)
    seconds = along.seconds(model.preprocessing, video.rate)
    clips = _clips(path, model.preprocessing, seconds, along.every, 1 / video.rate)
    start, previous = 0.0, None
    for middle, target in _predict(model, clips, device, infer):
        if previous is not None:
            end = middle - along.every / 2
            yield Moment(start, end, previous)
            start = end
        previous = target
    if previous is not None:
        yield Moment(start, video.time(len(video) - 1) + 1 / video.rate, previous)


def annotated(path: Path, parts: Sequence[Moment], task: Task, classes: Sequence[str], out: Path) -> None:
    """Write a video with the prediction for each frame below it.

    Raises:
        DataError: a video that cannot be read.
        ResourceError: `out` cannot be written.
    """
    write(out, _draw(path, parts, task, classes), open_video(path).rate)


def _draw(path: Path, parts: Sequence[Moment], task: Task, classes: Sequence[str]) -> Iterator[Any]:
    rest = list(reversed(parts))
    for frame in stream(path):
        while len(rest) > 1 and frame.time >= rest[-1].end:
            rest.pop()
        yield task.draw(frame.pixels[None], rest[-1].target, classes)


def _clips(
    path: Path, preprocessing: Preprocessing, seconds: float, every: float, duration: float
) -> Iterator[tuple[float, Tensor]]:
    """The middle of each clip in seconds, and its frames (T, C, H, W). `duration`: seconds that a frame lasts."""
    transform = evaluation_transform(preprocessing)
    frames: deque[tuple[float, Tensor]] = deque()
    end, number = seconds, 0
    for time, pixels in stream(path, preprocessing):
        if time < end - seconds - duration / 2:
            continue
        frames.append((time, transform(pixels)))
        while time + duration >= end - duration / 2:  # several clips, where frames lie further apart than clips
            while len(frames) > 1 and frames[0][0] < end - seconds - duration / 2:
                frames.popleft()
            yield end - seconds / 2, _select(frames, preprocessing)
            number += 1
            end = seconds + number * every
    if not number:
        yield seconds / 2, _select(frames, preprocessing)


def _select(frames: Sequence[tuple[float, Tensor]], preprocessing: Preprocessing) -> Tensor:
    return torch.stack([frames[index][1] for index in evaluation_frames(preprocessing, 1, len(frames))])


def _predict(
    model: Model, clips: Iterator[tuple[float, Tensor]], device: torch.device | str, infer: Inference
) -> Iterator[tuple[float, Target]]:
    """Middles and answers, several clips at once."""
    while part := list(islice(clips, AT_ONCE)):
        samples = [Sample(frames, None, "", (frames.shape[-2], frames.shape[-1])) for _, frames in part]
        answers = infer(model, to_device(collate(samples), device))
        yield from zip((middle for middle, _ in part), answers)
