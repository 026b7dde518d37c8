"""RetinaNet: layouts of weights of its head, to be put behind those of a backbone."""

from __future__ import annotations

from collections.abc import Mapping

from patchform.weights.rules import Rules, prefix

TOWERS = {
    "head.classification_head": ("cls_logits", "head.classify"),
    "head.regression_head": ("bbox_reg", "head.move"),
}


def _torchvision(inside: str, convolutions: Mapping[str, str]) -> Rules:
    """`inside` stands between a convolution of the pyramid and its tensors; towers by their names and ours."""
    return Rules(
        (f"backbone.fpn.inner_blocks.{{i}}.{inside}{{p}}", "head.pyramid.laterals.{i}.{p}"),
        (f"backbone.fpn.layer_blocks.{{i}}.{inside}{{p}}", "head.pyramid.outputs.{i}.{p}"),
        ("backbone.fpn.extra_blocks.p{i+6}.{p}", "head.coarser.outputs.{i}.{p}"),
        *(
            (f"{tower}.conv.{source}.{{p}}", f"{target}.{own}.{{p}}")
            for tower, (_, target) in TOWERS.items()
            for source, own in convolutions.items()
        ),
        *((f"{tower}.{last}.{{p}}", f"{target}.output.{{p}}") for tower, (last, target) in TOWERS.items()),
    )


TORCHVISION = _torchvision("0.", {"{i}.0": "convolutions.{i}", "{i}.1": "norms.{i}"})
"""torchvision's retinanet_resnet50_fpn (form: source "pyramid", spacing "input") and its _v2 (norm "group", spacing
"input"), as the library has them in memory."""

TORCHVISION_FIRST = _torchvision("", {f"{2 * number}": f"convolutions.{number}" for number in range(4)})
"""The names of its first version, which the file of retinanet_resnet50_fpn still has."""


def layouts(backbone: Rules) -> dict[str, Rules]:
    """Layouts of the whole detector on a backbone that torchvision names so."""
    behind = prefix(backbone, "backbone.body.", "")
    return {
        "torchvision_retinanet": Rules(*behind, *TORCHVISION),
        "torchvision_retinanet_first": Rules(*behind, *TORCHVISION_FIRST),
    }
