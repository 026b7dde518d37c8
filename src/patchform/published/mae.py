"""MAE: layouts of weights of whole pre-trainings, backbone and decoder."""

from __future__ import annotations

from collections.abc import Mapping

from patchform.weights.operations import join
from patchform.weights.rules import Drop, Rule, Rules

_FIXED = Drop("sines and cosines, which follow from the grid")
_POSITIONS = "backbone.position.table"


def _blocks(layer: str, parts: Mapping[str, str], joined: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    """Blocks of the decoder; `joined` are the names of q, k and v where they are apart."""
    rules: list[Rule] = [(layer + source, f"head.blocks.{{b}}.{target}") for source, target in parts.items()]
    if joined:
        rules.append((tuple(layer + name for name in joined), "head.blocks.{b}.attention.qkv.{p}", join))
    return tuple(rules)


def _decoder(root: str, blocks: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return (
        *blocks,
        (f"{root}decoder_embed.{{p}}", "head.embed.{p}"),
        (f"{root}decoder_norm.{{p}}", "head.norm.{p}"),
        (f"{root}decoder_pred.{{p}}", "head.pred.{p}"),
        (f"{root}decoder_pos_embed", _FIXED),
    )


def _backbone(rules: Rules) -> tuple[Rule, ...]:
    """Without what is no part of pre-training: classifiers, mask tokens, decoders that are dropped; positions fixed."""
    selected: list[Rule] = []
    for rule in rules:
        targets = (rule[1],) if isinstance(rule[1], str) else rule[1]
        if targets == (_POSITIONS,):
            selected.append((rule[0], _FIXED))
        elif not isinstance(targets, Drop) and not any(name.startswith("head.") for name in targets):
            selected.append(rule)
    return tuple(selected)


def layouts(authors: Rules, files: Rules, memory: Rules) -> dict[str, Rules]:
    """Layouts of a backbone with fixed positions ("sincos_2d") and its decoder.

    mae_whole: facebookresearch/mae. transformers_mae: the files of transformers' ViTMAEForPreTraining; _5: what its
    version 5 has in memory.

    Args:
        authors: of the backbone, as facebookresearch/mae names it.
        files: the same, as files of transformers do.
        memory: the same, as transformers has them in memory.
    """
    plain = {"attn.{m}.{p}": "attention.{m}.{p}", "mlp.{m}.{p}": "mlp.{m}.{p}", "norm{n}.{p}": "norm{n}.{p}"}
    norms = {"layernorm_before.{p}": "norm1.{p}", "layernorm_after.{p}": "norm2.{p}"}
    in_files = {
        **norms,
        "attention.output.dense.{p}": "attention.proj.{p}",
        "intermediate.dense.{p}": "mlp.fc1.{p}",
        "output.dense.{p}": "mlp.fc2.{p}",
    }
    in_memory = {**norms, "attention.o_proj.{p}": "attention.proj.{p}", "mlp.{m}.{p}": "mlp.{m}.{p}"}
    apart = tuple(f"attention.attention.{name}.{{p}}" for name in ("query", "key", "value"))
    apart_5 = tuple(f"attention.{name}_proj.{{p}}" for name in "qkv")
    layers = "decoder.decoder_layers.{b}."
    return {
        "mae_whole": Rules(
            *_backbone(authors), ("mask_token", "head.mask_token"), *_decoder("", _blocks("decoder_blocks.{b}.", plain))
        ),
        "transformers_mae": Rules(
            *_backbone(files),
            ("decoder.mask_token", "head.mask_token"),
            *_decoder("decoder.", _blocks(layers, in_files, apart)),
        ),
        "transformers_5_mae": Rules(
            *_backbone(memory),
            ("decoder.mask_token", "head.mask_token"),
            *_decoder("decoder.", _blocks(layers, in_memory, apart_5)),
        ),
    }
