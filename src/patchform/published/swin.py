"""Swin v1 and v2: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

import torch

from patchform.backbones.swin import (
    VARIANTS,
)
from patchform.records import Score
from patchform.weights.operations import Operation, join, reshape
from patchform.weights.rules import DROP, Rule, Rules, prefix

_PATCHES = reshape(-1, "channels", "patch", "patch")
_STAGES = (
    ("patch_embed.proj.weight", "patches.proj.weight", _PATCHES),
    ("patch_embed.proj.bias", "patches.proj.bias"),
    ("patch_embed.norm.{p}", "patches_norm.{p}"),
    ("layers.{s}.blocks.{b}.attn.relative_position_bias_table", "stages.{s}.{b}.attention.position.table"),
    ("layers.{s}.blocks.{b}.attn.relative_position_index", DROP),
    ("layers.{s}.blocks.{b}.attn_mask", DROP),
    ("layers.{s}.blocks.{b}.attn.relative_coords_table", DROP),
    ("layers.{s}.blocks.{b}.attn.logit_scale", "stages.{s}.{b}.attention.position.logit_scale"),
    ("layers.{s}.blocks.{b}.attn.cpb_mlp.0.{p}", "stages.{s}.{b}.attention.position.fc1.{p}"),
    ("layers.{s}.blocks.{b}.attn.cpb_mlp.2.{p}", "stages.{s}.{b}.attention.position.fc2.{p}"),
    (
        ("layers.{s}.blocks.{b}.attn.q_bias", "layers.{s}.blocks.{b}.attn.v_bias"),
        "stages.{s}.{b}.attention.qkv.qv_bias",
        join,
    ),
    ("layers.{s}.blocks.{b}.attn.{m}.{p}", "stages.{s}.{b}.attention.{m}.{p}"),
    ("layers.{s}.blocks.{b}.mlp.{m}.{p}", "stages.{s}.{b}.mlp.{m}.{p}"),
    ("layers.{s}.blocks.{b}.norm{n}.{p}", "stages.{s}.{b}.norm{n}.{p}"),
    ("norm.{p}", "norm.{p}"),
)
_MICROSOFT = Rules(*_STAGES, ("layers.{s}.downsample.{m}.{p}", "merges.{s}.{m}.{p}"))
_TIMM = Rules(*_STAGES, ("layers.{s+1}.downsample.{m}.{p}", "merges.{s}.{m}.{p}"))  # at the start of the next stage


def _torchvision(*attention: tuple[str, str] | tuple[str, str, Operation]) -> Rules:
    """The layout with these rules for what is called "attn" there."""
    rules: list[Rule] = [
        ("features.0.0.weight", "backbone.patches.proj.weight", _PATCHES),
        ("features.0.0.bias", "backbone.patches.proj.bias"),
        ("features.0.2.{p}", "backbone.patches_norm.{p}"),
        ("features.*.attn.relative_position_index", DROP),
    ]
    for stage in range(4):
        for theirs, ours, *operation in (
            *attention,
            ("attn.{m}.{p}", "attention.{m}.{p}"),
            ("mlp.0.{p}", "mlp.fc1.{p}"),
            ("mlp.3.{p}", "mlp.fc2.{p}"),
            ("norm{n}.{p}", "norm{n}.{p}"),
        ):
            places = f"features.{2 * stage + 1}.{{b}}.{theirs}", f"backbone.stages.{stage}.{{b}}.{ours}"
            rules.append((*places, operation[0]) if operation else places)
        rules.append((f"features.{2 * stage + 2}.{{m}}.{{p}}", f"backbone.merges.{stage}.{{m}}.{{p}}"))
    return Rules(*rules, ("norm.{p}", "backbone.norm.{p}"), ("head.{p}", "head.classifier.{p}"))


_without_k = Operation(  # their bias of the keys is there and set to 0 whenever it is used
    lambda tensors, shape, sizes: torch.cat(tensors[0].chunk(3)[::2]),
    lambda tensor, count, sizes: (torch.cat([(q := tensor.chunk(2)[0]), torch.zeros_like(q), tensor.chunk(2)[1]]),),
)
LAYOUTS = {
    "microsoft": Rules(*prefix(_MICROSOFT, "", "backbone."), ("head.{p}", "head.classifier.{p}")),
    "timm": Rules(*prefix(_TIMM, "", "backbone."), ("head.fc.{p}", "head.classifier.{p}")),
    "torchvision": _torchvision(("attn.relative_position_bias_table", "attention.position.table")),
    "torchvision_v2": Rules(
        ("features.*.attn.relative_coords_table", DROP),
        *_torchvision(
            ("attn.logit_scale", "attention.position.logit_scale"),
            ("attn.cpb_mlp.0.{p}", "attention.position.fc1.{p}"),
            ("attn.cpb_mlp.2.{p}", "attention.position.fc2.{p}"),
            ("attn.qkv.bias", "attention.qkv.qv_bias", _without_k),
        ),
    ),
}
"""torchvision, torchvision_v2: in version 1 the name "attn.qkv.bias" is of another tensor, so that none serves both."""

SCORES = tuple(
    Score(
        variant=variant,
        scores={"imagenet-1k top-1": top1},
        source="microsoft/Swin-Transformer MODELHUB.md" if "v2" in variant else "Liu et al. 2021, table 1",
        image_size=VARIANTS[variant].image_size,
        training=training,
    )
    for training, scores in (
        ("imagenet-1k", {"t": 81.3, "s": 83.0, "b": 83.5, "b384": 84.5}),
        ("imagenet-22k", {"b": 85.2, "b384": 86.4, "l": 86.3, "l384": 87.3}),
        ("imagenet-1k", {"v2_t_w8": 81.8, "v2_s_w8": 83.7, "v2_b_w8": 84.2}),
        ("imagenet-1k", {"v2_t_w16": 82.8, "v2_s_w16": 84.1, "v2_b_w16": 84.6}),
        ("imagenet-22k", {"v2_b_w12to16": 86.2, "v2_b_w12to24": 87.1}),
        ("imagenet-22k", {"v2_l_w12to16": 86.9, "v2_l_w12to24": 87.6}),
    )
    for variant, top1 in scores.items()
)
