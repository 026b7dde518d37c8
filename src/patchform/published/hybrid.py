"""R+ViT: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from torch import Tensor

from patchform.descriptions import Score
from patchform.published import vit
from patchform.published.base import Origin, timm
from patchform.weights.operations import Operation, Sizes, permute
from patchform.weights.rules import Rule, Rules

_KERNEL = permute(3, 2, 0, 1)  # flax has (row, column, C, D)
_CHANNELS = Operation(  # (1, 1, 1, C) in the published files, (C,) in those that later code writes
    lambda tensors, shape, sizes: tensors[0].reshape(shape),
    lambda tensor, count, sizes: (tensor.view(1, 1, 1, -1),),
)


def _squares(tensor: Tensor, count: int, sizes: Sizes) -> tuple[Tensor, ...]:
    return (tensor.reshape(len(tensor), -1, sizes["patch"], sizes["patch"]),)


_PATCHES = Operation(lambda tensors, shape, sizes: tensors[0].reshape(shape), _squares)
_UNIT = "backbone.local.stages.{s}.{u}."


def _units(source: str) -> tuple[Rule, ...]:
    return (
        (f"{source}.conv{{i+1}}.{{p}}", _UNIT + "branch.{i}.conv.{p}"),
        (f"{source}.norm{{i+1}}.{{p}}", _UNIT + "branch.{i}.norm.{p}"),
        (f"{source}.downsample.{{m}}.{{p}}", _UNIT + "shortcut.{m}.{p}"),
    )


def _timm(stem: str) -> tuple[Rule, ...]:
    return (
        ("patch_embed.proj.weight", "backbone.patches.proj.weight", _PATCHES),
        (f"{stem}conv.{{p}}", "backbone.local.stem.conv.{p}"),
        (f"{stem}norm.{{p}}", "backbone.local.stem.norm.{p}"),
        *_units("patch_embed.backbone.stages.{s}.blocks.{u}"),
        *vit.LAYOUTS["timm"],
    )


_BIT = "vit.embeddings.patch_embeddings.backbone.bit."

LAYOUTS = {
    "timm": Rules(*_timm("patch_embed.backbone.stem.")),
    "timm_stem": Rules(*_timm("patch_embed.backbone.")),
    "transformers": Rules(
        ("vit.embeddings.patch_embeddings.projection.weight", "backbone.patches.proj.weight", _PATCHES),
        (f"{_BIT}embedder.convolution.{{p}}", "backbone.local.stem.conv.{p}"),
        (f"{_BIT}embedder.norm.{{p}}", "backbone.local.stem.norm.{p}"),
        *_units(f"{_BIT}encoder.stages.{{s}}.layers.{{u}}"),
        *vit.LAYOUTS["transformers"],
    ),
    "google": Rules(
        ("conv_root/kernel", "backbone.local.stem.conv.weight", _KERNEL),
        ("block{s+1}/unit{u+1}/conv{i+1}/kernel", _UNIT + "branch.{i}.conv.weight", _KERNEL),
        ("block{s+1}/unit{u+1}/conv_proj/kernel", _UNIT + "shortcut.conv.weight", _KERNEL),
        *(
            (f"{source}/{kind}", f"{target}.{'weight' if kind == 'scale' else 'bias'}", _CHANNELS)
            for source, target in (
                ("gn_root", "backbone.local.stem.norm"),
                ("block{s+1}/unit{u+1}/gn{i+1}", _UNIT + "branch.{i}.norm"),
                ("block{s+1}/unit{u+1}/gn_proj", _UNIT + "shortcut.norm"),
            )
            for kind in ("scale", "bias")
        ),
        *vit.LAYOUTS["google"],
    ),
}
"""google: arrays of the .npz files of google-research/vision_transformer. timm_stem: r_ti16, which has no stages there.
transformers: files of ViTHybrid, which left transformers with its version 5; its Bit is still there.

timm runs the same weights with gelu="none" and 1e-5 in its group norms; here both are the original's."""

DIFFERS = {
    "timm_stem": "timm refuses sizes that 32 does not divide; here zeros fill the last patches",
    "google": "the authors' code leaves out the cells that make no whole patch; here zeros fill it",
}

SCORES = (
    Score(
        variant="r50_b16",
        scores={"imagenet-1k top-1": 84.99},
        source="the authors' weights (fine-tuned at 384), as measured in timm's results-imagenet.csv",
        image_size=384,
        training="imagenet-21k",
    ),
)

_AUGREG = Origin(half=True)
WEIGHTS = (
    timm("r_ti16", "vit_tiny_r_s16_p8_224.augreg_in21k_ft_in1k", 25, origin=Origin("timm_stem", half=True)),
    timm("r26_s32", "vit_small_r26_s32_224.augreg_in21k_ft_in1k", 146, origin=_AUGREG),
    timm("r50_l32", "vit_large_r50_s32_224.augreg_in21k_ft_in1k", 1316, origin=_AUGREG),
    timm("r50_b16", "vit_base_r50_s16_384.orig_in21k_ft_in1k", 395, side=384, crop=1.0, origin=_AUGREG),
)
