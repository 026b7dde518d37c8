"""What a student learns of a teacher, beside its own losses: one class for each `loss.teacher.kind`.

    logits          T^2 KL(teacher / T, student / T)              Hinton et al. 2015, arXiv:1503.02531, section 2
    labels          cross-entropy with its best class             Touvron et al. 2021, arXiv:2012.12877, section 4
    tokens          1 - cosine(linear(student), teacher)          of tokens; after Wei et al. 2022 and Heo et al. 2019
    features        smooth L1(linear(student), whiten(teacher))   Wei et al. 2022, arXiv:2205.14141, section 2
    token_labels    a class for every token                       Jiang et al. 2021, arXiv:2104.10858, section 3.2

Each is a sum over images, of each a mean over its tokens, so parts of a batch and shares of processes add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from patchform.data.loader import derive
from patchform.data.transforms import soft
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.heads.base import number_of
from patchform.layers.token_mixing import partners
from patchform.model import Model
from patchform.records import Batch, CellBox, Features, Label, Loss, Target
from patchform.settings import Recipe, TeacherSettings
from patchform.training.teacher import Seen, Teacher, cells_of, class_order, laid_over, on_grid

BETA = 2.0
"""Where the smooth L1 of features turns from a square into a line (Wei et al. 2022, section 2)."""

PRECISE = 1e-3
"""Share of an image's logits that the mean of those of its tokens may be off by: they are computed in another order."""


class Term(nn.Module):
    """What is learnt of a teacher. Its parameters are learnt with the student's and left behind."""

    def targets(self, batch: Batch, teacher: Seen, student: Features) -> Sequence[Target]:
        """The targets that the student's head learns from. Here: as they are."""
        return batch.targets

    def forward(self, student: Seen, teacher: Seen) -> Tensor | None:
        """(B,) float32: how far each image is from the teacher; None where targets say it all."""
        raise NotImplementedError


class Logits(Term):
    """Probabilities at a temperature.

    Args:
        order: of each class its number among the teacher's.
        temperature: T, above 0.
    """

    def __init__(self, order: Sequence[int], temperature: float) -> None:
        super().__init__()
        self.order, self.temperature = list(order), temperature

    def forward(self, student: Seen, teacher: Seen) -> Tensor:
        """(B,)."""
        theirs = teacher.head.class_logits(teacher.raw).float()[:, self.order] / self.temperature
        own = student.head.class_logits(student.raw).float() / self.temperature
        divergence = theirs.softmax(1) * (theirs.log_softmax(1) - own.log_softmax(1))
        return self.temperature**2 * divergence.sum(1)


class Labels(Term):
    """The teacher's best class.

    Args:
        order: of each class its number among the teacher's.
    """

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.order = list(order)

    def forward(self, student: Seen, teacher: Seen) -> Tensor:
        """(B,)."""
        best = teacher.head.class_logits(teacher.raw)[:, self.order].argmax(1)
        return F.cross_entropy(student.head.class_logits(student.raw).float(), best, reduction="none")


class Tokens(Term):
    """Directions of tokens, through a linear layer, where the teacher's cells are.

    Args:
        student, teacher: widths.
        seed: of the layer's weights.
    """

    def __init__(self, student: int, teacher: int, seed: int) -> None:
        super().__init__()
        self.project = skip_init(nn.Linear, student, teacher)  # the student draws the numbers that it draws alone
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.project.weight.normal_(std=0.02, generator=draw)
            self.project.bias.zero_()

    def forward(self, student: Seen, teacher: Seen) -> Tensor:
        """(B,)."""
        theirs = cells_of(teacher.features).float()
        cells = student.features.maps[-1] if student.head.reads_maps_alone else cells_of(student.features)
        own = self.project(cells.movedim(1, -1)).movedim(-1, 1)
        own = laid_over(own.float(), student.features, teacher.features)
        return _mean_over_cells(self.distance(own, theirs), teacher.features.padding)

    def distance(self, own: Tensor, theirs: Tensor) -> Tensor:
        """(B, h, w) of cells (B, D, h, w)."""
        return 1 - F.cosine_similarity(own, theirs, dim=1)


