"""RetinaNet against torchvision's, backbone and all, by the names of its weights."""

import copy
import math

import pytest
import torch
from losses import gradients, means, total_loss
from reference import randomise
from torch import nn
from torchvision.models.detection import RetinaNet as Torchvision
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.retinanet import RetinaNetHead, _default_anchorgen
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import sigmoid_focal_loss
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from patchform.backbones import resnet
from patchform.errors import UsageError
from patchform.geometry import anchors as anchoring
from patchform.geometry.boxes import encode
from patchform.heads import retinanet
from patchform.heads.retinanet import Options, RetinaNet
from patchform.loading import export_weights, load_weights
from patchform.model import Model, build_model
from patchform.records import Batch, FeatureInfo, Features, Instances, Preprocessing

CLASSES, WIDTH = 4, 32
NAMES = [f"class {number}" for number in range(CLASSES)]
FORMS = {
    "v1": {"source": "pyramid", "spacing": "input"},
    "v2": {"source": "map", "spacing": "input", "norm": "group"},
    "paper": {},
}


@torch.no_grad()
def theirs(form):
    """torchvision's, of one block a stage, all tensors random and of a size that leaves probabilities apart."""
    source, norm = form.get("source", "map"), form.get("norm", "none")
    backbone = ResNet(BasicBlock, [1, 1, 1, 1])
    extra = LastLevelP6P7(WIDTH if source == "pyramid" else 512, WIDTH)
    fpn = _resnet_fpn_extractor(backbone, 5, returned_layers=[2, 3, 4], extra_blocks=extra)
    for name in ("inner_blocks", "layer_blocks"):
        widths = {"inner_blocks": (128, 256, 512), "layer_blocks": (WIDTH,) * 3}[name]
        size = 1 if name == "inner_blocks" else 3
        convs = [nn.Sequential(nn.Conv2d(before, WIDTH, size, padding=size // 2)) for before in widths]
        setattr(fpn.fpn, name, nn.ModuleList(convs))
    fpn.out_channels = WIDTH
    layer = (lambda channels: nn.GroupNorm(32, channels)) if norm == "group" else None
    head = RetinaNetHead(WIDTH, 9, CLASSES, norm_layer=layer)
    model = Torchvision(fpn, CLASSES, head=head, anchor_generator=_default_anchorgen(), detections_per_img=100)
    model.transform.resize = lambda image, target: (image, target)
    randomise(model)
    for tensor in model.state_dict().values():
        if tensor.dim() == 4:
            tensor *= 5 / tensor[0].numel() ** 0.5
    model.head.regression_head.bbox_reg.weight.mul_(0.2)
    model.head.classification_head.cls_logits.bias.sub_(2)
    return model.eval()


def ours(form, state=None, **options):
    backbone = resnet.ResNet(depths=(1, 1, 1, 1))
    head = RetinaNet(
        backbone.feature_info,
        classes=CLASSES,
        channels_inside=WIDTH,
        form=form,
        **options,
    )
    model = Model(backbone, head, classes=NAMES, preprocessing=Preprocessing(size=(128, 128)))
    if state is not None:
        load_weights(model, state)
    return model.eval()


def scene(size, seed=0, second=None):
    """Two pictures, the second smaller where `second` says so, with 3 and 0 objects."""
    draw = torch.Generator().manual_seed(seed)
    sizes = (size, second or size)
    images = [torch.rand(3, *each, generator=draw) for each in sizes]
    start = torch.rand(3, 2, generator=draw) * torch.tensor([size[1] / 2, size[0] / 2])
    boxes = torch.cat([start, start + 15 + 40 * torch.rand(3, 2, generator=draw)], 1)
    targets = (
        Instances(boxes, torch.randint(CLASSES, (3,), generator=draw)),
        Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    )
    rows, columns = (-(-side // 32) * 32 for side in size)
    stack, padding = torch.zeros(2, 3, rows, columns), torch.ones(2, rows, columns, dtype=torch.bool)
    for number, image in enumerate(images):
        stack[number, :, : image.shape[1], : image.shape[2]] = image
        padding[number, : image.shape[1], : image.shape[2]] = False
    return images, Batch(stack, targets, ("",) * 2, sizes, padding)


def raw_of(model, images):
    batch, _ = model.transform(images, None)
    levels = list(model.backbone(batch.tensors).values())
    return model.head(levels), model.anchor_generator(batch, levels)


# -------------------------------------------------------------------------------------------------------- torchvision


@pytest.mark.parametrize(
    ("form", "size", "second"),
    [("v1", (128, 192), None), ("v2", (90, 150), (128, 64)), ("v1", (150, 90), (70, 64)), ("paper", (128, 256), None)],
)
def test_same_numbers_as_torchvision(form, size, second):
    reference, options = theirs(FORMS[form]), FORMS[form]
    model = ours(options, reference.state_dict())
    size = tuple(map(max, size, second or size))
    images, batch = scene(size, second=second)
    with torch.no_grad():
        wanted, anchors = raw_of(reference, images)
        double = copy.deepcopy(reference).double()
        exact, _ = raw_of(double, [image.double() for image in images])
        features = model.features(batch)
        found = model.head(features)
    assert torch.equal(found.anchors, anchors[0])
    rounding = {}
    for name, mine in (("cls_logits", found.logits), ("bbox_regression", found.deltas)):
        rounding[name] = (wanted[name] - exact[name]).abs().max()
        assert 1e-7 < rounding[name] < 1e-2
        assert (mine - wanted[name]).abs().max() <= 10 * rounding[name]
        assert (mine.roll(1, 1) - wanted[name]).abs().max() > 100 * rounding[name]  # control

    # losses
    goal = [{"boxes": one.boxes, "labels": one.classes} for one in batch.targets]
    for kind in ("l1", "giou"):
        reference.head.regression_head._loss_type = kind
        due = reference.compute_loss(goal, wanted, anchors)
        model.head.losses = {"focal": 1.0, kind: 2.0}
        losses = means(model.head.loss(found, batch.targets))
        torch.testing.assert_close(losses["focal"], due["classification"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(losses[kind], 2 * due["bbox_regression"], rtol=1e-4, atol=1e-5)
        assert due["bbox_regression"] > 0.1

    # predictions; torchvision keeps boxes of which nothing lies in the picture
    reference.detections_per_img = 10**6
    with torch.no_grad():
        due, decoded = reference(images), model.head.decode(found, batch.sizes)
    for one, other in zip(decoded, due, strict=True):
        there = (other["boxes"][:, 2:] > other["boxes"][:, :2]).all(1).nonzero()[:100, 0]
        assert 20 < len(there) == len(one.boxes)
        assert torch.equal(one.classes, other["labels"][there])
        torch.testing.assert_close(one.scores, other["scores"][there], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.boxes, other["boxes"][there], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("control", ["spacing", "towers", "between", "norm"])
def test_control_another_structure_gives_other_numbers(control):
    reference = theirs(FORMS["v1"])
    model = ours(FORMS["v1"], reference.state_dict())
    images, batch = scene((128, 192))
    if control == "spacing":
        model.head.options = Options(source="pyramid")
    elif control == "towers":
        convolutions = model.head.classify.convolutions
        convolutions[0], convolutions[1] = convolutions[1], convolutions[0]
    elif control == "between":
        model.head.coarser.between = nn.Identity()
    else:
        model.head.move.norms[2] = nn.GroupNorm(4, WIDTH)
    with torch.no_grad():
        wanted, anchors = raw_of(reference, images)
        found = model.head(model.features(batch))
    same = [
        torch.equal(found.anchors, anchors[0]),
        torch.allclose(found.logits, wanted["cls_logits"], atol=1e-3),
        torch.allclose(found.deltas, wanted["bbox_regression"], atol=1e-3),
    ]
    expected = {"spacing": [False, True, True], "towers": [True, False, True], "norm": [True, True, False]}
    assert same == expected.get(control, [True, False, False])


@pytest.mark.parametrize("form", ["v1", "v2"])
def test_layout_goes_round(form):
    reference = theirs(FORMS[form])
    model = ours(FORMS[form])
    report = load_weights(model, reference.state_dict())
    assert report.layout == "torchvision_retinanet"
    written = export_weights(model, "torchvision_retinanet")
    state = reference.state_dict()
    assert set(written) == set(state)
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())


def test_layout_of_the_first_version():
    """The names that torchvision itself takes for those of today."""
    reference = theirs(FORMS["v1"])
    load_weights(model := ours(FORMS["v1"]), reference.state_dict())
    written = {name: each.clone() for name, each in export_weights(model, "torchvision_retinanet_first").items()}
    assert "head.regression_head.conv.6.bias" in written
    assert "backbone.fpn.inner_blocks.2.weight" in written
    again = theirs(FORMS["v1"])
    randomise(again, seed=5)
    again.load_state_dict(written)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in reference.state_dict().items())
    randomise(model, seed=5)
    assert load_weights(model, written).layout == "torchvision_retinanet_first"
    wanted = export_weights(model, "torchvision_retinanet")
    assert all(torch.equal(wanted[name], tensor) for name, tensor in reference.state_dict().items())


# ------------------------------------------------------------------------------------------------------------- losses


def small(backbone="pvt", **options):
    torch.manual_seed(0)
    return build_model(
        "detection",
        backbone=f"{backbone}/nano",
        head="retinanet",
        classes=NAMES,
        preprocessing=Preprocessing(size=(64, 64)),
        head_options={"channels_inside": 16, "sizes": (8, 16, 32, 48, 64), **options},
    )


def said(model, batch):
    """Raw output of random weights that leave probabilities apart."""
    randomise(model, scale=0.1).eval()
    with torch.no_grad():
        return model.head(model.features(batch))


def test_smooth_l1_and_focal_by_hand():
    model, (_, batch) = small(losses={"smooth_l1": 1.0, "focal": 3.0}), scene((64, 64))
    raw = said(model, batch)
    truth = batch.targets[0]
    number = anchoring.match_boxes(raw.anchors, truth.boxes, foreground=0.5, background=0.4)
    stands = number >= 0
    wanted = torch.zeros_like(raw.logits[0])
    wanted[stands, truth.classes[number[stands]]] = 1
    counted = number != anchoring.NEITHER
    assert (~counted).any()
    first = sigmoid_focal_loss(raw.logits[0][counted], wanted[counted], reduction="sum") / stands.sum()
    second = sigmoid_focal_loss(raw.logits[1], torch.zeros_like(raw.logits[1]), reduction="sum")
    due = encode(truth.boxes[number[stands]], raw.anchors[stands])
    smooth = nn.functional.smooth_l1_loss(raw.deltas[0][stands], due, beta=1 / 9, reduction="sum") / stands.sum()
    found = means(model.head.loss(raw, batch.targets))
    torch.testing.assert_close(found, {"smooth_l1": smooth / 2, "focal": 3 * (first + second) / 2})
    wider = nn.functional.smooth_l1_loss(raw.deltas[0][stands], due, reduction="sum") / stands.sum()  # control
    assert not torch.isclose(found["smooth_l1"], wider / 2)


def test_before_training_everything_is_background():
    model, (_, batch) = small(), scene((64, 64))
    with torch.no_grad():
        probabilities = model.head(model.features(batch)).logits.sigmoid()
    assert (probabilities / retinanet.PRIOR - 1).abs().max() < 0.2


@pytest.mark.parametrize("losses", [{"focal": 1.0, "l1": 1.0}, {"focal": 1.0, "giou": 2.0}])
@pytest.mark.parametrize("crowd", [False, True])
def test_nothing_there(losses, crowd):
    """No objects in the whole batch, or none but a crowd: finite, and every parameter has a gradient."""
    model, (_, batch) = small(losses=losses), scene((61, 53), second=(40, 53))
    number = int(crowd)
    nothing = Instances(
        torch.tensor([[3.0, 3, 50, 60]])[:number],
        torch.zeros(number, dtype=torch.int64),
        crowd=torch.ones(number, dtype=torch.bool),
    )
    found = means(model(batch._replace(targets=(nothing, nothing))))
    box = next(name for name in losses if name != "focal")
    assert found[box] == 0
    assert 0 < found["focal"] < math.inf
    sum(found.values()).backward()
    for name, parameter in model.head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.head.classify.output.weight.grad.abs().max() > 0


def test_a_crowd_counts_for_nothing():
    model, (_, batch) = small(), scene((64, 64))
    raw = said(model, batch)
    boxes = torch.tensor([[0.0, 0, 40, 40], [44, 44, 60, 60]])
    truth = Instances(boxes, torch.tensor([1, 2]), crowd=torch.tensor([True, False]))
    number = anchoring.match_boxes(raw.anchors, boxes, foreground=0.5, background=0.4, crowd=truth.crowd)
    inside = (anchoring.share_inside(raw.anchors, boxes[:1])[:, 0] > anchoring.CROWDED) & (number < 0)
    assert inside.sum() > 50
    other = raw._replace(logits=raw.logits + 3 * inside[:, None])
    targets, plain = (truth, truth), (truth._replace(crowd=None), truth._replace(crowd=None))
    torch.testing.assert_close(means(model.head.loss(other, targets)), means(model.head.loss(raw, targets)))
    assert not torch.isclose(
        means(model.head.loss(other, plain))["focal"], means(model.head.loss(raw, plain))["focal"]
    )  # control


def test_parts_of_a_batch_weighted_by_their_count_make_the_whole():
    model, (_, batch) = small().eval(), scene((64, 64))
    more = scene((64, 64), seed=1)[1]
    one = more.targets[0]
    whole = Batch(
        torch.cat([batch.images, more.images[:1]]),
        (*batch.targets, one._replace(boxes=one.boxes[:1], classes=one.classes[:1])),
        ("",) * 3,
        ((64, 64),) * 3,
    )
    gradients(model, whole, part=0)
    wanted = {name: parameter.grad.clone() for name, parameter in model.head.named_parameters()}
    for part in (1, 2):
        model.zero_grad()
        gradients(model, whole, part=part)
        for name, parameter in model.head.named_parameters():
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6)


def test_mixed_precision_is_close():
    model, (_, batch) = small().eval(), scene((64, 64))
    with torch.no_grad():
        exact = means(model(batch))
        with torch.autocast("cpu", torch.bfloat16):
            rough = means(model(batch))
            predictions = model.predict(batch)
    for name, loss in exact.items():
        assert rough[name].dtype == torch.float32
        torch.testing.assert_close(rough[name], loss, rtol=0.05, atol=0.05)
    assert all(one.boxes.dtype == one.scores.dtype == torch.float32 for one in predictions)


# -------------------------------------------------------------------------------------------------------- predictions


def perfect(model, batch):
    """What a model would say that has learnt the batch."""
    with torch.no_grad():
        raw = model.head(model.features(batch))
    logits, moves = torch.full_like(raw.logits, -20.0), torch.zeros_like(raw.deltas)
    for image, truth in enumerate(batch.targets):
        number = anchoring.match_boxes(raw.anchors, truth.boxes, foreground=0.5, background=0.4)
        (rows,) = (number >= 0).nonzero(as_tuple=True)
        logits[image, rows, truth.classes[number[rows]]] = 5 + number[rows].float()
        moves[image, rows] = encode(truth.boxes[number[rows]], raw.anchors[rows])
    return raw._replace(logits=logits, deltas=moves)


def test_a_perfect_output_decodes_to_the_target():
    model, (_, batch) = small(), scene((64, 64))
    boxes = torch.tensor([[2.0, 3, 20, 25], [30, 30, 62, 60], [40.0, 4, 50, 14]])
    batch = batch._replace(targets=(Instances(boxes, torch.tensor([3, 0, 1])), batch.targets[1]))
    raw = perfect(model, batch)
    found, nothing = model.head.decode(raw, [(128, 32), (64, 64)])
    assert (found.scores.diff() <= 0).all()
    assert found.classes.tolist() == [1, 0, 3]  # later ones have higher scores
    torch.testing.assert_close(found.boxes, boxes.flip(0) * torch.tensor([0.5, 2, 0.5, 2]))
    assert len(nothing.boxes) == len(nothing.scores) == 0
    assert nothing.boxes.shape == (0, 4)
    assert means(model.head.loss(raw, batch.targets))["l1"] < 1e-5
    wrong = model.head.decode(raw._replace(deltas=raw.deltas + 0.1), [(128, 32), (64, 64)])[0]  # control
    assert not torch.allclose(wrong.boxes, boxes.flip(0) * torch.tensor([0.5, 2, 0.5, 2]), atol=0.1)


def test_predictions_lie_in_the_picture():
    model, (_, batch) = small(score_threshold=0.0, detections=30), scene((60, 75), second=(40, 33))
    raw = said(model, batch)
    assert raw.pictures.tolist() == [[60, 75], [40, 33]]
    sizes = [(60, 75), (400, 330)]
    for one, (height, width) in zip(model.head.decode(raw, sizes), sizes, strict=True):
        assert len(one.boxes) == 30
        assert (one.boxes >= 0).all()
        assert (one.boxes <= torch.tensor([width, height, width, height])).all()
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
    blind = model.head.decode(raw._replace(pictures=torch.tensor([[64.0, 96.0]] * 2)), [(64, 96)] * 2)  # control
    assert (blind[1].boxes[:, 2] > 33).any()


def test_thresholds_and_numbers():
    model, (_, batch) = small(score_threshold=0.3, detections=7), scene((64, 64))
    raw = said(model, batch)
    found = model.head.decode(raw, batch.sizes)
    assert max(len(one.boxes) for one in found) == 7
    assert all((one.scores > 0.3).all() for one in found)
    model.head.score_threshold = 1.0
    assert [len(one.boxes) for one in model.head.decode(raw, batch.sizes)] == [0, 0]


# -------------------------------------------------------------------------------------------------------------- shape


@pytest.mark.parametrize(
    ("backbone", "finest", "strides"),
    [
        ("pvt", 8, (8, 16, 32, 64, 128)),
        ("pvt", 4, (4, 8, 16, 32, 64, 128)),
        ("vit", 8, (8, 16, 32, 64, 128)),
        ("cross_vit", 8, (6, 8, 16, 32)),
        ("swin", 8, (4, 8, 16)),
        ("swin", 4, (4, 8, 16)),
    ],
)
def test_levels(backbone, finest, strides):
    model, (_, batch) = small(backbone, finest=finest, sizes=None), scene((70, 53))
    assert model.head.strides == strides
    means(model(batch))["focal"].backward()
    unused = [name for name, parameter in model.head.named_parameters() if parameter.grad is None]
    assert all(name.startswith("move.") for name in unused)  # nothing is made in vain
    raw = model.eval().head(model.features(batch))
    sides = raw.anchors[:, 2:] - raw.anchors[:, :2]
    each = [part.prod(1).sqrt().mean().item() for part in sides.split(raw.counts)]
    assert each == pytest.approx([4 * stride * 1.28 for stride in strides], rel=0.1)
    edge = torch.stack([part[-1, :2] + part[-1, 2:] for part in raw.anchors.split(raw.counts)]) / 2
    reach = torch.tensor([[64.0, 96.0]])  # width and height of the input
    assert (edge < reach).all()
    assert (edge + 2 * torch.tensor(strides)[:, None] >= reach).all()


def test_cells_of_a_rounded_stride_are_as_far_apart_as_they_are():
    options = {"finest": 16, "form": {"coarser": 0}}
    head = RetinaNet(FeatureInfo((2, 4), (6, 12), 0), classes=1, channels_inside=8, **options)
    assert head.strides == (12,)
    raw = head(Features((torch.zeros(1, 2, 30, 30), torch.zeros(1, 4, 14, 20)), (6, 12), (240, 240)))
    centres = (raw.anchors[:, :2] + raw.anchors[:, 2:]).view(14, 20, 9, 2)[:, :, 4] / 2
    torch.testing.assert_close(centres[1, 1], torch.tensor([12.0, 240 / 14]), rtol=0, atol=0.5)


def test_levels_from_p2_find_smaller_objects():
    anchors = small(finest=4, sizes=(6, 12, 24, 48, 60, 64)).head.cell_anchors
    assert (anchors[0, :, 2] - anchors[0, :, 0]).min() < 6


def test_learns_one_batch():
    model, (_, batch) = small(form={"convolutions": 1, "norm": "group"}), scene((64, 64))
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(30):
        loss = total_loss(model(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"norm": "batch"}, "one of layer, none"),
        ({"sizes": (8, 16)}, "give 5 numbers"),
        ({"losses": {"l1": 1.0}}, "name focal"),
        ({"losses": {"focal": 1.0}}, "name focal"),
        ({"losses": {"focal": 1.0, "gious": 1.0}}, 'did you mean "giou"'),
        ({"losses": {"focal": 0.0, "l1": 1.0}}, "positive"),
        ({"form": {"ratio": (1.0,)}}, 'did you mean "ratios"'),
        ({"form": {"source": "p5"}}, "one of map, pyramid"),
        ({"form": {"ratios": ()}}, "ratios are"),
        ({"form": {"octave": 0}}, "octave of form is 0"),
        ({"score_threshold": 1.0}, "score_threshold"),
        ({"detections": 0}, "detections"),
    ],
)
def test_what_it_refuses(options, match):
    with pytest.raises(UsageError, match=match):
        small(**options)
