"""Whether an exported file does what the model of its run does: it is doubted with real pictures until it is proved.

What it says of itself is compared word by word; then its numbers at many sizes, in batches of one and of several; then
what users get, files in and answers out, through the very path that they take; and last the metric of the task, before
and after. A control shows each time that a small fault would have been seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchform.data.collate import to_device
from patchform.data.listing import Listing
from patchform.data.loader import evaluation_loader
from patchform.errors import DataError, DivergedError, unheard
from patchform.export import numbers
from patchform.export.graph import Graph
from patchform.export.numbers import DRAWS, TIED, TOLERANCES, Trial, judged, with_noise
from patchform.export.pictures import SHOWN, decoded, made_up, taken
from patchform.metrics.agreement import NOTHING, Agreement
from patchform.metrics.base import Scores
from patchform.model import Model
from patchform.prediction import Predictor
from patchform.records import Batch, Target
from patchform.runtime.file_model import FileModel
from patchform.tasks.base import task_of

ALLOWED = {"float32": 0.1, "float16": 0.1, "int8": 0.5}
"""Points, of 100, by which the metric may get worse, by dtype."""
FEW = 20
"""Decisions, of objects or images, fewer than which prove little."""
ASKED = 24
"""Pictures that are asked about through the path that users take."""
ENOUGH = 4
"""Sizes at which something differs, after which no more are tried."""
AT_ONCE = 8
"""Pictures that are read together."""
FINEST = 2e-6
"""What may differ in any case, as a share of the scale: float32 has seven digits."""
OFF = 1.01
"""How much larger the deviation of pixels is taken for the control."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How a file is checked."""

    allow: float | None = None
    """Points, of 100, that the metric may lose; None: `ALLOWED`."""
    workers: int = 0
    """Processes that decode."""
    progress: Callable[[str, int, int], None] | None = None
    """Called with what is done, how much of it is done, and how much there is."""
    say: Callable[[str], None] = unheard
    """Called with remarks, a sentence each."""
    unproved: bool = False
    """Go on where there are no pictures: numbers alone are compared, on pictures that are made up."""


@dataclass(kw_only=True)
class Proof:
    """What was found. It is proved if there is no fault."""

    faults: list[str] = field(default_factory=list)
    """What differs, and by how much."""
    warnings: list[str] = field(default_factory=list)
    """Why it proves less than it might."""
    trials: list[Trial] = field(default_factory=list)
    """At many sizes."""
    path: Trial | None = None
    """Of files in and answers out."""
    images: Trial | None = None
    """Of all pictures."""
    pictures: int = 0
    """How many those are."""
    metric: str = ""
    """By which models of the task are compared; "" where there is none."""
    before: dict[str, float | None] = field(default_factory=dict)
    after: dict[str, float | None] = field(default_factory=dict)
    """Numbers of the model and of the file."""
    control: Agreement = NOTHING
    """How far the model itself is from what it says when the deviation of its pixels is one per cent off."""

    @property
    def proved(self) -> bool:
        """Whether nothing was found, and something was looked at."""
        return not self.faults and self.images is not None

    @property
    def lost(self) -> float | None:
        """Points, of 100, that the file is worse; None where there is no metric."""
        before, after = self.before.get(self.metric), self.after.get(self.metric)
        return None if before is None or after is None else 100 * (before - after)


def check(file: FileModel, model: Model, listing: Listing | None, options: CheckOptions) -> Proof:
    """Compare a file with the model that it was made from; the first part in which something differs is the last.

    Args:
        file: opened.
        model: of the run folder, in evaluation mode on the CPU.
        listing: labelled pictures, at least one; None: numbers alone are compared, on pictures that are made up.
        options: what is allowed, and who hears of it.
    """
    fitting = (
        None if listing is None else taken(listing, model, task_of(model.architecture, model.head), file.description)
    )
    if fitting is None or (options.unproved and not fitting.items):
        return _without_pictures(file, model, options)
    checking = _Check(file, model, fitting, options)
    if not fitting.items:
        sizes = ", ".join(f"{height}x{width}" for height, width in file.description.sizes)
        checking.proof.faults.append(f"no picture is {sizes} once it is prepared, so that nothing can be proved")
        return checking.proof
    for part in (checking.words, checking.control, checking.sizes, checking.path, checking.metric):
        part()
        if checking.proof.faults:
            break
    return checking.proof


def _without_pictures(file: FileModel, model: Model, options: CheckOptions) -> Proof:
    """What can be compared without any picture; it proves nothing of what the file is for."""
    checking = _Check(file, model, Listing(classes=model.classes, items=(), root=Path()), options)
    checking.words()
    if not checking.proof.faults:
        checking.sizes(made_up(model))
    checking.proof.warnings.append(
        "there were no pictures: numbers were compared on made-up ones, and nothing is proved"
    )
    return checking.proof


