"""BoTNet: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from patchform.descriptions import Score
from patchform.published import resnet
from patchform.weights.operations import squeeze
from patchform.weights.rules import Rules, prefix

_STACK = Rules(
    ("net.{b}.shortcut.0.{p}", "blocks.{b}.shortcut.conv.{p}"),
    ("net.{b}.shortcut.1.{p}", "blocks.{b}.shortcut.norm.{p}"),
    ("net.{b}.net.0.{p}", "blocks.{b}.reduce.conv.{p}"),
    ("net.{b}.net.1.{p}", "blocks.{b}.reduce.norm.{p}"),
    ("net.{b}.net.3.to_qkv.weight", "blocks.{b}.attention.qkv.weight", squeeze(2, 3)),
    ("net.{b}.net.3.pos_emb.rel_height", "blocks.{b}.attention.position.rows"),
    ("net.{b}.net.3.pos_emb.rel_width", "blocks.{b}.attention.position.columns"),
    ("net.{b}.net.5.{p}", "blocks.{b}.norm.{p}"),
    ("net.{b}.net.7.{p}", "blocks.{b}.expand.conv.{p}"),
    ("net.{b}.net.8.{p}", "blocks.{b}.expand.norm.{p}"),
)

LAYOUTS = {"lucidrains": Rules(*prefix(_STACK, "layer4.", "backbone."), *resnet.LAYOUTS["torchvision"])}
"""No weights were published. lucidrains: torchvision's ResNet whose `layer4` is the BottleStack of lucidrains'
bottleneck-transformer-pytorch, with the projection made the 1x1 convolution that it is in the authors' code."""

SCORES: tuple[Score, ...] = ()
"""The paper's numbers for T3 to T7 are of models with squeeze-and-excitation, which these are not."""
