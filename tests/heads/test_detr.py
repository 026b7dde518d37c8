"""DETR against the authors' numbers and against transformers."""

import pytest
import torch
from losses import means
from reference import golden, load, randomise, rounding_of
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment
from torch import nn

from patchform.backbones.resnet import BLOCKS, Bottleneck, ResNet, conv_norm
from patchform.errors import DataError, ModelFileError, UsageError
from patchform.geometry import masks
from patchform.geometry.boxes import to_corners
from patchform.heads.detr import DETR, DETRRaw
from patchform.heads.detr_masks import AttentionMaps, DETRMasks, MaskConvolutions
from patchform.loading import export_weights, load_weights
from patchform.model import build_model
from patchform.published.resnet import LAYOUTS
from patchform.records import FeatureInfo, Features, Instances
from patchform.settings import Transfer
from patchform.weights.rules import Rules

FORMS = {
    "detr": ({}, {}),
    "detr_dc5_prenorm": ({"dilated": 1}, {"norms": "pre"}),
    "detr_learnedpos": ({}, {"positions": "learned"}),
}


class Whole(nn.Module):
    """Backbone and head by the names that the layouts use."""

    def __init__(self, backbone, head=DETR, *, width=32, heads=4, form=None, **options):
        super().__init__()
        form = {"depths": (2, 2), "heads": heads, "hidden": 64, **(form or {})}
        self.backbone = backbone
        self.head = head(
            backbone.feature_info,
            classes=7,
            queries=6,
            channels_inside=width,
            transformer=form,
            **options,
        )

    def forward(self, images, padding=None):
        return self.head(self.backbone(images, padding=padding)._replace(pixel_padding=padding))


def authors_backbone(**options):
    """Theirs has a stem twice as wide as its first stage."""
    backbone = ResNet(block="bottleneck", depths=(1, 2, 1, 2), widths=(4, 8, 16, 32), **options)
    backbone.stem = conv_norm(3, 8, 7, 2)
    backbone.stages[0][0] = Bottleneck(8, 4, branch=BLOCKS["bottleneck"])
    return backbone


def filled(name):
    _, data, state, rounding = golden(name)
    backbone, form = FORMS[name]
    model = Whole(authors_backbone(**backbone), form=form)
    tensors, report = LAYOUTS["detr"].load(state, model.state_dict())
    assert {entry.name for entry in report.of("new")} == {n for n in model.state_dict() if n.endswith("_tracked")}
    model.load_state_dict(model.state_dict() | tensors)
    written = LAYOUTS["detr"].dump(tensors)
    assert set(written) == set(state)
    assert all(torch.equal(written[one], state[one]) for one in state)
    return model.eval(), data, rounding


def answers(model, data):
    padding = data["mask"].bool()
    features = model.backbone(data["input"], padding=padding)._replace(pixel_padding=padding)
    raw = model.head(features)
    grid = features.padding.shape[1:]
    places = model.head.positions(grid, features.padding).transpose(1, 2).unflatten(2, grid)
    assert torch.equal(features.padding, data["backbone.mask"].bool())
    return {
        "backbone.feature": features.maps[-1],
        "position": places,
        "encoder_memory_HWxNxC": raw.memory,
        "decoder_hs_LxNxQxC": raw.states,
        "aux0.pred_logits": raw.logits[0],
        "aux0.pred_boxes": raw.boxes[0],
        "output.pred_logits": raw.logits[1],
        "output.pred_boxes": raw.boxes[1],
    }


def errors(model, data):
    """Largest difference of each answer where there is a picture."""
    real = ~data["backbone.mask"].bool()[:, None]
    wanted = dict(data)
    wanted["encoder_memory_HWxNxC"] = data["encoder_memory_HWxNxC"].permute(1, 2, 0).unflatten(2, real.shape[2:])
    wanted["decoder_hs_LxNxQxC"] = data["decoder_hs_LxNxQxC"][-1]
    return {
        name: ((found - wanted[name]) * (real if found.dim() == 4 else 1)).abs().max()
        for name, found in answers(model, data).items()
    }


