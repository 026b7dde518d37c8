"""Predictions of a trained model for pictures: files, folders, or anything that holds pixels."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from PIL import Image
from torch import Tensor

from patchform import lookup
from patchform.data.collate import collate, to_device
from patchform.data.encoded import write as write_film
from patchform.data.inputs import Source, expand, find, is_film
from patchform.data.output_plan import About, OutputOptions, Plan, each_once, plan_output
from patchform.data.preparing import Preparation
from patchform.data.videos import open_video
from patchform.data.videos import stream as all_frames
from patchform.device import Precision, autocast
from patchform.drawing import PAPER, to_png_bytes
from patchform.errors import DataError, UsageError, warned
from patchform.heads.base import NO_HEAD
from patchform.inference import Inference, preparation, views_of
from patchform.model import Model
from patchform.published_models import pretrained
from patchform.records import Sample, Target, tensors_of
from patchform.runtime.opening import DEFAULT, open_model
from patchform.runtime.sessions import RuntimeOptions
from patchform.tasks.base import Prediction as Prediction
from patchform.tasks.base import Task, task_of
from patchform.timeline import Along, Moment, annotated, moments

SURE = 0.5
"""Score from which a prediction of an object counts, for a model without thresholds of its own."""
DIGITS = 3
"""Of written seconds."""
NOT_FINITE = "the model's scores are not finite"
THREADS = 4
"""Decoding releases Python's lock."""


class Written(NamedTuple):
    """What `write` did."""

    images: int
    failed: int


