"""The process of the model: lists of jobs in, lists of answers out. Nothing that comes from outside is decoded here."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from patchform import lookup, signals, system
from patchform.descriptions import Preprocessing
from patchform.drawing import color_of
from patchform.errors import DataError, PatchformError
from patchform.prediction import Predictor, load
from patchform.records import Sample
from patchform.serving.jobs import Answer, Card, Job, Refusal

NO_MEMORY = "there is not enough memory for this picture"
FAULT = "the model failed on this picture"


class Opening(NamedTuple):
    """How the model is opened: arguments of `prediction.load`. It goes to a process that is started."""

    run: str
    options: dict[str, Any]
    plugins: tuple[str, ...] = ()
    """Folders with own parts."""
    facts: tuple[tuple[str, str], ...] = ()
    """What else is known of it, for its card."""

    def predictor(self) -> Predictor:
        """The model, ready. Raises what `prediction.load` raises."""
        for folder in self.plugins:
            lookup.add_plugin(folder)
        return load(self.run, **self.options)


def work(connection: Connection, opening: Opening) -> None:
    """What the process does: it says what the model is, or why there is none, and answers until it is told to end.

    Args:
        connection: gets a `Card` or a `PatchformError` first, then for each list of jobs a list as long.
        opening: of the model.
    """
    signals.ignore_all()  # they are meant for the server, which ends this process when all is answered
    torch.set_num_threads(min(torch.get_num_threads(), system.cores()))  # torch counts those of the whole machine
    try:
        predictor = opening.predictor()
    except PatchformError as error:
        connection.send(error)
        return
    connection.send((card_of(predictor, dict(opening.facts)), predictor.preparation))
    while (jobs := _received(connection)) is not None:
        connection.send(answers(predictor, jobs))


def _received(connection: Connection) -> list[Job] | None:
    try:
        return connection.recv()
    except EOFError:  # the server is gone
        return None


def card_of(predictor: Predictor, more: dict[str, str]) -> Card:
    """What a model is, with facts that its predictor does not know."""
    model = predictor.model
    facts = {"input": in_words(model.preprocessing)} | more
    if model.architecture is not None:
        facts = {"backbone": model.architecture.backbone, "head": model.architecture.head or ""} | facts
    colors = tuple("#{:02x}{:02x}{:02x}".format(*color_of(number)) for number in range(len(predictor.classes)))
    thresholds = tuple(predictor.thresholds)
    return Card(predictor.task.name, tuple(predictor.classes), thresholds, colors, predictor.videos, facts)


def in_words(preprocessing: Preprocessing) -> str:
    """Such as "224 x 224 pixels, 3 channels"."""
    height, width = preprocessing.size
    frames = f", {preprocessing.frames} frames" * bool(preprocessing.frames)
    channels = f"{preprocessing.channels} channel" + "s" * (preprocessing.channels != 1)
    return f"{height} x {width} pixels, {channels}{frames}"


def answers(predictor: Predictor, jobs: Sequence[Job]) -> list[Answer | Refusal]:
    """An answer or a refusal each; a job that fails, or is too large, harms no other."""
    thresholds = [_thresholds(predictor, job) for job in jobs]
    try:
        targets = predictor.decide([_sample(job) for job in jobs], thresholds)
        return [_answer(predictor, job, target) for job, target in zip(jobs, targets)]
    except Exception as error:  # whatever a kernel raises: the process is to outlive it
        if len(jobs) > 1:
            return [one for job in jobs for one in answers(predictor, [job])]
        gc.collect()
        memory = isinstance(error, MemoryError) or "memory" in str(error)
        return [Refusal("memory", NO_MEMORY) if memory else Refusal("fault", FAULT)]


def _sample(job: Job) -> Sample:
    return Sample(torch.from_numpy(job.picture.pixels), None, "", job.picture.size)


def _thresholds(predictor: Predictor, job: Job) -> Sequence[float]:
    threshold = job.wishes.threshold
    return predictor.thresholds if threshold is None else (threshold,) * len(predictor.classes)


def _answer(predictor: Predictor, job: Job, target: Any) -> Answer | Refusal:
    if isinstance(target, DataError):
        return Refusal("picture", target.what)
    files = predictor.task.files(target) if job.wishes.files else {}
    return Answer(predictor.task.record(target, predictor.classes), files, job.picture.size)