@pytest.mark.parametrize("name", list(FORMS))
@torch.no_grad()
def test_same_numbers_as_the_authors_code(name):
    model, data, rounding = filled(name)
    found = errors(model, data)
    assert found.pop("position") < 1e-6  # theirs is the same in both precisions
    for one, error in found.items():
        assert error <= 10 * rounding[one], one


def rows_for_columns(model):
    positions = model.head.positions
    positions.rows, positions.columns = positions.columns, positions.rows


def values_with_positions(model):
    for layer in model.head.encoder:
        look = layer.attention.forward
        layer.attention.forward = lambda asking, keys, values, allowed, look=look: look(asking, keys, keys, allowed)


def sees_padding(model):
    for layer in (*model.head.encoder, *model.head.decoder):
        attention = getattr(layer, "cross_attention", layer.attention)
        look = attention.forward
        attention.forward = lambda asking, keys, values, allowed=None, look=look: look(asking, keys, values)


def norms_elsewhere(model):
    for layer in (*model.head.encoder, *model.head.decoder):
        for around in layer.around:
            around.pre_norm = not around.pre_norm


def not_dilated(model):
    model.backbone.stages[3][1].branch[1].conv.dilation = model.backbone.stages[3][1].branch[1].conv.padding = (1, 1)


CONTROLS = {
    "rows for columns": ("detr_learnedpos", rows_for_columns),
    "values with positions": ("detr", values_with_positions),
    "padding is seen": ("detr", sees_padding),
    "norms elsewhere": ("detr", norms_elsewhere),
    "norms elsewhere, pre": ("detr_dc5_prenorm", norms_elsewhere),
    "not dilated": ("detr_dc5_prenorm", not_dilated),
}


@pytest.mark.parametrize("name", list(CONTROLS))
@torch.no_grad()
def test_control_another_structure_gives_other_numbers(name):
    form, control = CONTROLS[name]
    model, data, rounding = filled(form)
    control(model)
    assert errors(model, data)["output.pred_logits"] > 1000 * rounding["output.pred_logits"]


# ---------------------------------------------------------------------------------------------------------- criterion


def head(kind=DETR, *, width=16, strides=(16,), **options):
    form = {"heads": 2, "hidden": 16, "depths": (1, 2), **options.pop("transformer", {})}
    options = {"classes": 7, "queries": 6, "channels_inside": width, **options}
    torch.manual_seed(0)
    return kind(FeatureInfo((8,) * len(strides), strides, 0), transformer=form, **options)


def told(logits, boxes, pictures):
    nothing = boxes.new_zeros(0)
    return DETRRaw(logits, boxes, pictures, nothing, nothing, nothing)


def criterion():
    """What their criterion was told, as our head says it, and as our targets do."""
    _, data, _, _ = golden("detr_criterion")
    pictures = torch.tensor([[96.0, 128.0], [60.0, 90.0]])
    logits, boxes = (torch.stack([data[f"aux0.pred_{one}"], data[f"pred_{one}"]]) for one in ("logits", "boxes"))
    targets = [
        Instances(to_corners(data[f"target{i}.boxes"]) * pictures[i][[1, 0, 1, 0]], data[f"target{i}.labels"])
        for i in range(2)
    ]
    return data, told(logits, boxes, pictures), targets


def test_losses_and_pairs_are_the_authors():
    data, raw, targets = criterion()
    own = head()
    factors = {"class": 1, "box": 5, "giou": 2}
    theirs = {"class": "loss_ce", "box": "loss_bbox", "giou": "loss_giou"}
    wanted = {name: factors[name] * data[f"loss.{theirs[name]}"][0] for name in factors}
    wanted |= {f"auxiliary_{name}": factors[name] * data[f"loss.{theirs[name]}_0"][0] for name in factors}
    torch.testing.assert_close(means(own.loss(raw, targets)), wanted, rtol=2e-6, atol=0)
    pairs = own.match(raw, own.truth(raw, targets))[-1]
    for number, part in enumerate(pairs.split([3, 1])):
        wanted = torch.empty_like(part)
        wanted[data[f"match{number}.target"]] = data[f"match{number}.pred"]
        assert torch.equal(part, wanted)
    other = means(head(losses={"no_object": 0.2}).loss(raw, targets))  # control
    assert abs(other["class"] - data["loss.loss_ce"][0]) > 1e-3


