"""Every head as a graph of any batch and size says what `predict` says. A new file is tested by being there."""

import warnings
from itertools import pairwise

import pytest
import torch
from reference import randomise
from torch import nn

from patchform import lookup
from patchform.backbones.base import Backbone
from patchform.export.graph import trace
from patchform.export.operators import onnx_translations
from patchform.heads.base import Head
from patchform.layers.convolutions import Strided
from patchform.model import Model
from patchform.records import Batch, Bitmaps, Features, Preprocessing

CLASSES, FRAMES = 3, 4
SMALL = {"channels_inside": 16}
QUERIES = {"channels_inside": 32, "queries": 12, "detections": 9, "score_threshold": 0.34}
TRANSFORMER = {"depths": (1, 1), "heads": 4, "hidden": 32}
OTHER = {**TRANSFORMER, "norms": "pre", "positions": "learned"}
REGIONS = {"proposals": {"kept": (200, 30)}, "boxes": {"width": 32, "samples": 32, "most": 20}}
FORMS = {
    **{name: (name, {}) for name in lookup.names("heads")},
    "linear multi": ("linear", {"labels": "multi", "parts": (10, 6), "temperature": 2.0, "hidden": 16}),
    "setr": ("setr", SMALL),
    "setr pup": ("setr", {**SMALL, "decoder": "pup", "auxiliary": (0,)}),
    "setr mla": ("setr", {**SMALL, "decoder": "mla", "auxiliary": (0, -1)}),
    "setr openmmlab": ("setr", {**SMALL, "form": "openmmlab"}),
    "segmenter": ("segmenter", SMALL),
    "segmenter linear": ("segmenter", {"decoder": "linear"}),
    "semantic_fpn": ("semantic_fpn", {**SMALL, "channels_pyramid": 16}),
    "upernet": ("upernet", SMALL),
    "temporal_encoder": ("temporal_encoder", {"inner": 12, "depth": 1}),
    "detr": ("detr", {**QUERIES, "transformer": TRANSFORMER}),
    "detr pre": ("detr", {**QUERIES, "transformer": OTHER, "norm": "layer"}),
    "detr_masks": ("detr_masks", {**QUERIES, "transformer": TRANSFORMER}),
    "retinanet": ("retinanet", {**SMALL, "form": {"convolutions": 1}}),
    "faster_rcnn": ("faster_rcnn", {**SMALL, **REGIONS}),
    "mask_rcnn": ("mask_rcnn", {**SMALL, **REGIONS, "masks": {"convolutions": 1, "channels": 16}}),
}
SIZES = [(64, 96, 2), (69, 83, 3), (33, 150, 1), (200, 40, 2), (47, 33, 5), (161, 97, 1)]


class Plain(Backbone):
    """Four maps of convolutions, tokens and a summary."""

    channels, strides, width = (8, 12, 16, 16), (4, 8, 16, 32), 16

    def __init__(self):
        super().__init__()
        self.stem = Strided(3, 8, 3, stride=2, padding=1)
        self.steps = nn.ModuleList(
            Strided(before, after, 3, stride=2, padding=1) for before, after in zip((8, *self.channels), self.channels)
        )

    def forward(self, images, *, padding=None):
        x, maps = self.stem(images), []
        for step in self.steps:
            x = step(x.relu())
            maps.append(x)
        tokens = x.flatten(2).transpose(1, 2).tanh()
        size = images.shape[-2], images.shape[-1]
        return Features(tuple(maps), self.strides, size, tokens, tokens.mean(1), padding)

    def layers(self):
        return list(self.steps)


class OneStride(Plain):
    """The coarser maps alone, all of one stride."""

    channels, strides = (16, 16, 16), (16, 16, 16)

    def forward(self, images, *, padding=None):
        features = super().forward(images, padding=padding)
        map_ = features.maps[2]
        return features._replace(maps=(map_, map_.tanh(), map_.relu()), strides=self.strides)

    def __init__(self):
        nn.Module.__init__(self)
        self.stem = Strided(3, 8, 3, stride=2, padding=1)
        widths = (8, 8, 12, 16, 16)
        self.steps = nn.ModuleList(Strided(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths))


