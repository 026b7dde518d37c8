"""DINOv3: layouts of weights that its authors and others published. Its licence is not an open one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Size, Tensor

from patchform.backbones.dinov3 import VARIANTS
from patchform.published.base import Origin, timm
from patchform.weights.operations import Operation, Sizes, join, reshape
from patchform.weights.option_hints import NO_KEY_BIAS, Hint
from patchform.weights.rules import Drop, Rule, Rules

_PATCHES = reshape(-1, "channels", "patch", "patch")
_MASK = Drop("stands for hidden patches in pre-training")
_LOCAL = Drop("normalises small crops in pre-training")
_NORMS = {"norm{n}.{p}": "norm{n}.{p}"}
_ATTENTION = {"attn.{m}.{p}": "attention.{m}.{p}"}


def _regular_periods(tensor: Tensor) -> bool:
    """Whether they are those of base 100, to the eight bits that published files have of them."""
    number = tensor.shape[0]
    periods = 100 ** (torch.arange(number, dtype=torch.float64) / number)
    return torch.allclose(tensor.double(), periods, rtol=2**-7)


_PERIODS = Drop("follow from the width of a head", _regular_periods)


def _without_key(tensors: tuple[Tensor, ...], shape: Size, sizes: Sizes) -> Tensor:
    """The bias of queries, keys and values (3D,), and what it is multiplied by, without the keys'."""
    bias, mask = tensors
    if bias.shape != mask.shape or mask.dim() != 1 or len(mask) % 3:
        raise ValueError("they are no bias of three parts and its mask")
    factors = [part.unique().tolist() for part in mask.chunk(3)]
    if factors != [[1], [0], [1]]:
        raise ValueError("the mask does not hide the keys' part, and it alone")
    query, _, value = bias.chunk(3)
    return torch.cat([query, value])


def _with_key(tensor: Tensor, count: int, sizes: Sizes) -> tuple[Tensor, ...]:
    query, value = tensor.chunk(2)
    one, none = torch.ones_like(query), torch.zeros_like(query)
    return torch.cat([query, none, value]), torch.cat([one, none, one])


_MASKED = Operation(_without_key, _with_key)


def _stem(names: str, kernel: str, registers: str) -> tuple[Rule, ...]:
    return (
        (f"{names}cls_token", "backbone.class_token"),
        (names + registers, "backbone.register_tokens"),
        (f"{names}{kernel}.weight", "backbone.patches.proj.weight", _PATCHES),
        (f"{names}{kernel}.bias", "backbone.patches.proj.bias"),
        (f"{names}mask_token", _MASK),
        ("norm.{p}", "backbone.norm.{p}"),
        ("head.{p}", "head.classifier.{p}"),
    )


def _blocks(source: str, parts: Mapping[str, str], perceptron: tuple[str, ...]) -> tuple[Rule, ...]:
    """Parts of a block, source to target; a perceptron is named by its two layers, or by gate, value and output."""
    own, (*first, out) = "backbone.blocks.{b}.", [f"{source}mlp.{name}.{{p}}" for name in perceptron]
    inner: Rule = (first[0], f"{own}mlp.fc1.{{p}}") if len(first) == 1 else (tuple(first), f"{own}mlp.fc1.{{p}}", join)
    return (inner, (out, f"{own}mlp.fc2.{{p}}"), *((source + part, own + target) for part, target in parts.items()))


def _authors(*perceptron: str) -> Rules:
    """facebookresearch/dinov3."""
    attention, own = "blocks.{b}.attn.", "backbone.blocks.{b}.attention."
    return Rules(
        *_stem("", "patch_embed.proj", "storage_tokens"),
        ((f"{attention}qkv.bias", f"{attention}qkv.bias_mask"), f"{own}qkv.qv_bias", _MASKED),
        *_blocks("blocks.{b}.", _NORMS | _ATTENTION | {"ls{n}.gamma": "scale{n}.gamma"}, perceptron),
        ("rope_embed.periods", _PERIODS),
        ("local_cls_norm.{p}", _LOCAL),
        needs=("storage_tokens",),
    )