def test_predictions_are_the_authors():
    data, raw, _ = criterion()
    sizes = [(480, 640), (400, 500)]
    for number, (found, (height, width)) in enumerate(zip(head().decode(raw, sizes), sizes, strict=True)):
        scores, order = data[f"post{number}.scores"].sort(descending=True)
        torch.testing.assert_close(found.scores, scores, rtol=0, atol=1e-6)
        assert torch.equal(found.classes, data[f"post{number}.labels"][order])
        boxes = data[f"post{number}.boxes"][order]
        inside = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height] * 2))  # theirs may leave the picture
        torch.testing.assert_close(found.boxes, inside, rtol=0, atol=1e-3)
    assert len(head(detections=2).decode(raw, sizes)[0].scores) == 2
    least = data["post0.scores"].median().item()
    some = head(score_threshold=least).decode(raw, sizes)
    assert all((found.scores >= least).all() for found in some)
    assert len(some[0].scores) == 4


def test_costs_are_those_of_the_paper_and_every_image_is_matched_by_itself():
    _, raw, targets = criterion()
    own = head()
    found = own.match(raw, own.truth(raw, targets))
    for layer in range(2):
        place = 0
        for number, target in enumerate(targets):
            wanted = own.truth(raw, targets).boxes[place : place + len(target.classes)]
            cost = torch.empty(6, len(wanted))
            for query in range(6):
                for one in range(len(wanted)):
                    guess = raw.boxes[layer, number, query]
                    a, b = to_corners(guess), to_corners(wanted[one])
                    low, high = torch.minimum(a, b), torch.maximum(a, b)
                    both = (high[:2].new_tensor(0).maximum(low[2:] - high[:2])).prod()
                    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both
                    hull = (high[2:] - low[:2]).prod()
                    chance = raw.logits[layer, number, query].softmax(0)[target.classes[one]]
                    giou = both / union - (hull - union) / hull
                    cost[query, one] = 5 * (guess - wanted[one]).abs().sum() - chance - 2 * giou
            queries, objects = linear_sum_assignment(cost.numpy())
            assert found[layer, place + torch.from_numpy(objects)].tolist() == queries.tolist()
            place += len(wanted)


def test_a_perfect_output_decodes_to_the_target_and_costs_nothing():
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 2.0, 60.0, 20.0]])
    target, own = Instances(boxes, torch.tensor([3, 5])), head()
    pictures = torch.tensor([[60.0, 80.0]])
    shares = own.truth(told(torch.zeros(1, 1, 6, 8), torch.zeros(1, 1, 6, 4), pictures), [target]).boxes
    logits = torch.full((2, 1, 6, 8), -20.0)
    logits[..., 7] = 20
    logits[:, 0, [1, 4], [3, 5]] = 60
    guesses = torch.full((2, 1, 6, 4), 0.5)
    guesses[:, 0, [1, 4]] = shares
    raw = told(logits, guesses, pictures)
    found = own.decode(raw, [(120, 240)])[0]
    assert found.classes[:2].tolist() == [3, 5]
    torch.testing.assert_close(found.boxes[:2], boxes * torch.tensor([3.0, 2.0, 3.0, 2.0]))
    assert (found.scores[2:] < 1e-6).all()
    assert all(loss < 1e-5 for loss in means(own.loss(raw, [target])).values())
    assert means(own.loss(raw, [target._replace(classes=torch.tensor([5, 3]))]))["class"] > 1  # control


def test_crowds_and_objects_beyond_the_queries_cost_nothing_and_break_nothing():
    _, raw, targets = criterion()
    own = head()
    crowd = targets[0]._replace(
        boxes=torch.cat([targets[0].boxes, targets[0].boxes[:1] + 3]),
        classes=torch.cat([targets[0].classes, torch.tensor([6])]),
        crowd=torch.tensor([False, False, False, True]),
    )
    assert means(own.loss(raw, [crowd, targets[1]])) == means(own.loss(raw, targets))
    assert own.counts([crowd, targets[1]]) == own.counts(targets)
    assert means(own.loss(raw, [crowd._replace(crowd=None), targets[1]])) != means(own.loss(raw, targets))  # control
    many = Instances(targets[0].boxes[:1].repeat(9, 1), torch.arange(9) % 7)
    pairs = own.match(raw, own.truth(raw, [many, targets[1]]))
    assert (pairs[:, :9] >= 0).sum(1).tolist() == [6, 6]
    assert all(loss.isfinite() for loss in means(own.loss(raw, [many, targets[1]])).values())


