"""DETR: layouts of weights of its head, which stand behind those of a backbone."""

from __future__ import annotations

import torch
from torch import Tensor

from patchform.weights.operations import Operation, Sizes, join
from patchform.weights.rules import Rule, Rules, prefix


def _apart(tensor: Tensor, count: int, sizes: Sizes) -> tuple[Tensor, ...]:
    return tensor[:-1], tensor[-1:]


_classes = Operation(lambda tensors, shape, sizes: torch.cat(tensors), _apart)
"""Our classifier and no-object row apart; in the source no-object is the last row."""


def _classifier(source: str) -> Rule:
    return (f"{source}.{{p}}", ("head.classifier.{p}", "head.no_object.{p}"), _classes)


def _facebook_attention(source: str, target: str) -> tuple[Rule, ...]:
    return (
        (f"{source}.in_proj_{{p}}", tuple(f"{target}.{part}.{{p}}" for part in "qkv"), join),
        (f"{source}.out_proj.{{p}}", f"{target}.proj.{{p}}"),
    )


def _facebook_layers(name: str) -> tuple[Rule, ...]:
    source, target = f"transformer.{name}.layers.{{i}}", f"head.{name}.{{i}}"
    return (
        *_facebook_attention(f"{source}.self_attn", f"{target}.attention"),
        *_facebook_attention(f"{source}.multihead_attn", f"{target}.cross_attention"),
        (f"{source}.linear{{n+1}}.{{p}}", f"{target}.mlp.layers.{{n}}.{{p}}"),
        (f"{source}.norm{{n+1}}.{{p}}", f"{target}.around.{{n}}.norm.{{p}}"),
        (f"transformer.{name}.norm.{{p}}", f"head.{name}_norm.{{p}}"),
    )


_FACEBOOK = Rules(
    ("input_proj.{p}", "head.project.{p}"),
    ("query_embed.weight", "head.queries"),
    ("backbone.1.row_embed.weight", "head.positions.rows"),
    ("backbone.1.col_embed.weight", "head.positions.columns"),
    *_facebook_layers("encoder"),
    *_facebook_layers("decoder"),
    _classifier("class_embed"),
    ("bbox_embed.layers.{i}.{p}", "head.boxes.layers.{i}.{p}"),
)
_FACEBOOK_MASKS = Rules(
    *((f"bbox_attention.{part}_linear.{{p}}", f"head.looks.{part}.{{p}}") for part in "qk"),
    ("mask_head.lay1.{p}", "head.masks.first.{p}"),
    ("mask_head.gn1.{p}", "head.masks.first_norm.{p}"),
    ("mask_head.lay2.{p}", "head.masks.second.conv.{p}"),
    ("mask_head.gn2.{p}", "head.masks.second.norm.{p}"),
    ("mask_head.lay{i+3}.{p}", "head.masks.steps.{i}.conv.{p}"),
    ("mask_head.gn{i+3}.{p}", "head.masks.steps.{i}.norm.{p}"),
    ("mask_head.adapter{i+1}.{p}", "head.masks.guides.{i}.{p}"),
    ("mask_head.out_lay.{p}", "head.masks.last.{p}"),
)


def _transformers_layers(name: str, out: str, mlp: str, *norms: str) -> tuple[Rule, ...]:
    source, target = f"model.{name}.layers.{{i}}", f"head.{name}.{{i}}"
    looks = {"self_attn": "attention", "encoder_attn": "cross_attention"}
    parts = {"q_proj": "q", "k_proj": "k", "v_proj": "v", out: "proj"}
    return (
        *(
            (f"{source}.{look}.{part}.{{p}}", f"{target}.{looks[look]}.{parts[part]}.{{p}}")
            for look in looks
            for part in parts
        ),
        (f"{source}.{mlp}fc{{n+1}}.{{p}}", f"{target}.mlp.layers.{{n}}.{{p}}"),
        *((f"{source}.{norm}.{{p}}", f"{target}.around.{index}.norm.{{p}}") for index, norm in enumerate(norms)),
        (f"model.{name}.layernorm.{{p}}", f"head.{name}_norm.{{p}}"),
    )


def _transformers(out: str, mlp: str) -> Rules:
    """`out` and `mlp` differ between the library's files and what it has in memory."""
    before, between, after = "self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"
    return Rules(
        ("model.input_projection.{p}", "head.project.{p}"),
        ("model.query_position_embeddings.weight", "head.queries"),
        ("model.position_embedding.row_embeddings.weight", "head.positions.rows"),
        ("model.position_embedding.column_embeddings.weight", "head.positions.columns"),
        *_transformers_layers("encoder", out, mlp, before, after),
        *_transformers_layers("decoder", out, mlp, before, between, after),
        _classifier("class_labels_classifier"),
        ("bbox_predictor.layers.{i}.{p}", "head.boxes.layers.{i}.{p}"),
    )


_TRANSFORMERS, _TRANSFORMERS_5 = _transformers("out_proj", ""), _transformers("o_proj", "mlp.")
_TRANSFORMERS_5_MASKS = Rules(
    *((f"bbox_attention.{part}_proj.{{p}}", f"head.looks.{part}.{{p}}") for part in "qk"),
    ("mask_head.conv1.conv.{p}", "head.masks.first.{p}"),
    ("mask_head.conv1.norm.{p}", "head.masks.first_norm.{p}"),
    ("mask_head.conv2.{m}.{p}", "head.masks.second.{m}.{p}"),
    ("mask_head.fpn_stages.{i}.refine.{m}.{p}", "head.masks.steps.{i}.{m}.{p}"),
    ("mask_head.fpn_stages.{i}.fpn_adapter.{p}", "head.masks.guides.{i}.{p}"),
    ("mask_head.output_conv.{p}", "head.masks.last.{p}"),
)


def layouts(backbone: Rules, own: Rules) -> dict[str, Rules]:
    """Layouts of whole detectors, with masks and without.

    detr: facebookresearch/detr. detr_transformers: the files of transformers' DetrForObjectDetection and
    DetrForSegmentation; _5: what its version 5 has in memory; _timm: those whose backbone is timm's, as published.

    Args:
        backbone: of the backbone alone, as facebookresearch/detr and timm name it.
        own: the same, as transformers does.
    """
    files, memory = "model.backbone.conv_encoder.model.", "model.backbone.model."
    rules: dict[str, Rules] = {}
    for name, head, masks, front, body in (
        ("detr", _FACEBOOK, _FACEBOOK_MASKS, "backbone.0.body.", backbone),
        ("detr_transformers", _TRANSFORMERS, _FACEBOOK_MASKS, files, own),
        ("detr_transformers_timm", _TRANSFORMERS, _FACEBOOK_MASKS, files, backbone),
        ("detr_transformers_5", _TRANSFORMERS_5, _TRANSFORMERS_5_MASKS, memory, own),
        ("detr_transformers_5_timm", _TRANSFORMERS_5, _TRANSFORMERS_5_MASKS, memory, backbone),
    ):
        whole = Rules(*prefix(body, front, ""), *head)
        rules |= {name: whole, f"{name}_masks": Rules(*prefix(whole, "detr.", ""), *masks)}
    return rules
