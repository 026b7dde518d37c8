"""SigLIP: what its authors and others published of the tower of pictures, as layouts of weights."""

from __future__ import annotations

from typing import Any

from patchform.descriptions import WeightsFile
from patchform.published.base import Origin, block_rules, timm
from patchform.weights import flax
from patchform.weights.operations import in_front, join, join_shares, reshape
from patchform.weights.option_hints import Hint, constant
from patchform.weights.rules import Drop, Rules

_PATCHES = reshape(-1, "channels", "patch", "patch")
_TEXTS = Drop("the tower of texts, and what joins the two")
_COUNTED = Drop("counts the positions")
_POOLING = "backbone.pool."


_TIMM = (
    ("pos_embed", "backbone.position.table"),
    ("patch_embed.proj.weight", "backbone.patches.proj.weight", _PATCHES),
    ("patch_embed.proj.bias", "backbone.patches.proj.bias"),
    *block_rules(
        "blocks.{b}.",
        {"attn.{m}.{p}": "attention.{m}.{p}", "mlp.{m}.{p}": "mlp.{m}.{p}", "norm{n}.{p}": "norm{n}.{p}"},
    ),
    ("norm.{p}", "backbone.norm.{p}"),
    ("attn_pool.latent", f"{_POOLING}query"),
    *((f"attn_pool.{m}.{{p}}", f"{_POOLING}attention.{m}.{{p}}") for m in ("q", "kv", "proj")),
    ("attn_pool.norm.{p}", f"{_POOLING}norm.{{p}}"),
    ("attn_pool.mlp.{m}.{p}", f"{_POOLING}mlp.{{m}}.{{p}}"),
    ("head.{p}", "head.classifier.{p}"),
)


def _transformers(root: str) -> Rules:
    """A tower whose names begin with `root`."""
    layer, pooling = f"{root}encoder.layers.{{b}}.", f"{root}head."
    own = (f"{_POOLING}attention.q.", f"{_POOLING}attention.kv.")
    return Rules(
        (f"{root}embeddings.position_embedding.weight", "backbone.position.table", in_front),
        (f"{root}embeddings.position_ids", _COUNTED),
        (f"{root}embeddings.patch_embedding.weight", "backbone.patches.proj.weight", _PATCHES),
        (f"{root}embeddings.patch_embedding.bias", "backbone.patches.proj.bias"),
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
        (f"{pooling}probe", f"{_POOLING}query"),
        (f"{pooling}attention.in_proj_{{p}}", tuple(f"{name}{{p}}" for name in own), join_shares(1, 2)),
        (f"{pooling}attention.out_proj.{{p}}", f"{_POOLING}attention.proj.{{p}}"),
        (f"{pooling}layernorm.{{p}}", f"{_POOLING}norm.{{p}}"),
        (f"{pooling}mlp.{{m}}.{{p}}", f"{_POOLING}mlp.{{m}}.{{p}}"),
        *((name, _TEXTS) for name in ("text_model.*", "logit_scale", "logit_bias")),
        ("pooled_classifier.{p}", "head.classifier.{p}"),
        (
            "classifier.{p}",
            "head.classifier.{p}",
        ),  # of a mean: left out, for another rule fills it
    )


def _big_vision() -> Rules:
    names, own = "params/img/", "backbone.blocks.{b}."
    block, pooling = f"{names}Transformer/encoderblock_{{b}}/", f"{names}MAPHead_0/"
    attention = f"{pooling}MultiHeadDotProductAttention_0/"
    return Rules(
        (f"{names}pos_embedding", "backbone.position.table"),
        *flax.embedding(f"{names}embedding", "backbone.patches.proj"),
        *flax.norm(f"{block}LayerNorm_0", f"{own}norm1"),
        *flax.attention(f"{block}MultiHeadDotProductAttention_0", f"{own}attention"),
        *flax.norm(f"{block}LayerNorm_1", f"{own}norm2"),
        *flax.mlp(f"{block}MlpBlock_0", f"{own}mlp"),
        *flax.norm(f"{names}Transformer/encoder_norm", "backbone.norm"),
        (f"{pooling}probe", f"{_POOLING}query"),
        (f"{attention}query/kernel", f"{_POOLING}attention.q.weight", flax.qkv),
        (f"{attention}query/bias", f"{_POOLING}attention.q.bias", flax.qkv),
        *(
            (tuple(f"{attention}{part}/{kind}" for part in ("key", "value")), f"{_POOLING}attention.kv.{to}", flax.qkv)
            for kind, to in (("kernel", "weight"), ("bias", "bias"))
        ),
        (f"{attention}out/kernel", f"{_POOLING}attention.proj.weight", flax.out),
        (f"{attention}out/bias", f"{_POOLING}attention.proj.bias"),
        *flax.norm(f"{pooling}LayerNorm_0", f"{_POOLING}norm"),
        *flax.mlp(f"{pooling}MlpBlock_0", f"{_POOLING}mlp"),
        *((name, _TEXTS) for name in ("params/txt/*", "params/t", "params/b")),
        *flax.linear(f"{names}head", "head.classifier"),
    )


LAYOUTS = {
    "timm": Rules(*_TIMM),
    "transformers": _transformers("vision_model."),
    "transformers_backbone": _transformers(""),
    "big_vision": _big_vision(),
}
"""timm: its vit_*_siglip_* and, for summary="mean", vit_*_siglip_gap_*. transformers: SiglipModel; _backbone:
SiglipVisionModel as version 5 has it. big_vision: arrays of google-research/big_vision, block by block. What the tower
of texts holds is left out; SigLIP 2's files of fixed size have the same names. A classifier of what is pooled has no
name in transformers; ours is "pooled_classifier". That of SiglipForImageClassification reads the mean beside a pooling
and is left out. Refused: NaFlex, whose patches are a linear layer and whose pictures are masked."""

COMPUTES: dict[str, dict[str, Any]] = {"timm": {"gelu": "none"}}
"""timm's code has the exact GELU for the weights that Google's trained with its tanh approximation."""


def _row(variant: str, model: str, tag: str, megabytes: int, *, side: int) -> WeightsFile:
    size = f"_{side}"
    return timm(
        variant,
        f"vit_{model}_siglip{size}.{tag}",
        megabytes,
        tag=tag if side in (224, 256) else f"{tag}{size}",
        side=side,
        classes=0,
        origin=Origin(half=True, options={"gelu": "none"}),
    )


WEIGHTS = tuple(
    _row(variant, model, tag, megabytes, side=side)
    for variant, model, megabytes, side, tags in (
        ("b16", "base_patch16", 372, 224, ("webli", "v2_webli")),
        ("b16", "base_patch16", 375, 384, ("webli", "v2_webli")),
        ("b32", "base_patch32", 378, 256, ("v2_webli",)),
        ("l16", "large_patch16", 1264, 256, ("webli", "v2_webli")),
        ("l16", "large_patch16", 1266, 384, ("webli", "v2_webli")),
        ("so400m14", "so400m_patch14", 1711, 224, ("webli", "v2_webli")),
        ("so400m14", "so400m_patch14", 1713, 378, ("webli", "v2_webli")),
        ("so400m16", "so400m_patch16", 1712, 256, ("v2_webli",)),
        ("g16", "giantopt_patch16", 4653, 256, ("v2_webli",)),
    )
    for tag in tags
)

OPTION_HINTS = (
    Hint(
        "summary", r"(attn_pool\.latent|head\.probe|MAPHead_0/probe)$", r"pool\.query$", constant("attention"), "mean"
    ),
)