def test_parts_make_the_whole_whatever_their_objects():
    _, raw, targets = criterion()
    own, whole, parts = head(), head().loss(raw, targets), []
    assert len({len(target.classes) for target in targets}) == 2
    for number in range(2):
        part = told(raw.logits[:, [number]], raw.boxes[:, [number]], raw.pictures[[number]])
        parts.append(own.loss(part, [targets[number]]))
    for name, loss in whole.items():
        torch.testing.assert_close(sum(part[name].sum for part in parts), loss.sum)
        torch.testing.assert_close(sum(part[name].count for part in parts), loss.count)
    nothing = own.counts([Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))])
    assert (nothing["class"], nothing["giou"]) == (pytest.approx(0.6), 0)


@pytest.mark.parametrize(
    "options",
    [
        {"transformer": {"norms": "past"}},
        {"transformer": {"positions": "sines"}},
        {"transformer": {"depths": (1, 0)}},
        {"transformer": {"dropout": 1.0}},
        {"transformer": {"depth": 3}},
        {"transformer": {"heads": 3}},
        {"losses": {"mask": 1.0}},
        {"norm": "batch"},
        {"queries": 0},
    ],
)
def test_what_it_refuses(options):
    with pytest.raises(UsageError):
        head(**options)


# -------------------------------------------------------------------------------------------------------------- masks


def mask_parts(state):
    """What masks are made with, filled with the authors' parameters."""
    parts = nn.Module()
    parts.head = nn.Module()
    parts.head.looks, parts.head.masks = AttentionMaps(128, 8), MaskConvolutions(128, 8, (64, 32, 16))
    of_masks = (rule for rule in LAYOUTS["detr_masks"] if str(rule[0]).startswith(("mask_head", "bbox_attention")))
    load(parts, Rules(*of_masks), state)
    return parts.head.eval()


def made(parts, data):
    padding = data["mask"].bool()
    looks = parts.looks(data["input.hs_last"], data["input.memory"], padding)
    guides = [data[f"input.fpn{number}"] for number in range(3)]
    image = torch.tensor([0, 0, 0, 1, 1, 1])
    return looks, parts.masks(data["input.src_proj"], looks.flatten(0, 1), guides, image)


@torch.no_grad()
def test_masks_are_the_authors():
    _, data, state, rounding = golden("detr_mask_head")
    parts = mask_parts(state)
    looks, logits = made(parts, data)
    assert (looks - data["bbox_mask"]).abs().max() <= 10 * rounding["bbox_mask"]
    assert (logits - data["output"]).abs().max() <= 10 * rounding["output"]
    some = torch.tensor([4, 1])  # only those that are wanted
    chosen = parts.masks(
        data["input.src_proj"],
        looks.flatten(0, 1)[some],
        [data[f"input.fpn{number}"] for number in range(3)],
        some // 3,
    )
    assert (chosen - data["output"][some]).abs().max() <= 10 * rounding["output"]
    norms = parts.masks.first_norm.weight
    norms.copy_(norms.flip(0))  # control
    assert (made(parts, data)[1] - data["output"]).abs().max() > 1000 * rounding["output"]


