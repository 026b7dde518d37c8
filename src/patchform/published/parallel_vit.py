"""Parallel ViT and DeiT III: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from patchform.backbones.parallel_vit import (
    VARIANTS,
)
from patchform.descriptions import Score
from patchform.published.base import timm
from patchform.weights.operations import reshape
from patchform.weights.rules import Rule, Rules, prefix

_MORE_BRANCHES = ("blocks.{b}.branches.*", "blocks.{b}.branches.*")  # a sequential block has no names for them
_PATCHES = reshape(-1, "channels", "patch", "patch")
_OUTSIDE: tuple[Rule, ...] = (
    ("cls_token", "class_token"),
    ("pos_embed", "position.table"),
    ("patch_embed.proj.weight", "patches.proj.weight", _PATCHES),
    ("patch_embed.proj.bias", "patches.proj.bias"),
    ("patch_embed.proj.{i}.{p}", "patches.proj.{i}.{p}"),
    ("norm.{p}", "norm.{p}"),
)


def _branch(number: int, suffix: str) -> tuple[Rule, ...]:
    """A branch by the authors' names, which end in `suffix`: norm1, norm11."""
    return tuple(
        (f"blocks.{{b}}.{source}", f"blocks.{{b}}.branches.{number}.{target}")
        for source, target in (
            (f"attn{suffix}.{{m}}.{{p}}", "attention.{m}.{p}"),
            (f"mlp{suffix}.{{m}}.{{p}}", "mlp.{m}.{p}"),
            (f"norm1{suffix}.{{p}}", "norm1.{p}"),
            (f"norm2{suffix}.{{p}}", "norm2.{p}"),
        )
    )


_DEIT = Rules(
    *_OUTSIDE,
    *_branch(0, ""),
    *_branch(1, "1"),
    ("blocks.{b}.gamma_1", "blocks.{b}.branches.0.scale1.gamma"),
    ("blocks.{b}.gamma_2", "blocks.{b}.branches.0.scale2.gamma"),
    ("blocks.{b}.gamma_1_1", "blocks.{b}.branches.1.scale1.gamma"),
    ("blocks.{b}.gamma_2_1", "blocks.{b}.branches.1.scale2.gamma"),
)
_TIMM = Rules(
    *_OUTSIDE,
    *_branch(0, ""),
    ("blocks.{b}.ls{n}.gamma", "blocks.{b}.branches.0.scale{n}.gamma"),
    _MORE_BRANCHES,
)
_TIMM_PARALLEL = Rules(
    *_OUTSIDE,
    *(
        (f"blocks.{{b}}.{source}", f"blocks.{{b}}.branches.{{n}}.{target}")
        for source, target in (
            ("attns.{n}.norm.{p}", "norm1.{p}"),
            ("attns.{n}.attn.{m}.{p}", "attention.{m}.{p}"),
            ("attns.{n}.ls.gamma", "scale1.gamma"),
            ("ffns.{n}.norm.{p}", "norm2.{p}"),
            ("ffns.{n}.mlp.{m}.{p}", "mlp.{m}.{p}"),
            ("ffns.{n}.ls.gamma", "scale2.gamma"),
        )
    ),
)
_MM = Rules(
    ("cls_token", "class_token"),
    ("pos_embed", "position.table"),
    ("patch_embed.projection.weight", "patches.proj.weight", _PATCHES),
    ("patch_embed.projection.bias", "patches.proj.bias"),
    *(
        (f"layers.{{b}}.{source}", f"blocks.{{b}}.branches.0.{target}")
        for source, target in (
            ("ln{n}.{p}", "norm{n}.{p}"),
            ("attn.gamma1.weight", "scale1.gamma"),
            ("attn.{m}.{p}", "attention.{m}.{p}"),
            ("ffn.gamma2.weight", "scale2.gamma"),
            ("ffn.layers.0.0.{p}", "mlp.fc1.{p}"),
            ("ffn.layers.1.{p}", "mlp.fc2.{p}"),
        )
    ),
    ("ln1.{p}", "norm.{p}"),
    ("patch_embed.projection.{i}.{p}", "patches.proj.{i}.{p}"),
    _MORE_BRANCHES,
)

LAYOUTS = {
    **{
        name: Rules(*prefix(rules, "", "backbone."), ("head.{p}", "head.classifier.{p}"))
        for name, rules in {"deit": _DEIT, "timm": _TIMM, "timm_parallel": _TIMM_PARALLEL}.items()
    },
    "mm": Rules(*prefix(_MM, "backbone.", "backbone."), ("head.layers.head.{p}", "head.classifier.{p}")),
}
"""deit: facebookresearch/deit, one branch or two. timm: its deit3_*. timm_parallel: its vit_*_18x2, built with
`no_embed_class=True`. mm: DeiT3 of mmpretrain, names from its source. Without layer scale and with one branch, deit and
timm are the same names and either serves. timm's vit_*_18x2 as they stand place the class token: refused."""

SCORES = tuple(
    Score(
        variant=f"deit3_{variant}",
        scores={"imagenet-1k top-1": top1},
        source="facebookresearch/deit README_revenge.md (DeiT III)",
        image_size=VARIANTS[f"deit3_{variant}"].image_size,
        training=training,
    )
    for training, column in {
        "imagenet-1k": {"s": 81.4, "s384": 83.4, "b": 83.8, "b384": 85.0, "l": 84.9, "l384": 85.8, "h": 85.2},
        "imagenet-21k": {"s": 83.1, "s384": 84.8, "b": 85.7, "b384": 86.7, "l": 87.0, "l384": 87.7, "h": 87.2},
    }.items()
    for variant, top1 in column.items()
)

WEIGHTS = tuple(
    timm(
        f"deit3_{variant}",
        f"deit3_{model}_{VARIANTS[f'deit3_{variant}'].image_size}.{tag}",
        megabytes,
        side=VARIANTS[f"deit3_{variant}"].image_size,
        crop=1.0 if "384" in variant or "22k" in tag else 0.9,
    )
    for variant, model, megabytes in (
        ("s", "small_patch16", 88),
        ("b", "base_patch16", 346),
        ("l", "large_patch16", 1217),
        ("h", "huge_patch14", 2529),
        ("s384", "small_patch16", 89),
        ("b384", "base_patch16", 348),
        ("l384", "large_patch16", 1219),
    )
    for tag in ("fb_in1k", "fb_in22k_ft_in1k")
)
