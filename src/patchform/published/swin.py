"""Swin v1 and v2: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from typing import Any

import torch

from patchform.backbones.swin import (
    VARIANTS,
)
from patchform.descriptions import Score
from patchform.published import segmenters
from patchform.published.base import Origin, timm, torchvision
from patchform.weights.operations import Operation, join, reshape
from patchform.weights.rules import DROP, Drop, Rule, Rules, prefix

_PATCHES = reshape(-1, "channels", "patch", "patch")


def _attention(source: str, target: str = "stages.{s}.{b}.attention") -> tuple[Rule, ...]:
    """What Microsoft's names are behind the name of the attention; OpenMMLab keeps them."""
    return (
        (f"{source}.relative_position_bias_table", f"{target}.position.table"),
        (f"{source}.relative_position_index", DROP),
        (f"{source}.relative_coords_table", DROP),
        (f"{source}.logit_scale", f"{target}.position.logit_scale"),
        (f"{source}.cpb_mlp.0.{{p}}", f"{target}.position.fc1.{{p}}"),
        (f"{source}.cpb_mlp.2.{{p}}", f"{target}.position.fc2.{{p}}"),
        ((f"{source}.q_bias", f"{source}.v_bias"), f"{target}.qkv.qv_bias", join),
        (f"{source}.{{m}}.{{p}}", f"{target}.{{m}}.{{p}}"),
    )


_NORM: tuple[Rule, ...] = (("norm.{p}", "norm.{p}"),)
_OF_A_MAP = Drop("the norm of a map, which belongs to the head here")
_NORMS: tuple[Rule, ...] = (("norm3.{p}", "norm.{p}"), ("norm{s}.{p}", _OF_A_MAP))  # every map has one
_STAGES: tuple[Rule, ...] = (
    ("patch_embed.proj.weight", "patches.proj.weight", _PATCHES),
    ("patch_embed.proj.bias", "patches.proj.bias"),
    ("patch_embed.norm.{p}", "patches_norm.{p}"),
    ("layers.{s}.blocks.{b}.attn_mask", DROP),
    *_attention("layers.{s}.blocks.{b}.attn"),
    ("layers.{s}.blocks.{b}.mlp.{m}.{p}", "stages.{s}.{b}.mlp.{m}.{p}"),
    ("layers.{s}.blocks.{b}.norm{n}.{p}", "stages.{s}.{b}.norm{n}.{p}"),
)
_MERGES: tuple[Rule, ...] = (("layers.{s}.downsample.{m}.{p}", "merges.{s}.{m}.{p}"),)
_MICROSOFT = Rules(*_STAGES, *_MERGES, *_NORM)
_DENSE = Rules(*_STAGES, *_MERGES, *_NORMS)
_TIMM = Rules(*_STAGES, ("layers.{s+1}.downsample.{m}.{p}", "merges.{s}.{m}.{p}"), *_NORM)  # at the next stage's start

# ------------------------------------------------------------------------------------------------------------ OpenMMLab

_unfolded = Operation(  # nn.Unfold: channels outside, then row and column; here column, row, channels
    lambda tensors, shape, sizes: tensors[0].unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3),
    lambda tensor, count, sizes: (tensor.unflatten(-1, (2, 2, -1)).transpose(-1, -3).flatten(-3),),
)
"""The last axis, 4 D, of what reads the 2x2 cells that are merged."""


def _mm(*merges: Rule) -> Rules:
    return Rules(
        ("patch_embed.projection.weight", "patches.proj.weight", _PATCHES),
        ("patch_embed.projection.bias", "patches.proj.bias"),
        ("patch_embed.norm.{p}", "patches_norm.{p}"),
        *_attention("stages.{s}.blocks.{b}.attn.w_msa"),
        ("stages.{s}.blocks.{b}.ffn.layers.0.0.{p}", "stages.{s}.{b}.mlp.fc1.{p}"),
        ("stages.{s}.blocks.{b}.ffn.layers.1.{p}", "stages.{s}.{b}.mlp.fc2.{p}"),
        ("stages.{s}.blocks.{b}.norm{n}.{p}", "stages.{s}.{b}.norm{n}.{p}"),
        *merges,
        *_NORMS,
    )


