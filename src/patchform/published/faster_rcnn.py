"""Faster R-CNN and Mask R-CNN: layouts of weights of their heads, to be put behind those of a backbone."""

from __future__ import annotations

from patchform.weights.rules import Rules, prefix


def _torchvision(pyramid: str, proposals: str, masks: str) -> Rules:
    """What stands between a name and its tensor: in the pyramid, in the proposals; and the convolutions of masks."""
    return Rules(
        (f"backbone.fpn.inner_blocks.{{i}}.{pyramid}{{p}}", "head.neck.pyramid.laterals.{i}.{p}"),
        (f"backbone.fpn.layer_blocks.{{i}}.{pyramid}{{p}}", "head.neck.pyramid.outputs.{i}.{p}"),
        (f"rpn.head.conv.{proposals}{{p}}", "head.rpn.conv.{p}"),
        ("rpn.head.cls_logits.{p}", "head.rpn.objectness.{p}"),
        ("rpn.head.bbox_pred.{p}", "head.rpn.shifts.{p}"),
        ("roi_heads.box_head.fc{n+6}.{p}", "head.box_head.layers.{n}.{p}"),
        ("roi_heads.box_predictor.cls_score.{p}", "head.box_head.classify.{p}"),
        ("roi_heads.box_predictor.bbox_pred.{p}", "head.box_head.shift.{p}"),
        (f"roi_heads.mask_head.{masks}.{{p}}", "head.mask.convs.{n}.{p}"),
        ("roi_heads.mask_predictor.conv5_mask.{p}", "head.mask.enlarge.{p}"),
        ("roi_heads.mask_predictor.mask_fcn_logits.{p}", "head.mask.classify.{p}"),
    )


TORCHVISION = _torchvision("0.", "0.0.", "{n}.0")
"""torchvision's fasterrcnn_resnet50_fpn and maskrcnn_resnet50_fpn as the library has them in memory. They want boxes
{"aligned": False} and proposals {"spacing": "input"}. Their _v2 have norms in places where ours have none."""

TORCHVISION_FIRST = _torchvision("", "", "mask_fcn{n+1}")
"""The names of their first version, which the files still have."""


def layouts(backbone: Rules) -> dict[str, Rules]:
    """Layouts of the whole detector on a backbone that torchvision names so."""
    behind = prefix(backbone, "backbone.body.", "")
    return {
        "torchvision_rcnn": Rules(*behind, *TORCHVISION),
        "torchvision_rcnn_first": Rules(*behind, *TORCHVISION_FIRST),
    }
