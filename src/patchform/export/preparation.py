"""A trained model made ready to leave: what only training needs is gone, what can be one layer is one."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import cast

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from patchform.layers.convolutions import ConvNorm, Strided
from patchform.model import Model

_CONVOLUTIONS = (nn.Conv2d, Strided)
"""Those that are linear in the weights that they hold."""


def prepared(model: Model) -> Model:
    """A copy in evaluation mode that computes the same, but for rounding, with fewer layers."""
    ready = copy.deepcopy(model).cpu().float().eval()
    ready.requires_grad_(False)
    ready.backbone.fuse()
    for module in ready.modules():
        if type(module) in (nn.Sequential, ConvNorm):
            _fold_norms(module)
    return ready.eval()  # new layers too


def _fold_norms(row: nn.Module) -> None:
    """Of layers that follow each other, put batch norms into the convolutions in front of them."""
    for name, following in pairwise(row._modules):
        convolution, norm = row._modules[name], row._modules[following]
        if type(convolution) in _CONVOLUTIONS and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            setattr(row, name, fuse_conv_bn_eval(cast("nn.Conv2d", convolution), norm))
            setattr(row, following, nn.Identity())
