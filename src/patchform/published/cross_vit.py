"""CrossViT: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

import torch

from patchform.backbones.cross_vit import (
    VARIANTS,
)
from patchform.descriptions import Score
from patchform.published.base import timm
from patchform.weights.operations import Operation, join, reshape
from patchform.weights.rules import Rule, Rules

# The published classifier is the mean of two linear layers, one for each class token. A head with `parts` has both. On
# both tokens side by side it is also one linear layer, weights [W0, W1] / 2, bias (b0 + b1) / 2: what is written back
# from it has this bias in both layers, other numbers than were published, but the same function.

_mean_of_weights = Operation(
    lambda tensors, shape, sizes: torch.cat(tensors, 1) / 2,
    lambda tensor, count, sizes: (tensor * 2).tensor_split([tensor.shape[1] // 3], 1),  # all coarse branches: 2 D
)
_mean_of_biases = Operation(
    lambda tensors, shape, sizes: (tensors[0] + tensors[1]) / 2,
    lambda tensor, count, sizes: (tensor, tensor.clone()),
)

_SHARED: tuple[Rule, ...] = (
    ("patch_embed.0.proj.weight", "backbone.stems.0.proj.weight", reshape(-1, "channels", 12, 12)),
    ("patch_embed.1.proj.weight", "backbone.stems.1.proj.weight", reshape(-1, "channels", 16, 16)),
    ("patch_embed.{b}.proj.{p}", "backbone.stems.{b}.proj.{p}"),
    ("patch_embed.{b}.proj.{i}.{p}", "backbone.stems.{b}.proj.{i}.{p}"),
    ("blocks.{s}.blocks.{b}.{i}.attn.{l}.{p}", "backbone.stages.{s}.branches.{b}.{i}.attention.{l}.{p}"),
    ("blocks.{s}.blocks.{b}.{i}.mlp.{l}.{p}", "backbone.stages.{s}.branches.{b}.{i}.mlp.{l}.{p}"),
    ("blocks.{s}.blocks.{b}.{i}.{n}.{p}", "backbone.stages.{s}.branches.{b}.{i}.{n}.{p}"),
    ("blocks.{s}.projs.{b}.{i}.{p}", "backbone.stages.{s}.fusions.{b}.enter.{i}.{p}"),
    ("blocks.{s}.revert_projs.{b}.{i}.{p}", "backbone.stages.{s}.fusions.{b}.leave.{i}.{p}"),
    ("blocks.{s}.fusion.{b}.norm1.{p}", "backbone.stages.{s}.fusions.{b}.norm.{p}"),
    ("blocks.{s}.fusion.{b}.attn.wq.{p}", "backbone.stages.{s}.fusions.{b}.attention.q.{p}"),
    (
        ("blocks.{s}.fusion.{b}.attn.wk.{p}", "blocks.{s}.fusion.{b}.attn.wv.{p}"),
        "backbone.stages.{s}.fusions.{b}.attention.kv.{p}",
        join,
    ),
    ("blocks.{s}.fusion.{b}.attn.proj.{p}", "backbone.stages.{s}.fusions.{b}.attention.proj.{p}"),
    ("norm.{b}.{p}", "backbone.norms.{b}.{p}"),
)
_PARTS: Rule = ("head.{b}.{p}", "head.classifier.parts.{b}.{p}")
_JOINED: tuple[Rule, ...] = (
    (("head.0.weight", "head.1.weight"), "head.classifier.weight", _mean_of_weights),
    (("head.0.bias", "head.1.bias"), "head.classifier.bias", _mean_of_biases),
)
_IBM: tuple[Rule, ...] = (
    ("cls_token.{b}", "backbone.class_tokens.{b}"),
    ("pos_embed.{b}", "backbone.positions.{b}.table"),
)
_TIMM: tuple[Rule, ...] = (
    ("cls_token_{b}", "backbone.class_tokens.{b}"),
    ("pos_embed_{b}", "backbone.positions.{b}.table"),
)

LAYOUTS = {
    "ibm": Rules(*_IBM, *_SHARED, *_JOINED),
    "ibm_parts": Rules(*_IBM, *_SHARED, _PARTS),
    "timm": Rules(*_TIMM, *_SHARED, *_JOINED),
    "timm_parts": Rules(*_TIMM, *_SHARED, _PARTS),
}
"""ibm: IBM/CrossViT. timm: the same tensors, four of them under other names. parts: for the head "linear" with
`parts`, the widths of both branches."""

SCORES = tuple(
    Score(
        variant=variant,
        scores={"imagenet-1k top-1": score},
        source="the authors' weights, as measured by timm (results-imagenet.csv)",
        image_size=VARIANTS[variant].image_size,
    )
    for variant, score in {
        "ti": 73.336,
        "s": 81.016,
        "b": 82.216,
        "9": 73.958,
        "15": 81.534,
        "18": 82.396,
        "9_dagger": 76.980,
        "15_dagger": 82.330,
        "18_dagger": 82.516,
        "15_dagger_408": 83.842,
        "18_dagger_408": 84.198,
    }.items()
)

WEIGHTS = tuple(
    timm(
        variant,
        f"crossvit_{model}.in1k",
        megabytes,
        side=VARIANTS[variant].image_size,
        crop=1.0 if "408" in model else 0.875,
    )
    for variant, model, megabytes in (
        ("ti", "tiny_240", 28),
        ("s", "small_240", 107),
        ("b", "base_240", 420),
        ("9", "9_240", 34),
        ("15", "15_240", 110),
        ("18", "18_240", 173),
        ("9_dagger", "9_dagger_240", 35),
        ("15_dagger", "15_dagger_240", 113),
        ("18_dagger", "18_dagger_240", 177),
        ("15_dagger_408", "15_dagger_408", 114),
        ("18_dagger_408", "18_dagger_408", 178),
    )
)
