"""DETR: end-to-end object detection with transformers (Carion et al., ECCV 2020, arXiv:2005.12872).

    coarsest map --1x1 conv--> cells --encoder--> memory
                                                    |
    a learned query for each object --decoder: queries look at one another, then at the memory--> class, box

Positions are added to queries and keys of every attention, never to values. In the loss each object is given to one
query (section 3.1), the others learn the class "no object"; every layer of the decoder predicts and has a loss.
Nothing is suppressed afterwards: a prediction is a query's best class and its box, a share of the unpadded picture.

The authors' code also drops attention weights; here dropout acts behind each attention and in the perceptrons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou, generalized_box_iou_loss

from patchform.errors import UsageError
from patchform.geometry.boxes import to_centres, to_corners
from patchform.geometry.detections import picture_sizes
from patchform.geometry.matching import hungarian_match
from patchform.heads.base import Head, map_norms
from patchform.layers.attention import attend, join_heads, split_heads
from patchform.layers.linear import Linear
from patchform.layers.positions import LearnedPosition2D, SinePosition2D
from patchform.lookup import check_options, no_such
from patchform.outputs import ObjectOutputs, Outputs
from patchform.records import FeatureInfo, Features, Instances, Loss, Target

LOSSES = {"class": 1.0, "box": 5.0, "giou": 2.0, "no_object": 0.1}
"""Factors of the losses, and of the costs of a pair; "no_object" is the weight of a query that has no object."""


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """The encoder and the decoder."""

    depths: tuple[int, int] = (6, 6)
    """Layers of encoder and decoder; the decoder has one at least."""
    heads: int = 8
    """Of every attention."""
    hidden: int = 2048
    """Width inside the perceptrons."""
    dropout: float = 0.1
    norms: Literal["post", "pre"] = "post"
    """Layer norms behind the shortcuts, or in front of the branches."""
    positions: Literal["sine", "learned"] = "sine"

    def __post_init__(self) -> None:
        if self.depths[0] < 0 or self.depths[1] < 1:
            raise UsageError(f"depths are {self.depths}", remedy="the encoder has 0 layers or more, the decoder 1")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is {self.dropout}", remedy="it lies in [0, 1)")


class DETRRaw(NamedTuple):
    """The output of the decoder, layer by layer: L layers, Q queries."""

    logits: Tensor
    """(L, B, Q, classes + 1), the last for no object."""
    boxes: Tensor
    """(L, B, Q, 4) float32: centre x, centre y, width, height, as shares of the picture."""
    pictures: Tensor
    """(B, 2) float32: height and width in pixels of the part of the input that is picture."""
    states: Tensor
    """(B, Q, D) of the last layer."""
    cells: Tensor
    """(B, D, H, W), the encoder's input."""
    memory: Tensor
    """(B, D, H, W), its output."""
    mask_inputs: Any = None
    """Of a head that goes on to masks."""


class Truth(NamedTuple):
    """The objects of a batch that count, image after image: T of them."""

    classes: Tensor
    """(T,) int64."""
    boxes: Tensor
    """(T, 4) float32, as `DETRRaw.boxes`."""
    image: Tensor
    """(T,) int64: the image of each."""
    counts: list[int]
    """Objects of each image."""


class DETROptions(TypedDict, total=False):
    """Options of DETR with masks and without, see `DETR`."""

    queries: int
    transformer: Mapping[str, Any] | None
    losses: Mapping[str, float] | None
    score_threshold: float
    detections: int