def test_masks_of_a_perfect_output_come_back():
    own = head(DETRMasks, width=16, strides=(4, 8, 16, 32)).eval()
    maps = [torch.randn(1, 8, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32)]
    padding = torch.zeros(1, 64, 64, dtype=torch.bool)
    padding[:, 48:] = True
    raw = own(Features(tuple(maps), (4, 8, 16, 32), (64, 64), pixel_padding=padding))
    truth = torch.zeros(6, 64, 64)
    for query in range(6):
        truth[query, 8 * query : 8 * query + 8, 8 : 8 * query + 16] = 1

    def say(raw, image, query):
        return 20 * truth[query][:, None] - 10

    own.logits = say
    found = own.decode(raw, [(96, 128)])[0]
    dense = masks.to_dense(found.masks)
    order = own.best(raw, torch.tensor([(96, 128)]))[1][0]
    wanted = truth[order, :48].repeat_interleave(2, 1).repeat_interleave(2, 2).bool()
    assert torch.equal(dense, wanted)
    targets = [Instances(found.boxes / 2, found.classes, masks=masks.from_dense(truth[order, :48]))]
    queries = own.match(raw, own.truth(raw, targets))[-1]
    truth[queries] = masks.to_dense(targets[0].masks, (64, 64)).float()
    losses = means(own.loss(raw, targets))
    assert losses["mask"] < 1e-3
    assert losses["dice"] < 1e-2
    truth[:] = truth.roll(1, 0)  # control
    assert means(own.loss(raw, targets))["dice"] > 0.1


def test_objects_without_masks_are_refused():
    own = head(DETRMasks, width=16, strides=(16, 32))
    raw = own(Features((torch.randn(1, 8, 4, 4), torch.randn(1, 8, 2, 2)), (16, 32), (64, 64)))
    target = Instances(torch.tensor([[1.0, 2, 30, 40]]), torch.tensor([1]))
    with pytest.raises(DataError, match="without masks"):
        own.loss(raw, [target])
    with pytest.raises(DataError, match=r"\(65, 64\) pixels for an input of \(64, 64\)"):
        own.loss(raw, [target._replace(masks=masks.from_dense(torch.ones(1, 65, 64)))])
    with pytest.raises(UsageError, match="8 divides it"):
        head(DETRMasks, width=12, strides=(8, 16, 32))


# -------------------------------------------------------------------------------------------------- transformers, live


def of_transformers(*, masks=False, width=128, heads=8, timm=False):
    """A DETR of theirs on a ResNet of theirs, or on timm's ResNet-18, all parameters random."""
    transformers = pytest.importorskip("transformers")
    if timm:
        pytest.importorskip("timm")
    backbone = transformers.ResNetConfig(
        embedding_size=4,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 2, 1, 2],
        layer_type="bottleneck",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    of_timm = {"use_timm_backbone": True, "backbone": "resnet18", "use_pretrained_backbone": False}
    form = transformers.DetrConfig(
        **(of_timm if timm else {"backbone_config": backbone, "use_timm_backbone": False}),
        num_labels=7,
        num_queries=6,
        d_model=width,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
    )
    kind = transformers.DetrForSegmentation if masks else transformers.DetrForObjectDetection
    return randomise(kind(form), scale=0.1).eval()


@pytest.mark.parametrize("with_masks", [False, True])
@torch.no_grad()
def test_same_numbers_as_transformers(with_masks):
    theirs = of_transformers(masks=with_masks)
    backbone = ResNet(block="bottleneck", depths=(1, 2, 1, 2), widths=(4, 8, 12, 16))
    ours = Whole(backbone, DETRMasks if with_masks else DETR, width=128, heads=8).eval()
    tensors, _ = LAYOUTS["detr_transformers_5" + "_masks" * with_masks].load(theirs.state_dict(), ours.state_dict())
    ours.load_state_dict(ours.state_dict() | tensors)
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    padding = torch.zeros(2, 96, 128, dtype=torch.bool)
    padding[1, 64:], padding[1, :, 96:] = True, True
    images.masked_fill_(padding[:, None], 0)
    names = ("logits", "pred_boxes") + ("pred_masks",) * with_masks

    def they(images):
        said = theirs(images, pixel_mask=(~padding).to(images.dtype))
        return torch.cat([said[name].flatten() for name in names])

    def we():
        raw = ours(images, padding)
        parts = [raw.logits[-1].flatten(), raw.boxes[-1].flatten()]
        if with_masks:
            query = torch.arange(6).repeat(2)
            image = torch.arange(2).repeat_interleave(6)
            logits = ours.head.masks(raw.cells, raw.mask_inputs.attention[image, query], raw.mask_inputs.guides, image)
            parts.append(logits.flatten())
        return torch.cat(parts)

    wanted, rounding = they(images), rounding_of(they_are(they, theirs), images)
    assert (we() - wanted).abs().max() <= 10 * rounding
    ours.head.decoder[0].around[1].norm.weight.mul_(1.01)  # control
    assert (we() - wanted).abs().max() > 100 * rounding


