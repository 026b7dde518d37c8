"""RegionViT: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

import torch
from torch import Tensor

from patchform.descriptions import Score
from patchform.weights.operations import Operation, Sizes, reshape, squeeze
from patchform.weights.rules import Rules


def _from_offsets(tensors: tuple[Tensor, ...], shape: torch.Size, sizes: Sizes) -> Tensor:
    side = round(shape[0] ** 0.5)
    table = tensors[0].unflatten(1, (side, side)).roll((_turn(side),) * 2, (1, 2)).flip(1, 2)
    return table.flatten(1).t()


def _to_offsets(tensor: Tensor, count: int, sizes: Sizes) -> tuple[Tensor, ...]:
    side = round(len(tensor) ** 0.5)
    table = tensor.t().unflatten(1, (side, side)).flip(1, 2).roll((-_turn(side),) * 2, (1, 2))
    return (table.flatten(1),)


def _turn(side: int) -> int:
    """Entry 0 of the published table is the offset -(window // 2); before it the offsets wrap around."""
    window = (side + 1) // 2
    return window - 1 - window // 2


_offsets = Operation(_from_offsets, _to_offsets)
"""(h, (2w - 1)**2), key less query, to `RelativeBias`, query less key."""


def _one_of_two(tensors: tuple[Tensor, ...], shape: torch.Size, sizes: Sizes) -> Tensor:
    if not torch.equal(*tensors):
        raise ValueError("regions and cells share this layer, and the two differ")
    return tensors[0].reshape(shape)


_shared = Operation(_one_of_two, lambda tensor, count, sizes: (tensor, tensor.clone()))
"""One module that the published files hold under two names."""
_shared_norm = Operation(_one_of_two, lambda tensor, count, sizes: (tensor[None, :, None, None],) * 2)
_norm = squeeze(0, 2, 3)

LAYOUTS = {
    "ibm": Rules(
        ("cls_token.proj.weight", "backbone.regions.proj.weight", reshape(-1, "channels", "patch", "patch")),
        ("cls_token.proj.bias", "backbone.regions.proj.bias"),
        *(
            (f"patch_embed.proj.{3 * number}.{{p}}", f"backbone.cells.convolutions.{number}.{{p}}")
            for number in range(3)
        ),
        *(
            (f"patch_embed.proj.{3 * number + 1}.{{p}}", f"backbone.cells.norms.{number}.{{p}}", _norm)
            for number in range(2)
        ),
        ("patch_embed.proj.{p}", "backbone.cells.proj.{p}"),
        *(
            (
                (f"layers.{{s}}.block.0.proj.{number}.{{p}}", f"layers.{{s}}.block.0.proj_cls.{number}.{{p}}"),
                f"backbone.stages.{{s}}.halve.{ours}.{{p}}",
                operation,
            )
            for number, ours, operation in ((0, "norm", _shared_norm), (2, "convolution", _shared))
        ),
        ("layers.{s}.block.{b+1}.attn.rel_pos", "backbone.stages.{s}.blocks.{b}.attention.position.table", _offsets),
        ("layers.{s}.block.{b+1}.attn.{m}.{p}", "backbone.stages.{s}.blocks.{b}.attention.{m}.{p}"),
        ("layers.{s}.block.{b+1}.mlp.{m}.{p}", "backbone.stages.{s}.blocks.{b}.mlp.{m}.{p}"),
        ("layers.{s}.block.{b+1}.norm{n}.{p}", "backbone.stages.{s}.blocks.{b}.norm{n}.{p}"),
        ("layers.{s}.peg.{p}", "backbone.stages.{s}.peg.{p}"),
        ("norm{s}.{p}", "backbone.map_norms.{s}.{p}", _norm),
        ("norm.{p}", "backbone.norm.{p}"),
        ("head.{p}", "head.classifier.{p}"),
    )
}
"""ibm: what the files of IBM/RegionViT hold under "model", those of its detectors too (norm_maps=True, and
prefix="backbone.bottom_up."). Writing needs the size "patch": a region's side, pixels."""

SCORES = tuple(
    Score(variant=variant, scores={"imagenet-1k top-1": score}, source="IBM/RegionViT README")
    for variant, score in {"ti": 80.4, "s": 82.6, "m": 83.1, "b": 83.2}.items()
)
