"""PVT v1 and v2: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from patchform.descriptions import Score
from patchform.published import segmenters
from patchform.published.base import timm
from patchform.weights.operations import Operation, join, join_shares, squares, squeeze
from patchform.weights.rules import Rule, Rules, prefix


def _kernel(side: int | None = None) -> Operation:
    """Overlapping patches are a convolution here too; squares are not."""
    flat = squares(side)
    return Operation(
        lambda tensors, shape, sizes: tensors[0] if len(shape) == 4 else flat.forward(tensors, shape, sizes),
        lambda tensor, count, sizes: (tensor,) if tensor.dim() == 4 else flat.backward(tensor, count, sizes),
    )


_OWN = "backbone.stages.{s}.{b}"
_SQUARES, _LOOK = f"{_OWN}.attention.reduction.squares.proj", f"{_OWN}.attention"


def _block(source: str) -> tuple[Rule, ...]:
    """A block by the names that the authors and timm share."""
    return (
        (f"{source}.attn.sr.weight", f"{_SQUARES}.weight", _kernel()),
        (f"{source}.attn.sr.bias", f"{_SQUARES}.bias"),
        (f"{source}.attn.norm.{{p}}", f"{_LOOK}.reduction.norm.{{p}}"),
        (f"{source}.attn.{{m}}.{{p}}", f"{_LOOK}.{{m}}.{{p}}"),
        (f"{source}.mlp.{{m}}.{{p}}", f"{_OWN}.mlp.{{m}}.{{p}}"),
        (f"{source}.norm{{n}}.{{p}}", f"{_OWN}.norm{{n}}.{{p}}"),
    )


def _transformers_block(source: str, *, look: str, reduce: str, proj: str) -> tuple[Rule, ...]:
    """A block by the names of transformers, whose two versions differ in three places."""
    return (
        (f"{source}.{look}.{reduce}.weight", f"{_SQUARES}.weight", _kernel()),
        (f"{source}.{look}.{reduce}.bias", f"{_SQUARES}.bias"),
        (f"{source}.{look}.layer_norm.{{p}}", f"{_LOOK}.reduction.norm.{{p}}"),
        (f"{source}.{look}.query.{{p}}", f"{_LOOK}.q.{{p}}"),
        ((f"{source}.{look}.key.{{p}}", f"{source}.{look}.value.{{p}}"), f"{_LOOK}.kv.{{p}}", join),
        (f"{source}.{proj}.{{p}}", f"{_LOOK}.proj.{{p}}"),
        (f"{source}.mlp.dense{{n}}.{{p}}", f"{_OWN}.mlp.fc{{n}}.{{p}}"),
        (f"{source}.layer_norm_{{n}}.{{p}}", f"{_OWN}.norm{{n}}.{{p}}"),
    )


_HF_V2 = Rules(
    ("encoder.layers.{s}.patch_embedding.proj.{p}", "backbone.patches.{s}.proj.{p}"),
    ("encoder.layers.{s}.patch_embedding.layer_norm.{p}", "backbone.patches_norms.{s}.{p}"),
    ("encoder.layers.{s}.blocks.{b}.mlp.dwconv.dwconv.{p}", f"{_OWN}.mlp.conv.{{p}}"),
    *_transformers_block(
        "encoder.layers.{s}.blocks.{b}",
        look="attention",
        reduce="spatial_reduction",
        proj="attention.proj",
    ),
    ("encoder.layers.{s}.layer_norm.{p}", "backbone.norms.{s}.{p}"),
)
_HF_V1 = Rules(
    ("encoder.patch_embeddings.3.cls_token", "backbone.class_token"),
    ("encoder.patch_embeddings.{s}.position_embeddings", "backbone.positions.{s}.table"),
    ("encoder.patch_embeddings.0.projection.weight", "backbone.patches.0.proj.weight", _kernel(4)),
    ("encoder.patch_embeddings.{s}.projection.weight", "backbone.patches.{s}.proj.weight", _kernel(2)),
    ("encoder.patch_embeddings.{s}.projection.bias", "backbone.patches.{s}.proj.bias"),
    ("encoder.patch_embeddings.{s}.layer_norm.{p}", "backbone.patches_norms.{s}.{p}"),
    *_transformers_block(
        "encoder.block.{s}.{b}",
        look="attention.self",
        reduce="sequence_reduction",
        proj="attention.output.dense",
    ),
    ("encoder.layer_norm.{p}", "backbone.norm.{p}"),
)
_MM = Rules(
    ("layers.{s}.0.projection.{p}", "backbone.patches.{s}.proj.{p}"),
    ("layers.{s}.0.norm.{p}", "backbone.patches_norms.{s}.{p}"),
    ("layers.{s}.1.{b}.attn.sr.weight", f"{_SQUARES}.weight", _kernel()),
    ("layers.{s}.1.{b}.attn.sr.bias", f"{_SQUARES}.bias"),
    ("layers.{s}.1.{b}.attn.norm.{p}", f"{_LOOK}.reduction.norm.{{p}}"),
    ("layers.{s}.1.{b}.attn.attn.in_proj_{p}", (f"{_LOOK}.q.{{p}}", f"{_LOOK}.kv.{{p}}"), join_shares(1, 2)),
    ("layers.{s}.1.{b}.attn.attn.out_proj.{p}", f"{_LOOK}.proj.{{p}}"),
    ("layers.{s}.1.{b}.ffn.layers.0.weight", f"{_OWN}.mlp.fc1.weight", squeeze(2, 3)),
    ("layers.{s}.1.{b}.ffn.layers.0.bias", f"{_OWN}.mlp.fc1.bias"),
    ("layers.{s}.1.{b}.ffn.layers.1.{p}", f"{_OWN}.mlp.conv.{{p}}"),
    ("layers.{s}.1.{b}.ffn.layers.4.weight", f"{_OWN}.mlp.fc2.weight", squeeze(2, 3)),
    ("layers.{s}.1.{b}.ffn.layers.4.bias", f"{_OWN}.mlp.fc2.bias"),
    ("layers.{s}.1.{b}.norm{n}.{p}", f"{_OWN}.norm{{n}}.{{p}}"),
    ("layers.{s}.2.{p}", "backbone.norms.{s}.{p}"),
)


def _with(backbone: Rules, head: str) -> Rules:
    return Rules(*backbone, (f"{head}.{{p}}", "head.classifier.{p}"))


LAYOUTS = {
    "authors": Rules(  # both versions
        ("cls_token", "backbone.class_token"),
        ("pos_embed{s+1}", "backbone.positions.{s}.table"),
        ("patch_embed1.proj.weight", "backbone.patches.0.proj.weight", _kernel(4)),
        ("patch_embed{s+1}.proj.weight", "backbone.patches.{s}.proj.weight", _kernel(2)),
        ("patch_embed{s+1}.proj.bias", "backbone.patches.{s}.proj.bias"),
        ("patch_embed{s+1}.norm.{p}", "backbone.patches_norms.{s}.{p}"),
        ("block{s+1}.{b}.mlp.dwconv.dwconv.{p}", f"{_OWN}.mlp.conv.{{p}}"),
        *_block("block{s+1}.{b}"),
        ("norm.{p}", "backbone.norm.{p}"),
        ("norm{s+1}.{p}", "backbone.norms.{s}.{p}"),
        ("head.{p}", "head.classifier.{p}"),
    ),
    "timm": Rules(  # version 2
        ("patch_embed.proj.{p}", "backbone.patches.0.proj.{p}"),
        ("patch_embed.norm.{p}", "backbone.patches_norms.0.{p}"),
        ("stages.{s}.downsample.proj.{p}", "backbone.patches.{s}.proj.{p}"),
        ("stages.{s}.downsample.norm.{p}", "backbone.patches_norms.{s}.{p}"),
        ("stages.{s}.blocks.{b}.mlp.dwconv.{p}", f"{_OWN}.mlp.conv.{{p}}"),
        *_block("stages.{s}.blocks.{b}"),
        ("stages.{s}.norm.{p}", "backbone.norms.{s}.{p}"),
        ("head.{p}", "head.classifier.{p}"),
    ),
    "transformers": _with(prefix(_HF_V2, "pvt_v2.", ""), "classifier"),
    "transformers_backbone": _with(_HF_V2, "classifier"),
    "transformers_v1": _with(prefix(_HF_V1, "pvt.", ""), "classifier"),
    "transformers_v1_backbone": _with(_HF_V1, "classifier"),
    "mm_backbone": _with(_MM, "head.fc"),
}
LAYOUTS |= {
    f"{publisher}_{head}": rules
    for publisher, layout in (("authors", "authors"), ("mmseg", "mm_backbone"))
    for head, rules in segmenters.behind(LAYOUTS[layout], segmenters.MMSEG_HEADS).items()
}
"""_upernet, _semantic_fpn: whole segmenters of version 2. authors: whai362/PVT, both versions, and detectors and
segmenters of version 2. timm and mm_backbone: version 2. transformers: PvtV2ForImageClassification; _v1:
PvtForImageClassification; _backbone: the models without a head. mm_backbone: what is behind prefix="backbone." in
detectors of open-mmlab/mmdetection; its names are from the source, not run.

Detectors of version 1, the authors' and OpenMMLab's, have no class token in their last stage, as ours has: they
are another function, and their files are refused."""

DIFFERS = {
    "authors": "in version 1 the authors' code leaves out what makes no whole square at sizes that 32 does not divide; "
    "here zeros fill it",
    "transformers_v1": "transformers leaves out what makes no whole square at sizes that 32 does not divide; here "
    "zeros fill it",
}

SCORES = tuple(
    Score(variant=variant, scores={"imagenet-1k top-1": score}, source="whai362/PVT, classification/README")
    for variant, score in {
        "v1_ti": 75.1,
        "v1_s": 79.8,
        "v1_m": 81.2,
        "v1_l": 81.7,
        "v2_b0": 70.5,
        "v2_b1": 78.7,
        "v2_b2": 82.0,
        "v2_b2_li": 82.1,
        "v2_b3": 83.1,
        "v2_b4": 83.6,
        "v2_b5": 83.8,
    }.items()
)

WEIGHTS = tuple(
    timm(f"v2_{size}", f"pvt_v2_{size}.in1k", megabytes)
    for size, megabytes in {"b0": 15, "b1": 56, "b2": 101, "b2_li": 90, "b3": 181, "b4": 250, "b5": 328}.items()
)
