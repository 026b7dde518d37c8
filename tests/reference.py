"""What parity tests share: random weights everywhere, golden vectors, a classifier, and the size of rounding."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from patchform.heads.linear import Linear

FOLDER = Path(os.environ.get("PATCHFORM_REFERENCE", Path(__file__).parents[2] / "shared" / "reference"))

OWN = Path(__file__).parent / "golden"  # copies for architectures without a reference that can be installed


class Classifier(nn.Module):
    """Backbone and head by the names that the layouts use."""

    def __init__(self, backbone, classes=10, **options):
        super().__init__()
        self.backbone = backbone
        self.head = Linear(backbone.feature_info, classes=classes, **options)

    def forward(self, images):
        return self.head(self.backbone(images))


def golden(name):
    """(config, tensors, parameters, scale of rounding by output) of a vector made with the authors' code, or skip."""
    path = next((p for home in (FOLDER / "golden", OWN) if (p := home / f"{name}.safetensors").exists()), None)
    if path is None:
        pytest.skip(f"no reference vector {name} (set PATCHFORM_REFERENCE)")
    about = json.loads(path.with_suffix(".json").read_text())
    tensors = load_file(path)
    parameters = {key[6:]: tensors.pop(key) for key in list(tensors) if key.startswith("param.")}
    rounding = {
        key: pair[0] for key, pair in about.get("golden", {}).get("fp32_vs_fp64_max_abs_err_and_scale", {}).items()
    }
    return about.get("config"), tensors, parameters, rounding


def full_size(family):
    """Exact counts of the published models of a family, or skip."""
    path = FOLDER / "full_size.json"
    if not path.exists():
        pytest.skip("no table of full-size models (set PATCHFORM_REFERENCE)")
    return json.loads(path.read_text())[family]


@torch.no_grad()
def randomise(module, *, seed=0, scale=0.2):
    """Re-draw every parameter and floating-point buffer: default values hide swapped layers."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.dim() == 1 and name.endswith("weight"):
            tensor.copy_(1 + scale * noise)
        else:
            tensor.copy_(scale * noise)
    return module


@torch.no_grad()
def rounding_of(reference, *inputs):
    """Largest difference between a model in float32 and in float64: what its own rounding is worth."""
    single = reference(*inputs)
    double = reference.double()(*(x.double() for x in inputs))
    reference.float()
    return (single - double).abs().max().item()


def load(model, layout, source, **sizes):
    """Fill a model from a published state dict, every tensor once."""
    filled, report = layout.load(source, model.state_dict(), sizes=sizes or None)
    model.load_state_dict(filled)
    return report
