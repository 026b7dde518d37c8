"""Axial attention: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from patchform.descriptions import Score
from patchform.weights.operations import squeeze
from patchform.weights.rules import DROP, Rules, prefix

_ATTENTION = Rules(
    ("qkv_transform.weight", "qkv.linear.weight", squeeze(2)),
    ("bn_qkv.{p}", "qkv.norm.{p}"),
    ("relative", "relative"),
    ("bn_similarity.{p}", "score_norm.{p}"),
    ("bn_output.{p}", "out_norm.{p}"),
    ("flatten_index", DROP),
)
_BLOCK = Rules(
    ("conv_down.weight", "down.linear.weight", squeeze(2, 3)),
    ("bn1.{p}", "down.norm.{p}"),
    *prefix(_ATTENTION, "hight_block.", "height."),  # so spelled in the files
    *prefix(_ATTENTION, "width_block.", "width."),
    ("conv_up.weight", "up.linear.weight", squeeze(2, 3)),
    ("bn2.{p}", "up.norm.{p}"),
    ("downsample.0.weight", "shortcut.linear.weight", squeeze(2, 3)),
    ("downsample.1.{p}", "shortcut.norm.{p}"),
)
LAYOUTS = {
    "axial_deeplab": Rules(
        ("conv1.{p}", "backbone.stem.conv.{p}"),
        ("bn1.{p}", "backbone.stem.norm.{p}"),
        *prefix(_BLOCK, "layer{s+1}.{b}.", "backbone.stages.{s}.{b}."),
        ("fc.{p}", "head.classifier.{p}"),
    )
}
"""axial_deeplab: csrhddlam/axial-deeplab."""

SCORES = (Score(variant="26s", scores={"imagenet-1k top-1": 75.8}, source="csrhddlam/axial-deeplab README"),)