class DETR(Head):
    """A fixed number of learned queries, each of which predicts an object or none.

    Args:
        features: of the backbone, whose last map, the coarsest, is looked at.
        classes: number of classes.
        queries: Q, more than a picture has objects.
        channels_inside: D.
        transformer: what differs from `Transformer`.
        losses: what differs from `LOSSES`.
        norm: "layer" normalises the cells of the map first; "none", as published, takes them as they are.
        score_threshold: predictions below it are left out.
        detections: predictions of a picture at most.

    Raises:
        UsageError: an option out of its range.
    """

    tasks: ClassVar[tuple[str, ...]] = ("detection",)
    reads_maps_alone = True
    factors: ClassVar[Mapping[str, float]] = LOSSES

    def __init__(
        self,
        features: FeatureInfo,
        *,
        classes: int,
        queries: int = 100,
        channels_inside: int = 256,
        transformer: Mapping[str, Any] | None = None,
        losses: Mapping[str, float] | None = None,
        norm: Literal["layer", "none"] = "none",
        score_threshold: float = 0.0,
        detections: int = 100,
    ) -> None:
        super().__init__()
        check_options(Transformer, transformer or {}, of="transformer")
        options = Transformer(**(transformer or {}))
        for name in losses or {}:
            if name not in self.factors:
                raise no_such("loss", name, self.factors)
        if channels_inside % options.heads:
            raise UsageError(f"{options.heads} heads do not divide {channels_inside}", remedy="change one of them")
        if queries < 1:
            raise UsageError(f"{queries} queries", remedy="there is one at least")
        self.losses = {**self.factors, **(losses or {})}
        self.score_threshold, self.detections, self.heads = score_threshold, detections, options.heads
        (self.norm,) = map_norms(norm, features.channels[-1:])
        self.project = nn.Conv2d(features.channels[-1], channels_inside, 1)
        self.positions = (SinePosition2D if options.positions == "sine" else LearnedPosition2D)(channels_inside)
        self.encoder = nn.ModuleList(EncoderLayer(channels_inside, options) for _ in range(options.depths[0]))
        self.encoder_norm = nn.LayerNorm(channels_inside) if options.norms == "pre" else nn.Identity()
        self.queries = nn.Parameter(torch.randn(queries, channels_inside))
        self.decoder = nn.ModuleList(DecoderLayer(channels_inside, options) for _ in range(options.depths[1]))
        self.decoder_norm = nn.LayerNorm(channels_inside)
        self.classifier = Linear(channels_inside, classes)
        self.no_object = Linear(channels_inside, 1)
        self.boxes = MLP(channels_inside, channels_inside, channels_inside, 4)
        weights = torch.ones(classes + 1)
        weights[-1] = self.losses["no_object"]
        self.register_buffer("class_weights", weights, persistent=False)

    class_weights: Tensor

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> DETRRaw:
        """Classes and boxes of every query and layer."""
        cells = self.project(self.norm(features.maps[-1]))
        grid, padding = (cells.shape[2], cells.shape[3]), features.padding
        allowed = None if padding is None else ~padding.flatten(1)[:, None, None, None]
        positions = self.positions(grid, cells.new_zeros(1, *grid, dtype=torch.bool) if padding is None else padding)
        memory = cells.flatten(2).transpose(1, 2)
        for layer in self.encoder:
            memory = layer(memory, positions, allowed)
        memory = self.encoder_norm(memory)
        x = torch.zeros_like(self.queries).expand(memory.shape[0], -1, -1)
        keys, states = memory + positions, []
        for layer in self.decoder:
            x = layer(x, self.queries, keys, memory, allowed)
            states.append(self.decoder_norm(x))
        hidden_states = torch.stack(states)  # (L, B, Q, D)
        return DETRRaw(
            torch.cat([self.classifier(hidden_states), self.no_object(hidden_states)], -1),
            self.boxes(hidden_states).float().sigmoid(),
            picture_sizes(features),
            states[-1],
            cells,
            memory.transpose(1, 2).unflatten(2, grid),
        )

    # ------------------------------------------------------------------------------------------------------ learning

    def truth(self, raw: DETRRaw, targets: Sequence[Target]) -> Truth:
        """The objects that are no crowd, their boxes as shares of their picture."""
        objects = [without_crowd(target) for target in cast("Sequence[Instances]", targets)]
        counts = [len(target.classes) for target in objects]
        device = raw.boxes.device
        image = torch.repeat_interleave(torch.tensor(counts)).to(device)
        boxes = torch.cat([target.boxes for target in objects]).to(device).float()
        shares = boxes / raw.pictures[image][:, [1, 0, 1, 0]]
        return Truth(torch.cat([target.classes for target in objects]).to(device), to_centres(shares), image, counts)

    @torch.no_grad()
    def match(self, raw: DETRRaw, truth: Truth) -> Tensor:
        """(L, T) int64: the query that each layer has for each object; -1 where there are more objects than queries."""
        probs, corners = raw.logits.float().softmax(-1), to_corners(raw.boxes)
        costs = []
        images = zip(truth.classes.split(truth.counts), truth.boxes.split(truth.counts))
        for number, (classes, boxes) in enumerate(images):
            l1 = torch.cdist(raw.boxes[:, number].flatten(0, 1), boxes, p=1)  # (L * Q, N)
            giou = generalized_box_iou(corners[:, number].flatten(0, 1), to_corners(boxes))
            cost = (self.losses["box"] * l1 - self.losses["giou"] * giou).unflatten(0, raw.boxes.shape[::2])
            costs.append(cost - self.losses["class"] * probs[:, number][..., classes])
        return torch.cat(hungarian_match(costs), 1)

    def loss(self, raw: DETRRaw, targets: Sequence[Target]) -> dict[str, Loss]:
        """The losses "class", "box" (L1) and "giou" of the last layer; "auxiliary_class" and so on of all the others.

        Those of classes are over the queries by weight, the others over the objects of the batch (section 3.1).
        """
        truth = self.truth(raw, targets)
        sums, counts = self.sums(raw, truth, self.match(raw, truth)), self.counts(targets)
        return {name: Loss(total, counts[name]) for name, total in sums.items()}

    def sums(self, raw: DETRRaw, truth: Truth, queries: Tensor) -> dict[str, Tensor]:
        """() by name of loss; queries (L, T) as `match` gives them."""
        layers = torch.arange(queries.shape[0], device=queries.device)[:, None]
        no_object = raw.logits.shape[-1] - 1
        classes = queries.new_full((*raw.boxes.shape[:2], raw.boxes.shape[2] + 1), no_object)
        classes[layers, truth.image, queries] = truth.classes.expand_as(queries)  # -1 goes behind the queries
        classes = classes[..., :-1].flatten(1)
        entropy = F.cross_entropy(
            raw.logits.float().flatten(0, 2), classes.flatten(), weight=self.class_weights.float(), reduction="none"
        )
        matched = queries >= 0
        boxes = raw.boxes[layers, truth.image, queries.clamp(min=0)]  # (L, T, 4)
        l1 = (boxes - truth.boxes).abs().sum(-1)
        pixels = raw.pictures[truth.image][:, [1, 0, 1, 0]]
        giou = generalized_box_iou_loss(to_corners(boxes) * pixels, (to_corners(truth.boxes) * pixels).expand_as(boxes))
        by_layer = {
            "class": entropy.view_as(classes).sum(1),
            "box": (l1 * matched).sum(1),
            "giou": (giou * matched).sum(1),
        }
        last = {name: self.losses[name] * loss[-1] for name, loss in by_layer.items()}
        if queries.shape[0] == 1:
            return last
        return last | {f"auxiliary_{name}": self.losses[name] * loss[:-1].sum() for name, loss in by_layer.items()}

    def counts(self, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Of classes the weight of all queries, whichever are matched; of all else the number of objects."""
        number, no_object = self.queries.shape[0], self.losses["no_object"]
        objects = [len(without_crowd(target).classes) for target in cast("Sequence[Instances]", targets)]
        matched = sum(min(number, count) for count in objects)
        weight = torch.tensor(no_object * number * len(targets) + (1 - no_object) * matched)
        last = dict.fromkeys(self.factors, torch.tensor(float(sum(objects)))) | {"class": weight}
        return last | {f"auxiliary_{name}": count for name, count in last.items()}  # and some that no loss has

    # ---------------------------------------------------------------------------------------------------- predicting

    def decode(self, raw: DETRRaw, sizes: Sequence[tuple[int, int]]) -> list[Target]:
        """One `Instances` an image: of each query the best class but "no object", its box cut off at the border."""
        return self.best(raw, torch.tensor(sizes, device=raw.boxes.device))[0].predictions()

    def to_outputs(self, raw: DETRRaw, sizes: Tensor) -> Outputs:
        """As many objects as there are queries, or `detections`."""
        return self.best(raw, sizes)[0]

    def best(self, raw: DETRRaw, sizes: Tensor) -> tuple[ObjectOutputs, Tensor]:
        """The N best objects of pictures of `sizes` (B, 2), and their queries (B, N)."""
        scores, classes = raw.logits[-1].float().softmax(-1)[..., :-1].max(-1)  # (B, Q)
        queries = _falling(scores, min(self.detections, scores.shape[1]))
        scores, classes = scores.gather(1, queries), classes.gather(1, queries)
        shares = to_corners(raw.boxes[-1].gather(1, queries[..., None].expand(-1, -1, 4)))
        borders = sizes.to(shares.dtype)[:, None, [1, 0, 1, 0]]
        boxes = torch.minimum((shares * borders).clamp(min=0), borders)
        kept = scores >= self.score_threshold
        classes = torch.where(kept, classes, -1)
        return ObjectOutputs(boxes * kept[..., None], classes, scores * kept), queries


def _falling(scores: Tensor, number: int) -> Tensor:
    """(B, Q) -> (B, number) int64: where the highest are, falling, the first of equal ones first.

    By counting for each the better ones: ONNX has no sort that keeps the order of equal ones.
    """
    index = torch.arange(scores.shape[1], device=scores.device)
    one, other = scores[:, :, None], scores[:, None]
    better = (other > one) | ((other == one) & (index < index[:, None]))  # (B, Q, Q)
    places = better.sum(2)[:, None] == index[:number, None]  # (B, number, Q)
    return (places * index).sum(2)


def without_crowd(objects: Instances) -> Instances:
    """Those that are one object each: boxes, classes and nothing else."""
    kept = slice(None) if objects.crowd is None else ~objects.crowd
    return Instances(objects.boxes[kept], objects.classes[kept])


# -------------------------------------------------------------------------------------------------------- transformer


class PositionalAttention(nn.Module):
    """Multi-head attention whose keys are not made from its values: positions are in queries and keys alone.

    Args:
        width: D.
        heads: h; divides D.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (Linear(width, width) for _ in range(4))
        for layer in (self.q, self.k, self.v):
            nn.init.xavier_uniform_(layer.weight, gain=0.5**0.5)  # as parts of one matrix, of 4 D in all
        nn.init.xavier_uniform_(self.proj.weight)
        for layer in (self.q, self.k, self.v, self.proj):
            nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None = None) -> Tensor:
        """(B, N, D), (B, K, D), (B, K, D) -> (B, N, D); allowed broadcasts to (B, 1, h, N, K)."""
        q, k, v = (
            split_heads(layer(x), self.heads)[0] for layer, x in ((self.q, queries), (self.k, keys), (self.v, values))
        )
        return self.proj(join_heads(attend(q, k, v, allowed=allowed)))


