"""Every backbone becomes one graph for any batch, height and width. A new file is tested by being there."""

from functools import cache
from itertools import cycle

import pytest
import torch
from reference import randomise
from torch import nn

from patchform import lookup
from patchform.export.graph import _free, _trace, example
from patchform.model import build_model

FAMILIES = lookup.names("backbones")
QUICK = ("resnet", "vit")
SIZES = ((64, 64), (32, 32), (69, 83), (37, 50), (130, 40), (24, 200), (41, 41), (57, 96), (17, 9), (96, 129))
OPTIONS = {
    "swin": [{"windows": "zeros"}, {"windows": "zeros_map"}, {"windows": "zeros_rolled"}],
    "vit": [
        {"position": "relative_bias", "registers": 2, "depth": 1},
        {"position": "relative_2d", "depth": 1},
        {"position": "rope_2d", "registers": 1, "depth": 1},
        {"position": "sincos_2d", "summary": "mean", "maps_from": (1, 2)},
    ],
    "dinov3": [{"mlp": "swiglu"}],
    "clip": [{"projection": 20}],
    "siglip": [{"summary": "mean"}],
    "eva02": [{"summary": "class", "inner_norm": False}],
    "beit": [{"summary": "class"}],
    "resnet": [{"dilated": 1, "stem": "small"}],
    "parnet": [{"fused": True}],
    "botnet": [{"position": "absolute"}],
}


class Values(nn.Module):
    """All that a backbone gives of pictures 0..255."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        features = self.model.backbone(self.model.normalise(images))
        return (*features.maps, features.tokens, features.summary)


def values(family, **options):
    model = build_model(
        "classification", backbone=f"{family}/nano", head="linear", classes="ab", backbone_options=options
    )
    randomise(model.backbone, scale=0.1)
    return Values(model.eval())


def traced(graph):
    return _trace(graph, graph.model, example(graph.model, (64, 80))[:1], _free(graph.model))


@cache
def nano(family):
    graph = values(family)
    return graph, traced(graph)


def errors(graph, run):
    """Of each size, in units of the largest value."""
    found = {}
    for size, batch in zip(SIZES, cycle((1, 2, 3, 5))):
        images = example(graph.model, size, batch=batch)[0]
        with torch.no_grad():
            wanted, ours = graph(images), run(images)
        assert [x.shape for x in ours] == [x.shape for x in wanted]
        found[size] = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, wanted))
    return found


def onnx(program, path):
    runtime = pytest.importorskip("onnxruntime")
    torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False, input_names=["images"]).save(path)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options)
    return lambda images: [torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()})]


def marked(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("family", marked(FAMILIES))
def test_one_graph_for_all_sizes(family):
    graph, program = nano(family)
    assert max(errors(graph, program.module()).values()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("family", "options"), [(family, row) for family, rows in OPTIONS.items() for row in rows])
def test_options(family, options):
    graph = values(family, **options)
    assert max(errors(graph, traced(graph).module()).values()) < 1e-5


@pytest.mark.parametrize("family", [pytest.param("vit"), *marked(["swin", "stand_alone", "hybrid"])])
@pytest.mark.filterwarnings("ignore")  # of the exporter's own calls
def test_onnx_computes_the_same(family, tmp_path):
    graph, program = nano(family)
    assert max(errors(graph, onnx(program, tmp_path / "graph.onnx")).values()) < 1e-5


class Deciding(Values):
    """A control: what it computes depends on a size."""

    def forward(self, images):
        summary = super().forward(images)[-1]
        return (summary if images.shape[2] > 60 else -summary,)


def test_control_a_decision_is_seen():
    graph = Deciding(values("vit").model)
    with pytest.raises(AssertionError, match="Guard failed"):
        errors(graph, traced(graph).module())


def test_control_a_difference_is_seen():
    graph, other = (values("vit") for _ in range(2))
    with torch.no_grad():
        other.model.backbone.norm.bias.add_(1e-2)
    assert max(errors(graph, other).values()) > 1e-4
