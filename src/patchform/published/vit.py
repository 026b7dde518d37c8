"""ViT: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from patchform.descriptions import Preprocessing, Score, WeightsFile
from patchform.published import dino, mae, segmenters
from patchform.published.base import HALF, Origin, timm, torchvision
from patchform.weights import flax
from patchform.weights.cross_family import CrossFamily
from patchform.weights.operations import Operation, join, reshape
from patchform.weights.rules import Drop, Rule, Rules, prefix

_QKV = ("query", "key", "value")
_PATCHES = reshape(-1, "channels", "patch", "patch")
_MASK = Drop("stands for hidden patches in pre-training")
_DECODER = Drop("the decoder of pre-training")


def _stem(names: str, kernel: str, token: str, positions: str) -> tuple[Rule, ...]:
    """Class token, positions and patches, whose names begin with `names`."""
    return (
        (names + token, "backbone.class_token"),
        (names + positions, "backbone.position.table"),
        (f"{names}{kernel}.weight", "backbone.patches.proj.weight", _PATCHES),
        (f"{names}{kernel}.bias", "backbone.patches.proj.bias"),
    )


def _block(source: str, parts: Mapping[str, str], number: str = "{b}") -> tuple[Rule, ...]:
    """Parts of a block, source to target."""
    return tuple((source + part, f"backbone.blocks.{number}.{target}") for part, target in parts.items())


# ------------------------------------------------------------------------------------------- the names of timm and
# cross_family

_TIMM_BLOCK = {
    "attn.{m}.{p}": "attention.{m}.{p}",
    "mlp.{m}.{p}": "mlp.{m}.{p}",
    "ls{n}.gamma": "scale{n}.gamma",
    "norm{n}.{p}": "norm{n}.{p}",
}


def _timm(registers: str, blocks: Iterable[Rule]) -> tuple[Rule, ...]:
    return (
        *_stem("", "patch_embed.proj", "cls_token", "pos_embed"),
        (registers, "backbone.register_tokens"),
        *blocks,
        ("norm.{p}", "backbone.norm.{p}"),
        ("pre_logits.fc.{p}", "head.pre_logits.{p}"),  # of timm before 0.6
        ("head.{p}", "head.classifier.{p}"),
    )


def _chunks(count: int, size: int) -> Iterable[Rule]:
    """Blocks that are numbered through, behind the number of their chunk."""
    for b in range(count * size):
        yield from _block(f"blocks.{b // size}.{b}.", _TIMM_BLOCK, str(b))


_TIMM = _timm("reg_token", _block("blocks.{b}.", _TIMM_BLOCK))

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

_VIT_BLOCK = {"layernorm_before.{p}": "norm1.{p}", "layernorm_after.{p}": "norm2.{p}"}
_DINOV2_BLOCK = {
    "norm{n}.{p}": "norm{n}.{p}",
    "mlp.{m}.{p}": "mlp.{m}.{p}",
    "layer_scale{n}.lambda1": "scale{n}.gamma",
}
_FILE_ATTENTION = ("attention.attention.{}.{{p}}", "attention.output.dense.{p}", _QKV)
_MEMORY_ATTENTION = ("attention.{}_proj.{{p}}", "attention.o_proj.{p}", ("q", "k", "v"))


def _transformers(
    root: str, blocks: str, parts: Mapping[str, str], attention: tuple[str, str, tuple[str, ...]]
) -> Rules:
    """A model whose backbone is below `root`: "vit." where it stands beside a classifier, else ""."""
    block, (layer, out, names) = f"{root}{blocks}.{{b}}.", attention
    return Rules(
        *_stem(f"{root}embeddings.", "patch_embeddings.projection", "cls_token", "position_embeddings"),
        (f"{root}embeddings.register_tokens", "backbone.register_tokens"),
        (f"{root}embeddings.mask_token", _MASK),
        (tuple(block + layer.format(name) for name in names), "backbone.blocks.{b}.attention.qkv.{p}", join),
        *_block(block, {out: "attention.proj.{p}", **parts}),
        (f"{root}layernorm.{{p}}", "backbone.norm.{p}"),
        (f"{root}pooler.dense.{{p}}", "head.pre_logits.{p}"),
        ("classifier.{p}", "head.classifier.{p}"),
        ("decoder.*", _DECODER),
    )


_VIT_FILE = _VIT_BLOCK | {"intermediate.dense.{p}": "mlp.fc1.{p}", "output.dense.{p}": "mlp.fc2.{p}"}
_VIT_MEMORY = _VIT_BLOCK | {"mlp.{m}.{p}": "mlp.{m}.{p}"}
_ROOTS = {"": "vit.", "_backbone": ""}
_DINOV2_ROOTS = {"": "dinov2.", "_registers": "dinov2_with_registers.", "_backbone": ""}
_TRANSFORMERS = {
    **{
        f"transformers{of}": _transformers(root, "encoder.layer", _VIT_FILE, _FILE_ATTENTION)
        for of, root in _ROOTS.items()
    },
    **{
        f"transformers_5{of}": _transformers(root, "layers", _VIT_MEMORY, _MEMORY_ATTENTION)
        for of, root in _ROOTS.items()
    },
    **{
        f"transformers{version}_dinov2{of}": _transformers(root, "encoder.layer", _DINOV2_BLOCK, attention)
        for version, attention in (("", _FILE_ATTENTION), ("_5", _MEMORY_ATTENTION))
        for of, root in _DINOV2_ROOTS.items()
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
    "dinov2": Rules(*_timm("register_tokens", _block("blocks.{b}.", _TIMM_BLOCK)), ("mask_token", _MASK)),
    **{
        f"dinov2_4x{size}": Rules(*_timm("register_tokens", _chunks(4, size)), ("mask_token", _MASK)) for size in (3, 6)
    },
    "mm": Rules(*prefix(_MM, "backbone.", ""), *_MM_HEAD),
    "mm_backbone": Rules(*_MM, *_MM_HEAD),
    "dino": dino.layout(Rules(*_TIMM)),
    "dinov2_training": dino.layout(
        Rules(*_timm("register_tokens", _block("blocks.{b}.", _TIMM_BLOCK)), ("mask_token", _MASK))
    ),
    **segmenters.setr(Rules(*_TIMM)),
    "mmseg": Rules(*_MMSEG, *_MM_HEAD),
    **segmenters.mmseg_setr(_MMSEG),
}
"""timm: also facebookresearch/deit (without distillation) and facebookresearch/dino, whose file of student and teacher
wants prefix="module.backbone." or "backbone.". google: arrays of the .npz files of
google-research/vision_transformer (they want gelu="tanh"). big_vision: those of google-research/big_vision with
learned positions and the mean of the patches (summary="mean"). transformers: ViT and ViT-MAE as files have them; _5:
as they are in memory since its version 5; _dinov2: Dinov2 and Dinov2WithRegisters; _backbone: a bare model, whose
pooler is our hidden layer. Where a configuration has 1e-12 in the norms, ours have 1e-6. mae: files of pre-training
by facebookresearch/mae, without their decoder; with it, and for backbones of fixed positions: see `published.mae`.
dinov2: facebookresearch/dinov2; _4xN: as it trains, in 4 chunks of N blocks. setr_naive, setr_pup, setr_mla: whole
models of fudan-zvg/SETR, the last for a ViT with summary="mean". mm: classifiers of mmpretrain; _backbone: their
backbone. mmseg: VisionTransformer of mmsegmentation with a final norm. mmseg_setr_naive, mmseg_setr_pup,
mmseg_setr_mla: whole SETR models of mmsegmentation, without that norm (the head's form="openmmlab"; the last for a ViT
with summary="mean"). The names of mae, dinov2, mm and mmseg are from their source.