class MLP(nn.Module):
    """Linear layers, and between them ReLU and dropout.

    Args:
        widths: in, between, out.
        dropout: rate, in [0, 1).
    """

    def __init__(self, *widths: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(*pair) for pair in pairwise(widths))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., widths[0]) -> (..., widths[-1])."""
        for number, layer in enumerate(self.layers):
            x = layer(self.dropout(F.relu(x)) if number else x)
        return x


class Residual(nn.Module):
    """The shortcut around a branch, with its norm and dropout.

    Args:
        width: D.
        options: of the transformer.
    """

    def __init__(self, width: int, options: Transformer) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(options.dropout)
        self.pre_norm = options.norms == "pre"

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, N, D) -> the same."""
        if self.pre_norm:
            return x + self.dropout(branch(self.norm(x)))
        return self.norm(x + self.dropout(branch(x)))


class EncoderLayer(nn.Module):
    """Cells look at one another.

    Args:
        width: D.
        options: of the transformer.
    """

    def __init__(self, width: int, options: Transformer) -> None:
        super().__init__()
        self.attention = PositionalAttention(width, options.heads)
        self.mlp = mlp(width, options)
        self.around = nn.ModuleList(Residual(width, options) for _ in range(2))

    def forward(self, x: Tensor, positions: Tensor, allowed: Tensor | None = None) -> Tensor:
        """(B, N, D) -> the same; positions broadcast to it, allowed is (B, 1, 1, 1, N) bool."""

        def self_attention(cells: Tensor) -> Tensor:
            positioned = cells + positions
            return self.attention(positioned, positioned, cells, allowed)

        return self.around[1](self.around[0](x, self_attention), self.mlp)


