"""Files of weights of ViT: the rows of its `WEIGHTS`."""

from __future__ import annotations

from typing import Any

from patchform.descriptions import Preprocessing, WeightsFile
from patchform.published.base import HALF, Origin, timm, torchvision

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
FILES = (
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
            f"deit_{_LONG[variant[:-2]]}_distilled_patch16_224.fb_in1k",
            tag="deit_distilled_in1k",
            megabytes=megabytes,
            origin=Origin(layout="timm_distilled", options={"class_tokens": 2}, head_options={"parts": (width, width)}),
        )
        for variant, megabytes, width in (("ti16", 24, 192), ("s16", 90, 384), ("b16", 349, 768))
    ),
    *(
        timm(
            f"dinov2_{registers}{size}14",
            f"vit_{name}_patch14_{architecture}.lvd142m",
            megabytes,
            classes=0,
            side=518,
            crop=1.0,
        )
        for registers, architecture in (("", "dinov2"), ("reg_", "reg4_dinov2"))
        for size, name, megabytes in (
            ("s", "small", 88),
            ("b", "base", 346),
            ("l", "large", 1217),
            ("g", "giant", 4546),
        )
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
