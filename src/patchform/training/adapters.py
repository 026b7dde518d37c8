"""Adapters: the backbone stays as it is, and small additions to its products learn (LoRA, Hu et al., ICLR 2022).

    W x   becomes   W x + alpha / rank * up (down (dropout x))        up (D', r) starts at 0, down (r, D) at random

Done to a built model from outside, as freezing is: no backbone knows of it. What leaves a run is the sum of both,
W + alpha / rank * up down, in a plain model; checkpoints keep the two apart.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patchform.backbones.base import Backbone
from patchform.errors import UsageError
from patchform.layers.positions import RelativePosition
from patchform.model import Model
from patchform.settings import LoRASettings, ModelSettings
from patchform.training import freezing

_QKV = re.compile(r"(q|k|v|kv|qk|qkv|query|key|value|semantic_attention)")
"""Names that queries, keys and values have in the files of papers: what an attention's other products stand beside."""
_UNNAMED = re.compile(r"(\.(\d+|linear))*$")
"""Behind the name of a product that is wrapped: a place in a Sequential, the linear layer of a `Projection`."""


class LowRank(nn.Module):
    """A linear layer that stays, beside a product of two narrow matrices that learns.

    Args:
        base: (D', D), taken over: it has no gradient from here on.
        rank: r.
        alpha: the product counts alpha / rank times.
        dropout: probability that a number of the input does not reach it, in training.
    """

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        self.dropout = nn.Dropout(dropout)
        down, up = torch.empty(rank, base.in_features), torch.zeros(base.out_features, rank)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))  # the authors' code, and peft's
        self.down, self.up = nn.Parameter(down.to(base.weight)), nn.Parameter(up.to(base.weight))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D')."""
        return self.base(x) + self.scale * F.linear(F.linear(self.dropout(x), self.down), self.up)

    @property
    def in_features(self) -> int:
        """D."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """D'."""
        return self.base.out_features

    @property
    def weight(self) -> Tensor:
        """(D', D) of the sum: also for code that reads a layer's weight instead of calling the layer.

        Raises:
            UsageError: dropout, which such code would leave out.
        """
        if self.training and self.dropout.p and torch.is_grad_enabled():
            what = "a layer of this backbone is computed with its norm, in one product, which has no place for dropout"
            raise UsageError(what, remedy="set model.lora.dropout 0")
        with torch.autocast(self.up.device.type, enabled=False):  # what is saved has all its digits
            return torch.addmm(self.base.weight, self.up, self.down, alpha=self.scale)

    @property
    def bias(self) -> Tensor | None:
        """(D',)."""
        return self.base.bias


class Product(NamedTuple):
    """A linear layer inside the layers of a backbone."""

    owner: nn.Module
    name: str
    """In its owner."""
    kind: str
    """qkv, proj, mlp, or other."""
    layer: nn.Linear


def products(backbone: Backbone) -> list[Product]:
    """The linear layers that tokens go through, shallow to deep; not those that make positions.

    Kinds follow from names, which files of papers share: qkv makes queries, keys or values; proj stands beside those;
    mlp lies in a perceptron.
    """
    return [found for layer in backbone.layers() for found in _products(layer, "")]


def _products(module: nn.Module, path: str) -> Iterator[Product]:
    if isinstance(module, RelativePosition):
        return
    children = dict(module.named_children())
    attends = any(_QKV.fullmatch(name) for name in children)
    for name, child in children.items():
        inside = f"{path}.{name}"
        if isinstance(child, nn.Linear):
            names = _UNNAMED.sub("", inside).split(".")
            perceptron = any(part.endswith("mlp") for part in names)
            kind = "qkv" if _QKV.fullmatch(names[-1]) else "proj" if attends and name == "proj" else "other"
            yield Product(module, name, "mlp" if perceptron else kind, child)
        else:
            yield from _products(child, inside)


