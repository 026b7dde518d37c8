"""ParNet: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from collections.abc import Iterable

from patchform.descriptions import Score
from patchform.weights.rules import Rule, Rules


def _block(source: str, target: str, *, stride: int = 1) -> Iterable[Rule]:
    """A block in both of its forms."""
    point = "rbr_1x1" if stride == 1 else "rbr_1x1.1"  # behind the mean
    yield f"{source}.block.rbr_identity.{{p}}", f"backbone.{target}.identity.{{p}}"
    yield f"{source}.block.rbr_dense.conv.{{p}}", f"backbone.{target}.spatial.conv.{{p}}"
    yield f"{source}.block.rbr_dense.bn.{{p}}", f"backbone.{target}.spatial.norm.{{p}}"
    yield f"{source}.block.rbr_dense.{{p}}", f"backbone.{target}.spatial.{{p}}"  # fused
    yield f"{source}.block.{point}.conv.{{p}}", f"backbone.{target}.pointwise.conv.{{p}}"
    yield f"{source}.block.{point}.bn.{{p}}", f"backbone.{target}.pointwise.norm.{{p}}"
    yield f"{source}.block.se.cvsig.conv.{{p}}", f"backbone.{target}.gate.{{p}}"


LAYOUTS = {
    "authors": Rules(
        *_block("inits.0.{b}", "stems.0.{b}", stride=2),
        *_block("inits.1", "stems.1.0", stride=2),
        *_block("inits.2", "stems.2.0", stride=2),
        *_block("streams.{s}.{b}", "streams.{s}.{b}"),
        *_block("downsamples_2.0", "down", stride=2),
        ("downsamples_2.1.0.b{i+1}.{p}", "backbone.fusions.0.norms.{i}.{p}"),
        *_block("downsamples_2.1.2", "fusions.0.block", stride=2),
        ("combine.0.b{i+1}.{p}", "backbone.fusions.1.norms.{i}.{p}"),
        *_block("combine.2", "fusions.1.block"),
        *_block("combine.3", "last", stride=2),
        ("head.fc.{p}", "head.classifier.{p}"),
    )
}
"""authors: imankgoyal/NonDeepNetworks, before or after its fuse_repvgg_block."""

SCORES: tuple[Score, ...] = ()
