"""ResNet: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from patchform.descriptions import Score
from patchform.published import detr, dino, faster_rcnn, retinanet, segmenters
from patchform.published.base import Origin, timm
from patchform.weights.rules import Rules, prefix

_TORCHVISION = Rules(
    ("conv1.{p}", "backbone.stem.conv.{p}"),
    ("bn1.{p}", "backbone.stem.norm.{p}"),
    ("layer{s+1}.{b}.conv{i+1}.{p}", "backbone.stages.{s}.{b}.branch.{i}.conv.{p}"),
    ("layer{s+1}.{b}.bn{i+1}.{p}", "backbone.stages.{s}.{b}.branch.{i}.norm.{p}"),
    ("layer{s+1}.{b}.downsample.0.{p}", "backbone.stages.{s}.{b}.shortcut.conv.{p}"),
    ("layer{s+1}.{b}.downsample.1.{p}", "backbone.stages.{s}.{b}.shortcut.norm.{p}"),
)
_TRANSFORMERS = Rules(
    ("embedder.embedder.convolution.{p}", "backbone.stem.conv.{p}"),
    ("embedder.embedder.normalization.{p}", "backbone.stem.norm.{p}"),
    *(
        (
            f"encoder.stages.{{s}}.layers.{{b}}.{source}.{part}.{{p}}",
            f"backbone.stages.{{s}}.{{b}}.{target}.{own}.{{p}}",
        )
        for source, target in (("layer.{i}", "branch.{i}"), ("shortcut", "shortcut"))
        for part, own in (("convolution", "conv"), ("normalization", "norm"))
    ),
)

LAYOUTS = {
    "torchvision": Rules(*_TORCHVISION, ("fc.{p}", "head.classifier.{p}")),
    **{
        name: Rules(*prefix(_TRANSFORMERS, root, ""), ("classifier.1.{p}", "head.classifier.{p}"))
        for name, root in {"transformers": "resnet.", "transformers_backbone": ""}.items()
    },
    "mm": Rules(*prefix(_TORCHVISION, "backbone.", ""), ("head.fc.{p}", "head.classifier.{p}")),
    "dino": dino.layout(_TORCHVISION),
    **retinanet.layouts(_TORCHVISION),
    **faster_rcnn.layouts(_TORCHVISION),
    **detr.layouts(_TORCHVISION, _TRANSFORMERS),
    **{f"mmseg_{name}": rules for name, rules in segmenters.behind(_TORCHVISION, segmenters.MMSEG_HEADS).items()},
}
"""mmseg_upernet, mmseg_semantic_fpn: whole segmenters without a deep stem (depth 50 of mmseg's "ResNet").
torchvision: also timm's resnet18 to resnet152, and what mmdet, mmseg and DETR have behind prefix="backbone." or
"backbone.0.body.". transformers: ResNetForImageClassification; _backbone: ResNetModel. mm: classifiers of
mmpretrain, names of their source. detr, torchvision_retinanet, torchvision_rcnn and what begins so: see
`published.detr`, `published.retinanet` and `published.faster_rcnn`. ResNets with a deep stem or a mean in their
shortcuts (ResNet-D, resnet50c) are refused."""

SCORES = tuple(
    Score(variant=variant, scores={"imagenet-1k top-1": score}, source="torchvision, weights IMAGENET1K_V1")
    for variant, score in {"18": 69.758, "34": 73.314, "50": 76.130, "101": 77.374, "152": 78.312}.items()
)

WEIGHTS = tuple(
    timm(
        variant,
        f"resnet{variant}.tv_in1k",
        megabytes,
        tag="torchvision_v1",
        crop=0.875,
        origin=Origin("torchvision", "bsd-3-clause", "bilinear"),
    )
    for variant, megabytes in {"18": 47, "34": 87, "50": 102, "101": 179, "152": 241}.items()
)
"""The files of torchvision as timm's organisation keeps them in safetensors."""