def add(model: Model, settings: ModelSettings) -> None:
    """Give the layers of a model's backbone that are not frozen the adapter of a recipe; none: leave it as it is.

    The backbone's own parameters have no gradient from here on.

    Raises:
        UsageError: more frozen layers than there are; no product of a kind that is named.
    """
    if settings.adapter == "none":
        return
    backbone, options = model.trained, settings.lora
    frozen = freezing.frozen_of(backbone, settings.frozen)
    free = [product for product in products(backbone) if product.owner not in frozen]
    chosen = _chosen(free, options.products, of=settings.backbone)
    backbone.requires_grad_(False)
    adapters: dict[nn.Linear, LowRank] = {}
    for product in chosen:
        if product.layer not in adapters:
            adapters[product.layer] = LowRank(
                product.layer, rank=options.rank, alpha=options.alpha, dropout=options.dropout
            )
        setattr(product.owner, product.name, adapters[product.layer])


def _chosen(free: Sequence[Product], kinds: Sequence[str], *, of: str) -> list[Product]:
    """Those of the kinds. Raises UsageError for a kind of which there is none."""
    present = {product.kind: None for product in free}
    lacking = [kind for kind in kinds if kind != "all" and kind not in present]
    if lacking or not free:
        known = [kind for kind in present if kind != "other"] + ["all"] * bool(free)
        there = f"name some of {', '.join(known)}" if free else "let it learn as a whole: model.adapter none"
        what = f"the layers of {of} that are not frozen have no linear products"
        raise UsageError(f"{what}{f' of kind {lacking[0]}' if free else ''} (model.lora.products)", remedy=there)
    return [product for product in free if product.kind in kinds or "all" in kinds]


# ---------------------------------------------------------------------------------------------- apart, and as the sum


def adapted(model: nn.Module) -> dict[str, LowRank]:
    """The adapted layers by their dotted names."""
    return {name: layer for name, layer in model.named_modules(remove_duplicate=False) if isinstance(layer, LowRank)}


def identity(settings: ModelSettings) -> dict[str, dict[str, object]]:
    """What of the adapter must be the same on resume, as plain values; nothing without one."""
    lora = settings.lora
    if settings.adapter == "none":
        return {}
    return {"adapter": {"name": settings.adapter, "rank": lora.rank, "alpha": lora.alpha, "products": [*lora.products]}}


def merged(model: Model) -> Model:
    """A plain copy that computes the same to rounding, all of which may learn; the model itself without adapters."""
    if not adapted(model):
        return model
    plain = copy.deepcopy(model)
    layers = adapted(plain)
    with torch.no_grad():
        for layer in dict.fromkeys(layers.values()):
            layer.base.weight.copy_(layer.weight)
    for path, layer in layers.items():
        owner, _, name = path.rpartition(".")
        setattr(plain.get_submodule(owner), name, layer.base)
    return plain.requires_grad_(True)


class State(NamedTuple):
    """The tensors of a model with adapters, in two parts by name."""

    plain: dict[str, Tensor]
    """Those of `merged`, which others can read."""
    apart: dict[str, Tensor]
    """Those that merging would lose; none without adapters."""


@torch.no_grad()
def state_of(model: Model) -> State:
    """All tensors of a model."""
    layers = adapted(model)
    plain, apart = dict[str, Tensor](), dict[str, Tensor]()
    for name, tensor in model.state_dict().items():
        path = next((path for path in layers if name.startswith(f"{path}.")), None)
        if path is None:
            plain[name] = tensor
            continue
        apart[name] = tensor
        own = name.removeprefix(f"{path}.base.")
        if own != name:
            plain[f"{path}.{own}"] = layers[path].weight if own == "weight" else tensor
    return State(plain, apart)


def own_state(model: Model, state: State) -> Mapping[str, Tensor]:
    """The tensors as `model.load_state_dict` takes them, of what `state_of` gave of a like model."""
    layers = adapted(model)
    return {
        name: tensor for name, tensor in state.plain.items() if not any(name.startswith(f"{path}.") for path in layers)
    } | state.apart


def parameters(model: nn.Module) -> list[nn.Parameter]:
    """What learns in the adapters."""
    return [parameter for layer in dict.fromkeys(adapted(model).values()) for parameter in (layer.down, layer.up)]


def in_words(settings: LoRASettings) -> str:
    """For people."""
    dropout = f", dropout {settings.dropout:g}" * bool(settings.dropout)
    return f"of rank {settings.rank}, alpha {settings.alpha:g}{dropout}, on {', '.join(settings.products)}"
