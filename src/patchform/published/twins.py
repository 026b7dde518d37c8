"""Twins: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from typing import Any

from patchform.descriptions import Score
from patchform.published import segmenters
from patchform.published.base import Origin, timm
from patchform.weights.operations import join_shares, squares
from patchform.weights.rules import Drop, Rule, Rules, prefix

_BLOCK = "backbone.stages.{s}.{b}"


def _shared(project: str, blocks: str) -> tuple[Rule, ...]:
    """What the authors and OpenMMLab call alike but for two words."""
    block = f"{blocks}.{{s}}.{{b}}"
    return (
        (f"patch_embeds.0.{project}.weight", "backbone.patches.0.proj.weight", squares(4)),
        (f"patch_embeds.{{s}}.{project}.weight", "backbone.patches.{s}.proj.weight", squares(2)),
        (f"patch_embeds.{{s}}.{project}.bias", "backbone.patches.{s}.proj.bias"),
        ("patch_embeds.{s}.norm.{p}", "backbone.patches_norms.{s}.{p}"),
        (f"{block}.attn.sr.weight", f"{_BLOCK}.attention.reduction.squares.proj.weight", squares()),
        (f"{block}.attn.sr.bias", f"{_BLOCK}.attention.reduction.squares.proj.bias"),
        (f"{block}.attn.norm.{{p}}", f"{_BLOCK}.attention.reduction.norm.{{p}}"),
        (f"{block}.attn.{{m}}.{{p}}", f"{_BLOCK}.attention.{{m}}.{{p}}"),
        (f"{block}.norm{{n}}.{{p}}", f"{_BLOCK}.norm{{n}}.{{p}}"),
    )


_MEITUAN: tuple[Rule, ...] = (
    *_shared("proj", "blocks"),
    ("pos_block.{s}.proj.0.{p}", "backbone.positions.{s}.conv.{p}"),
    ("blocks.{s}.{b}.mlp.{m}.{p}", f"{_BLOCK}.mlp.{{m}}.{{p}}"),
    ("head.{p}", "head.classifier.{p}"),
)
_NORM: Rule = ("norm.{p}", "backbone.norm.{p}")
_NORMS: Rule = ("norm_list.{s}.{p}", "backbone.map_norms.{s}.{p}")


def _mm(blocks: str) -> tuple[Rule, ...]:
    return (
        ("position_encodings.{s}.proj.{p}", "backbone.positions.{s}.conv.{p}"),
        (f"{blocks}.{{s}}.{{b}}.ffn.layers.0.0.{{p}}", f"{_BLOCK}.mlp.fc1.{{p}}"),
        (f"{blocks}.{{s}}.{{b}}.ffn.layers.1.{{p}}", f"{_BLOCK}.mlp.fc2.{{p}}"),
        *_shared("projection", blocks),
    )


_MM = Rules(*_mm("stages"), ("norm_after_stage3.{p}", "backbone.norm.{p}"))
_LOOK = f"{_BLOCK}.attention"
_MMSEG = Rules(  # SVT; every other block, of at most 18, looks within windows, and its projection has another name
    *(
        (f"layers.{{s}}.{b}.attn.proj.{{p}}", f"backbone.stages.{{s}}.{b}.attention.proj.{{p}}")
        for b in range(0, 18, 2)
    ),
    ("layers.{s}.{b}.attn.attn.in_proj_{p}", (f"{_LOOK}.q.{{p}}", f"{_LOOK}.kv.{{p}}"), join_shares(1, 2)),
    ("layers.{s}.{b}.attn.attn.out_proj.{p}", f"{_LOOK}.proj.{{p}}"),
    *_mm("layers"),
    _NORMS,
)
_MM_HEAD: Rule = ("head.fc.{p}", "head.classifier.{p}")

LAYOUTS = {
    "meituan": Rules(*_MEITUAN, _NORM),
    "meituan_dense": Rules(*_MEITUAN, _NORMS, ("norm.{p}", Drop("the authors' dense code does not use it"))),
    "mm": Rules(*prefix(_MM, "backbone.", ""), _MM_HEAD),
    "mm_backbone": Rules(*_MM, _MM_HEAD),
    "mmseg_svt": Rules(*_MMSEG, _MM_HEAD),
}
LAYOUTS |= {
    f"{layout}_{head}": rules
    for layout in ("meituan_dense", "mmseg_svt")
    for head, rules in segmenters.behind(LAYOUTS[layout], segmenters.MMSEG_HEADS).items()
}
"""_upernet, _semantic_fpn: whole segmenters (norm_maps=True, the head's norm "none"). meituan: Meituan-AutoML/Twins
and timm; _dense: the former's detectors and segmenters (norm_maps=True). mm: classifiers of open-mmlab/mmpretrain;
_backbone: their backbone. mmseg_svt: what is behind prefix="backbone." in segmenters of open-mmlab/mmsegmentation
(norm_maps=True); those with PCPVT have no norm of the tokens and are refused. The names of mm and mmseg_svt are
from the sources, not run."""

COMPUTES: dict[str, dict[str, Any]] = {
    "meituan": {"windows": "zeros"},
    "meituan_dense": {"windows": "zeros"},
    "mm": {"windows": "zeros_half"},
    "mm_backbone": {"windows": "zeros_half"},
    "mmseg_svt": {"windows": "zeros_half"},
}
COMPUTES |= {
    f"{layout}_{head}": {"windows": "zeros_half"}
    for layout in ("meituan_dense", "mmseg_svt")
    for head in segmenters.MMSEG_HEADS
}
"""meituan is timm's; the authors' classifiers ask for maps of whole windows. meituan_dense is that of their detectors;
their segmenters compute with zeros_half."""

DIFFERS = dict.fromkeys(
    ("meituan", "meituan_dense"),
    "the authors' code and timm leave out what makes no whole square at sizes that 32 does not divide; here, as with "
    "OpenMMLab, zeros fill it",
)

SCORES = tuple(
    Score(variant=variant, scores={"imagenet-1k top-1": score}, source="Meituan-AutoML/Twins README")
    for variant, score in {
        "pcpvt_s": 81.2,
        "pcpvt_b": 82.7,
        "pcpvt_l": 83.1,
        "svt_s": 81.7,
        "svt_b": 83.2,
        "svt_l": 83.7,
    }.items()
)

WEIGHTS = tuple(
    timm(f"{kind}_{size[0]}", f"twins_{kind}_{size}.in1k", megabytes, origin=Origin(layout="meituan"))
    for kind, sizes in {"pcpvt": (96, 175, 244), "svt": (96, 224, 397)}.items()
    for size, megabytes in zip(("small", "base", "large"), sizes)
)