class Predictor:
    """A model ready for pictures of any size, or for videos: each is prepared as at evaluation.

    Args:
        model: taken over: moved to the device and set to evaluation mode.
        task: default: the model's own.
        device: "auto" takes the accelerator if there is one.
        precision: bfloat16 runs the model under autocast.
        infer: how predictions are made (`patchform.inference`).
        threshold: score from which a prediction of an object counts; default: the model's own of each class
            (`Model.thresholds`), and if it has none, 0.5. 0 gives all that the model predicts.

    Attributes:
        classes: names in the order of the scores.
        videos: whether it looks at videos.
    """

    def __init__(
        self,
        model: Model,
        task: Task | None = None,
        *,
        device: torch.device | str = "auto",
        precision: Precision = "float32",
        infer: Inference = Model.predict,
        threshold: float | None = None,
    ) -> None:
        if threshold is not None and not threshold >= 0:
            raise UsageError(f"a threshold of {threshold}", remedy="give a score, 0 or more")
        self.device = model.pick_device(device)
        self.task = task or task_of(model.architecture, model.head)
        self.model, self.classes = model.to(self.device).eval(), model.classes
        self.precision = precision
        self.infer = infer
        single = (SURE if threshold is None else threshold,) * len(self.classes)
        self.thresholds = model.thresholds if threshold is None and model.thresholds is not None else single
        self.preparation = Preparation(preparation(infer, model.preprocessing), views_of(infer))
        self.videos = self.preparation.videos

    def predict(self, sources: Any, *, batch_size: int = 16, keep_images: bool = False) -> Iterator[Prediction]:
        """Predictions in the order of the sources, made one batch at a time as they are read.

        A picture that cannot be used gives a prediction with an error and does not touch the others.

        Args:
            sources: a path, folder, pattern (`photos/**/*.jpg`), "-" for standard input, the bytes of a file, a PIL
                image, a NumPy array (H, W) or (H, W, C), a tensor (C, H, W), or a list of such. Arrays hold RGB,
                uint8 or floating point in 0..1. For a model of clips paths are those of videos or of folders of
                frames, and arrays and tensors have the frames as their first axis.
            batch_size: pictures that are read together; those of one size go through the model at once, and no
                prediction depends on the others but by rounding.
            keep_images: give the decoded pictures back, for drawing.

        Raises:
            DataError: at once, if there is nothing to look at.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}", remedy="it is at least 1")
        items = expand(sources, videos=self.videos)
        parts = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
        return self._predict(parts, keep_images)

    def __call__(self, source: Any, *, batch_size: int = 16) -> Prediction | list[Prediction]:
        """The prediction for one picture or video, with its pixels, so that it can show itself; of several a list.

        Args:
            source: one of those of `predict`; a list, a folder or a pattern gives a list, in which one that cannot be
                used is a prediction with an error.
            batch_size: pictures that are read together.

        Raises:
            DataError: one picture that cannot be used, or nothing to look at.
        """
        sources = expand(source, videos=self.videos)
        predictions = list(self.predict(sources, batch_size=batch_size, keep_images=True))
        if not _is_one(source, sources):
            return predictions
        if predictions[0].error is not None:
            raise DataError(predictions[0].error)
        return predictions[0]

    def __repr__(self) -> str:
        return f"Predictor({self.model!r})"

    def record(self, prediction: Prediction) -> dict[str, Any]:
        """The prediction as plain JSON values: `file`, and `error` or the task's record."""
        return prediction.as_json()

    def frames(self, path: str | Path, *, batch_size: int = 16) -> Iterator[tuple[float, Prediction]]:
        """Predictions of a model of pictures for every frame of a film: seconds from its beginning, and the prediction.

        Raises:
            DataError: while iterating, scores that are not finite too; what comes before the fault is given.
            UsageError: for a model of clips, or PyAV is missing.
        """
        if self.videos:
            raise UsageError("a model of clips does not look at single frames", remedy="use `along`")
        film = all_frames(Path(path), self.model.preprocessing)
        while part := list(islice(film, batch_size)):
            targets = self.decide([self.preparation.sample(frame.pixels) for frame in part])
            for frame, target in zip(part, targets):
                if isinstance(target, DataError):
                    raise DataError(target.what, where=path, remedy=target.remedy)
                yield frame.time, self._said(str(path), target, frame.pixels)

    def decide(
        self, samples: Sequence[Sample], thresholds: Sequence[Sequence[float]] | None = None
    ) -> list[Target | DataError]:
        """What the model says of samples (`preparation`), those of one size at once.

        One that the model does not take, or of which its scores are not finite, does not touch the others.

        Args:
            samples: of one batch.
            thresholds: of each sample, one a class; default: `self.thresholds`.
        """
        thresholds = [self.thresholds] * len(samples) if thresholds is None else thresholds
        try:
            targets = self._decide(samples, thresholds)
        except DataError as error:
            if len(samples) == 1:
                return [error]
            return [one for pair in zip(samples, thresholds) for one in self.decide(pair[:1], pair[1:])]
        return [target if _finite(target) else DataError(NOT_FINITE) for target in targets]

    def moment(self, moment: Moment) -> dict[str, Any]:
        """The prediction for a part of a video as plain JSON values: `start`, `end` in seconds, the task's record."""
        times = {"start": round(moment.start, DIGITS), "end": round(moment.end, DIGITS)}
        return times | self.task.record(moment.target, self.classes)

    def check(self, along: Along) -> None:
        """Raise UsageError for a model of pictures, or one that does not know what its clips span."""
        if not self.videos:
            raise UsageError("a model of pictures has nothing to say along a video", remedy="give it pictures")
        along.seconds(self.model.preprocessing, 1.0)

    def along(self, path: str | Path, along: Along) -> list[Moment]:
        """Predictions along a video. Raises DataError, and UsageError as `check`."""
        self.check(along)
        with torch.inference_mode(), autocast(self.device, self.precision):
            return list(moments(self.model, Path(path), along, device=self.device))

    def draw(self, prediction: Prediction) -> Image.Image:
        """The prediction on its picture, which must have been kept."""
        return prediction.draw()

    def _predict(self, parts: Sequence[Sequence[Source]], keep_images: bool) -> Iterator[Prediction]:
        with ThreadPoolExecutor(THREADS) as pool:
            decoding = pool.map(self._read, parts[0])
            for number, part in enumerate(parts):
                read = list(decoding)
                if number + 1 < len(parts):  # decoded while the model works
                    decoding = pool.map(self._read, parts[number + 1])
                targets = iter(self.decide([one.sample for one in read if isinstance(one, _Read)]))
                for source, one in zip(part, read):
                    target = next(targets) if isinstance(one, _Read) else one
                    if isinstance(target, DataError) or isinstance(one, DataError):
                        yield Prediction(source.name, None, str(target))
                    else:
                        yield self._said(source.name, target, one.image if keep_images else None)

    def _said(self, name: str, target: Target, image: Tensor | None) -> Prediction:
        return Prediction(name, target, None, image, self.task, self.classes)

    def _read(self, source: Source) -> _Read | DataError:
        try:
            image = self.preparation.read(source)
            return _Read(image, self.preparation.sample(image))
        except DataError as error:
            return error

    def _decide(self, samples: Sequence[Sample], thresholds: Sequence[Sequence[float]]) -> list[Target]:
        if not samples:
            return []
        with autocast(self.device, self.precision):
            answers = self.infer(self.model, to_device(collate(samples), self.device))
            return [self.task.confident(*pair) for pair in zip(answers, thresholds)]


