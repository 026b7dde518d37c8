"""Graphs of detectors of boxes, for any batch, height and width, beside the detectors themselves."""

import pytest
import torch
from reference import randomise

from patchform.export import operators
from patchform.export.graph import Graph, example, trace
from patchform.model import build_model
from patchform.records import Batch

NARROW = {"channels_inside": 16, "boxes": {"width": 32}}
FORMS = {
    "retinanet": ("detection", "resnet/nano", "retinanet", {"channels_inside": 16, "form": {"convolutions": 1}}),
    "faster_rcnn": ("detection", "resnet/nano", "faster_rcnn", NARROW),
    "faster_rcnn single": ("detection", "vit/nano", "faster_rcnn", {**NARROW, "neck": "single"}),
    "faster_rcnn simple": ("detection", "vit/nano", "faster_rcnn", {**NARROW, "neck": "simple"}),
    "mask_rcnn": (
        "instance_segmentation",
        "resnet/nano",
        "mask_rcnn",
        {**NARROW, "masks": {"channels": 16, "convolutions": 1}},
    ),
}
SHAPES = [(3, 64, 64), (1, 96, 64), (2, 69, 83), (1, 33, 200), (2, 130, 47), (5, 17, 23), (1, 8, 8)]


@torch.no_grad()
def detector(form):
    """With random parameters, made such that outputs are about 1: some objects are found, and some suppressed."""
    task, backbone, head, options = FORMS[form]
    torch.manual_seed(0)
    model = build_model(task, backbone=backbone, head=head, classes=list("abcd"), head_options=options).eval()
    model.to(memory_format=torch.contiguous_format)
    images, _ = example(randomise(model), (96, 128))

    def raw():
        return model.head(model.features(Batch(images, (), (), ())))

    def scale(layer, values, wanted):
        for parameter in layer.parameters():
            parameter.mul_(wanted / values.std())

    if head == "retinanet":
        scale(model.head.classify.output, raw().logits, 1.5)
        scale(model.head.move.output, raw().deltas, 0.5)
        model.head.classify.output.bias -= 3
        return model
    scale(model.head.rpn.objectness, raw().rpn.objectness, 2)
    scale(model.head.rpn.shifts, raw().rpn.deltas, 0.5)
    real = raw().real
    scale(model.head.box_head.classify, raw().logits[real], 2)
    scale(model.head.box_head.shift, raw().deltas[real], 1)
    return model


def inputs(model, shape):
    batch, *size = shape
    images, sizes = example(model, size, batch=batch)
    return images, 2 * sizes + torch.tensor([1, 7])


@torch.no_grad()
def compare(model, run):
    """With the model at every shape; some have no object, which graphs have to stand as well."""
    found = 0
    for shape in SHAPES:
        given = inputs(model, shape)
        wanted = Graph(model)(*given)
        found += int((wanted.classes >= 0).any())
        for one, two in zip(run(*given), wanted, strict=True):
            if two.is_floating_point():
                torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)
            else:
                assert torch.equal(one, two)
    assert found >= 5


FREE = [pytest.param(form, marks=() if form == "faster_rcnn single" else pytest.mark.slow) for form in FORMS]


@pytest.mark.parametrize("form", FREE)
def test_a_graph_is_for_any_batch_height_and_width(form):
    model = detector(form)
    program = trace(model, (64, 64))
    compare(model, program.module())
    plain = operators.decomposed(program)
    assert "patchform" in program.graph_module.code
    assert "patchform" not in plain.graph_module.code
    compare(model, plain.module())
