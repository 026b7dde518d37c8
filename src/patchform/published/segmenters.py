"""UPerNet, Semantic FPN and SETR: layouts of weights of their heads, to be put behind those of a backbone.

The names of OpenMMLab are those of mmsegmentation; Microsoft, Meituan, the authors of PVT and others trained with it
and kept them for the head. Those of SETR are of fudan-zvg/SETR.
"""

from __future__ import annotations

import torch.nn.functional as F

from patchform.weights.cross_family import CrossFamily
from patchform.weights.operations import Operation
from patchform.weights.rules import Drop, Rule, Rules, prefix

MADE = Drop("every head of that library has it, and this one does not use it")


def _conv_norm(source: str, own: str, *, conv: str = "conv", norm: str = "bn") -> tuple[Rule, ...]:
    return ((f"{source}{conv}.{{p}}", f"{own}.conv.{{p}}"), (f"{source}{norm}.{{p}}", f"{own}.norm.{{p}}"))


def _upernet(norm: str, classify: str) -> Rules:
    """What a norm and the classifier are called."""
    places = {
        "decode_head.psp_modules.{i}.1": "pools.pools.{i}",
        "decode_head.bottleneck": "pools.fuse",
        "decode_head.lateral_convs.{i}": "laterals.{i}",
        "decode_head.fpn_convs.{i}": "outputs.{i}",
        "decode_head.fpn_bottleneck": "fuse",
        "auxiliary_head.convs.0": "auxiliary_decoder.0",
    }
    return Rules(
        *(rule for source, own in places.items() for rule in _conv_norm(f"{source}.", f"head.{own}", norm=norm)),
        (f"decode_head.{classify}.{{p}}", "head.classify.{p}"),
        (f"auxiliary_head.{classify}.{{p}}", "head.auxiliary_decoder.2.{p}"),
    )


UPERNET = _upernet("bn", "conv_seg")
"""OpenMMLab's."""
UPERNET_TRANSFORMERS = _upernet("batch_norm", "classifier")
SEMANTIC_FPN = Rules(
    ("neck.lateral_convs.{i}.conv.{p}", "head.pyramid.laterals.{i}.{p}"),
    ("neck.fpn_convs.{i}.conv.{p}", "head.pyramid.outputs.{i}.{p}"),
    *(  # an enlargement stands between two convolutions, of which there are three at most
        rule
        for number in range(3)
        for rule in _conv_norm(f"decode_head.scale_heads.{{i}}.{2 * number}.", f"head.branches.{{i}}.{number}")
    ),
    ("decode_head.conv_seg.{p}", "head.classify.{p}"),
)
"""OpenMMLab's."""


def on_swin(head: Rules, backbone: Rules, norm: str) -> Rules:
    """UPerNet above a Swin, whose norms of maps are our head's.

    That of the tokens, which the head does not read, becomes a copy of the last of them and is not written.

    Args:
        head: its names.
        backbone: the rules of a backbone from which no norm is left out.
        norm: pattern of a norm of a map, with its number in it.
    """
    copies = {"backbone.norm.{p}": "head.norms.3.{p}"}
    return Rules(
        (f"backbone.{norm}.{{p}}", "head.norms.{s}.{p}"),
        *prefix(backbone, "backbone.", "backbone."),
        *head,
        cross_family=CrossFamily({}, copies, {}, unread=tuple(copies)),
    )


def behind(backbone: Rules, heads: dict[str, Rules]) -> dict[str, Rules]:
    """By name of the head: whole segmenters on a backbone whose norms of maps are its own."""
    return {name: Rules(*prefix(backbone, "backbone.", ""), *head) for name, head in heads.items()}


MMSEG_HEADS = {"upernet": UPERNET, "semantic_fpn": SEMANTIC_FPN}

# ----------------------------------------------------------------------------------------------------------------- SETR

_without_first_row = Operation(
    lambda tensors, shape, sizes: tensors[0][:, 1:], lambda tensor, count, sizes: (F.pad(tensor, (0, 0, 1, 0)),)
)


def _naive(source: str, own: str) -> tuple[Rule, ...]:
    return (
        (f"{source}.norm.{{p}}", f"{own}.norm.{{p}}"),
        *_conv_norm(f"{source}.", f"{own}.project", conv="conv_0", norm="syncbn_fc_0"),
        (f"{source}.conv_1.{{p}}", f"{own}.classify.{{p}}"),
    )


def _mla(source: str, own: str) -> tuple[Rule, ...]:
    return (
        *_conv_norm(f"{source}.", f"{own}.0", conv="0", norm="1"),
        *_conv_norm(f"{source}.", f"{own}.1", conv="3", norm="4"),
    )


def setr(backbone: Rules) -> dict[str, Rules]:
    """Whole models of fudan-zvg/SETR by decoder, on a ViT that timm names so; its own norm is not in the files."""
    unused: Rule = ("*.conv_seg.{p}", MADE)
    auxiliary = _naive("auxiliary_head.{i}", "head.auxiliary_decoders.{i}")
    decoders: dict[str, tuple[Rule, ...]] = {
        "setr_naive": (*_naive("decode_head", "head.decoder"), *auxiliary),
        "setr_pup": (
            ("decode_head.norm.{p}", "head.decoder.norm.{p}"),
            ("decode_head.conv_4.{p}", "head.decoder.classify.{p}"),
            ("decode_head.conv_{i}.{p}", "head.decoder.steps.{i}.conv.{p}"),
            ("decode_head.syncbn_fc_{i}.{p}", "head.decoder.steps.{i}.norm.{p}"),
            *auxiliary,
        ),
        "setr_mla": (  # wants summary="mean": the class token goes before the first block, and its position with it
            ("backbone.cls_token", Drop("it is taken away before the first block")),
            ("backbone.pos_embed", "backbone.position.table", _without_first_row),
            ("backbone.norm_{i}.{p}", "head.aggregation.norms.{i}.{p}"),
            *_conv_norm("backbone.mla.mla_p{i+2}_1x1.", "head.aggregation.laterals.{i}", conv="0", norm="1"),
            *_conv_norm("backbone.mla.mla_p{i+2}.", "head.aggregation.outputs.{i}", conv="0", norm="1"),
            *_mla("decode_head.mlahead.head{i+2}", "head.decoder.branches.{i}"),
            ("decode_head.cls.{p}", "head.decoder.classify.{p}"),
            ("auxiliary_head.{i}.aux.{p}", "head.auxiliary_decoders.{i}.{p}"),
        ),
    }
    norm = "backbone.norm.{p}"
    own = CrossFamily({norm: "the head has norms of its own"}, {}, {}, unread=(norm,))
    body = prefix(backbone, "backbone.", "")
    return {name: Rules(unused, *rules, *body, cross_family=own) for name, rules in decoders.items()}