_MM = _mm(("stages.{s}.downsample.{m}.{p}", "merges.{s}.{m}.{p}", _unfolded))
_MM_V2 = _mm(
    ("stages.{s+1}.downsample.reduction.weight", "merges.{s}.reduction.weight", _unfolded),
    ("stages.{s+1}.downsample.norm.{p}", "merges.{s}.norm.{p}"),
)

# --------------------------------------------------------------------------------------------------------- transformers


def _transformers(*block: Rule) -> Rules:
    """Those of a block are without what is in front of it: "encoder.layers.{s}.blocks.{b}." and "stages.{s}.{b}."."""
    return Rules(
        ("embeddings.patch_embeddings.projection.weight", "patches.proj.weight", _PATCHES),
        ("embeddings.patch_embeddings.projection.bias", "patches.proj.bias"),
        ("embeddings.norm.{p}", "patches_norm.{p}"),
        *prefix(Rules(*block), "encoder.layers.{s}.blocks.{b}.", "stages.{s}.{b}."),
        ("encoder.layers.{s}.downsample.{m}.{p}", "merges.{s}.{m}.{p}"),
        ("layernorm.{p}", "norm.{p}"),
    )


_NOT_USED: Rule = ("swin.layernorm.{p}", Drop("files of the library's version 5 hold it, and nothing uses it"))
_HF_NORMS: tuple[Rule, ...] = (
    ("hidden_states_norms.stage4.{p}", "norm.{p}"),
    ("hidden_states_norms.stage{n}.{p}", _OF_A_MAP),
    _NOT_USED,
)


_SELF = "attention.self"
_OUTSIDE: tuple[Rule, ...] = (
    (f"{_SELF}.relative_position_index", DROP),
    ("attention.output.dense.{p}", "attention.proj.{p}"),
    ("intermediate.dense.{p}", "mlp.fc1.{p}"),
    ("output.dense.{p}", "mlp.fc2.{p}"),
    ("layernorm_before.{p}", "norm1.{p}"),
    ("layernorm_after.{p}", "norm2.{p}"),
)
_HF = _transformers(
    (f"{_SELF}.relative_position_bias_table", "attention.position.table"),
    ((f"{_SELF}.query.{{p}}", f"{_SELF}.key.{{p}}", f"{_SELF}.value.{{p}}"), "attention.qkv.{p}", join),
    *_OUTSIDE,
)
_HF5 = _transformers(
    ("attention.relative_position_bias.relative_position_bias_table", "attention.position.table"),
    (("attention.q_proj.{p}", "attention.k_proj.{p}", "attention.v_proj.{p}"), "attention.qkv.{p}", join),
    ("attention.o_proj.{p}", "attention.proj.{p}"),
    ("mlp.{m}.{p}", "mlp.{m}.{p}"),
    ("layernorm_before.{p}", "norm1.{p}"),
    ("layernorm_after.{p}", "norm2.{p}"),
)
_HF_V2 = _transformers(
    (f"{_SELF}.logit_scale", "attention.position.logit_scale"),
    (f"{_SELF}.continuous_position_bias_mlp.0.{{p}}", "attention.position.fc1.{p}"),
    (f"{_SELF}.continuous_position_bias_mlp.2.{{p}}", "attention.position.fc2.{p}"),
    (f"{_SELF}.relative_coords_table", DROP),
    ((f"{_SELF}.query.weight", f"{_SELF}.key.weight", f"{_SELF}.value.weight"), "attention.qkv.weight", join),
    ((f"{_SELF}.query.bias", f"{_SELF}.value.bias"), "attention.qkv.qv_bias", join),
    *_OUTSIDE,
)

# ---------------------------------------------------------------------------------------------------------- torchvision


