"""Whether a file and the model that it was made from give the same for the same pixels: at many sizes, in any batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from patchform.data.transforms import evaluation_transform, resize
from patchform.errors import ResourceError
from patchform.export.graph import Graph
from patchform.metrics.agreement import NOTHING, Agreement, Count
from patchform.model import Model
from patchform.outputs import Outputs
from patchform.prediction import SURE
from patchform.records import Target
from patchform.runtime.description import FileDescription
from patchform.runtime.file_model import FileModel
from patchform.tasks.base import SAME_OBJECT, Task

SHAPES = (
    (1, 1),
    (1.31, 0.77),
    (0.77, 1.31),
    (1, 1.19),
    (1.19, 1),
    (0.63, 0.63),
    (0.63, 1.07),
    (1.43, 0.59),
    (0.91, 0.91),
    (1.07, 1.13),
)
"""Heights and widths that are tried, as shares of those that the model was made for."""
LARGER = 2.3
"""So many times these for files that resize inside: where a picture becomes smaller, antialiasing is seen."""
BATCHES = (3, 1)
NOISE, GREY, DRAWS = 1e-5, 0.5 / 255, 4
"""Of pixels in 0..1: far more than arithmetic rounds, far less than a picture says; of files that resize, half a grey
level; how often noise is drawn."""
FEW = 10
"""Decisions that may differ in any case where they need not be the same."""
TIED = 0.02
"""Highest share of decisions that may hang on rounding."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What may differ between a file of a dtype and its model."""

    apart: float
    """Largest difference of numbers, as a share of their scale (`metrics.agreement`)."""
    exact: bool
    """Whether decisions are the same, but for those that hang on rounding; if not, the metric is what counts."""
    overlap: float
    """Of the boxes of one object."""
    lost: float = 0.0
    """Share of decisions that may differ where they need not be the same: a coarse sieve at sizes without a metric."""
    noise: float = NOISE
    """Of the pixels that the model is shown to see what hangs on rounding."""


TOLERANCES = {
    "float32": Tolerance(apart=1e-4, exact=True, overlap=SAME_OBJECT),
    "float16": Tolerance(apart=0.2, exact=False, overlap=0.5, lost=0.2),
    "int8": Tolerance(apart=0.8, exact=False, overlap=0.5, lost=0.5),
}
"""By `FileDescription.dtype`."""


def tolerance_of(description: FileDescription) -> Tolerance:
    """What a file may do. One that resizes inside rounds to another grey now and then."""
    tolerance = TOLERANCES[description.dtype]
    return replace(tolerance, noise=GREY) if description.resizes else tolerance


class Trial(NamedTuple):
    """A batch that both were shown."""

    shape: str
    """Such as "3 x 41x25"."""
    agreement: Agreement
    tied: int
    """Decisions that hang on rounding, and so may differ."""
    fault: str
    """What differs by more than it may, and by how much; "" where nothing does."""


def trials(
    file: FileModel, model: Model, task: Task, pictures: Sequence[Tensor], tolerance: Tolerance
) -> Iterator[Trial]:
    """Show batches of real pictures, resized to each size, to both.

    Args:
        file: what is doubted.
        model: what it was made from, in evaluation mode.
        task: of the model.
        pictures: at least three, (C, H, W) or (T, C, H, W), of any sizes.
        tolerance: of the file.
    """
    for number, size in enumerate(sizes_of(file.description)):
        for batch in batches_of(file.description):
            chosen = [pictures[(number + index) % len(pictures)] for index in range(batch)]
            images = torch.stack([resize(image, size, "bilinear") for image in chosen])
            yield trial(file, model, task, images, tolerance)


