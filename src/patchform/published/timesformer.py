"""TimeSformer: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from patchform.backbones.timesformer import VARIANTS
from patchform.descriptions import Score
from patchform.published import vit
from patchform.weights.cross_family import CrossFamily
from patchform.weights.operations import reshape
from patchform.weights.rules import Rules, prefix

_patches = reshape(-1, "channels", "patch", "patch")

_FACEBOOK = Rules(
    ("cls_token", "backbone.class_token"),
    ("pos_embed", "backbone.position.table"),
    ("time_embed", "backbone.time"),
    ("patch_embed.proj.weight", "backbone.patches.proj.weight", _patches),
    ("patch_embed.proj.{p}", "backbone.patches.proj.{p}"),
    ("blocks.{b}.temporal_norm1.{p}", "backbone.blocks.{b}.temporal_norm.{p}"),
    ("blocks.{b}.temporal_attn.{l}.{p}", "backbone.blocks.{b}.temporal_attention.{l}.{p}"),
    ("blocks.{b}.temporal_fc.{p}", "backbone.blocks.{b}.temporal_proj.{p}"),
    ("blocks.{b}.attn.{l}.{p}", "backbone.blocks.{b}.attention.{l}.{p}"),
    ("blocks.{b}.mlp.{l}.{p}", "backbone.blocks.{b}.mlp.{l}.{p}"),
    ("blocks.{b}.{n}.{p}", "backbone.blocks.{b}.{n}.{p}"),
    ("norm.{p}", "backbone.norm.{p}"),
    ("head.{p}", "head.classifier.{p}"),
)

_ENCODER = Rules(
    ("layernorm_before.{p}", "norm1.{p}"),
    ("attention.attention.qkv.{p}", "attention.qkv.{p}"),
    ("attention.output.dense.{p}", "attention.proj.{p}"),
    ("layernorm_after.{p}", "norm2.{p}"),
    ("intermediate.dense.{p}", "mlp.fc1.{p}"),
    ("output.dense.{p}", "mlp.fc2.{p}"),
    ("temporal_layernorm.{p}", "temporal_norm.{p}"),
    ("temporal_attention.attention.qkv.{p}", "temporal_attention.qkv.{p}"),
    ("temporal_attention.output.dense.{p}", "temporal_attention.proj.{p}"),
    ("temporal_dense.{p}", "temporal_proj.{p}"),
)
_TRANSFORMERS = Rules(
    ("embeddings.cls_token", "class_token"),
    ("embeddings.position_embeddings", "position.table"),
    ("embeddings.time_embeddings", "time"),
    ("embeddings.patch_embeddings.projection.weight", "patches.proj.weight", _patches),
    ("embeddings.patch_embeddings.projection.{p}", "patches.proj.{p}"),
    *prefix(_ENCODER, "encoder.layer.{b}.", "blocks.{b}."),
    ("layernorm.{p}", "norm.{p}"),
)

LAYOUTS = {
    "facebook": prefix(_FACEBOOK, "model.", ""),  # the released files hold it under "model_state"
    **{
        name: Rules(*prefix(_TRANSFORMERS, root, "backbone."), ("classifier.{p}", "head.classifier.{p}"))
        for name, root in {"transformers": "timesformer.", "transformers_backbone": ""}.items()
    },
}
"""facebook: facebookresearch/TimeSformer. transformers: TimesformerForVideoClassification; _backbone: TimesformerModel.
All three schemes of attention; that of transformers does not run space-only attention on more than one clip."""

INIT_LAYOUTS = vit.starts(
    CrossFamily(
        fresh={
            "backbone.time": "a picture has no time",
            "backbone.blocks.{b}.temporal_proj.{p}": "a picture has no time",
        },
        copies={
            "backbone.blocks.{b}.temporal_norm.{p}": "backbone.blocks.{b}.norm1.{p}",
            "backbone.blocks.{b}.temporal_attention.{l}.{p}": "backbone.blocks.{b}.attention.{l}.{p}",
        },
        lacks={},
        from_images=True,
    )
)
"""As the authors' code starts from a ViT: attention over time is a copy of that over space, and the layer behind it,
zero at the start, keeps it out at first."""

SCORES = tuple(
    Score(
        variant=variant,
        scores={f"{data} top-1": top1, f"{data} top-5": top5},
        source="authors' repository, model zoo",
        image_size=VARIANTS[variant].image_size,
        training=f"imagenet-21k, {data}",
    )
    for data, variant, top1, top5 in (
        ("kinetics-400", "b", 77.9, 93.2),
        ("kinetics-400", "hr", 79.6, 94.0),
        ("kinetics-400", "l", 80.6, 94.7),
        ("kinetics-600", "b", 79.1, 94.4),
        ("kinetics-600", "hr", 81.8, 95.8),
        ("kinetics-600", "l", 82.2, 95.6),
        ("something-something-v2", "b", 59.1, 85.6),
        ("something-something-v2", "hr", 61.8, 86.9),
    )
)
