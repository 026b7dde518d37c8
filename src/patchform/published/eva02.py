"""EVA-02: what its authors and others published, as layouts of weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from patchform.backbones.eva02 import VARIANTS
from patchform.descriptions import WeightsFile
from patchform.published.base import CLIP_STATISTICS, Origin, timm
from patchform.weights.operations import join, reshape
from patchform.weights.option_hints import NO_KEY_BIAS, Hint, constant
from patchform.weights.rules import Drop, Rule, Rules

_PATCHES = reshape(-1, "channels", "patch", "patch")
_HIDDEN = Drop("of hidden patches in pre-training")
_ROTATION = Drop("sines and cosines, which follow from the grid")
_OWN = "backbone.blocks.{b}."
_ATTENTION, _MLP = "blocks.{b}.attn.", "blocks.{b}.mlp."
_OUTSIDE: tuple[Rule, ...] = (
    ("cls_token", "backbone.class_token"),
    ("pos_embed", "backbone.position.table"),
    ("patch_embed.proj.weight", "backbone.patches.proj.weight", _PATCHES),
    ("patch_embed.proj.bias", "backbone.patches.proj.bias"),
    ("norm.{p}", "backbone.norm.{p}"),
    ("fc_norm.{p}", "backbone.pool.last_norm.{p}"),
    ("head.{p}", "head.classifier.{p}"),
    ("mask_token", _HIDDEN),
    ("lm_head.{p}", _HIDDEN),
    ("rope.{table}", _ROTATION),
    (f"{_ATTENTION}rope.{{table}}", _ROTATION),
    (f"{_ATTENTION}proj.{{p}}", f"{_OWN}attention.proj.{{p}}"),
    ("blocks.{b}.norm{n}.{p}", f"{_OWN}norm{{n}}.{{p}}"),
)
_FUSED: tuple[Rule, ...] = (
    (f"{_ATTENTION}qkv.weight", f"{_OWN}attention.qkv.weight"),
    ((f"{_ATTENTION}q_bias", f"{_ATTENTION}v_bias"), f"{_OWN}attention.qkv.qv_bias", join),
)


def _apart(query: str, value: str) -> tuple[Rule, ...]:
    """Queries, keys and values one by one, and the names of the two biases."""
    return (
        (tuple(f"{_ATTENTION}{name}_proj.weight" for name in "qkv"), f"{_OWN}attention.qkv.weight", join),
        ((_ATTENTION + query, _ATTENTION + value), f"{_OWN}attention.qkv.qv_bias", join),
    )


def _gated(gate: str, value: str, norm: str, out: str) -> tuple[Rule, ...]:
    names = {gate: "gate", value: "fc1", norm: "norm", out: "fc2"}
    return tuple((f"{_MLP}{source}.{{p}}", f"{_OWN}mlp.{target}.{{p}}") for source, target in names.items())


def _packed(both: str, norm: str, out: str) -> tuple[Rule, ...]:
    """Gate and value in one matrix."""
    own = (f"{_OWN}mlp.gate.{{p}}", f"{_OWN}mlp.fc1.{{p}}")
    rest = {norm: "norm", out: "fc2"}
    return (
        (f"{_MLP}{both}.{{p}}", own, join),
        *((f"{_MLP}{source}.{{p}}", f"{_OWN}mlp.{target}.{{p}}") for source, target in rest.items()),
    )


LAYOUTS = {
    "timm": Rules(*_OUTSIDE, *_apart("q_proj.bias", "v_proj.bias"), *_gated("fc1_g", "fc1_x", "norm", "fc2")),
    "timm_packed": Rules(*_OUTSIDE, *_FUSED, *_packed("fc1", "norm", "fc2")),
    "eva": Rules(*_OUTSIDE, *_apart("q_bias", "v_bias"), *_gated("w1", "w2", "ffn_ln", "w3")),
    "eva_packed": Rules(*_OUTSIDE, *_FUSED, *_packed("w12", "ffn_ln", "w3")),
}
"""timm: its eva02_*, _packed: the two smallest. eva: baaivision/EVA, likewise; names from its source. With a norm of
the tokens instead of one behind their mean (after pre-training, or where the class token is read): summary="class".
Refused: EVA-02-CLIP, whose attention has a norm inside, EVA and EVA-CLIP."""


def _row(variant: str, model: str, tag: str, megabytes: int, classes: int = 1000) -> WeightsFile:
    side = VARIANTS[variant].image_size
    row = timm(
        variant,
        f"eva02_{model}_patch14_{side}.{tag}",
        megabytes,
        side=side,
        crop=0.9 if side == 224 else 1.0,
        classes=classes,
        origin=Origin(layout="timm" if VARIANTS[variant].options["inner_norm"] else "timm_packed", licence="mit"),
    )
    resize: Literal["crop", "squash"] = "squash" if "ft_in22k" in tag else "crop"
    return replace(row, preprocessing=replace(row.preprocessing, resize=resize, **CLIP_STATISTICS))


WEIGHTS = (
    *(
        _row(variant, model, "mim_in22k", megabytes, classes=0)
        for variant, model, megabytes in (
            ("ti", "tiny", 22),
            ("s", "small", 87),
            ("b", "base", 343),
            ("l", "large", 1213),
        )
    ),
    _row("l", "large", "mim_m38m", 1213, classes=0),
    _row("ti336", "tiny", "mim_in22k_ft_in1k", 23),
    _row("s336", "small", "mim_in22k_ft_in1k", 88),
    _row("b448", "base", "mim_in22k_ft_in1k", 349),
    _row("b448", "base", "mim_in22k_ft_in22k_in1k", 349),
    _row("l448", "large", "mim_in22k_ft_in1k", 1220),
    _row("l448", "large", "mim_m38m_ft_in22k_in1k", 1220),
)

OPTION_HINTS = (
    NO_KEY_BIAS,
    Hint("inner_norm", r"mlp\.(norm|ffn_ln)\.weight$", r"mlp\.norm\.weight$", constant("true"), "false"),
    Hint("summary", r"fc_norm\.weight$", r"last_norm\.weight$", constant("mean_then_norm"), "class"),
)