class WhitenedFeatures(Tokens):
    """Tokens less their mean over their deviation, channels of each token together, by smooth L1."""

    def distance(self, own: Tensor, theirs: Tensor) -> Tensor:
        """(B, h, w), the mean over channels."""
        white = F.layer_norm(theirs.movedim(1, -1), theirs.shape[1:2]).movedim(-1, 1)
        return F.smooth_l1_loss(own, white, reduction="none", beta=BETA).mean(1)


class TokenLabels(Term):
    """Probabilities of the teacher's tokens, where the student's are.

    The teacher looks at the crop itself, so they are aligned with whatever was done to the picture. The authors kept
    one map of scores of each whole picture and cut the crop out of it (RoIAlign): cheaper where the teacher is huge,
    but an approximation, and of a picture that the student does not see.

    Args:
        order: of each class its number among the teacher's.
        temperature: divides the teacher's logits.
        image: share of an image's target that is the mean of what the teacher says of its cells, in [0, 1].
    """

    def __init__(self, order: Sequence[int], temperature: float, image: float) -> None:
        super().__init__()
        self.order, self.temperature, self.image = list(order), temperature, image

    def targets(self, batch: Batch, teacher: Seen, student: Features) -> Sequence[Target]:
        """Labels with `tokens` (C, h, w) on the student's grid; with a share for images, `scores` (C,) too."""
        logits = teacher.head.token_logits(teacher.raw, teacher.features).float()[..., self.order]
        scores = on_grid((logits / self.temperature).softmax(2), teacher.features)
        cells = laid_over(scores, teacher.features, student)
        labels = [label._replace(tokens=row) for label, row in zip(cast("Sequence[Label]", batch.targets), cells)]
        if self.image:
            true = torch.stack([soft(label, len(self.order)) for label in labels])
            shown = torch.lerp(true, _shared(cells.mean((2, 3)), batch.exchanged, student), self.image)
            labels = [label._replace(scores=row) for label, row in zip(labels, shown)]
        return labels

    def forward(self, student: Seen, teacher: Seen) -> None:
        """None: the head learns its targets."""