class _Read(NamedTuple):
    """A picture that could be read."""

    image: Tensor
    sample: Sample


def _is_one(source: Any, sources: Sequence[Source]) -> bool:
    """Whether one thing was given, and not a list of such, a folder or a pattern."""
    if isinstance(source, str | Path):
        return str(source) == "-" or [one.content for one in sources] == [Path(source).expanduser()]
    return not isinstance(source, list | tuple | Iterator)


def _finite(target: Target) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors_of(target) if tensor.is_floating_point())


def load(
    run: str | Path,
    *,
    device: str = "auto",
    precision: Precision = "float32",
    infer: Inference = Model.predict,
    threshold: float | None = None,
    runtime: RuntimeOptions = DEFAULT,
    options: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = warned,
) -> Predictor:
    """The model of a run folder, of an exported file or of published weights, ready to predict.

    Of a run that has not ended it is the best so far, which `say` is told, by default a warning of Python; `runtime`
    says how a file is run (`runtime.opening.open_model`), `options` are arguments of the backbone of published weights
    (`published_models.pretrained`); other arguments are those of `Predictor`.

    Raises:
        ModelFileError: it is not intact.
        UsageError: a backbone without a head; options of anything but published weights.
    """
    published = isinstance(run, str) and not os.path.lexists(run) and lookup.is_weights_name(run)
    if options and not published:
        raise UsageError("a trained model has its own options", where=run, remedy="give options of published weights")
    model = pretrained(str(run), options=options, say=say) if published else open_model(run, runtime, say=say)
    if model.architecture is not None and model.architecture.head == NO_HEAD:
        remedy = "patchform features gives its numbers; train a head on it: train --from"
        raise UsageError("a backbone without a head predicts nothing", where=run, remedy=remedy)
    return Predictor(model, device=device, precision=precision, infer=infer, threshold=threshold)


# ------------------------------------------------------------------------------------------------------------ output


def write(
    predictor: Predictor,
    sources: Any,
    *,
    stream: TextIO | None = None,
    out: str | Path | None = None,
    batch_size: int = 16,
    along: Along | None = None,
    **options: Any,
) -> Written:
    """Predict and write a line of JSON for each picture, as soon as it is known, and annotated pictures.

    A model of pictures looks at films frame by frame: a line for each, with its number and the time in seconds, and an
    annotated film. A picture that is given twice is looked at once. An interrupt leaves complete lines, and whole
    pictures for all of them.

    Args:
        predictor: what to infer.
        sources: as in `Predictor.predict`.
        stream: where the lines go.
        out: a folder, made if need be, for `predictions.jsonl`, a picture `x/a.jpg.png` of x/a.jpg, a film `a.mp4.mp4`;
            folders below the one that was given are kept, and no two names are one.
        batch_size: as in `Predictor.predict`.
        along: of videos: predictions for their parts too, in the lines as `moments`, each with `start` and `end`
            in seconds, and in `out` as a video `a.mp4.mp4`.
        options: fields of `OutputOptions`.

    Returns:
        How many pictures there were, and how many could not be used.

    Raises:
        DataError: there is nothing to look at; a file of ids that is none, or has none of the pictures.
        UsageError: the sources lie in `out`; a format without `out`, or one that the task does not have.
        FolderError: a file to be written exists, or `out` lies inside a folder of folders of pictures; nothing is
            written then.
        ResourceError: the disk is full or `out` is not writable.
    """
    settings = OutputOptions(**options)
    if along is not None:
        predictor.check(along)
    found = find(sources, videos=predictor.videos)
    items = each_once(found, settings.say)
    films = [is_film(item) and not predictor.videos for item in items]
    if settings.format is not None and any(films):
        raise UsageError(f"the format {settings.format} is for pictures", where=items[films.index(True)].name)
    about = About(predictor.task.name, predictor.task.writers(), predictor.classes, predictor.model.ids)
    plan = plan_output(about, items, found.folders, None if out is None else Path(out), settings)
    with ExitStack() as stack:
        streams = [] if stream is None else [stream]
        if plan.folder is not None:
            streams.append(stack.enter_context(plan.begin([True] * len(items) if along else films, settings.say)))
        output = _Output(predictor, streams, plan, along)
        pictures, keep = [item for item, film in zip(items, films) if not film], plan.folder is not None
        predictions = predictor.predict(pictures, batch_size=batch_size, keep_images=keep) if pictures else iter(())
        usable = [
            output.film(item, name, batch_size) if film else output.picture(item, name, next(predictions))
            for item, film, name in zip(items, films, plan.names)
        ]
    return Written(len(items), usable.count(False))