class _Check:
    """The parts of a check, in turn. Arguments as of `check`."""

    def __init__(self, file: FileModel, model: Model, listing: Listing, options: CheckOptions) -> None:
        self.file, self.model, self.listing, self.options = file, model, listing, options
        self.task = task_of(model.architecture, model.head)
        self.tolerance = numbers.tolerance_of(file.description)
        self.proof = Proof()

    def words(self) -> None:
        """Names, ids, thresholds and preprocessing are those of the model."""
        said, model = self.file.description, self.model
        pairs: dict[str, tuple[Any, Any]] = {
            "task": (said.task, self.task.name),
            "task_options": (said.task_options, self.task.options()),
            "classes": (said.classes, model.classes),
            "ids": (said.ids, model.ids),
            "thresholds": (said.thresholds, model.thresholds),
            "architecture": (_plain(said.architecture), _plain(model.architecture)),
        }
        for name in (part.name for part in dataclasses.fields(model.preprocessing)):
            pairs[f"preprocessing.{name}"] = (getattr(said.preprocessing, name), getattr(model.preprocessing, name))
        for name, (theirs, ours) in pairs.items():
            if theirs != ours:
                self.proof.faults.append(f"its {name} {_first_difference(theirs, ours)}")

    def control(self) -> None:
        """How far the model is from itself when the deviation of its pixels is one per cent off: that must be seen, so
        a file may differ by no more than a tenth of it. Where it is too little, these pictures, or this model, prove
        nothing.
        """
        samples = self.task.evaluation_samples(self.listing, self.model.preprocessing)
        count, whole, graph = min(len(self.listing), SHOWN), NOTHING, Graph(self.model)
        for number in range(count):
            image = samples[(0, number * len(self.listing) // count)].image[None]
            sizes = torch.tensor([[image.shape[-2], image.shape[-1]]])
            pixels = image if image.is_floating_point() else image.float() / 255
            with torch.inference_mode():
                off = graph(self.model.mean + (pixels - self.model.mean) * OFF, sizes).predictions()
                for reference, answer in zip(graph(image, sizes).predictions(), off):
                    whole |= self.task.agreement(reference, answer, overlap=self.tolerance.overlap)
        self.proof.control = whole
        if not self.tolerance.exact:
            return
        if not whole.different:
            self.tolerance = replace(self.tolerance, apart=min(self.tolerance.apart, max(FINEST, whole.worst / 10)))
        if whole.worst <= self.tolerance.apart and not whole.different:
            self.proof.warnings.append(
                "the model hardly looks at these pictures: with the deviation of pixels one per cent off its numbers"
                f" move by {whole.worst:.1g}, so that they prove little"
            )

    def sizes(self, pictures: Sequence[Tensor] = ()) -> None:
        """Numbers at many sizes, of pictures of the listing or of these."""
        pictures, proof = pictures or decoded(self.listing, self.model, self.task), self.proof
        count = len(numbers.sizes_of(self.file.description)) * len(numbers.batches_of(self.file.description))
        for trial in numbers.trials(self.file, self.model, self.task, pictures, self.tolerance):
            proof.trials.append(trial)
            proof.faults += [trial.fault] if trial.fault else []
            self._done("sizes", len(proof.trials), count)
            if len(proof.faults) == ENOUGH:
                break
        if not proof.faults:
            proof.faults += _too_many_ties(proof.trials)

    def path(self) -> None:
        """What users get: files in, answers out; decoded, resized, thresholds applied, names given."""
        count, proof, whole = min(ASKED, len(self.listing)), self.proof, Trial("", NOTHING, 0, "")
        paths = [self.listing.items[index * len(self.listing) // count].path for index in range(count)]
        predictors = [Predictor(model, device="cpu") for model in (self.model, self.file)]
        streams = [predictor.predict(paths, batch_size=AT_ONCE) for predictor in predictors]
        for number, (reference, answer) in enumerate(zip(*streams)):
            where = f"{reference.name}, through predict"
            if reference.target is None or answer.target is None:
                if reference.error != answer.error:
                    proof.faults.append(f"{where}: {answer.error or 'an answer where the model has none'}")
                continue
            noisy = self._noisy_answers(paths[number])
            trial = judged(where, self.task, [reference.target], [answer.target], noisy, self.tolerance)
            whole = _joined(whole, trial)
            self._done("answers", number + 1, count)
            if whole.fault:
                break
        proof.path = whole._replace(shape=f"{count} files")
        proof.faults += [whole.fault] if whole.fault else []

    def _noisy_answers(self, path: Path) -> Iterator[Sequence[Target]]:
        for draw in range(DRAWS):
            infer = partial(_predict_noisy, self.tolerance.noise, draw)
            answers = Predictor(self.model, self.task, device="cpu", infer=infer).predict([path])
            yield [answer.target for answer in answers if answer.target is not None]

    def metric(self) -> None:
        """The metric of the task over all pictures, before and after; and their answers, one by one."""
        model, file, proof, whole = self.model, self.file, self.proof, Trial("", NOTHING, 0, "")
        metrics = self.task.metric(model.classes), self.task.metric(model.classes)
        loaders = [
            evaluation_loader(self.task.evaluation_samples(self.listing, prepared), AT_ONCE, self.options.workers)
            for prepared in (model.preprocessing, file.preprocessing)
        ]
        for given, fed in zip(*loaders):
            references, answers = (
                one.predict(to_device(batch._replace(targets=()), "cpu"))
                for one, batch in ((model, given), (file, fed))
            )
            metrics[0].update(references, given.targets)
            try:
                metrics[1].update(answers, given.targets)
            except (DataError, DivergedError) as error:
                proof.faults.append(f"an answer of the file is none: {error.what}")
                return
            noisy = (_predict_noisy(self.tolerance.noise, draw, model, given) for draw in range(DRAWS))
            where = f"{given.names[0]} and {len(given.names) - 1} more"
            whole = _joined(whole, judged(where, self.task, references, answers, noisy, self.tolerance))
            proof.pictures += len(given.names)
            self._done("pictures", proof.pictures, len(self.listing))
        before, after = (metric.compute() for metric in metrics)
        proof.images = whole._replace(shape=f"{proof.pictures} pictures")
        proof.metric, proof.before, proof.after = _better(before), before.numbers, after.numbers
        proof.faults += [whole.fault] if whole.fault else _too_many_ties([whole])
        proof.faults += _lost(proof, file.description.dtype, self.options.allow)
        proof.warnings += _weak(proof, whole.agreement)

    def _done(self, what: str, done: int, count: int) -> None:
        if self.options.progress:
            self.options.progress(what, done, count)


def _predict_noisy(noise: float, draw: int, model: Model, batch: Batch) -> list[Target]:
    return model.predict(batch._replace(images=with_noise(batch.images, noise, draw)))


def _plain(value: Any) -> Any:
    """A record as JSON gives it back: lists for tuples."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _first_difference(theirs: Any, ours: Any) -> str:
    if isinstance(theirs, tuple) and isinstance(ours, tuple) and len(theirs) == len(ours) > 4:
        number = next(index for index, pair in enumerate(zip(theirs, ours)) if pair[0] != pair[1])
        return f"have {theirs[number]!r} at place {number}, the model has {ours[number]!r}"
    return f"are {theirs!r}, the model's are {ours!r}"


def _too_many_ties(trials: Sequence[Trial]) -> list[str]:
    """A fault where more decisions hang on rounding than can be believed."""
    decided = sum(count.all for trial in trials for count in trial.agreement.decisions.values())
    tied = sum(trial.tied for trial in trials)
    if tied <= max(1, TIED * decided):
        return []
    return [
        f"{tied} of {decided} decisions differ, and hang on rounding in the model itself: nothing is proved by them"
    ]


def _joined(first: Trial, second: Trial) -> Trial:
    both = first.agreement | second.agreement
    return Trial(first.shape, both, first.tied + second.tied, first.fault or second.fault)


def _better(scores: Scores) -> str:
    """Name of the number by which models are compared; of embeddings the agreement of neighbours, if it is known."""
    name = scores.better or "knn"
    return name if scores.numbers.get(name) is not None else ""


def _lost(proof: Proof, dtype: str, allow: float | None) -> list[str]:
    """A fault where the file is worse than it may be; of a float32 file also where it is better."""
    allowed = ALLOWED[dtype] if allow is None else allow
    if proof.images is None:
        return []
    if not proof.metric:
        angle = 100 * proof.images.agreement.apart.get("angle", 0.0)
        return [f"embeddings turn by {angle:.3g} of 100 (1 - cosine; {allowed:g} allowed)"] * (angle > allowed)
    lost = proof.lost
    if lost is None:
        return [f"{proof.metric} is not defined for the file"]
    if not (lost > allowed or (TOLERANCES[dtype].exact and -lost > allowed)):
        return []
    before, after = 100 * (proof.before[proof.metric] or 0), 100 * (proof.after[proof.metric] or 0)
    one = (
        f"; one of {proof.pictures} pictures is {100 / proof.pictures:.2g} points: give more"
        if proof.pictures < 200
        else ""
    )
    return [f"{proof.metric} goes from {before:.2f} to {after:.2f}: {lost:+.2f} points lost, {allowed:g} allowed{one}"]


def _weak(proof: Proof, agreement: Agreement) -> list[str]:
    """Why what was seen proves less than it might."""
    warnings = []
    for name, count in agreement.decisions.items():
        if count.all < FEW:
            warnings.append(f"{count.all} {name} were compared: too few to prove much")
    if proof.metric and not proof.before[proof.metric]:
        warnings.append(f"{proof.metric} of the model itself is 0: it cannot get worse")
    return warnings
