"""Files that several tests look at: made once, as a graph takes seconds."""

import importlib.util

import pytest
from exported import a_model, write_files

for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    return write_files(a_model(ids=(3, 5, 8)), tmp_path_factory.mktemp("classifier"))
