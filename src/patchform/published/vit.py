"""ViT: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from patchform.descriptions import Score
from patchform.published import dino, mae, segmenters
from patchform.published.vit_files import FILES
from patchform.weights import flax, option_hints
from patchform.weights.cross_family import CrossFamily
from patchform.weights.operations import Operation, cells_alone, copy, join, reshape, side_by_side
from patchform.weights.rules import Drop, Names, Rule, Rules, prefix

_QKV = ("query", "key", "value")
_PATCHES = reshape(-1, "channels", "patch", "patch")
_MASK = Drop("stands for hidden patches in pre-training")
_DECODER = Drop("the decoder of pre-training")
_Parts: TypeAlias = Mapping[str, str] | Mapping[Names, str]
"""Names below a block of the source, and the name below ours."""


def _stem(
    names: str, kernel: str, token: str, positions: str, second: str = "", table: Operation = copy
) -> tuple[Rule, ...]:
    """Class token, or two of them, positions and patches, whose names begin with `names`."""
    tokens: Rule = (names + token, "backbone.class_token")
    return (
        ((names + token, names + second), "backbone.class_token", side_by_side) if second else tokens,
        (names + positions, "backbone.position.table", table),
        (f"{names}{kernel}.weight", "backbone.patches.proj.weight", _PATCHES),
        (f"{names}{kernel}.bias", "backbone.patches.proj.bias"),
    )


def _block(source: str, parts: _Parts, number: str = "{b}") -> tuple[Rule, ...]:
    """Parts of a block, source to target; several of the source are joined."""
    rules: list[Rule] = []
    for names, target in parts.items():
        own = f"backbone.blocks.{number}.{target}"
        if isinstance(names, str):
            rules.append((source + names, own))
        else:
            rules.append((tuple(source + name for name in names), own, join))
    return tuple(rules)


# ------------------------------------------------------------------------------------------- the names of timm and
# cross_family

_TIMM_BLOCK = {
    "attn.{m}.{p}": "attention.{m}.{p}",
    "mlp.{m}.{p}": "mlp.{m}.{p}",
    "ls{n}.gamma": "scale{n}.gamma",
    "norm{n}.{p}": "norm{n}.{p}",
}


_POOL = {
    "attn_pool.latent": "query",
    "attn_pool.mlp.{m}.{p}": "mlp.{m}.{p}",
    "attn_pool.norm.{p}": "norm.{p}",
    "attn_pool.{m}.{p}": "attention.{m}.{p}",
    "fc_norm.{p}": "last_norm.{p}",
}
_HEAD: tuple[Rule, ...] = (
    ("pre_logits.fc.{p}", "head.pre_logits.{p}"),  # of timm before 0.6
    ("head.{p}", "head.classifier.{p}"),
)
_HEADS: tuple[Rule, ...] = (
    ("head.{p}", "head.classifier.parts.0.{p}"),
    ("head_dist.{p}", "head.classifier.parts.1.{p}"),
)


def _timm(
    registers: str,
    blocks: Iterable[Rule],
    *,
    second: str = "",
    table: Operation = copy,
    head: tuple[Rule, ...] = _HEAD,
) -> tuple[Rule, ...]:
    return (
        *_stem("", "patch_embed.proj", "cls_token", "pos_embed", second, table),
        (registers, "backbone.register_tokens"),
        *blocks,
        ("norm.{p}", "backbone.norm.{p}"),
        *((source, f"backbone.pool.{target}") for source, target in _POOL.items()),
        *head,
    )


def _chunks(count: int, size: int) -> Iterable[Rule]:
    """Blocks that are numbered through, behind the number of their chunk."""
    for b in range(count * size):
        yield from _block(f"blocks.{b // size}.{b}.", _TIMM_BLOCK, str(b))


_TIMM_BLOCKS = _block("blocks.{b}.", _TIMM_BLOCK)
_SWIGLU_BLOCKS = _block("blocks.{b}.", {"mlp.w12.{p}": "mlp.fc1.{p}", "mlp.w3.{p}": "mlp.fc2.{p}", **_TIMM_BLOCK})
_TIMM = _timm("reg_token", _TIMM_BLOCKS)

# --------------------------------------------------------------------------------------------------------- torchvision

_TORCHVISION = (
    *_stem("", "conv_proj", "class_token", "encoder.pos_embedding"),
    *_block(
        "encoder.layers.encoder_layer_{b}.",
        {
            "self_attention.in_proj_{p}": "attention.qkv.{p}",
            "self_attention.out_proj.{p}": "attention.proj.{p}",
            "ln_{n}.{p}": "norm{n}.{p}",
            "mlp.0.{p}": "mlp.fc1.{p}",
            "mlp.3.{p}": "mlp.fc2.{p}",
        },
    ),
    ("encoder.ln.{p}", "backbone.norm.{p}"),
    ("heads.pre_logits.{p}", "head.pre_logits.{p}"),
    ("heads.head.{p}", "head.classifier.{p}"),
)

# -------------------------------------------------------------------------------------------------------- transformers

_VIT_BLOCK: dict[Names, str] = {"layernorm_before.{p}": "norm1.{p}", "layernorm_after.{p}": "norm2.{p}"}
_DINOV2_BLOCK: dict[Names, str] = {
    "norm{n}.{p}": "norm{n}.{p}",
    "mlp.{m}.{p}": "mlp.{m}.{p}",
    "layer_scale{n}.lambda1": "scale{n}.gamma",
}
_SWIGLU: dict[Names, str] = {"mlp.weights_in.{p}": "mlp.fc1.{p}", "mlp.weights_out.{p}": "mlp.fc2.{p}"}
_SWIGLU_APART: dict[Names, str] = {
    ("mlp.gate_proj.{p}", "mlp.up_proj.{p}"): "mlp.fc1.{p}",
    "mlp.down_proj.{p}": "mlp.fc2.{p}",
}
_FILE_ATTENTION: dict[Names, str] = {
    tuple(f"attention.attention.{name}.{{p}}" for name in _QKV): "attention.qkv.{p}",
    "attention.output.dense.{p}": "attention.proj.{p}",
}
_MEMORY_ATTENTION: dict[Names, str] = {
    tuple(f"attention.{name}_proj.{{p}}" for name in "qkv"): "attention.qkv.{p}",
    "attention.o_proj.{p}": "attention.proj.{p}",
}


def _transformers(root: str, blocks: str, parts: _Parts, second: str = "") -> Rules:
    """A model whose backbone is below `root`: "vit." where it stands beside a classifier, else ""."""
    return Rules(
        *_stem(f"{root}embeddings.", "patch_embeddings.projection", "cls_token", "position_embeddings", second),
        (f"{root}embeddings.register_tokens", "backbone.register_tokens"),
        (f"{root}embeddings.mask_token", _MASK),
        *_block(f"{root}{blocks}.{{b}}.", parts),
        (f"{root}layernorm.{{p}}", "backbone.norm.{p}"),
        (f"{root}pooler.dense.{{p}}", "head.pre_logits.{p}"),
        ("classifier.{p}", "head.classifier.{p}"),
        ("cls_classifier.{p}", "head.classifier.parts.0.{p}"),
        ("distillation_classifier.{p}", "head.classifier.parts.1.{p}"),
        ("decoder.*", _DECODER),
    )


_VIT_FILE: dict[Names, str] = {
    **_FILE_ATTENTION,
    **_VIT_BLOCK,
    "intermediate.dense.{p}": "mlp.fc1.{p}",
    "output.dense.{p}": "mlp.fc2.{p}",
}
_VIT_MEMORY: dict[Names, str] = {**_MEMORY_ATTENTION, **_VIT_BLOCK, "mlp.{m}.{p}": "mlp.{m}.{p}"}
_BELOW = {"": "vit.", "_backbone": ""}
_DISTILLED_BELOW = {"_distilled": "deit.", "_distilled_backbone": ""}
_DINOV2_BELOW = {"": "dinov2.", "_registers": "dinov2_with_registers.", "_backbone": ""}
_TRANSFORMERS = {
    **{
        f"transformers{version}{of}": _transformers(root, blocks, parts, second)
        for second, below in (("", _BELOW), ("distillation_token", _DISTILLED_BELOW))
        for version, blocks, parts in (("", "encoder.layer", _VIT_FILE), ("_5", "layers", _VIT_MEMORY))
        for of, root in below.items()
    },
    **{
        f"transformers{version}_dinov2{mlp}{of}": _transformers(
            root, "encoder.layer", {**attention, **gate, **_DINOV2_BLOCK}
        )
        for version, attention, gated in (("", _FILE_ATTENTION, _SWIGLU), ("_5", _MEMORY_ATTENTION, _SWIGLU_APART))
        for mlp, gate in (("", dict[Names, str]()), ("_swiglu", gated))
        for of, root in _DINOV2_BELOW.items()
    },
}

# ----------------------------------------------------------------------------------------------------------- OpenMMLab

_MM_BLOCK = {
    "ln{n}.{p}": "norm{n}.{p}",
    "ffn.layers.0.0.{p}": "mlp.fc1.{p}",
    "ffn.layers.1.{p}": "mlp.fc2.{p}",
    "attn.gamma1.weight": "scale1.gamma",
    "ffn.gamma2.weight": "scale2.gamma",
}


def _mm(qkv: str, proj: str) -> Rules:
    return Rules(
        *_stem("", "patch_embed.projection", "cls_token", "pos_embed"),
        *_block("layers.{b}.", {qkv: "attention.qkv.{p}", proj: "attention.proj.{p}", **_MM_BLOCK}),
        ("ln1.{p}", "backbone.norm.{p}"),
    )


_MM = _mm("attn.qkv.{p}", "attn.proj.{p}")
_MMSEG = _mm("attn.attn.in_proj_{p}", "attn.attn.out_proj.{p}")
_MM_HEAD = Rules(("head.layers.pre_logits.{p}", "head.pre_logits.{p}"), ("head.layers.head.{p}", "head.classifier.{p}"))

# -------------------------------------------------------------------------------------------------------------- Google


def _google(names: str, positions: str, counters: tuple[int, int, int]) -> Rules:
    """Names of flax; the counters of attention, second norm and perceptron inside a block differ with its version."""
    block, own = names + "Transformer/encoderblock_{b}/", "backbone.blocks.{b}."
    return Rules(
        (f"{names}cls", "backbone.class_token"),
        (names + positions, "backbone.position.table"),
        *flax.embedding(f"{names}embedding", "backbone.patches.proj"),
        *flax.norm(f"{block}LayerNorm_0", f"{own}norm1"),
        *flax.attention(f"{block}MultiHeadDotProductAttention_{counters[0]}", f"{own}attention"),
        *flax.norm(f"{block}LayerNorm_{counters[1]}", f"{own}norm2"),
        *flax.mlp(f"{block}MlpBlock_{counters[2]}", f"{own}mlp"),
        *flax.norm(f"{names}Transformer/encoder_norm", "backbone.norm"),
        *flax.linear(f"{names}pre_logits", "head.pre_logits"),
        *flax.linear(f"{names}head", "head.classifier"),
    )


LAYOUTS = {
    "timm": Rules(*_TIMM),
    "torchvision": Rules(*_TORCHVISION),
    "google": _google("", "Transformer/posembed_input/pos_embedding", (1, 2, 3)),
    "big_vision": _google("params/", "pos_embedding", (0, 1, 0)),
    **_TRANSFORMERS,
    "mae": Rules(*_TIMM, ("mask_token", _MASK), ("decoder_*", _DECODER)),
    **mae.layouts(Rules(*_TIMM), _TRANSFORMERS["transformers"], _TRANSFORMERS["transformers_5"]),
    "timm_no_embed_class": Rules(*_timm("reg_token", _TIMM_BLOCKS, table=cells_alone)),
    "timm_distilled": Rules(*_timm("reg_token", _TIMM_BLOCKS, second="dist_token", head=_HEADS)),
    "dinov2": Rules(*_timm("register_tokens", _TIMM_BLOCKS), ("mask_token", _MASK)),
    "dinov2_swiglu": Rules(*_timm("register_tokens", _SWIGLU_BLOCKS), ("mask_token", _MASK)),
    **{
        f"dinov2_4x{size}": Rules(*_timm("register_tokens", _chunks(4, size)), ("mask_token", _MASK)) for size in (3, 6)
    },
    "mm": Rules(*prefix(_MM, "backbone.", ""), *_MM_HEAD),
    "mm_backbone": Rules(*_MM, *_MM_HEAD),
    "dino": dino.layout(Rules(*_TIMM)),
    "dinov2_training": dino.layout(Rules(*_timm("register_tokens", _TIMM_BLOCKS), ("mask_token", _MASK))),
    **segmenters.setr(Rules(*_TIMM)),
    "mmseg": Rules(*_MMSEG, *_MM_HEAD),
    **segmenters.mmseg_setr(_MMSEG),
}
"""timm: also facebookresearch/deit and facebookresearch/dino, whose file of student and teacher wants
prefix="module.backbone." or "backbone."; with global_pool="avg" a ViT with summary="mean_then_norm" (fc_norm, also MAE
fine-tuned), with "map" one with summary="attention"; with SwiGLU (mlp="swiglu") under the same names. _no_embed_class:
the same, written without the row of zeros for the class token; _distilled: the two class tokens and heads of distilled
DeiT (class_tokens=2, the head's parts=(D, D)), averaged as at inference. google: arrays of the .npz files of
google-research/vision_transformer (they want gelu="tanh"). big_vision: those of google-research/big_vision with
learned positions and the mean of the patches (summary="mean"). transformers: ViT and ViT-MAE as files have them; _5:
as they are in memory since its version 5; _distilled: DeiT; _dinov2: Dinov2 and Dinov2WithRegisters, whose classifier
sees summary="class_and_mean"; _backbone: a bare model, whose pooler is our hidden layer. Where a configuration has
1e-12 in the norms, ours have 1e-6. mae: files of pre-training
by facebookresearch/mae, without their decoder; with it, and for backbones of fixed positions: see `published.mae`.
dinov2: facebookresearch/dinov2; _swiglu: its ViT-g; _4xN: as it trains, in 4 chunks of N blocks. setr_naive, setr_pup,
setr_mla: whole models of fudan-zvg/SETR, the last for a ViT with summary="mean". mm: classifiers of mmpretrain;
_backbone: their backbone. mmseg: VisionTransformer of mmsegmentation with a final norm. mmseg_setr_naive,
mmseg_setr_pup, mmseg_setr_mla: whole SETR models of mmsegmentation, without that norm (the head's form="openmmlab"; the
last for a ViT with summary="mean"). The names of mae, dinov2, mm and mmseg are from their source.

A table without a row for the class token (timm's no_embed_class: DeiT III, FlexiViT, its DINOv2 with registers) gets
one of zeros. Refused, as no option of ours computes the same: a table with rows for registers."""

_ANTIALIASED = (
    "at other sizes than the weights are for, the code of models with registers resizes positions with antialiasing: as"
    " with position=learned_1d_antialiased"
)
DIFFERS = {
    **segmenters.MMSEG_SETR_DIFFERS,
    **dict.fromkeys(
        (name for name in _TRANSFORMERS if "dinov2" in name and name.endswith(("_registers", "_backbone"))),
        _ANTIALIASED,
    ),
    **dict.fromkeys(
        ("dinov2", "dinov2_swiglu"),
        "at other sizes than the weights are for, its code resizes positions by a factor with 0.1 cells added, which no"
        " option of ours does; with registers antialiased, as with position=learned_1d_antialiased",
    ),
}

_KERNEL = Operation(  # flat, but for model folders, whose kernels are told apart (`loading`)
    lambda tensors, shape, sizes: _PATCHES.forward(tensors, shape, sizes) if tensors[0].dim() == 4 else tensors[0],
    lambda tensor, count, sizes: (tensor,),
)
_OWN = Rules(
    ("backbone.patches.proj.weight", "backbone.patches.proj.weight", _KERNEL),
    *((f"backbone.{name}", f"backbone.{name}") for name in ("class_token", "position.table", "patches.proj.bias")),
    *_block("backbone.blocks.{b}.", {part: part for part in _TIMM_BLOCK.values()}),
    ("backbone.norm.{p}", "backbone.norm.{p}"),
    ("head.*", "head.*"),
)
"""Our own names, whatever the head."""


def starts(cross_family: CrossFamily) -> dict[str, Rules]:
    """The layouts of ViT for a family that starts from it and names its parts alike; "vit_" in front of their names.

    Weights of DINOv2 have factors on the branches, which no such family has, those of distilled DeiT a second class
    token, and some have no learned positions.
    """
    layouts = {
        name: rules
        for name, rules in {**LAYOUTS, "patchform": _OWN}.items()
        if not any(word in name for word in ("dinov2", "distilled", "no_embed"))
        and any(rule[1] == "backbone.position.table" for rule in rules)
    }
    return {
        f"vit_{name}": Rules(*rules, corners=rules.corners, cross_family=cross_family)
        for name, rules in layouts.items()
    }


SCORES = (
    Score(
        variant="b16",
        scores={"imagenet-1k top-1": 84.6},
        source="google-research/vision_transformer README (fine-tuned at 384)",
        image_size=384,
        training="imagenet-21k",
    ),
    Score(
        variant="l16",
        scores={"imagenet-1k top-1": 85.1},
        source="google-research/vision_transformer README (fine-tuned at 384)",
        image_size=384,
        training="imagenet-21k",
    ),
    Score(
        variant="b16",
        scores={"imagenet-1k top-1": 79.15},
        source="AugReg (Steiner et al. 2021), as measured in timm's results-imagenet.csv",
    ),
    Score(
        variant="b16",
        scores={"imagenet-1k top-1": 81.98},
        source="DeiT-B (Touvron et al. 2021), as measured in timm's results-imagenet.csv",
    ),
)

WEIGHTS = FILES
OPTION_HINTS = option_hints.PLAIN
