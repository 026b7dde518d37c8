"""BEiT and BEiT v2: what their authors and others published, as layouts of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from patchform.backbones.beit import VARIANTS
from patchform.descriptions import WeightsFile
from patchform.published.base import Origin, block_rules, timm
from patchform.weights.operations import Operation, join, reshape
from patchform.weights.option_hints import NO_KEY_BIAS, Hint, constant
from patchform.weights.rules import DROP, Drop, Rule, Rules

_PATCHES = reshape(-1, "channels", "patch", "patch")
_HIDDEN = Drop("of hidden patches in pre-training")
_OWN = "backbone.blocks.{b}."
_TABLES = (f"{_OWN}attention.position.table", f"{_OWN}attention.position.class_table")
_bias = Operation(
    lambda tensors, shape, sizes: torch.cat(tensors),
    lambda tensor, count, sizes: (tensor[:-3], tensor[-3:]),
)
"""Of ours on the way back: offsets, and behind them the three of the class token."""


def _stem(names: str, kernel: str) -> tuple[Rule, ...]:
    return (
        (f"{names}cls_token", "backbone.class_token"),
        (f"{names}{kernel}.weight", "backbone.patches.proj.weight", _PATCHES),
        (f"{names}{kernel}.bias", "backbone.patches.proj.bias"),
        (f"{names}mask_token", _HIDDEN),
    )


_ATTENTION = "blocks.{b}.attn."
_BEIT = (
    *_stem("", "patch_embed.proj"),
    ("norm.{p}", "backbone.norm.{p}"),
    ("fc_norm.{p}", "backbone.pool.last_norm.{p}"),
    ("head.{p}", "head.classifier.{p}"),
    ("lm_head.{p}", _HIDDEN),
    ("cls_pt_layers.*", _HIDDEN),
    (f"{_ATTENTION}relative_position_bias_table", _TABLES, _bias),
    (f"{_ATTENTION}relative_position_index", DROP),
    (f"{_ATTENTION}qkv.weight", f"{_OWN}attention.qkv.weight"),
    ((f"{_ATTENTION}q_bias", f"{_ATTENTION}v_bias"), f"{_OWN}attention.qkv.qv_bias", join),
    *block_rules(
        "blocks.{b}.",
        {
            "attn.proj.{p}": "attention.proj.{p}",
            "mlp.{m}.{p}": "mlp.{m}.{p}",
            "norm{n}.{p}": "norm{n}.{p}",
            "gamma_{n}": "scale{n}.gamma",
        },
    ),
)


def _transformers(root: str, layer: str, query: str, table: str, parts: Mapping[str, str]) -> Rules:
    """A model whose backbone is below `root`; {} in `query` stands for the kind of projection."""
    block, own = f"{root}{layer}.{{b}}.", f"{_OWN}attention.qkv."
    kinds = ("query", "key", "value") if "attention.attention" in query else ("q", "k", "v")
    return Rules(
        *_stem(f"{root}embeddings.", "patch_embeddings.projection"),
        (tuple(f"{block}{query.format(kind)}.weight" for kind in kinds), f"{own}weight", join),
        (tuple(f"{block}{query.format(kind)}.bias" for kind in kinds[::2]), f"{own}qv_bias", join),
        (f"{block}{table}relative_position_bias.relative_position_bias_table", _TABLES, _bias),
        (f"{block}{table}relative_position_bias.relative_position_index", DROP),
        *block_rules(
            block,
            {
                "layernorm_before.{p}": "norm1.{p}",
                "layernorm_after.{p}": "norm2.{p}",
                "lambda_{n}": "scale{n}.gamma",
                **parts,
            },
        ),
        (f"{root}layernorm.{{p}}", "backbone.norm.{p}"),
        (f"{root}pooler.layernorm.{{p}}", "backbone.pool.last_norm.{p}"),
        ("classifier.{p}", "head.classifier.{p}"),
    )


def _of_files(root: str) -> Rules:
    parts = {
        "attention.output.dense.{p}": "attention.proj.{p}",
        "intermediate.dense.{p}": "mlp.fc1.{p}",
        "output.dense.{p}": "mlp.fc2.{p}",
    }
    return _transformers(root, "encoder.layer", "attention.attention.{}", "attention.attention.", parts)


def _of_memory(root: str) -> Rules:
    parts = {"attention.o_proj.{p}": "attention.proj.{p}", "mlp.{m}.{p}": "mlp.{m}.{p}"}
    return _transformers(root, "layers", "attention.{}_proj", "", parts)


_ROOTS = {"": "beit.", "_backbone": ""}
LAYOUTS = {
    "beit": Rules(*_BEIT),
    **{f"transformers{of}": _of_files(root) for of, root in _ROOTS.items()},
    **{f"transformers_5{of}": _of_memory(root) for of, root in _ROOTS.items()},
    "transformers_data2vec": _of_files("data2vec_vision."),
}
"""beit: microsoft/unilm (beit, beit2) after fine-tuning, and timm's beit_* and beitv2_*. transformers: BEiT as files
have it, _5: as it is in memory since version 5; _backbone: BeitModel; _data2vec: Data2VecVision, the same network.
Where a configuration has 1e-12 in the norms, ours have 1e-6. With the class token read instead of the mean:
summary="class". Refused: one table for all blocks (pre-training alone), and added positions."""


def _row(variant: str, model: str, megabytes: int, *, classes: int = 1000, half: bool = False) -> WeightsFile:
    crop = 1.0 if VARIANTS[variant].image_size > 224 else 0.95 if "beitv2_large" in model and classes == 1000 else 0.9
    side = VARIANTS[variant].image_size
    tag = model.partition(".")[2]
    return timm(
        variant,
        model,
        megabytes,
        tag=f"v2_{tag}" if model.startswith("beitv2") else tag,
        side=side,
        crop=crop,
        classes=classes,
        origin=Origin(layout="beit", half=half),
    )


WEIGHTS = (
    _row("b", "beitv2_base_patch16_224.in1k_ft_in1k", 346),
    _row("b", "beitv2_base_patch16_224.in1k_ft_in22k_in1k", 346),
    _row("b", "beitv2_base_patch16_224.in1k_ft_in22k", 410, classes=21_841),
    _row("l", "beitv2_large_patch16_224.in1k_ft_in1k", 1218),
    _row("l", "beitv2_large_patch16_224.in1k_ft_in22k_in1k", 1218),
    _row("b", "beit_base_patch16_224.in22k_ft_in22k_in1k", 346, half=True),
    _row("b384", "beit_base_patch16_384.in22k_ft_in22k_in1k", 347, half=True),
    _row("l", "beit_large_patch16_224.in22k_ft_in22k_in1k", 1218, half=True),
    _row("l384", "beit_large_patch16_384.in22k_ft_in22k_in1k", 1221, half=True),
    _row("l512", "beit_large_patch16_512.in22k_ft_in22k_in1k", 1226, half=True),
)

OPTION_HINTS = (
    NO_KEY_BIAS,
    Hint("layer_scale", r"(gamma|lambda)_1$", r"scale1\.gamma$", constant(0.1), "null"),
    Hint(
        "summary",
        r"(fc_norm|pooler\.layernorm)\.weight$",
        r"last_norm\.weight$",
        constant("mean_then_norm"),
        "class",
    ),
)
