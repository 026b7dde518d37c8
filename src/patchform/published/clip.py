"""CLIP: what its authors and others published of the tower of pictures, as layouts of weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from patchform.descriptions import WeightsFile
from patchform.published.base import CLIP_STATISTICS, Origin, block_rules, timm
from patchform.weights.operations import in_front, join, permute, reshape
from patchform.weights.rules import Drop, Rule, Rules

_PATCHES = reshape(-1, "channels", "patch", "patch")
_TEXTS = Drop("the tower of texts, and what joins the two")
_SPACE = Drop("the projection into the space of texts, which this backbone was built without (projection)")
_COUNTED = Drop("counts the positions")


_OPENAI = (
    ("visual.class_embedding", "backbone.class_token", reshape(-1)),
    ("visual.positional_embedding", "backbone.position.table", in_front),
    ("visual.conv1.weight", "backbone.patches.proj.weight", _PATCHES),
    ("visual.ln_pre.{p}", "backbone.first_norm.{p}"),
    *block_rules(
        "visual.transformer.resblocks.{b}.",
        {
            "ln_{n}.{p}": "norm{n}.{p}",
            "attn.in_proj_{p}": "attention.qkv.{p}",
            "attn.out_proj.{p}": "attention.proj.{p}",
            "mlp.c_fc.{p}": "mlp.fc1.{p}",
            "mlp.c_proj.{p}": "mlp.fc2.{p}",
        },
    ),
    ("visual.ln_post.{p}", "backbone.norm.{p}"),
    *(
        (name, _TEXTS)
        for name in (
            *("transformer.*", "token_embedding.weight", "positional_embedding", "ln_final.{p}", "text_projection"),
            *("logit_scale", "logit_bias", "text.*", "input_resolution", "context_length", "vocab_size"),
        )
    ),
    ("head.{p}", "head.classifier.{p}"),
)
_TIMM = (
    ("cls_token", "backbone.class_token"),
    ("pos_embed", "backbone.position.table"),
    ("patch_embed.proj.weight", "backbone.patches.proj.weight", _PATCHES),
    ("norm_pre.{p}", "backbone.first_norm.{p}"),
    *block_rules(
        "blocks.{b}.",
        {"attn.{m}.{p}": "attention.{m}.{p}", "mlp.{m}.{p}": "mlp.{m}.{p}", "norm{n}.{p}": "norm{n}.{p}"},
    ),
    ("norm.{p}", "backbone.norm.{p}"),
    ("head.{p}", "head.classifier.{p}"),
)


def _transformers(root: str) -> tuple[Rule, ...]:
    """A tower whose names begin with `root`."""
    layer = f"{root}encoder.layers.{{b}}."
    return (
        (f"{root}embeddings.class_embedding", "backbone.class_token", reshape(-1)),
        (f"{root}embeddings.position_embedding.weight", "backbone.position.table", in_front),
        (f"{root}embeddings.position_ids", _COUNTED),
        (f"{root}embeddings.patch_embedding.weight", "backbone.patches.proj.weight", _PATCHES),
        (f"{root}pre_layrnorm.{{p}}", "backbone.first_norm.{p}"),
        (
            tuple(f"{layer}self_attn.{name}_proj.{{p}}" for name in "qkv"),
            "backbone.blocks.{b}.attention.qkv.{p}",
            join,
        ),
        *block_rules(
            f"{root}encoder.layers.{{b}}.",
            {
                "self_attn.out_proj.{p}": "attention.proj.{p}",
                "layer_norm{n}.{p}": "norm{n}.{p}",
                "mlp.{m}.{p}": "mlp.{m}.{p}",
            },
        ),
        (f"{root}post_layernorm.{{p}}", "backbone.norm.{p}"),
        *((name, _TEXTS) for name in ("text_model.*", "text_projection.weight", "logit_scale")),
        ("head.{p}", "head.classifier.{p}"),
    )


LAYOUTS = {
    "openai": Rules(*_OPENAI, ("visual.proj", _SPACE)),
    "openai_projection": Rules(
        *_OPENAI, ("visual.proj", "backbone.projection.weight", permute(1, 0)), needs=("visual.proj",)
    ),
    "timm": Rules(*_TIMM),
    "transformers": Rules(*_transformers("vision_model."), ("visual_projection.weight", _SPACE)),
    "transformers_projection": Rules(
        *_transformers("vision_model."),
        ("visual_projection.weight", "backbone.projection.weight"),
        needs=("visual_projection.weight",),
    ),
    "transformers_backbone": Rules(*_transformers("")),
}
"""openai: whole models of openai/CLIP and of mlfoundations/open_clip whose tower is a plain ViT; names from their
source. timm: its vit_*_clip_*, whose head is the projection with a bias of zeros, or a classifier. transformers:
CLIPModel and CLIPVisionModelWithProjection; _backbone: CLIPVisionModel as version 5 has it. _projection: for a backbone
that has one; without it the same files are read and leave theirs behind. What a tower of texts holds is left out. Which
GELU a file wants no name tells: OpenAI's "quick", the default; most of OpenCLIP's and timm's fine-tuned ones the exact.

Refused: the classifier of CLIPForImageClassification, which reads the mean of patches that no norm has seen; towers
with attention pooling, layer scale or convolutions (CLIP's ResNets, CoCa, EVA-CLIP, ConvNeXt)."""

DIFFERS = dict.fromkeys(
    LAYOUTS,
    "no name in a file of CLIP tells its GELU: gelu: quick is OpenAI's, none that of most of OpenCLIP's and of timm's "
    "fine-tuned ones",
)


def _row(
    variant: str, model: str, megabytes: int, *, classes: int = 1000, gelu: str = "none", **more: Any
) -> WeightsFile:
    row = timm(variant, model, megabytes, classes=classes, origin=Origin(options={"gelu": gelu}), **more)
    return replace(row, preprocessing=replace(row.preprocessing, **CLIP_STATISTICS))


WEIGHTS = (
    *(
        _row(variant, f"vit_{model}_clip_224.openai", megabytes, classes=classes, gelu="quick", crop=crop)
        for variant, model, megabytes, classes, crop in (
            ("b32", "base_patch32", 351, 512, 0.9),
            ("b16", "base_patch16", 345, 512, 0.9),
            ("l14", "large_patch14", 1216, 768, 1.0),
        )
    ),
    _row("b32", "vit_base_patch32_clip_224.laion2b", 351, classes=512),
    _row("b16", "vit_base_patch16_clip_224.laion2b", 345, classes=512, crop=1.0),
    _row("h14", "vit_huge_patch14_clip_224.laion2b", 2527, classes=1024, crop=1.0),
    _row("b32", "vit_base_patch32_clip_224.laion2b_ft_in12k_in1k", 353),
    _row("b16", "vit_base_patch16_clip_224.laion2b_ft_in12k_in1k", 346, crop=0.95),
    _row("b16", "vit_base_patch16_clip_224.openai_ft_in12k_in1k", 346, crop=0.95),
    _row("l14", "vit_large_patch14_clip_224.openai_ft_in12k_in1k", 1217, crop=1.0),
    _row("h14", "vit_huge_patch14_clip_224.laion2b_ft_in12k_in1k", 2528, crop=1.0),
)
"""Those with 512 to 1024 outputs have the projection where a classifier would be."""