def sizes_of(description: FileDescription) -> list[tuple[int, int]]:
    """(height, width) of the inputs that are tried: ten, most of them odd; of a file for some sizes, these."""
    if description.sizes:
        return list(description.sizes)
    sizes: list[tuple[int, int]] = []
    larger = LARGER if description.resizes else 1
    for shares in SHAPES:
        height, width = (
            max(description.least, round(larger * share * side))
            for share, side in zip(shares, description.preprocessing.size)
        )
        height, width = (height, width) if shares == (1, 1) else (height | 1, width | 1)
        while (height, width) in sizes:
            height, width = height + 2, width + 4
        sizes.append((height, width))
    return sizes


def batches_of(description: FileDescription) -> tuple[int, ...]:
    """How many pictures go in at once: one and several."""
    return (description.batch,) if description.batch else BATCHES


def trial(file: FileModel, model: Model, task: Task, images: Tensor, tolerance: Tolerance) -> Trial:
    """Show a batch to both. The pictures are said to have had other sizes and aspects before, each its own, so that a
    height that is taken for a width, or a box in pixels of the input, is seen.
    """
    height, width = images.shape[-2:]
    shape = f"{len(images)} x {height}x{width}"
    resized = file.description.resizes or "sizes" not in file.description.inputs
    sizes = torch.tensor(
        [(height, width) if resized else _before(height, width, index) for index in range(len(images))]
    )
    try:
        named = file.session.run(images, sizes)
    except ResourceError:
        raise
    except Exception as error:  # whatever a runtime raises
        line = " ".join(str(error).split())[:300]
        return Trial(shape, NOTHING, 0, f"the file does not run at {shape}: {type(error).__name__}: {line}")
    with torch.inference_mode():
        shown = _input(file, model, images)
        reference = Graph(model)(shown, sizes)
        if fault := _misshapen(file.description, reference, named):
            return Trial(shape, NOTHING, 0, f"{fault} at {shape}")
        answer = file.record(*(named[name] for name in reference._fields))
        noisy = (Graph(model)(with_noise(shown, tolerance.noise, draw), sizes).predictions() for draw in range(DRAWS))
        found = judged(shape, task, reference.predictions(), answer.predictions(), noisy, tolerance)
        follows = "" if found.fault else _underived(task, model, answer, named)
        return found._replace(fault=f"{follows} at {shape}") if follows else found


def judged(
    shape: str,
    task: Task,
    references: Sequence[Target],
    answers: Sequence[Target],
    noisy: Iterator[Sequence[Target]],
    tolerance: Tolerance,
) -> Trial:
    """Compare the answers to the pictures of a batch.

    Where a number is beyond the tolerance or a decision differs, the model itself is asked again, its pixels changed by
    less than anybody sees: what it then changes its mind about hangs on rounding, and may differ. Two scores that are
    nearly alike change places, and of two boxes that overlap by nearly as much as may be, one goes or stays.

    Args:
        shape: of the batch, in words.
        task: compares.
        references: one a picture, of the model.
        answers: of the file.
        noisy: answers of the model to the same with a little noise, drawn when they are needed.
        tolerance: of the file.
    """
    if len(references) != len(answers):
        return Trial(shape, NOTHING, 0, f"{len(answers)} answers to {len(references)} pictures at {shape}")
    whole, tied, fault = NOTHING, 0, ""
    drawn: list[Sequence[Target]] = []
    for index, (reference, answer) in enumerate(zip(references, answers)):
        found = task.agreement(reference, answer, overlap=tolerance.overlap)
        doubtful = tolerance.exact and (found.different or found.worst > tolerance.apart)
        if doubtful and not fault:
            drawn = drawn or list(noisy)
            own = NOTHING
            for others in drawn:
                own = _either(own, task.agreement(reference, others[index], overlap=tolerance.overlap))
            tied += min(found.different, own.different)
            fault = fault or _beyond(found, own, tolerance, shape)
        else:
            fault = fault or _beyond(found, NOTHING, tolerance, shape)
        whole |= found
    return Trial(shape, whole, tied, fault)


