"""Dual-ViT: what its authors and others published, as scores and as layouts of weights."""

from __future__ import annotations

from patchform.backbones.dual_vit import QUERY_SIDE
from patchform.descriptions import Score
from patchform.published import segmenters
from patchform.weights.operations import join_shares, reshape
from patchform.weights.rules import Rules, prefix

# fmt: off
_DUAL = Rules(  # in the order of the equations
    ("attn.qkv_proxy.0.{p}", "norm3.{p}"), ("attn.qkv_proxy.1.{p}", "semantic_attention.{p}"),
    ("attn.gamma1", "scale3.gamma"),
    ("attn.q_proxy_ln.{p}", "norm4.{p}"), ("attn.{m}_proxy.{p}", "semantic_cross_attention.{m}.{p}"),
    ("attn.gamma2", "scale4.gamma"),
    ("attn.p_ln.{p}", "norm5.{p}"), ("attn.mlp_proxy.{i}.{p}", "semantic_mlp.{i}.{p}"), ("attn.gamma3", "scale5.gamma"),
    ("norm1.{p}", "pixel_norm.{p}"), ("attn.proxy_ln.{p}", "norm6.{p}"),
    ("attn.{m}.{p}", "pixel_cross_attention.{m}.{p}"),
    ("gamma1", "scale6.gamma"), ("norm2.{p}", "norm7.{p}"), ("gamma2", "scale7.gamma"),
)
_MERGE = Rules(
    ("norm1.{p}", "norm8.{p}"), (("attn.q.{p}", "attn.kv.{p}"), "attention.qkv.{p}", join_shares(1, 2)),
    ("attn.proj.{p}", "attention.proj.{p}"), ("gamma1", "scale8.gamma"), ("norm2.{p}", "norm9.{p}"),
    ("mlp.fc_proxy.0.{p}", "semantic_mlp.fc1.{p}"), ("mlp.fc_proxy.2.{p}", "semantic_mlp.fc2.{p}"),
    ("gamma2", "scale9.gamma"),
)
# fmt: on

LAYOUTS = {
    "authors": Rules(
        ("patch_embed1.conv.{i}.{p}", "backbone.stem.conv.{i}.{p}"),
        ("patch_embed1.{m}.{p}", "backbone.stem.halve.{m}.{p}"),
        ("patch_embed{s+2}.{m}.{p}", "backbone.halves.{s}.{m}.{p}"),
        ("q", "backbone.start.queries", reshape(QUERY_SIDE**2, -1)),
        ("q_embed.{i}.{p}", "backbone.start.query.{i}.{p}"),
        ("kv.{p}", "backbone.start.kv.{p}"),
        ("se.{i}.{p}", "backbone.start.gate.{i}.{p}"),
        ("proxy_ln.{p}", "backbone.start.norm.{p}"),
        ("norm_proxy{s+1}.{p}", "backbone.projections.{s}.0.{p}"),
        ("proxy_embed{s+2}.proj_proxy.0.{p}", "backbone.projections.{s}.1.{p}"),
        ("proxy_embed{s+2}.proj_proxy.1.{p}", "backbone.projections.{s}.2.{p}"),
        *prefix(_DUAL, "block1.{b}.", "backbone.stages.0.{b}."),
        *prefix(_DUAL, "block2.{b}.", "backbone.stages.1.{b}."),
        *prefix(_MERGE, "block3.{b}.", "backbone.stages.2.{b}."),
        *prefix(_MERGE, "block4.{b}.", "backbone.stages.3.{b}."),
        ("block{s+1}.{b}.mlp.dwconv.dwconv.{p}", "backbone.stages.{s}.{b}.mlp.conv.{p}"),
        ("block{s+1}.{b}.mlp.{m}.{p}", "backbone.stages.{s}.{b}.mlp.{m}.{p}"),
        ("norm{s+1}.{p}", "backbone.norms.{s}.{p}"),
        ("post_network.0.norm{n}.{p}", "backbone.class_block.norm{n}.{p}"),
        ("post_network.0.attn.{m}.{p}", "backbone.class_block.attention.{m}.{p}"),
        ("post_network.0.mlp.{m}.{p}", "backbone.class_block.mlp.{m}.{p}"),
        ("head.{p}", "head.classifier.{p}"),
        ("aux_head.{p}", "head.auxiliary.{p}"),
    )
}
LAYOUTS |= {
    f"authors_{name}": rules for name, rules in segmenters.behind(LAYOUTS["authors"], segmenters.MMSEG_HEADS).items()
}
"""_upernet, _semantic_fpn: whole segmenters (summary="mean", the head's norm "none"). authors: YehLi/ImageNetModel.
One for the forms with the heads "linear" and "token_label" (the authors' weights) and for the dense one
(summary="mean"): each has only names that another has too, so layouts of their own could not be told apart by
them."""

SCORES = tuple(
    Score(
        variant=variant,
        scores={"imagenet-1k top-1": top1, "imagenet-1k top-5": top5},
        source="the authors' README (trained with token labels; head token_label)",
        image_size=side,
    )
    for side, rows in {
        224: {"s": (84.1, 96.8), "b": (85.2, 97.2), "l": (85.7, 97.4)},
        384: {"s": (85.2, 97.3), "b": (86.0, 97.6), "l": (86.5, 97.8)},
    }.items()
    for variant, (top1, top5) in rows.items()
)
