"""ViViT: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from collections.abc import Mapping

from patchform.descriptions import Score
from patchform.published import vit
from patchform.weights import flax
from patchform.weights.cross_family import CrossFamily
from patchform.weights.operations import reshape
from patchform.weights.rules import Rule, Rules, prefix

# -------------------------------------------------------------------------------------------------------------- scenic

_PLAIN = {"LayerNorm_0": "norm1", "LayerNorm_1": "norm2"}
_APART = {"LayerNorm_time": "temporal_norm", "LayerNorm_space": "norm1", "LayerNorm_mlp": "norm2"}
_LOOK = {"MultiHeadDotProductAttention_0": "attention"}
_LOOKS = {
    "MultiHeadDotProductAttention_time": "temporal_attention",
    "MultiHeadDotProductAttention_space": "attention",
}


def _encoder(
    source: str,
    target: str = "backbone.",
    *,
    norms: Mapping[str, str] = _PLAIN,
    looks: Mapping[str, str] = _LOOK,
    mlp: str = "MlpBlock_0",
) -> tuple[Rule, ...]:
    """A transformer; parts of its blocks, source to target."""
    block, own = f"{source}/encoderblock_{{b}}/", f"{target}blocks.{{b}}."
    return (
        (f"{source}/posembed_input/pos_embedding", f"{target}position.table"),
        *(rule for name, to in norms.items() for rule in flax.norm(block + name, own + to)),
        *(rule for name, to in looks.items() for rule in flax.attention(block + name, own + to)),
        *flax.mlp(block + mlp, f"{own}mlp"),
        *flax.norm(f"{source}/encoder_norm", f"{target}norm"),
    )


def _scenic(*encoders: Rule) -> Rules:
    return Rules(
        *encoders,
        *flax.embedding("embedding", "backbone.patches.proj"),
        *flax.linear("pre_logits", "head.pre_logits"),
        *flax.linear("output_projection", "head.classifier"),
        corners=True,
    )


# -------------------------------------------------------------------------------------------------------- transformers

_CLASSIFIER: Rule = ("classifier.{p}", "head.classifier.{p}")


def _backbone(of: str) -> Rules:
    """That of their ViT, with other kernels in front."""
    boxes = reshape(-1, "channels", "frames", "patch", "patch")
    kernel: Rule = ("embeddings.patch_embeddings.projection.weight", "backbone.patches.proj.weight", boxes)
    return Rules(kernel, *vit.LAYOUTS[of])


LAYOUTS = {
    "scenic": _scenic(("cls", "backbone.class_token"), *_encoder("Transformer")),
    "scenic_fe": _scenic(
        ("cls_SpatialTransformer", "backbone.class_token"),
        ("cls_TemporalTransformer", "backbone.temporal.class_token"),
        *_encoder("SpatialTransformer"),
        *_encoder("TemporalTransformer", "backbone.temporal."),
    ),
    "scenic_fsa": _scenic(*_encoder("Transformer", norms=_APART, looks=_LOOKS, mlp="MlpBlock")),
    **{
        name: Rules(_CLASSIFIER, *prefix(_backbone(f"{name}_backbone"), "vivit.", ""))
        for name in ("transformers", "transformers_5")
    },
    **{name: _backbone(name) for name in ("transformers_backbone", "transformers_5_backbone")},
}
"""scenic: google-research/scenic, parameters with the parts of their names joined by "/"; models 1 and 4 have the same
names; _fe: model 2; _fsa: model 3. transformers: VivitForVideoClassification and, _backbone, VivitModel as files have
them; _5: as they are in memory since its version 5. Its pooler is our hidden layer."""

INIT_LAYOUTS = vit.starts(
    CrossFamily(
        fresh={
            "backbone.temporal.*": "a picture has no time",
            "backbone.blocks.{b}.temporal_*": "a picture has no time",
        },
        copies={},
        lacks={"backbone.class_token": "there is no class token"},
        from_images=True,
    )
)
"""Section 3.4 of the paper: kernels as `Transfer.frames` says, positions alike at all times, and what looks along time
fresh; in model 3 it adds nothing at the start."""

_MULTI_VIEW = "google-research/scenic, README of ViViT (4x3 views)"

SCORES = tuple(
    Score(
        variant=variant,
        scores={f"kinetics-{data} top-1": top1},
        source=_MULTI_VIEW,
        image_size=224,
        training=f"imagenet-21k, kinetics-{data}",
    )
    for variant, data, top1 in (
        ("b16x2", 400, 79.9),
        ("b16x2_fe", 400, 78.4),
        ("l16x2_fe", 400, 80.3),
        ("l16x2_fe", 600, 81.6),
    )
)
