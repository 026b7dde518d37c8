"""A small classifier in a folder."""

import importlib.util

import pytest
import torch

from patchform.model import build_model, save
from patchform.records import Preprocessing

for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    model = build_model(
        "classification",
        backbone="vit/nano",
        head="linear",
        classes=("cat", "dog", "owl"),
        preprocessing=Preprocessing(size=(32, 32)),
    )
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # default weights say nearly nothing
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    path = tmp_path_factory.mktemp("serving") / "model"
    save(model, path)
    return path