def _torchvision(*attention: tuple[str, str] | tuple[str, str, Operation]) -> Rules:
    """The layout with these rules for what is called "attn" there."""
    rules: list[Rule] = [
        ("features.0.0.weight", "backbone.patches.proj.weight", _PATCHES),
        ("features.0.0.bias", "backbone.patches.proj.bias"),
        ("features.0.2.{p}", "backbone.patches_norm.{p}"),
        ("features.*.attn.relative_position_index", DROP),
    ]
    for stage in range(4):
        for source, target, *operation in (
            *attention,
            ("attn.{m}.{p}", "attention.{m}.{p}"),
            ("mlp.0.{p}", "mlp.fc1.{p}"),
            ("mlp.3.{p}", "mlp.fc2.{p}"),
            ("norm{n}.{p}", "norm{n}.{p}"),
        ):
            names = f"features.{2 * stage + 1}.{{b}}.{source}", f"backbone.stages.{stage}.{{b}}.{target}"
            rules.append((*names, operation[0]) if operation else names)
        rules.append((f"features.{2 * stage + 2}.{{m}}.{{p}}", f"backbone.merges.{stage}.{{m}}.{{p}}"))
    return Rules(*rules, ("norm.{p}", "backbone.norm.{p}"), ("head.{p}", "head.classifier.{p}"))


_without_k = Operation(  # their bias of the keys is there and set to 0 whenever it is used
    lambda tensors, shape, sizes: torch.cat(tensors[0].chunk(3)[::2]),
    lambda tensor, count, sizes: (torch.cat([(q := tensor.chunk(2)[0]), torch.zeros_like(q), tensor.chunk(2)[1]]),),
)


def _with(backbone: Rules, head: str, front: str = "") -> Rules:
    return Rules(*prefix(backbone, front, "backbone."), (f"{head}.{{p}}", "head.classifier.{p}"))


LAYOUTS = {
    "microsoft": _with(_MICROSOFT, "head"),
    "microsoft_dense": _with(_DENSE, "head"),
    "timm": _with(_TIMM, "head.fc"),
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
    **{
        f"{name}{part}": _with(rules, head, root if not part else "")
        for name, rules, head, root in (
            ("transformers", _HF, "classifier", "swin."),
            ("transformers_5", _HF5, "classifier", "swin."),
            ("transformers_v2", _HF_V2, "classifier", "swinv2."),
            ("mm", _MM, "head.fc", "backbone."),
            ("mm_v2", _MM_V2, "head.fc", "backbone."),
        )
        for part in ("", "_backbone")
    },
    "transformers_dense": _with(Rules(*_HF_NORMS, *_HF), "classifier"),
    **{
        f"transformers{version}_upernet": segmenters.on_swin(
            segmenters.UPERNET_TRANSFORMERS, Rules(_NOT_USED, *rules), "hidden_states_norms.stage{s+1}"
        )
        for version, rules in (("", _HF), ("_5", prefix(_HF5, "swin.", "")))
    },
    "microsoft_upernet": segmenters.on_swin(segmenters.UPERNET, Rules(*_STAGES, *_MERGES), "norm{s}"),
    "mmseg_upernet": segmenters.on_swin(segmenters.UPERNET, _MM, "norm{s}"),
}
"""microsoft, microsoft_dense: microsoft/Swin-Transformer, and its repositories for detection and segmentation, whose
backbones have a norm for every map. torchvision, torchvision_v2: in version 1 the name "attn.qkv.bias" is of another
tensor, so that none serves both. transformers, transformers_v2: Swin and Swinv2ForImageClassification as files have
them; _5: version 1 as it is in memory since the library's version 5. mm, mm_v2: classifiers of
open-mmlab/mmpretrain. _upernet: whole segmenters, transformers' UperNetForSemanticSegmentation, those of Microsoft
and of mmsegmentation; they want the head's option norm_eps=1e-5. _backbone: the model without a head; mm_backbone is
also what is behind prefix="backbone." in mmdetection and mmsegmentation, and transformers_dense in the library's own
segmenters (SwinBackbone; that of version 2 lacks the norm: refused).

The names of microsoft_dense, microsoft_upernet, mm and mmseg are from their sources, not run."""

