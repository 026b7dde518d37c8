"""A trained model made ready to leave: what only training needs is gone, what can be one layer is one."""

from __future__ import annotations

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from patchform.model import Model


def prepared(model: Model) -> Model:
    """A copy in evaluation mode that computes the same, but for rounding, with fewer layers."""
    ready = copy.deepcopy(model).cpu().float().eval()
    ready.requires_grad_(False)
    ready.backbone.fuse()
    for module in ready.modules():
        if type(module) is nn.Sequential:
            _fold_norms(module)
    return ready


def _fold_norms(row: nn.Sequential) -> None:
    """Of layers that follow each other, put batch norms into the convolutions in front of them."""
    for name, following in pairwise(row._modules):
        convolution, norm = row._modules[name], row._modules[following]
        if type(convolution) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            setattr(row, name, fuse_conv_bn_eval(convolution, norm))
            setattr(row, following, nn.Identity())
