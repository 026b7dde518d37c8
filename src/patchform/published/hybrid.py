"""R+ViT: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from torch import Tensor

from patchform.published import vit
from patchform.records import Score
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


def _timm(stem: str) -> tuple[Rule, ...]:
    return (
        ("patch_embed.proj.weight", "backbone.patches.proj.weight", _PATCHES),
        (f"{stem}conv.{{p}}", "backbone.local.stem.conv.{p}"),
        (f"{stem}norm.{{p}}", "backbone.local.stem.norm.{p}"),
        *(
            (f"patch_embed.backbone.stages.{{s}}.blocks.{{u}}.{theirs}.{{p}}", f"{_UNIT}{ours}.{{p}}")
            for theirs, ours in (
                ("conv{i+1}", "branch.{i}.conv"),
                ("norm{i+1}", "branch.{i}.norm"),
                ("downsample.{m}", "shortcut.{m}"),
            )
        ),
        *vit.LAYOUTS["timm"],
    )


LAYOUTS = {
    "timm": Rules(*_timm("patch_embed.backbone.stem.")),
    "timm_stem": Rules(*_timm("patch_embed.backbone.")),
    "google": Rules(
        ("conv_root/kernel", "backbone.local.stem.conv.weight", _KERNEL),
        ("block{s+1}/unit{u+1}/conv{i+1}/kernel", _UNIT + "branch.{i}.conv.weight", _KERNEL),
        ("block{s+1}/unit{u+1}/conv_proj/kernel", _UNIT + "shortcut.conv.weight", _KERNEL),
        *(
            (f"{theirs}/{kind}", f"{ours}.{'weight' if kind == 'scale' else 'bias'}", _CHANNELS)
            for theirs, ours in (
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

timm runs the same weights with gelu="none" and 1e-5 in its group norms; here both are the original's."""

SCORES = (
    Score(
        variant="r50_b16",
        scores={"imagenet-1k top-1": 84.99},
        source="the authors' weights (fine-tuned at 384), as measured in timm's results-imagenet.csv",
        image_size=384,
        training="imagenet-21k",
    ),
)