COMPUTES: dict[str, dict[str, Any]] = {
    "microsoft": {"windows": "zeros_map"},
    "microsoft_dense": {"windows": "zeros"},
    "timm": {"windows": "zeros_rolled"},
    "torchvision": {"windows": "zeros_axis"},
    "torchvision_v2": {"windows": "zeros_axis"},
    "transformers": {"windows": "zeros_map"},
    "transformers_backbone": {"windows": "zeros_map"},
    "transformers_5": {"windows": "zeros_map"},
    "transformers_5_backbone": {"windows": "zeros_map"},
    "transformers_v2": {"windows": "zeros_native"},
    "transformers_dense": {"windows": "zeros"},
    "transformers_v2_backbone": {"windows": "zeros_native"},
    "transformers_upernet": {"windows": "zeros"},
    "transformers_5_upernet": {"windows": "zeros"},
    "microsoft_upernet": {"windows": "zeros"},
    "mmseg_upernet": {"windows": "zeros"},
    "mm": {"windows": "zeros_map"},
    "mm_v2": {"windows": "zeros_map"},
    "mm_backbone": {"windows": "zeros"},
    "mm_v2_backbone": {"windows": "zeros_map"},
}
"""Those of microsoft ask for maps of whole windows; those of transformers and mm_v2 for maps no smaller than a window,
and transformers' version 1, once one window covered a map, never displaces its blocks again. mm_backbone is that of
detectors and segmenters; behind a classifier of mmpretrain it computes with zeros_map."""

DIFFERS = dict.fromkeys(
    ("torchvision", "torchvision_v2"),
    "torchvision leaves out what makes no whole patch at sizes that 4 does not divide; here zeros fill it",
)

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

_LONG = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
_MEGABYTES = {"t": 113, "s": 198, "b": 351, "l": 786, "b384": 352, "l384": 787}
_MEGABYTES_V2 = {"t": 113, "s": 199, "b": 352, "l": 787}

_MIT = Origin(licence="mit")
WEIGHTS = (
    *(
        timm(size, f"swin_{_LONG[size]}_patch4_window7_224.{tag}", _MEGABYTES[size], origin=_MIT)
        for tag, sizes in {"ms_in1k": "tsb", "ms_in22k_ft_in1k": "tsbl"}.items()
        for size in sizes
    ),
    *(
        timm(
            f"{size}384",
            f"swin_{_LONG[size]}_patch4_window12_384.{tag}",
            _MEGABYTES[f"{size}384"],
            origin=_MIT,
            side=384,
            crop=1.0,
        )
        for tag, sizes in {"ms_in1k": "b", "ms_in22k_ft_in1k": "bl"}.items()
        for size in sizes
    ),
    *(
        timm(size, f"swin_{_LONG[size]}_patch4_window7_224.ms_in22k", megabytes, origin=_MIT, classes=21_841)
        for size, megabytes in {"t": 177, "s": 263, "b": 437, "l": 914}.items()
    ),
    *(
        timm(
            f"v2_{size}_w{window}",
            f"swinv2_{_LONG[size]}_window{window}_256.ms_in1k",
            _MEGABYTES_V2[size],
            origin=_MIT,
            side=256,
        )
        for size in "tsb"
        for window in (8, 16)
    ),
    *(
        timm(
            f"v2_{size}_w12",
            f"swinv2_{_LONG[size]}_window12_192.ms_in22k",
            megabytes,
            origin=_MIT,
            side=192,
            classes=21_841,
        )
        for size, megabytes in {"b": 437, "l": 915}.items()
    ),
    *(
        timm(
            f"v2_{size}_w12to{window}",
            f"swinv2_{_LONG[size]}_window12to{window}_192to{16 * window}.ms_in22k_ft_in1k",
            _MEGABYTES_V2[size],
            origin=_MIT,
            side=16 * window,
            crop=crop,
        )
        for size in "bl"
        for window, crop in ((16, 0.9), (24, 1.0))
    ),
    *(
        torchvision(size, f"swin_{size}/IMAGENET1K_V1", _MEGABYTES[size], resize=resize)
        for size, resize in {"t": 232, "s": 246, "b": 238}.items()
    ),
    *(
        torchvision(
            f"v2_{size}_w8",
            f"swin_v2_{size}/IMAGENET1K_V1",
            _MEGABYTES_V2[size],
            layout="torchvision_v2",
            side=256,
            resize=resize,
        )
        for size, resize in {"t": 260, "s": 260, "b": 272}.items()
    ),
)
