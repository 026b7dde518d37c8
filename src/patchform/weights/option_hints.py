"""Options of a backbone that weights ask for, told by names of their tensors that the model has no place for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor


class Hint(NamedTuple):
    """An option, and the tensors that ask for it."""

    option: str
    theirs: str
    """Expression found in names of tensors of those weights that want it."""
    ours: str
    """The same for the tensors of a model that has it."""
    value: Callable[[Tensor], Any]
    """From such a tensor of theirs."""
    without: str = ""
    """What a model is to be given that has it where the weights do not; "" where they need not agree."""


def constant(value: Any) -> Callable[[Tensor], Any]:
    """The same for any tensor."""
    return lambda tensor: value


PLAIN = (
    Hint(
        "layer_scale",
        r"(\.ls1\.gamma|layer_scale1\.lambda1|attn\.gamma1\.weight)$",
        r"\.scale1\.gamma$",
        constant(1),
        without="null",
    ),
    Hint("registers", r"(^|\.)(reg_token|register_tokens)$", r"register_tokens$", lambda t: t.shape[1], without="0"),
    Hint("class_tokens", r"(^|\.)(dist_token|distillation_token)$", r"class_token$", constant(2)),
    Hint("summary", r"(^|\.)fc_norm\.weight$", r"pool\.last_norm\.weight$", constant("mean_then_norm")),
    Hint("summary", r"(^|\.)attn_pool\.latent$", r"pool\.query$", constant("attention")),
)
"""For backbones with the options of a plain ViT."""
NO_KEY_BIAS = Hint(
    "qkv_bias", r"(q_bias|q_proj\.bias|query\.bias|qkv\.bias)$", r"qkv\.qv_bias$", constant("true"), "false"
)
"""For backbones whose keys have no biases."""
GATED = r"(\.mlp\.w12?|\.mlp\.weights_in|\.mlp\.gate_proj|\.mlp\.fc1(_g)?)\.weight$"


def missing_options(hints: Iterable[Hint], source: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Words "option=value" for what the source asks for and the model was not given, or was and the source lacks.

    Args:
        hints: of the backbone's family; without any nothing is known of its perceptrons either.
        source: the weights.
        own: tensors of the model, by its own names.
    """
    known = tuple(hints)
    found = [f"{option}={value}" for option, value in _found(known, source, own)] if known else []
    return list(dict.fromkeys(found))


def _found(hints: Iterable[Hint], source: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterator[tuple[str, Any]]:
    for hint in hints:
        theirs, ours = _first(source, hint.theirs), _first(own, hint.ours)
        if theirs is not None:
            value = hint.value(theirs)
            fits = ours is not None and (hint.option not in ("registers", "class_tokens") or ours.shape[1] == value)
            if not fits:
                yield hint.option, value
        elif ours is not None and hint.without and _first(source, hint.ours) is None:  # it may have our names
            yield hint.option, hint.without
    theirs, ours = _first(source, GATED), _first(own, r"\.mlp\.fc1\.weight$")
    gates = _is_gated(source)
    if theirs is not None and ours is not None and gates != _is_gated(own):
        yield "mlp", "swiglu" if gates else "gelu"


def _is_gated(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the first layer of the perceptrons is a gate beside what is gated."""
    if _first(tensors, r"\.mlp\.(w12?|weights_in|gate|gate_proj|fc1_g)\.weight$") is not None:
        return True
    first, second = _first(tensors, r"\.mlp\.fc1\.weight$"), _first(tensors, r"\.mlp\.fc2\.weight$")
    return first is not None and second is not None and second.dim() == 2 and len(first) == 2 * second.shape[1]


def _first(tensors: Mapping[str, Tensor], expression: str) -> Tensor | None:
    return next((tensor for name, tensor in tensors.items() if re.search(expression, name)), None)
