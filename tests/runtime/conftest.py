"""Files that several tests look at: made once, as a graph takes seconds."""

import pytest
from exported import a_model, write_files

for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    return write_files(a_model(ids=(3, 5, 8)), tmp_path_factory.mktemp("classifier"))