A table without a row for the class token (timm's no_embed_class, so its DINOv2 with registers) gets one of zeros.
Refused, as no option of ours computes the same: distilled DeiT (a second token with a classifier); a table with
rows for registers; a norm behind the mean (timm's fc_norm, MAE fine-tuned); the SwiGLU of DINOv2's g14; the
classifier of Dinov2ForImageClassification, which reads the mean beside the class token."""

DIFFERS = segmenters.MMSEG_SETR_DIFFERS

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

    Weights of DINOv2 have factors on the branches, which no such family has, and some have no learned positions.
    """
    layouts = {
        name: rules
        for name, rules in {**LAYOUTS, "patchform": _OWN}.items()
        if "dinov2" not in name and any(rule[1] == "backbone.position.table" for rule in rules)
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

_LONG = {"ti": "tiny", "s": "small", "b": "base", "l": "large"}
_MEGABYTES = {"ti16": 23, "s8": 88, "s14": 88, "s16": 88, "s32": 92} | {
    **dict.fromkeys(("b8", "b14", "b16"), 346),
    **dict.fromkeys(("l14", "l16"), 1217),
    **{"b32": 353, "l32": 1226, "h14": 2528},
}


def _row(variant: str, architecture: str, *, megabytes: int = 0, **more: Any) -> WeightsFile:
    """A file of timm; in the architecture {} stands for small_patch16."""
    size = variant.rstrip("0123456789")
    name = architecture.format(f"{_LONG[size]}_patch{variant.removeprefix(size)}")
    return timm(variant, name, megabytes or _MEGABYTES[variant], **more)


def _google_row(variant: str, recipe: str) -> WeightsFile:
    return WeightsFile(
        variant=variant,
        tag="google_augreg_in21k_ft_in1k",
        place=f"https://storage.googleapis.com/vit_models/augreg/{recipe}-res_224.npz",
        megabytes=_MEGABYTES[variant],
        licence="apache-2.0",
        layout="google",
        preprocessing=Preprocessing(mean=HALF, std=HALF, crop_share=0.9),
        classes=1000,
        labels="imagenet-1k",
        backbone_options={"gelu": "tanh"},
    )


_AUGREG = Origin(half=True)
WEIGHTS = (
    *(
        _row(variant, "vit_{}_224.augreg_in21k_ft_in1k", origin=_AUGREG)
        for variant in ("ti16", "s16", "s32", "b8", "b16", "b32", "l16")
    ),
    *(
        _row(
            variant,
            "vit_{}_384.augreg_in21k_ft_in1k",
            tag="augreg_in21k_ft_in1k_384",
            origin=_AUGREG,
            side=384,
            crop=1.0,
        )
        for variant in ("ti16", "s16", "s32", "b16", "b32", "l16")
    ),
    *(
        _row(variant, "vit_{}_224.augreg_in21k", megabytes=megabytes, origin=_AUGREG, classes=21_843)
        for variant, megabytes in {"ti16": 39, "s16": 120, "b16": 410, "b32": 417, "l16": 1303}.items()
    ),
    *(_row(variant, "deit_{}_224.fb_in1k", tag="deit_in1k") for variant in ("ti16", "s16", "b16")),
    _row("b16", "deit_{}_384.fb_in1k", tag="deit_in1k_384", side=384, crop=1.0),
    *(_row(variant, "vit_{}_224.dino", classes=0) for variant in ("s8", "s16", "b8", "b16")),
    *(
        _row(
            variant,
            "vit_{}_dinov2.lvd142m",
            tag="dinov2_lvd142m",
            classes=0,
            side=518,
            crop=1.0,
            origin=Origin(options={"layer_scale": 1e-5}),
        )
        for variant in ("s14", "b14", "l14")
    ),
    *(_row(variant, "vit_{}_224.mae", classes=0, origin=Origin(licence="cc-by-nc-4.0")) for variant in ("b16", "l16")),
    *(
        torchvision(variant, f"{name}/IMAGENET1K_V1", _MEGABYTES[variant], resize=resize, interpolation="bilinear")
        for variant, name, resize in (
            ("b16", "vit_b_16", 256),
            ("b32", "vit_b_32", 256),
            ("l16", "vit_l_16", 242),
            ("l32", "vit_l_32", 256),
        )
    ),
    *(
        torchvision(
            variant,
            f"{name}/IMAGENET1K_SWAG_E2E_V1",
            _MEGABYTES[variant],
            side=side,
            resize=side,
            licence="https://github.com/facebookresearch/SWAG/blob/main/LICENSE",
        )
        for variant, name, side in (("b16", "vit_b_16", 384), ("l16", "vit_l_16", 512), ("h14", "vit_h_14", 518))
    ),
    _google_row("ti16", "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03"),
    _google_row("s16", "S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03"),
    _google_row("b16", "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01"),
    _google_row("l16", "L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1--imagenet2012-steps_20k-lr_0.01"),
)