class DecoderLayer(nn.Module):
    """Queries look at one another, then at the memory.

    Args:
        width: D.
        options: of the transformer.
    """

    def __init__(self, width: int, options: Transformer) -> None:
        super().__init__()
        self.attention, self.cross_attention = (PositionalAttention(width, options.heads) for _ in range(2))
        self.mlp = mlp(width, options)
        self.around = nn.ModuleList(Residual(width, options) for _ in range(3))

    def forward(self, x: Tensor, queries: Tensor, keys: Tensor, memory: Tensor, allowed: Tensor | None) -> Tensor:
        """States of the objects (B, Q, D) -> the same; queries (Q, D) are the objects' positions.

        Keys, the memory with its positions, and memory are (B, N, D); allowed is (B, 1, 1, 1, N) bool.
        """

        def self_attention(objects: Tensor) -> Tensor:
            positioned = objects + queries
            return self.attention(positioned, positioned, objects)

        x = self.around[0](x, self_attention)
        x = self.around[1](x, lambda objects: self.cross_attention(objects + queries, keys, memory, allowed))
        return self.around[2](x, self.mlp)


def mlp(width: int, options: Transformer) -> MLP:
    """That of a layer, with its initial weights."""
    layers = MLP(width, options.hidden, width, dropout=options.dropout)
    for weights in layers.parameters():
        if weights.dim() > 1:
            nn.init.xavier_uniform_(weights)
    return layers
