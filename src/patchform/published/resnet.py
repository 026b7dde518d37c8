"""ResNet: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from patchform.records import Score
from patchform.weights.rules import Rules

LAYOUTS = {
    "torchvision": Rules(  # timm's resnet18 to resnet152 have the same names
        ("conv1.{p}", "backbone.stem.conv.{p}"),
        ("bn1.{p}", "backbone.stem.norm.{p}"),
        ("layer{s+1}.{b}.conv{i+1}.{p}", "backbone.stages.{s}.{b}.branch.{i}.conv.{p}"),
        ("layer{s+1}.{b}.bn{i+1}.{p}", "backbone.stages.{s}.{b}.branch.{i}.norm.{p}"),
        ("layer{s+1}.{b}.downsample.0.{p}", "backbone.stages.{s}.{b}.shortcut.conv.{p}"),
        ("layer{s+1}.{b}.downsample.1.{p}", "backbone.stages.{s}.{b}.shortcut.norm.{p}"),
        ("fc.{p}", "head.classifier.{p}"),
    )
}

SCORES = tuple(
    Score(variant=variant, scores={"imagenet-1k top-1": score}, source="torchvision, weights IMAGENET1K_V1")
    for variant, score in {"18": 69.758, "34": 73.314, "50": 76.130, "101": 77.374, "152": 78.312}.items()
)