def _timm(*perceptron: str) -> Rules:
    attention, own = "blocks.{b}.attn.", "backbone.blocks.{b}.attention."
    return Rules(
        *_stem("", "patch_embed.proj", "reg_token"),
        ((f"{attention}q_bias", f"{attention}v_bias"), f"{own}qkv.qv_bias", join),
        *_blocks("blocks.{b}.", _NORMS | _ATTENTION | {"gamma_{n}": "scale{n}.gamma"}, perceptron),
        needs=("reg_token",),
    )


def _transformers(layer: str, *perceptron: str) -> Rules:
    attention, own = f"{layer}{{b}}.attention.", "backbone.blocks.{b}.attention."
    return Rules(
        *_stem("embeddings.", "patch_embeddings", "register_tokens"),
        (tuple(f"{attention}{name}_proj.weight" for name in "qkv"), f"{own}qkv.weight", join),
        (tuple(f"{attention}{name}_proj.bias" for name in "qv"), f"{own}qkv.qv_bias", join),
        *_blocks(
            f"{layer}{{b}}.",
            _NORMS | {"attention.o_proj.{p}": "attention.proj.{p}", "layer_scale{n}.lambda1": "scale{n}.gamma"},
            perceptron,
        ),
    )


LAYOUTS = {
    "dinov3": _authors("fc1", "fc2"),
    "dinov3_swiglu": _authors("w1", "w2", "w3"),
    "timm": _timm("fc1", "fc2"),
    "timm_swiglu": _timm("fc1_g", "fc1_x", "fc2"),
    "transformers": _transformers("layer.", "up_proj", "down_proj"),
    "transformers_swiglu": _transformers("layer.", "gate_proj", "up_proj", "down_proj"),
    "transformers_5": _transformers("model.layer.", "up_proj", "down_proj"),
    "transformers_5_swiglu": _transformers("model.layer.", "gate_proj", "up_proj", "down_proj"),
}
"""dinov3: facebookresearch/dinov3, whose biases lie beside a mask that takes the keys' away, with periods of the
rotation in bfloat16: its own code computes with those, others and ours with exact ones. Names are from its source.
timm: its vit_*_dinov3 (without biases: qkv_bias=False) and vit_*_dinov3_qkvb. transformers: DINOv3ViTModel as files
have it; _5: as it is in memory since version 5. _swiglu: perceptrons with a gate.

No name in a file says what its classifier reads: the class token (ours unless something else is named), the mean of the
patches (timm's unless it is built with global_pool="token"), or both side by side (the authors')."""

DIFFERS = dict.fromkeys(
    ("timm", "timm_swiglu"),
    "a classifier of timm's for this layout reads the mean of the patches (summary: mean) unless it was built with "
    'global_pool="token"; its names do not say',
)

WEIGHTS = tuple(
    timm(
        variant,
        f"vit_{model}_patch16_dinov3.lvd1689m",
        megabytes,
        side=256,
        crop=1.0,
        classes=0,
        origin=Origin(
            layout="timm_swiglu" if "mlp" in VARIANTS[variant].options else "timm",
            licence="dinov3-license",
            options={"qkv_bias": False},
        ),
    )
    for variant, model, megabytes in (
        ("s", "small", 86),
        ("s_plus", "small_plus", 115),
        ("b", "base", 343),
        ("l", "large", 1212),
        ("h_plus", "huge_plus", 3362),
        ("7b", "7b", 26864),
    )
)
"""Under Meta's DINOv3 licence, which is no open one: read it before you name them. Meta's own copies are behind a gate;
a file from there is read as any other, by its path. timm left biases out that were all zero."""

OPTION_HINTS = (
    NO_KEY_BIAS,
    Hint("registers", r"(reg_token|storage_tokens|register_tokens)$", r"register_tokens$", lambda t: t.shape[1]),
)