def made(form, backbone=Plain):
    name, options = FORMS[form]
    kind = lookup.the_class("heads", name, Head)
    torch.manual_seed(0)
    body = backbone()
    head = kind(body.feature_info, classes=CLASSES, **options)
    frames = FRAMES if kind.tasks == ("video_classification",) else 0
    names = [f"class {number}" for number in range(CLASSES)]
    model = Model(body, head, classes=names, preprocessing=Preprocessing(size=(64, 64), frames=frames))
    return randomise(model, seed=1).eval()


def batch_of(model, height, width, number, seed=0):
    """Pictures of unlike contents, and what they were resized from."""
    draw = torch.Generator().manual_seed(seed)
    frames = (model.preprocessing.frames + number,) if model.preprocessing.frames else ()
    images = torch.randint(0, 256, (number, *frames, 3, height, width), generator=draw)
    images = images // torch.arange(1, number + 1).view(-1, *(1,) * (images.dim() - 1))
    size = (height, width) if number == 2 else (height + 5, 2 * width - 3)
    return Batch(images.byte(), (), ("",) * number, (size,) * number)


def same(found, wanted):
    """Whether two predictions decide the same, and their numbers differ by no more than rounding."""
    for name, one, two in zip(wanted._fields, found, wanted, strict=True):
        if isinstance(two, Bitmaps):
            assert one.size == two.size
            assert torch.equal(one.boxes, two.boxes)
            assert torch.equal(one.bits, two.bits)
        elif two is None or not two.is_floating_point():
            assert one is two or torch.equal(one, two), name
        else:
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-4)


def agree(model, run):
    """Run says what `predict` says, at every size; and that says something, which is not the same of all pictures."""
    seen = []
    for height, width, number in SIZES:
        batch = batch_of(model, height, width, number)
        outputs = run(batch.images, torch.tensor(batch.sizes))
        predictions = model.predict(batch)
        for found, wanted in zip(outputs.predictions(), predictions, strict=True):
            same(found, wanted)
        seen.extend(predictions)
    assert sum(one.scores.numel() > 0 for one in seen) > len(seen) / 2
    alike = [
        one.scores.shape == two.scores.shape and torch.allclose(one.scores, two.scores) for one, two in pairwise(seen)
    ]
    assert sum(alike) < len(alike) / 4
    return seen


THOROUGH = ("setr mla", "upernet", "detr_masks")
LATER = ("linear multi", "setr", "setr pup", "setr openmmlab", "segmenter linear", "faster_rcnn", "detr", "detr pre")


@pytest.fixture(
    scope="module", params=[pytest.param(form, marks=pytest.mark.slow if form in LATER else ()) for form in FORMS]
)
def traced(request):
    model = made(request.param)
    return request.param, model, trace(model, (64, 96))


def test_a_graph_of_any_size_says_what_predict_says(traced):
    form, model, program = traced
    graph = program.module()
    seen = agree(model, graph)
    if FORMS[form][1].get("score_threshold"):
        assert min(len(objects.classes) for objects in seen) < FORMS[form][1]["detections"]  # places are left over
    parameters = program.graph_signature.inputs_to_parameters
    used = {parameters[node.name] for node in program.graph.nodes if node.users and node.name in parameters}
    assert used
    assert not [name for name in used if "auxiliary_decoder" in name]


def onnx_of(model, program, path):
    """A function that runs the ONNX model of a graph."""
    import onnxruntime

    record = type(model.head.to_outputs(model.head(model.features(batch_of(model, 64, 64, 2))), torch.full((2, 2), 64)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the converter, on itself
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=20,
            verbose=False,
            input_names=["images", "sizes"],
            output_names=list(record._fields),
            custom_translation_table=onnx_translations(),
        )
    converted.save(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = {given.name for given in session.get_inputs()}

    def run(images, sizes):
        feeds = {"images": images.numpy(), "sizes": sizes.numpy()}
        outputs = session.run(list(record._fields), {name: array for name, array in feeds.items() if name in names})
        return record(*map(torch.from_numpy, outputs))

    return run


@pytest.mark.parametrize("form", ["semantic_fpn", *(pytest.param(one, marks=pytest.mark.slow) for one in THOROUGH)])
def test_onnxruntime_says_what_predict_says(form, tmp_path):
    model = made(form, OneStride if form == "upernet" else Plain)
    with torch.no_grad():
        agree(model, onnx_of(model, trace(model, (64, 96)), tmp_path / "model.onnx"))