class Distilled(nn.Module):
    """What is minimised where there is a teacher: the student's own losses, and "teacher".

    Its parameters are those of the student and of the term; the teacher is no part of it.

    Args:
        student: in training mode.
        teacher: opened for it.
        term: what is learnt of the teacher.
        settings: the weights.
    """

    def __init__(self, student: Model, teacher: Teacher, term: Term, settings: TeacherSettings) -> None:
        super().__init__()
        self.student, self.term, self.settings = student, term, settings
        self._teacher = (teacher,)

    @property
    def teacher(self) -> Teacher:
        """The model that is learnt from."""
        return self._teacher[0]

    def forward(self, batch: Batch) -> dict[str, Loss]:
        """Losses of a batch by name."""
        model, seen = self.student, self.teacher.look(batch)
        features, raw, losses = model.features(batch), None, dict[str, Loss]()
        if type(model).forward is Model.forward:
            targets = self.term.targets(batch, seen, features)
            raw = model.head(features, targets)
            losses = model.head.loss(raw, targets)
        elif self.settings.own:  # a method of pretraining looks at the picture in its own way
            losses = model(batch)
        losses = {name: Loss(self.settings.own * loss.sum, loss.count) for name, loss in losses.items()}
        distances = self.term(Seen(model.head, features, raw), seen)
        if distances is not None:
            losses["teacher"] = Loss(self.settings.weight * distances.sum(), number_of(batch.images))
        return losses

    def counts(self, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Those of the student; of the teacher the number of images."""
        counts = self.student.counts(targets)
        return {**counts, "teacher": number_of(targets).to(next(iter(counts.values())).device)}

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a resume to make sense, as plain values."""
        return {"digest": self.teacher.digest, "kind": self.settings.kind}

    def __str__(self) -> str:
        kind, weight, own = self.settings.kind, self.settings.weight, self.settings.own
        how = f" at temperature {self.settings.temperature:g}" if kind in ("logits", "token_labels") else ""
        weights = f", weight {weight:g} beside {own:g}"
        if kind == "token_labels":
            weights = f", and {self.settings.image:.0%} of the targets of images" * (self.settings.image > 0)
        number = sum(parameter.numel() for parameter in self.term.parameters())
        layer = f", through a linear layer of {number:,} parameters that is left behind" * (number > 0)
        return f"{kind}{how}{weights}{layer}; {self.teacher}"


def distilled(student: Model, recipe: Recipe) -> Distilled | None:
    """A student with the teacher of its recipe, None where it has none.

    Args:
        student: built, on its device.
        recipe: of the run.

    Raises:
        UsageError: a teacher that this student cannot learn from, or none and no other loss.
        PatchformError: whatever `Teacher` raises.
    """
    settings = recipe.loss.teacher
    if settings.model is None and not settings.own:
        raise UsageError("loss.teacher.own is 0 and there is no teacher", remedy="name one: loss.teacher.model")
    if settings.model is None:
        return None
    if student.trained is not student.backbone or recipe.augmentation.views > 1:
        remedy = "take a method that looks at one crop, or leave loss.teacher.model out"
        raise UsageError(f"{recipe.model.head} has a teacher of its own", remedy=remedy)
    teacher = Teacher(settings, student)
    term = _term(student, teacher, settings, derive(recipe.training.seed, "teacher"))
    return Distilled(student, teacher, term.to(student.mean.device), settings)


def _term(student: Model, teacher: Teacher, settings: TeacherSettings, seed: int) -> Term:
    """What is learnt, after both models were shown a picture: that they can at all is seen before the first step."""
    kind, source, seen, own = settings.kind, teacher.source, teacher.look(_noise(student)), _glance(student)
    if kind in ("tokens", "features"):
        cells_of(seen.features)
        cells_of(own.features)
        widths = student.backbone.feature_info.channels[-1], teacher.model.backbone.feature_info.channels[-1]
        return (Tokens if kind == "tokens" else WhitenedFeatures)(*widths, seed)
    order = class_order(teacher.model, student, source)
    whole = seen.head.class_logits(seen.raw)
    if kind == "token_labels":
        if not student.head.learns_tokens:
            remedy = "set model.head to token_label, which learns them"
            raise UsageError("loss.teacher.kind is token_labels", remedy=remedy)
        tokens = seen.head.token_logits(seen.raw, seen.features)
        apart = (tokens.mean(1) - whole).abs().max()
        if not seen.head.learns_tokens and apart > PRECISE * whole.abs().max():
            what = "the teacher's classifier does not see the mean of its tokens, so it says nothing of one"
            raise UsageError(what, where=source, remedy="take a teacher that pools, or one with the head token_label")
        return TokenLabels(order, settings.temperature, settings.image)
    student.head.class_logits(own.raw)
    return Logits(order, settings.temperature) if kind == "logits" else Labels(order)


def _noise(student: Model) -> Batch:
    """One made-up picture of the student's size."""
    p = student.preprocessing
    frames = (p.frames,) * (p.frames > 0)
    noise = torch.rand(1, *frames, p.channels, *p.size, generator=torch.Generator().manual_seed(0))
    return Batch(noise.to(student.mean.device), (), ("",), (p.size,))


@torch.no_grad()
def _glance(student: Model) -> Seen:
    """What the student makes of it, which moves nothing in it."""
    training = student.training
    features = student.eval().features(_noise(student))
    raw = student.head(features)
    student.train(training)
    return Seen(student.head, features, raw)


def _shared(scores: Tensor, box: CellBox | None, features: Features) -> Tensor:
    """(B, C) scores of images, with their partners' by the area of a box of cells that they exchange."""
    if box is None:
        return scores
    (top, left, bottom, right), (rows, columns) = box, features.maps[-1].shape[-2:]
    return torch.lerp(scores, partners(scores), (bottom - top) * (right - left) / (rows * columns))


def _mean_over_cells(distances: Tensor, padding: Tensor | None) -> Tensor:
    """(B,): the mean of (B, h, w) over cells that are not padding."""
    return grids.masked_mean(distances.flatten(1)[..., None], padding)[:, 0]