def they_are(call, module):
    """A function that can be asked for float64, as `rounding_of` does."""

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, images):
            return call(images)

    return Called()


@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize("file", [False, True])
@pytest.mark.parametrize("timm", [False, True])
def test_detectors_of_transformers_are_recognised_and_written_back(with_masks, file, timm, tmp_path):
    theirs = of_transformers(masks=with_masks, timm=timm)
    if file:
        theirs.save_pretrained(tmp_path)
        source = load_file(tmp_path / "model.safetensors")
    else:
        source = theirs.state_dict()
    backbone = {} if timm else {"block": "bottleneck", "depths": (1, 2, 1, 2), "widths": (4, 8, 12, 16)}
    model = detector("detr_masks" if with_masks else "detr", backbone)
    report = load_weights(model, source)
    assert report.layout == "detr_transformers" + "_5" * (not file) + "_timm" * timm + "_masks" * with_masks
    assert not report.of("dropped")
    assert {entry.name.rpartition(".")[2] for entry in report.of("new")} == {"num_batches_tracked"}
    counts = {name for name in export_weights(model, report.layout) if name.endswith("num_batches_tracked")}
    written = {k: v for k, v in export_weights(model, report.layout).items() if k not in counts}
    assert set(written) == set(source)
    assert all(torch.equal(written[name], source[name]) for name in source)


@pytest.mark.parametrize("layout", ["detr", "detr_masks"])
def test_what_is_written_as_the_authors_do_is_recognised(layout):
    model, again = detector(layout, {}), detector(layout, {})
    written = export_weights(randomise(model), layout)
    front = "detr." if layout == "detr_masks" else ""
    assert f"{front}transformer.decoder.layers.1.multihead_attn.in_proj_weight" in written
    assert load_weights(again, written).layout == layout
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def detector(head, backbone, classes=7):
    """A model on ResNet-18, or what `backbone` makes of it, of the sizes of `of_transformers`."""
    return build_model(
        "instance_segmentation" if head == "detr_masks" else "detection",
        backbone="resnet/18",
        head=head,
        classes=[f"class {number}" for number in range(classes)],
        backbone_options=backbone,
        head_options={
            "queries": 6,
            "channels_inside": 128,
            "transformer": {"depths": (2, 2), "heads": 8, "hidden": 64},
        },
    )


def test_other_classes_leave_all_but_the_classifier():
    source = of_transformers(timm=True).state_dict()
    model = detector("detr", {}, classes=3)
    before = model.head.classifier.weight.clone()
    report = load_weights(model, source)
    assert torch.equal(model.head.classifier.weight, before)
    assert torch.equal(model.head.no_object.weight, source["class_labels_classifier.weight"][-1:])
    assert torch.equal(model.head.queries, source["model.query_position_embeddings.weight"])
    names = tuple(f"class {number}" for number in (6, 5, 4, 3, 2, 1, 0))
    load_weights(model, source, transfer=Transfer(classes=names))
    assert torch.equal(model.head.classifier.weight, source["class_labels_classifier.weight"][[6, 5, 4]])
    assert "fresh" in str(report)


@pytest.mark.parametrize("head", ["detr", "detr_masks"])
def test_a_classifier_gives_its_backbone_and_nothing_else(head):
    giver = randomise(build_model("classification", backbone="resnet/18", head="linear", classes=["a", "b"]))
    model = detector(head, {})
    before = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    report = load_weights(model, export_weights(giver, "torchvision"))
    assert {entry.name for entry in report.of("dropped")} == {"fc.weight", "fc.bias"}
    backbone = giver.backbone.state_dict()
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in model.backbone.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.head.state_dict().items())
    half = export_weights(detector("detr", {}), "detr")  # control: a part of the same head is no other head
    del half["transformer.decoder.norm.weight"]
    with pytest.raises(ModelFileError):
        load_weights(detector("detr", {}), half)