class _Output(NamedTuple):
    """Where predictions go."""

    predictor: Predictor
    streams: Sequence[TextIO]
    plan: Plan
    along: Along | None

    def line(self, record: dict[str, Any]) -> None:
        """Write a line to every stream."""
        text = json.dumps(record, allow_nan=False) + "\n"
        for stream in self.streams:
            stream.write(text)
            stream.flush()

    def picture(self, source: Source, name: str, prediction: Prediction) -> bool:
        """Write the prediction for a picture, or of a model of clips for a video; whether it could be used."""
        target, record = prediction.target, self.predictor.record(prediction)
        folder, writer = self.plan.folder, self.plan.writer
        if folder is not None and target is not None:
            folder.save(to_png_bytes(self.predictor.draw(prediction)), folder.file(name, ".png"))
            for ending, content in self.predictor.task.files(target).items():
                folder.save(content, folder.file(name, ending))
            if writer is not None and prediction.image is not None:
                height, width = prediction.image.shape[-2:]
                writer.add(name, target, (height, width))
        if self.along is not None and isinstance(source.content, Path) and target is not None:
            try:
                parts = self.predictor.along(source.content, self.along)
                if folder is not None:
                    task, classes = self.predictor.task, self.predictor.classes
                    film = partial(annotated, source.content, parts, task, classes)
                    folder.film(folder.file(name, ".mp4"), film)
                record["moments"] = [self.predictor.moment(part) for part in parts]
            except DataError as error:  # beyond the frames that were looked at before
                record["error"] = str(error)
        self.line(record)
        return "error" not in record

    def film(self, source: Source, name: str, batch_size: int) -> bool:
        """Write predictions of a model of pictures for all frames; whether the film could be read to its end."""
        folder = self.plan.folder

        def pages() -> Iterator[Image.Image]:
            for number, (time, prediction) in enumerate(self.predictor.frames(source.content, batch_size=batch_size)):
                frame = {"file": source.name, "frame": number, "time": round(time, DIGITS)}
                self.line(self.predictor.record(prediction) | frame)
                if folder is not None:
                    yield self.predictor.draw(prediction)

        try:
            if folder is None:
                deque(pages(), maxlen=0)
            else:
                rate = open_video(source.content).rate
                folder.film(folder.file(name, ".mp4"), partial(write_film, frames=_of_one_size(pages()), rate=rate))
        except DataError as error:
            self.line({"file": source.name, "error": str(error)})
            return False
        return True


def _of_one_size(pages: Iterator[Image.Image]) -> Iterator[Image.Image]:
    """Pages on paper a third higher than the first, as what is written below a picture differs in length."""
    paper: Image.Image | None = None
    for page in pages:
        paper = paper or Image.new("RGB", (page.width, page.height * 4 // 3), PAPER)
        sheet = paper.copy()
        sheet.paste(page)
        yield sheet