def _either(first: Agreement, second: Agreement) -> Agreement:
    """The larger of both in each respect."""
    apart, decisions = dict(first.apart), dict(first.decisions)
    for name, value in second.apart.items():
        apart[name] = max(apart.get(name, 0.0), value)
    for name, count in second.decisions.items():
        decisions[name] = max(decisions.get(name, Count(0, 0)), count, key=_different)
    return Agreement(apart, decisions)


def _different(count: Count) -> int:
    return count.different


def _beyond(found: Agreement, own: Agreement, tolerance: Tolerance, shape: str) -> str:
    """What differs by more than the tolerance and than the model differs from itself."""
    for name, value in found.apart.items():
        if value > max(tolerance.apart, own.apart.get(name, 0.0)):
            return f"{name} differ by {value:.2g} ({tolerance.apart:g} allowed) at {shape}"
    for name, count in found.decisions.items():
        most = (
            own.decisions.get(name, Count(0, 0)).different if tolerance.exact else max(FEW, tolerance.lost * count.all)
        )
        if count.different > most:
            return f"{count.different} of {count.all} {name} are decided otherwise at {shape}"
    return ""


def with_noise(images: Tensor, noise: float, draw: int) -> Tensor:
    """Pictures as float32 in 0..1, with noise of a deviation."""
    pixels = images if images.is_floating_point() else images.float() / 255
    return pixels + noise * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(draw))


def _input(file: FileModel, model: Model, images: Tensor) -> Tensor:
    """What the model sees of pictures that the file takes."""
    if not file.description.resizes:
        return images
    transform = evaluation_transform(model.preprocessing)
    return torch.stack([transform(image) for image in images])


def _before(height: int, width: int, index: int) -> tuple[int, int]:
    """A size of the picture before it was resized: of another aspect, and no square."""
    tall, wide = round(height * 1.25) + 1 + 2 * index, round(width * 0.8) + 3 + index
    return tall, wide + 2 * (tall == wide)


def _misshapen(description: FileDescription, reference: Outputs, named: Mapping[str, Tensor]) -> str:
    """What is wrong with the names, shapes and types of outputs."""
    if type(reference).__name__ != description.record:
        return f"it says that its outputs are {description.record}; the model gives {type(reference).__name__}"
    if missing := [name for name in reference._fields if name not in named]:
        return f"the output {missing[0]} is missing"
    for name in reference._fields:
        given, wanted = named[name], getattr(reference, name)
        if given.shape != wanted.shape:
            return f"the output {name} is of {_words(given.shape)}, not of {_words(wanted.shape)}"
        if given.dtype.is_floating_point and not given.isfinite().all():
            return f"the output {name} is not finite"
    return ""


def _underived(task: Task, model: Model, answer: Outputs, named: Mapping[str, Tensor]) -> str:
    """What of the outputs that follow from the others does not."""
    thresholds = torch.tensor(model.thresholds or (SURE,) * len(model.classes))
    for name, wanted in task.derived(answer, thresholds).items():
        given = named.get(name)
        if given is None or given.shape != wanted.shape:
            return f"the output {name} is missing, or of another shape"
        apart = ~torch.isclose(given.double(), wanted.double(), rtol=1e-5, atol=1e-6)
        if given.dtype == torch.int64:
            apart &= ~_of_equal_scores(answer, given, wanted)
        if apart.any():
            return f"{int(apart.sum())} of {given.numel()} numbers of the output {name} do not follow"
    return ""


def _of_equal_scores(answer: Outputs, given: Tensor, wanted: Tensor) -> Tensor:
    """(B, k) bool: where other classes (B, k) were named, each once, whose scores are equal: these have no order."""
    scores: Tensor = answer.scores  # type: ignore[attr-defined]  # of records that classes follow from
    named = given.clamp(0, scores.shape[1] - 1)
    once = (given[:, :, None] == given[:, None]).sum(2) == 1
    return (named == given) & once & (scores.gather(1, named) == scores.gather(1, wanted))


def _words(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
