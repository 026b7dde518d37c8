"""DINO: emerging properties in self-supervised vision transformers (Caron et al., ICCV 2021, arXiv:2104.14294), with
the masked-patch term of iBOT (Zhou et al., ICLR 2022, arXiv:2111.07832) as an option.

    crops --> student --> projection --> softmax(/ 0.1) -------------------+
      |                                                                    |  cross-entropy between different crops
      +-----> teacher --> projection --> - centre, softmax(/ 0.04, sharper) -+
           (large ones)      teacher = moving average of the student

The backbone of the model is the teacher, which the authors evaluate and hand on; the student, both projections and the
centre lie below `head`. So a finished run is an ordinary backbone under something that is left behind.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchform import distributed
from patchform.backbones.base import Backbone
from patchform.descriptions import Architecture, Preprocessing
from patchform.errors import UsageError
from patchform.geometry import grids
from patchform.heads.base import number_of
from patchform.layers.drop import DropPath
from patchform.pretraining.base import Method, MethodHead, is_vit, random_mask
from patchform.records import Batch, Features, Loss, Target
from patchform.schema import Natural

CENTRE_MOMENTUM = 0.9
"""What stays of the centre at each step."""
MASK_RATIO = 0.3
"""Share of the patches of a crop that the student does not see, where the masked-patch term is switched on."""


class DINO(Method):
    """Learns to predict from small crops what a slower self predicts from large ones.

    It needs `augmentation.views` of 2 or more; the small ones of `local_views` the student alone sees.

    Args:
        backbone: any that gives a summary; becomes the teacher.
        preprocessing: of the pictures.
        outputs: K, length of what is compared.
        hidden, bottleneck: widths inside the projection.
        momentum: what stays of the teacher at the first step; rises to 1 along a cosine.
        student_temperature: divides the student's logits.
        teacher_temperature, warm_epochs: divides the teacher's, at first and from `warm_epochs` on, linear between.
        frozen_epochs: epochs in which the last layer of the student's projection is frozen.
        masked: weight of the masked-patch term, for a ViT alone: of 3 in 10 patches of half of the large crops, drawn
            anywhere and not in blocks as iBOT's, the student predicts from a learned vector what the teacher predicts
            from them. Summary and patches share the projection. 0 leaves it out.

    Raises:
        UsageError: an option out of its range.
    """

    head: DINOHead

    def __init__(
        self,
        backbone: Backbone,
        preprocessing: Preprocessing,
        *,
        outputs: int = 65_536,
        hidden: int = 2048,
        bottleneck: int = 256,
        momentum: float = 0.996,
        student_temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.04),
        warm_epochs: int = 0,
        frozen_epochs: Natural = 1,
        masked: float = 0.0,
        architecture: Architecture | None = None,
    ) -> None:
        if not 0 <= momentum <= 1:
            raise UsageError(f"momentum is {momentum}", remedy="it lies in [0, 1]")
        if not min(student_temperature, *teacher_temperature) > 0:
            raise UsageError("a temperature of 0 or less", remedy="give positive numbers")
        if masked < 0 or (masked and not is_vit(backbone)):
            raise UsageError(f"masked is {masked}", remedy="it is 0 or more, and 0 for backbones other than a ViT")
        head = DINOHead(backbone, hidden, bottleneck, outputs, masked=masked > 0)
        super().__init__(backbone, head, preprocessing, architecture)
        if backbone.prefers_channels_last:
            head.student.to(memory_format=torch.channels_last)
        for layer in backbone.modules():  # the teacher is whole at every step
            if isinstance(layer, DropPath):
                layer.rate = 0.0
        self.momentum, self.student_temperature, self.masked = momentum, student_temperature, masked
        self.teacher_temperature, self.warm_epochs, self.frozen_epochs = teacher_temperature, warm_epochs, frozen_epochs
        self.step, self.steps, self.epoch = 0, 1, 1
        for teacher in (self.backbone, self.head.teacher):
            teacher.requires_grad_(False)

    @property
    def trained(self) -> Backbone:
        """The student."""
        return self.head.student

    def begin(self, *, step: int, steps: int, epoch: int) -> None:
        """Learn the length of the run. At step 0 the student begins as what the backbone was filled with."""
        self.step, self.steps, self.epoch = step, steps, epoch
        if step == 0:
            self.head.student.load_state_dict(self.backbone.state_dict())
            self.head.teacher.load_state_dict(self.head.projection.state_dict())

    def forward(self, batch: Batch) -> dict[str, Loss]:
        """Over images: "summary", the mean over the pairs of different crops, and "patches", the masked-patch term.

        Args:
            batch: images (B, V, C, H, W), and `views` or None; targets are not looked at.

        Raises:
            UsageError: one crop a picture.
        """
        if batch.images.dim() != 5 or batch.images.shape[1] < 2:
            raise UsageError("dino compares crops of a picture", remedy="set augmentation.views to 2")
        number = batch.images.shape[1]
        large = _crops(self.normalise(batch.images))  # (V * B, C, H, W)
        with torch.no_grad():
            teacher_features = self.backbone(large)
            teacher_logits = self.head.teacher(self.head(teacher_features)).float()
            teacher_probs = self._teacher_probs(teacher_logits, self.head.centre).chunk(number)
            self.head.accumulate(teacher_logits, self.head.total)
        small = [] if batch.views is None else [_crops(self.normalise(batch.views))]
        features, mask = self._masked_student(large, number)
        summaries = [self.head(features), *(self.head(self.head.student(crops)) for crops in small)]
        frozen = self.step < self.frozen_epochs * self.epoch
        logits = self.head.projection(torch.cat(summaries), frozen=frozen).float() / self.student_temperature
        log_probs = logits.log_softmax(1).split(len(batch.images))
        entropies = [
            -(target * log_prob).sum()
            for i, target in enumerate(teacher_probs)
            for j, log_prob in enumerate(log_probs)
            if i != j
        ]
        sums = {"summary": sum(entropies, start=logits.new_zeros(())) / len(entropies)}
        if mask is not None:
            sums["patches"] = self.masked * self._patches(teacher_features, features, mask, frozen=frozen) / number
        count = number_of(batch.images)
        return {name: Loss(total, count) for name, total in sums.items()}

    def after_step(self, step: int) -> None:
        """Move the teacher towards the student, and the centres towards the mean of its logits."""
        momentum = 1 - (1 - self.momentum) * (math.cos(math.pi * step / self.steps) + 1) / 2
        with torch.no_grad():
            for slow, fast in ((self.backbone, self.head.student), (self.head.teacher, self.head.projection)):
                torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 1 - momentum)
            self.head.update_centres()
        self.step = step + 1

    def _teacher_probs(self, teacher_logits: Tensor, centre: Tensor) -> Tensor:
        """The student's targets: the teacher's logits, centred and sharpened."""
        first, last = self.teacher_temperature
        share = min(1.0, self.step // self.epoch / self.warm_epochs) if self.warm_epochs else 1.0
        return ((teacher_logits - centre) / (first + share * (last - first))).softmax(-1)

    def _masked_student(self, large: Tensor, number: int) -> tuple[Features, Tensor | None]:
        """The student's features of the large crops, and (V * B, N) which patches it did not see."""
        student, token = self.head.student, self.head.mask_token
        if token is None or not is_vit(student):
            return student(large), None
        cells = student.patches(large)
        count = cells.shape[1] * cells.shape[2]
        draws = torch.rand(len(cells) // number, number, count + 1, device=large.device)  # picture by picture
        noise, half = draws.transpose(0, 1).flatten(0, 1).split([count, 1], 1)
        mask = random_mask(noise, MASK_RATIO).mask & (half < 0.5)
        masked = torch.where(mask.unflatten(1, cells.shape[1:3])[..., None], token.to(cells.dtype), cells)
        return student.through(masked, grids.size_of(large)), mask

    def _patches(self, teacher: Features, student: Features, mask: Tensor, *, frozen: bool) -> Tensor:
        """The masked-patch term: the mean over the hidden patches of a crop, summed over all crops."""
        assert teacher.tokens is not None
        assert student.tokens is not None
        assert self.head.patch_centre is not None
        with torch.no_grad():
            teacher_logits = self.head.teacher(teacher.tokens[mask]).float()
            teacher_probs = self._teacher_probs(teacher_logits, self.head.patch_centre)
            self.head.accumulate(teacher_logits, self.head.patch_total)
        logits = self.head.projection(student.tokens[mask], frozen=frozen).float() / self.student_temperature
        weights = (mask / mask.sum(1, keepdim=True).clamp(min=1))[mask]
        return -((teacher_probs * logits.log_softmax(1)).sum(1) * weights).sum()


class DINOHead(MethodHead):
    """The student, both projections, and the centre of the teacher's logits.

    Args:
        backbone: which the student begins as a copy of.
        hidden, bottleneck, outputs: of the projections.
        masked: whether there is a vector for hidden patches, and a centre of the teacher's logits of patches.
    """

    centre: Tensor
    total: Tensor
    patch_centre: Tensor | None
    patch_total: Tensor | None

    def __init__(self, backbone: Backbone, hidden: int, bottleneck: int, outputs: int, *, masked: bool) -> None:
        super().__init__()
        if masked and backbone.width != backbone.channels[-1]:
            what = f"a summary of {backbone.width} numbers beside tokens of {backbone.channels[-1]}"
            raise UsageError(what + ": no projection in common", remedy="have one class token, or hide no patches")
        self.student = copy.deepcopy(backbone)
        self.projection = Projection(backbone.width, hidden, bottleneck, outputs)
        self.teacher = copy.deepcopy(self.projection)
        self.mask_token = nn.Parameter(0.02 * torch.randn(backbone.channels[-1])) if masked else None
        self.register_buffer("centre", torch.zeros(outputs))
        self.register_buffer("total", torch.zeros(outputs + 1), persistent=False)
        self.register_buffer("patch_centre", torch.zeros(outputs) if masked else None)
        self.register_buffer("patch_total", torch.zeros(outputs + 1) if masked else None, persistent=False)

    def counts(self, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Of both the number of images."""
        return dict.fromkeys(("summary", "patches"), number_of(targets))

    def accumulate(self, teacher_logits: Tensor, total: Tensor | None) -> None:
        """Add the teacher's logits, (M, K), to the total of the step."""
        assert total is not None
        total[:-1] += teacher_logits.sum(0)
        total[-1] += len(teacher_logits)

    def update_centres(self) -> None:
        """Move the centres towards the mean of the logits of the step, in all processes."""
        distributed.all_reduce_sum([total for total in (self.total, self.patch_total) if total is not None])
        for centre, total in ((self.centre, self.total), (self.patch_centre, self.patch_total)):
            if centre is not None and total is not None:
                moves = (total[-1] > 0).to(centre.dtype)  # no wait for the device
                centre.lerp_(total[:-1] / total[-1].clamp(min=1), (1 - CENTRE_MOMENTUM) * moves)
                total.zero_()


class Projection(nn.Module):
    """Three layers to a point on a sphere, then its cosines with learned directions (appendix C).

    Args:
        width: D of the summary.
        hidden, bottleneck: of the layers.
        outputs: K directions.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, outputs: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.directions = nn.Linear(bottleneck, outputs, bias=False)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """(M, D) -> (M, K) in -1..1; frozen: no gradient reaches the directions."""
        weight = self.directions.weight.detach() if frozen else self.directions.weight
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(weight, dim=1))


def _crops(images: Tensor) -> Tensor:
    """(B, V, C, H, W) -> (V * B, C, H, W), crop by crop."""
    return images.transpose(0, 1).flatten(0, 1)
