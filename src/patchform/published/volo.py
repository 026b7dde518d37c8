"""VOLO: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from patchform.backbones.volo import (
    VARIANTS,
)
from patchform.descriptions import Score
from patchform.published.base import Origin, timm
from patchform.weights.rules import Rules

LAYOUTS = {
    "sail": Rules(
        *((f"patch_embed.conv.{i}.{{p}}", f"backbone.stem.convolutions.{i}.{{p}}") for i in (0, 1, 3, 4, 6, 7)),
        ("patch_embed.proj.{p}", "backbone.stem.proj.{p}"),
        ("network.0.{b}.attn.attn.{p}", "backbone.outlookers.{b}.attention.weights.{p}"),
        ("network.0.{b}.attn.{m}.{p}", "backbone.outlookers.{b}.attention.{m}.{p}"),
        ("network.0.{b}.mlp.{m}.{p}", "backbone.outlookers.{b}.mlp.{m}.{p}"),
        ("network.0.{b}.norm{n}.{p}", "backbone.outlookers.{b}.norm{n}.{p}"),
        ("network.1.proj.{p}", "backbone.merge.{p}"),
        ("pos_embed", "backbone.position"),
        ("network.{s+2}.{b}.attn.{m}.{p}", "backbone.stages.{s}.{b}.attention.{m}.{p}"),
        ("network.{s+2}.{b}.mlp.{m}.{p}", "backbone.stages.{s}.{b}.mlp.{m}.{p}"),
        ("network.{s+2}.{b}.norm{n}.{p}", "backbone.stages.{s}.{b}.norm{n}.{p}"),
        ("cls_token", "backbone.class_token"),
        ("post_network.{b}.norm{n}.{p}", "backbone.class_blocks.{b}.norm{n}.{p}"),
        ("post_network.{b}.attn.{m}.{p}", "backbone.class_blocks.{b}.attention.{m}.{p}"),
        ("post_network.{b}.mlp.{m}.{p}", "backbone.class_blocks.{b}.mlp.{m}.{p}"),
        ("norm.{p}", "backbone.norm.{p}"),
        ("head.{p}", "head.classifier.{p}"),
        ("aux_head.{p}", "head.auxiliary.{p}"),
    )
}
"""sail: names of sail-sg/volo, which timm keeps. Files with `aux_head` want a head with an auxiliary classifier."""

DIFFERS = {
    "sail": "where a side is an odd number of 8 pixels the authors' code leaves out the last of the finer cells; here "
    "zeros fill the coarser one"
}

SCORES = tuple(
    Score(
        variant=variant,
        scores={"imagenet-1k top-1": score},
        source="sail-sg/volo README",
        image_size=VARIANTS[variant].image_size,
    )
    for variant, score in {
        "d1": 84.2,
        "d1_384": 85.2,
        "d2": 85.2,
        "d2_384": 86.0,
        "d3": 85.4,
        "d3_448": 86.3,
        "d4": 85.7,
        "d4_448": 86.8,
        "d5": 86.1,
        "d5_448": 87.0,
        "d5_512": 87.1,
    }.items()
)

WEIGHTS = tuple(  # without d4_448, d5_448 and d5_512, whose pictures are made smaller than the input and have a border
    timm(
        variant,
        f"volo_{variant if '_' in variant else f'{variant}_224'}.sail_in1k",
        megabytes,
        side=VARIANTS[variant].image_size,
        crop=1.0 if "_" in variant else 0.96,
        origin=Origin(layout="sail", head="token_label"),
    )
    for variant, megabytes in {
        "d1": 107,
        "d1_384": 107,
        "d2": 235,
        "d2_384": 235,
        "d3": 345,
        "d3_448": 347,
        "d4": 772,
        "d5": 1182,
    }.items()
)
