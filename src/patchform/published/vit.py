"""ViT: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from patchform.records import Score
from patchform.weights import flax
from patchform.weights.operations import reshape
from patchform.weights.rules import Rules, prefix

_PATCHES = reshape(-1, "channels", "patch", "patch")
_TIMM = Rules(
    ("cls_token", "class_token"),
    ("reg_token", "register_tokens"),
    ("pos_embed", "position.table"),
    ("patch_embed.proj.weight", "patches.proj.weight", _PATCHES),
    ("patch_embed.proj.bias", "patches.proj.bias"),
    ("blocks.{b}.attn.{m}.{p}", "blocks.{b}.attention.{m}.{p}"),
    ("blocks.{b}.mlp.{m}.{p}", "blocks.{b}.mlp.{m}.{p}"),
    ("blocks.{b}.ls{n}.gamma", "blocks.{b}.scale{n}.gamma"),
    ("blocks.{b}.norm{n}.{p}", "blocks.{b}.norm{n}.{p}"),
    ("norm.{p}", "norm.{p}"),
)
_TORCHVISION = Rules(
    ("class_token", "class_token"),
    ("encoder.pos_embedding", "position.table"),
    ("conv_proj.weight", "patches.proj.weight", _PATCHES),
    ("conv_proj.bias", "patches.proj.bias"),
    ("encoder.layers.encoder_layer_{b}.self_attention.in_proj_{p}", "blocks.{b}.attention.qkv.{p}"),
    ("encoder.layers.encoder_layer_{b}.self_attention.out_proj.{p}", "blocks.{b}.attention.proj.{p}"),
    ("encoder.layers.encoder_layer_{b}.ln_{n}.{p}", "blocks.{b}.norm{n}.{p}"),
    ("encoder.layers.encoder_layer_{b}.mlp.0.{p}", "blocks.{b}.mlp.fc1.{p}"),
    ("encoder.layers.encoder_layer_{b}.mlp.3.{p}", "blocks.{b}.mlp.fc2.{p}"),
    ("encoder.ln.{p}", "norm.{p}"),
)
_BLOCK, _LOOK = "Transformer/encoderblock_{b}/", "Transformer/encoderblock_{b}/MultiHeadDotProductAttention_1/"
_QKV = ("query", "key", "value")
_GOOGLE = Rules(  # the counters 0, 1, 2, 3 inside a block are those of all released files
    ("cls", "class_token"),
    ("Transformer/posembed_input/pos_embedding", "position.table"),
    ("embedding/kernel", "patches.proj.weight", flax.patches),
    ("embedding/bias", "patches.proj.bias"),
    *(
        (
            tuple(f"{_LOOK}{part}/{theirs}" for part in _QKV),
            f"blocks.{{b}}.attention.qkv.{ours}",
            flax.qkv,
        )
        for theirs, ours in (("kernel", "weight"), ("bias", "bias"))
    ),
    (f"{_LOOK}out/kernel", "blocks.{b}.attention.proj.weight", flax.out),
    (f"{_LOOK}out/bias", "blocks.{b}.attention.proj.bias"),
    (f"{_BLOCK}MlpBlock_3/Dense_0/kernel", "blocks.{b}.mlp.fc1.weight", flax.dense),
    (f"{_BLOCK}MlpBlock_3/Dense_0/bias", "blocks.{b}.mlp.fc1.bias"),
    (f"{_BLOCK}MlpBlock_3/Dense_1/kernel", "blocks.{b}.mlp.fc2.weight", flax.dense),
    (f"{_BLOCK}MlpBlock_3/Dense_1/bias", "blocks.{b}.mlp.fc2.bias"),
    *(
        (f"{theirs}/{part}", f"{ours}.{'weight' if part == 'scale' else 'bias'}")
        for theirs, ours in (
            (f"{_BLOCK}LayerNorm_0", "blocks.{b}.norm1"),
            (f"{_BLOCK}LayerNorm_2", "blocks.{b}.norm2"),
            ("Transformer/encoder_norm", "norm"),
        )
        for part in ("scale", "bias")
    ),
)

LAYOUTS = {
    "timm": Rules(*prefix(_TIMM, "", "backbone."), ("head.{p}", "head.classifier.{p}")),
    "torchvision": Rules(*prefix(_TORCHVISION, "", "backbone."), ("heads.head.{p}", "head.classifier.{p}")),
    "google": Rules(
        *prefix(_GOOGLE, "", "backbone."),
        ("head/kernel", "head.classifier.weight", flax.dense),
        ("head/bias", "head.classifier.bias"),
        ("pre_logits/kernel", "head.pre_logits.weight", flax.dense),
        ("pre_logits/bias", "head.pre_logits.bias"),
    ),
}
"""google: arrays of the .npz files of google-research/vision_transformer (they want gelu="tanh")."""

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
