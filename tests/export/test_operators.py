"""The library's own operators in the words of files, beside themselves."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export
from torchvision.ops import roi_align

from patchform.export import operators
from patchform.geometry.detections import nms

onnxruntime = pytest.importorskip("onnxruntime")

NUMBER, MOST = 80, 50
OVERLAPS = (0.5, 0.6, 0.7)  # as float32 exact, more, less


class Suppress(nn.Module):
    """Boxes of a batch, suppressed by three overlaps."""

    def forward(self, boxes, scores, groups):
        return tuple(nms(boxes, scores, groups, NUMBER, overlap, MOST) for overlap in OVERLAPS)


def onnx_of(module, inputs, free, names):
    program = export(module, inputs, dynamic_shapes=free, strict=False)
    table = operators.onnx_translations()
    written = torch.onnx.export(
        program, dynamo=True, verbose=False, opset_version=20, input_names=names, custom_translation_table=table
    )
    return onnxruntime.InferenceSession(written.model_proto.SerializeToString())


def run(session, *inputs):
    given = {node.name: value.numpy() for node, value in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, given)]


@pytest.fixture(scope="module")
def suppressing():
    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    return onnx_of(Suppress(), crowd(3, 40), (free, free, free), ["boxes", "scores", "groups"])


def crowd(images, count, *, groups=NUMBER, seed=0):
    """Boxes of which many overlap, in large pictures; every seventh is none."""
    draw = torch.Generator().manual_seed(seed)
    centres = 200 * torch.rand(images, count, 2, generator=draw) + 1000
    sides = 20 + 20 * torch.rand(images, count, 2, generator=draw)
    scores = torch.randn(images, count, generator=draw)
    scores[:, 6::7] = -torch.inf
    number = torch.randint(groups, (images, count), generator=draw)
    return torch.cat([centres - sides, centres + sides], 2), scores, number


def alike():
    """Equal boxes, equal scores, boxes without an area, of overlaps that are 0.5, 0.6 and 0.7 in float32, and none."""
    pair = [[[0, 0, 10, 10], [0, 0, 10, part]] for part in (5, 6, 7)]  # the smaller is this share of both
    boxes = torch.tensor([[box for two in pair for box in two] + [[5, 5, 5, 9]] * 2 + [[0, 0, 10, 10]] * 2]).float()
    scores = torch.tensor([[3.0, 2, 3, 2, 3, 2, 1, 1, 3, 3]])
    groups = torch.tensor([[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]])
    none = boxes, torch.full_like(scores, -torch.inf), groups
    return tuple(torch.cat(both) for both in zip((boxes, scores, groups), none))


CASES = {
    "crowd": lambda: crowd(3, 300),
    "one group": lambda: crowd(2, 400, groups=1),
    "one box": lambda: crowd(1, 1),
    "fewer boxes than places": lambda: crowd(5, 20),
    "alike": alike,
}


@pytest.mark.parametrize("case", list(CASES))
def test_suppression_is_the_same_in_every_form(case, suppressing):
    boxes, scores, groups = batch = CASES[case]()
    for overlap, found in zip(OVERLAPS, run(suppressing, *batch), strict=True):
        wanted = nms(boxes, scores, groups, NUMBER, overlap, MOST)
        assert torch.equal(found, wanted)
        if (case, overlap) != ("alike", 0.6):  # which is 0.6 as float64 and more as float32
            assert torch.equal(operators.plain_nms(boxes, scores, groups, NUMBER, overlap, MOST), wanted)
        if case in ("one group", "alike"):
            assert not torch.equal(nms(boxes, scores, groups, NUMBER, 2.0, MOST), wanted)  # control: some are gone


def test_overlaps_that_are_just_the_most_stay():
    """0.6 as float32 is more than 0.6, and torchvision compares doubles."""
    wanted = {0.5: {0, 1, 2, 4, 6, 7, 8}, 0.6: {0, 1, 2, 4, 6, 7, 8}, 0.7: {0, 1, 2, 3, 4, 5, 6, 7, 8}}
    for overlap, places in wanted.items():
        left = nms(*alike(), NUMBER, overlap, MOST)[0]
        assert set(left[left >= 0].tolist()) == places


def test_pixels_of_many_groups_are_kept():
    """Groups are moved apart: in float32 boxes of the last of 10 000 groups would lose theirs."""
    boxes, scores, _ = crowd(1, 60, groups=1)
    last = torch.full((1, 60), 9_999)
    wanted = nms(boxes, scores, last * 0, 1, 0.5, MOST)
    assert torch.equal(operators.plain_nms(boxes, scores, last, 10_000, 0.5, MOST), wanted)


class Cut(nn.Module):
    """Regions of a map, with pixels where they are and half a cell away, two points a cell and as many as it has."""

    def forward(self, x, rois):
        return tuple(
            roi_align(x, rois, 7, sampling_ratio=ratio, aligned=aligned)
            for ratio in (2, 0)
            for aligned in (True, False)
        )


def test_regions_are_cut_out_as_by_torchvision():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 9, 13, generator=draw)
    corners = (torch.rand(50, 2, 2, generator=draw).sort(1).values * torch.tensor([13.0, 9])).flatten(1)
    strange = [[-5, -5, 30, 30], [3, 3, 3, 3], [12, 8, 13, 9], [20, 20, 25, 25], [-9, -9, -3, -3], [2, 2, 2.01, 2.01]]
    boxes = torch.cat([corners, torch.tensor(strange).float()])
    rois = torch.cat([torch.arange(len(boxes))[:, None] % 2, boxes], 1)
    free = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
    session = onnx_of(Cut(), (x, rois), free, ["x", "rois"])
    for some in (rois, rois[:1], rois[:0]):
        found, wanted = run(session, x, some), Cut()(x, some)
        for one, two in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    assert (wanted[0].shape, wanted[2].shape) == ((0, 3, 7, 7),) * 2
    first, second, *_ = Cut()(x, rois)
    assert (first - second).abs().max() > 0.1  # control: half a cell away


class Layers(nn.Module):
    """Linear layers of inputs with one, two and three free axes, with and without a bias."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4, bias=False)

    def forward(self, x):
        """(A, B, 6) -> (A, B, 4), (A, 5), (5,)."""
        hidden = self.first(x)
        return self.second(hidden.unsqueeze(0)), self.first(x[:, 0]), self.first(x[0, 0])


def test_a_linear_layer_is_one_product_with_its_bias():
    generator = torch.Generator().manual_seed(0)
    layers = Layers()
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    example = torch.randn(3, 4, 6, generator=generator)
    program = export(layers, (example,), dynamic_shapes=({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},))
    table = operators.onnx_translations()
    written = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=20, custom_translation_table=table)
    kinds = [node.op_type for node in written.model_proto.graph.node]
    assert kinds.count("Gemm") == 3
    assert kinds.count("MatMul") == 1
    session = onnxruntime.InferenceSession(written.model_proto.SerializeToString())
    for a, b in ((3, 4), (1, 1), (7, 2)):
        x = torch.randn(a, b, 6, generator=generator)
        for one, other in zip(run(session, x), layers(x), strict=True):
            torch.testing.assert_close(one, other.detach(), atol=1e-5, rtol=1e-5)
