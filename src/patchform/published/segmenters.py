"""UPerNet, Semantic FPN and SETR: layouts of weights of their heads, to be put behind those of a backbone.

The names of OpenMMLab are those of mmsegmentation; Microsoft, Meituan, the authors of PVT and others trained with it
and kept them for the head. SETR has those of fudan-zvg/SETR too.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

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


def _of_side(side: int, kernel: Tensor) -> Tensor:
    """The kernel as it is; ValueError if it is of another side, that of the other form of the head."""
    if kernel.shape[-1] != side:
        raise ValueError(
            f"the classifier of this layout is {side}x{side}, this one {kernel.shape[-1]}x{kernel.shape[-1]}"
        )
    return kernel


_three_by_three = Operation(
    lambda tensors, shape, sizes: _of_side(3, tensors[0]), lambda tensor, count, sizes: (_of_side(3, tensor),)
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
            ("decode_head.cls.weight", "head.decoder.classify.weight", _three_by_three),
            ("decode_head.cls.bias", "head.decoder.classify.bias"),
            ("auxiliary_head.{i}.aux.weight", "head.auxiliary_decoders.{i}.weight"),
        ),
    }
    return {name: Rules(unused, *rules, *_below(backbone), cross_family=_NORMLESS) for name, rules in decoders.items()}


_NORM = "backbone.norm.{p}"
_NORMLESS = CrossFamily({_NORM: "the head has norms of its own"}, {}, {}, unread=(_NORM,))


def _below(backbone: Rules) -> Rules:
    return prefix(backbone, "backbone.", "")


def _mmseg_conv(source: str, own: str) -> tuple[Rule, ...]:
    """A convolution without a bias, and its norm: what has a bias is of the authors' form and has no name here."""
    return ((f"{source}.conv.weight", f"{own}.conv.weight"), (f"{source}.bn.{{p}}", f"{own}.norm.{{p}}"))


def _mmseg_steps(source: str, own: str, number: str) -> tuple[Rule, ...]:
    return (
        (f"{source}.norm.{{p}}", f"{own}.norm.{{p}}"),
        *_mmseg_conv(f"{source}.up_convs.{number}.0", f"{own}.steps.{number}"),
        (f"{source}.conv_seg.{{p}}", f"{own}.classify.{{p}}"),
    )


MLA_LEVELS = 4
"""Of OpenMMLab's, which counts them from the deepest."""


def _turned(kernel: Tensor) -> Tensor:
    """(classes, levels x C, 1, 1) with the levels in the other order."""
    return _of_side(1, kernel).unflatten(1, (MLA_LEVELS, -1)).flip(1).flatten(1, 2)


_deepest_last = Operation(
    lambda tensors, shape, sizes: _turned(tensors[0]), lambda tensor, count, sizes: (_turned(tensor),)
)


def _mmseg_mla() -> Iterator[Rule]:
    yield ("backbone.cls_token", Drop("it is taken away before the first block"))
    yield ("backbone.pos_embed", "backbone.position.table", _without_first_row)
    yield ("neck.norm.{i}.{p}", "head.aggregation.norms.{i}.{p}")
    yield from _mmseg_conv("neck.mla.channel_proj.{i}", "head.aggregation.laterals.{i}")
    for level in range(MLA_LEVELS):
        theirs = MLA_LEVELS - 1 - level
        yield from _mmseg_conv(f"neck.mla.feat_extract.{theirs}", f"head.aggregation.outputs.{level}")
        yield from _mmseg_conv(f"decode_head.up_convs.{theirs}.{{n}}", f"head.decoder.branches.{level}.{{n}}")
        yield (f"auxiliary_head.{theirs}.conv_seg.{{p}}", f"head.auxiliary_decoders.{level}.{{p}}")
    yield ("decode_head.conv_seg.weight", "head.decoder.classify.weight", _deepest_last)
    yield ("decode_head.conv_seg.bias", "head.decoder.classify.bias")


def mmseg_setr(backbone: Rules) -> dict[str, Rules]:
    """Whole models of OpenMMLab by decoder, on its ViT without a final norm; the head has form="openmmlab".

    mla wants summary="mean" of the backbone, four maps and, as the files have them, auxiliary=(0, 1, 2, 3).
    """
    auxiliary = _mmseg_steps("auxiliary_head.{i}", "head.auxiliary_decoders.{i}", "{j}")
    decoders: dict[str, tuple[Rule, ...]] = {
        "mmseg_setr_naive": (*_mmseg_steps("decode_head", "head.decoder", "0"), *auxiliary),
        "mmseg_setr_pup": (*_mmseg_steps("decode_head", "head.decoder", "{j}"), *auxiliary),
        "mmseg_setr_mla": tuple(_mmseg_mla()),
    }
    return {name: Rules(*rules, *_below(backbone), cross_family=_NORMLESS) for name, rules in decoders.items()}


MMSEG_SETR_DIFFERS = dict.fromkeys(
    ("mmseg_setr_naive", "mmseg_setr_pup", "mmseg_setr_mla"),
    "mmsegmentation stretches the cells of an image that patches do not divide over it; here what lies beyond it is "
    "cut off. At other sizes than that of training it resizes positions bilinearly; here it is done bicubically",
)
