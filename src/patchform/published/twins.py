"""Twins: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from patchform.records import Score
from patchform.weights.operations import squares
from patchform.weights.rules import Rules

_BLOCK = "backbone.stages.{s}.{b}"

LAYOUTS = {
    "meituan": Rules(  # timm's models have the same names
        ("patch_embeds.0.proj.weight", "backbone.patches.0.proj.weight", squares(4)),
        ("patch_embeds.{s}.proj.weight", "backbone.patches.{s}.proj.weight", squares(2)),
        ("patch_embeds.{s}.proj.bias", "backbone.patches.{s}.proj.bias"),
        ("patch_embeds.{s}.norm.{p}", "backbone.patches_norms.{s}.{p}"),
        ("pos_block.{s}.proj.0.{p}", "backbone.positions.{s}.conv.{p}"),
        ("blocks.{s}.{b}.attn.sr.weight", f"{_BLOCK}.attention.reduction.squares.proj.weight", squares()),
        ("blocks.{s}.{b}.attn.sr.bias", f"{_BLOCK}.attention.reduction.squares.proj.bias"),
        ("blocks.{s}.{b}.attn.norm.{p}", f"{_BLOCK}.attention.reduction.norm.{{p}}"),
        ("blocks.{s}.{b}.attn.{m}.{p}", f"{_BLOCK}.attention.{{m}}.{{p}}"),
        ("blocks.{s}.{b}.mlp.{m}.{p}", f"{_BLOCK}.mlp.{{m}}.{{p}}"),
        ("blocks.{s}.{b}.norm{n}.{p}", f"{_BLOCK}.norm{{n}}.{{p}}"),
        ("norm.{p}", "backbone.norm.{p}"),
        ("head.{p}", "head.classifier.{p}"),
    )
}

SCORES = tuple(
    Score(variant=variant, scores={"imagenet-1k top-1": score}, source="Meituan-AutoML/Twins README")
    for variant, score in {
        "pcpvt_s": 81.2,
        "pcpvt_b": 82.7,
        "pcpvt_l": 83.1,
        "svt_s": 81.7,
        "svt_b": 83.2,
        "svt_l": 83.7,
    }.items()
)
