"""How parameters move: the groups with their decay and rate, and the update rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from patchform import own_parts
from patchform.errors import UsageError
from patchform.model import Model
from patchform.settings import OptimizerSettings
from patchform.training.freezing import depths

UNDECAYED = re.compile(r"(^|[._])(positions?|tokens?)([._]|$)")
"""A parameter whose dotted name has the word "position" or "token", such as `class_token`, `register_tokens` or
`position.table`, is not decayed; neither is one of fewer than two dimensions (norms, biases, scales)."""


def build(model: Model, settings: OptimizerSettings, *, beside: nn.Module | None = None) -> Optimizer:
    """The optimizer of a model. Each group holds `lr_scale`, by which the loop multiplies the learning rate.

    Args:
        model: what is trained.
        settings: of the recipe.
        beside: what is learnt beside it, as a head is.

    Raises:
        UsageError: one of one's own that is not there, or is none.
    """
    parameters = groups(
        model,
        weight_decay=settings.weight_decay,
        layer_decay=settings.layer_decay,
        backbone_rate=settings.backbone_rate,
    )
    for parameter in () if beside is None else beside.parameters():
        decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
        parameters.append({"params": [parameter], "weight_decay": decay, "lr_scale": 1.0})
    if settings.name == "sgd":
        return SGD(parameters, lr=settings.lr, momentum=settings.momentum)
    if settings.name == "lamb":
        return Lamb(parameters, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    if settings.name != "adamw":
        return _own(parameters, settings)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return AdamW(parameters, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def _own(parameters: list[dict[str, Any]], settings: OptimizerSettings) -> Optimizer:
    """One of the user's: called with the groups, `lr` and its options; each group has its `weight_decay`."""
    rule = own_parts.constructor("optimizer", settings)
    made = rule(parameters, lr=settings.lr, **settings.options)
    if not isinstance(made, Optimizer):
        raise UsageError(
            f"the optimizer {settings.name} makes {type(made).__name__}", remedy="make it a torch.optim.Optimizer"
        )
    return made


def groups(
    model: Model, *, weight_decay: float, layer_decay: float, backbone_rate: float = 1.0
) -> list[dict[str, Any]]:
    """Parameter groups, one for each pair of weight decay and `lr_scale`.

    Layer-wise rates (Clark et al. 2020, section 3.2; Bao et al. 2022, table 9): `lr_scale` is
    `layer_decay` ** (L + 1 - depth), with the depths of `freezing.depths`; the head has L + 1. In the whole backbone it
    is `backbone_rate` times that (Carion et al. 2020, DETR, section 4). What does not move is in no group.
    """
    by_module = depths(model.trained).items()
    depth_of = {id(parameter): depth for module, depth in by_module for parameter in module.parameters(recurse=False)}
    top = len(model.trained.layers()) + 1
    grouped: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        depth = depth_of.get(id(parameter), top)
        scale = layer_decay ** (top - depth) * (backbone_rate if id(parameter) in depth_of else 1)
        if scale == 0 or not parameter.requires_grad:
            continue
        decay = weight_decay if parameter.ndim >= 2 and not UNDECAYED.search(name) else 0.0
        grouped.setdefault((decay, scale), []).append(parameter)
    return [
        {"params": tensors, "weight_decay": decay, "lr_scale": scale} for (decay, scale), tensors in grouped.items()
    ]


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of each group to `rate` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


class Lamb(Optimizer):
    """LAMB (You et al. 2020, algorithm 2): Adam's direction, scaled for each tensor to the length of the tensor.

    As in the authors' code, tensors without weight decay are not scaled.

    Args:
        parameters: parameter groups.
        lr: learning rate.
        betas: averaging constants of the gradient and its square.
        eps: added to the root of the averaged square.
        weight_decay: decoupled; part of the direction whose length is scaled.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move the parameters that have a gradient."""
        loss = closure() if closure else None
        for group in self.param_groups:
            live = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in live:
                if not self.state[parameter]:
                    self.state[parameter] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
            if live:
                self._move(live, group)
        return loss

    def _move(self, live: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        gradients = [cast("Tensor", parameter.grad) for parameter in live]
        first, second, steps = ([self.state[p][key] for p in live] for key in ("exp_avg", "exp_avg_sq", "step"))
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        counts = [float(step) for step in steps]  # on the CPU: no wait for the device
        roots = torch._foreach_sqrt(torch._foreach_div(second, [1 - beta2**count for count in counts]))
        torch._foreach_add_(roots, group["eps"])
        directions = torch._foreach_div(torch._foreach_div(first, [1 - beta1**count for count in counts]), roots)
        if group["weight_decay"]:
            torch._foreach_add_(directions, live, alpha=group["weight_decay"])
            sizes, lengths = torch.stack(torch._foreach_norm(live)), torch.stack(torch._foreach_norm(directions))
            ratios = torch.where((sizes > 0) & (lengths > 0), sizes / lengths, 1.0)
            torch._foreach_mul_(directions, list(ratios.unbind()))
        torch._foreach_add_(live, directions, alpha=-group["lr"])
