"""Synthetic files of Google, read by timm's loader and by ours."""

import json

import numpy
import pytest
import torch
from reference import FOLDER, rounding_of

import patchform as pf

timm = pytest.importorskip("timm")
CLASSES = tuple(map(str, range(1000)))


def arrays(shapes, seed=0):
    """Random numbers for each name: norms around 1, kernels that neither grow nor shrink what they see."""
    generator = numpy.random.default_rng(seed)
    made = {}
    for name, shape in shapes.items():
        noise = generator.standard_normal(shape, dtype=numpy.float32)
        inputs = numpy.prod(shape[:-1]) if name.endswith(("out/kernel", "embedding/kernel")) else shape[0]
        made[name] = noise / inputs**0.5 if name.endswith("kernel") else 0.2 * noise + name.endswith("scale")
    return {name: array.astype(numpy.float32) for name, array in made.items()}


def tiny():
    """Names and shapes of the smallest published model."""
    path = FOLDER / "golden" / "google_vit_npz_names.json"
    if not path.exists():
        pytest.skip("no list of published names (set PATCHFORM_REFERENCE)")
    return json.loads(path.read_text())["models"]["ViT-Ti_16"]["params"]


def difference(theirs, model):
    """Over what is allowed."""
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    theirs.eval()
    with torch.no_grad():
        expected, found = theirs(images), model.eval().head(model.backbone(images))
        assert expected.std() > 0.1
        return ((found - expected).abs().max() / (10 * rounding_of(theirs, images))).item()


def built(**options):
    return pf.build_model(
        "classification", backbone="vit/ti16", head="linear", classes=CLASSES, backbone_options=options
    )


@pytest.mark.parametrize(("gelu", "layer"), [("tanh", "gelu_tanh"), ("none", "gelu")])
def test_timm_and_ours_read_the_same(gelu, layer, tmp_path):
    numpy.savez(tmp_path / "Ti_16.npz", **arrays(tiny()))
    theirs = timm.create_model("vit_tiny_patch16_224", act_layer=layer)
    theirs.load_pretrained(str(tmp_path / "Ti_16.npz"))
    model = built(gelu=gelu)
    report = pf.load_weights(model, tmp_path / "Ti_16.npz")
    assert report.layout == "google"
    assert not report.dropped
    assert difference(theirs, model) <= 1
    other = built(gelu="none" if gelu == "tanh" else "tanh")
    pf.load_weights(other, tmp_path / "Ti_16.npz")
    assert difference(theirs, other) > 10  # control: the other GELU, and 100 times the rounding


def test_timm_and_ours_read_the_same_of_big_vision(tmp_path):
    """Its names are Google's with other counters; positions stand at the top and have no row for a class token."""
    counters = {
        "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
        "LayerNorm_2": "LayerNorm_1",
        "MlpBlock_3": "MlpBlock_0",
        "Transformer/posembed_input/pos_embedding": "pos_embedding",
    }
    shapes = {}
    for name, shape in tiny().items():
        for old, new in counters.items():
            name = name.replace(old, new)
        if name != "cls":
            shapes[f"params/{name}"] = [1, 196, 192] if name == "pos_embedding" else shape
    numpy.savez(tmp_path / "big.npz", **arrays(shapes))
    theirs = timm.create_model("vit_tiny_patch16_224", class_token=False, global_pool="avg", fc_norm=False)
    theirs.load_pretrained(str(tmp_path / "big.npz"))
    model = built(summary="mean")
    assert pf.load_weights(model, tmp_path / "big.npz").layout == "big_vision"
    assert difference(theirs, model) <= 1
