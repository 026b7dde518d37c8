"""SETR against the authors' numbers, and on unlike backbones."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from patchform.backbones.vit import ViT
from patchform.errors import UsageError
from patchform.heads.setr import SETR, Raw, enlarge
from patchform.model import build_backbone
from patchform.records import Features, Regions
from patchform.weights.operations import reshape
from patchform.weights.rules import DROP, Rules

REFERENCE = Path(os.environ.get("PATCHFORM_REFERENCE", Path(__file__).parents[3] / "shared/reference"))
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference vectors (PATCHFORM_REFERENCE)")

DECODER = {"norm": "norm", "conv_0": "project", "syncbn_fc_0": "batch_norm", "conv_1": "classify"}
AUTHORS = Rules(
    ("*.conv_seg.{p}", DROP),
    ("backbone.cls_token", "backbone.class_token"),
    ("backbone.pos_embed", "backbone.position.table"),
    ("backbone.patch_embed.proj.weight", "backbone.patches.proj.weight", reshape(-1, "channels", "patch", "patch")),
    ("backbone.patch_embed.proj.{p}", "backbone.patches.proj.{p}"),
    ("backbone.blocks.{b}.attn.{l}.{p}", "backbone.blocks.{b}.attention.{l}.{p}"),
    ("backbone.blocks.*", "backbone.blocks.*"),
    *((f"decode_head.{theirs}.{{p}}", f"head.decoder.{ours}.{{p}}") for theirs, ours in DECODER.items()),
    *(
        (f"auxiliary_head.{{i}}.{theirs}.{{p}}", f"head.auxiliary_decoders.{{i}}.{ours}.{{p}}")
        for theirs, ours in DECODER.items()
    ),
)


class Segmenter(nn.Module):
    def __init__(self, backbone, **options):
        super().__init__()
        self.backbone = backbone
        self.head = SETR(channels=backbone.channels, strides=backbone.strides, width=backbone.width, **options)

    def forward(self, images):
        return self.head(self.backbone(images))


# ------------------------------------------------------------------------------------------------------ golden vectors


def golden():
    data = load_file(REFERENCE / "golden/setr_naive.safetensors")
    table = json.loads((REFERENCE / "golden/setr_naive.json").read_text())["golden"]
    state = {key.removeprefix("param."): data[key] for key in data if key.startswith("param.")}
    return data, state, {key: 10 * error for key, (error, _) in table["fp32_vs_fp64_max_abs_err_and_scale"].items()}


def filled(state):
    backbone = ViT(image_size=96, width=16, depth=6, heads=4, mlp_ratio=2, maps_from=(1, 2, 3, 4, 5, 6))
    model = Segmenter(backbone, classes=5, channels_inside=8, auxiliary=(2,))
    model.backbone.norm = nn.Identity()  # theirs has none: the maps are not normalised, the decoder norms its own
    model.load_state_dict(AUTHORS.load(state, model.state_dict())[0])
    model.eval()
    model.head.training = True  # for the auxiliary decoder; its norm stays as it is
    return model


@needs_reference
@torch.no_grad()
def test_same_numbers_as_the_authors_code():
    data, state, allowed = golden()
    model = filled(state)
    features = model.backbone(data["input"])
    for number, found in enumerate(features.maps):
        wanted = data[f"feature{number}"][:, 1:]  # without the class token
        assert (found.flatten(2).transpose(1, 2) - wanted).abs().max() <= allowed[f"feature{number}"]
    raw = model.head(features)
    for key, logits in (("output", raw.logits), ("aux0", raw.auxiliary[0])):
        assert (enlarge(logits, 16, (96, 96)) - data[key]).abs().max() <= allowed[key]


@needs_reference
@torch.no_grad()
@pytest.mark.parametrize("part", ["norm", "batch_norm"])
def test_control_other_norms_give_other_numbers(part):
    data, state, allowed = golden()
    model = filled(state)
    decoders = model.head.decoder, model.head.auxiliary_decoders[0]
    ours, other = (getattr(decoder, part) for decoder in decoders)
    setattr(decoders[0], part, other)
    setattr(decoders[1], part, ours)
    raw = model(data["input"])
    for key, logits in (("output", raw.logits), ("aux0", raw.auxiliary[0])):
        assert (enlarge(logits, 16, (96, 96)) - data[key]).abs().max() > 1000 * allowed[key]


@needs_reference
@pytest.mark.parametrize(
    ("name", "side", "classes"),
    [pytest.param("cityscapes 768", 768, 19, marks=pytest.mark.slow), ("ade20k 512", 512, 150)],
)
def test_parameters_and_multiplications_are_counted_as_published(name, side, classes):
    row = json.loads((REFERENCE / "full_size.json").read_text())["SETR"][f"SETR-Naive ViT-L {name}"]
    with torch.device("meta"):
        backbone = build_backbone("vit/l16", image_size=side, maps_from=(10, 15, 20, 24))
        model = Segmenter(backbone, classes=classes, auxiliary=(0, 1, 2))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(2, 3, side, side))
    never_used = 4 * (512 + 1) * classes  # a classifier in each of their decoders
    final_norm = 2 * 1024  # of the backbone; theirs has none
    assert sum(p.numel() for p in model.parameters()) + never_used - final_norm == row["params"]
    assert counter.get_total_flops() == 2 * row["flops"][f"{side}x{side}"]["flops"]


# ------------------------------------------------------------------------------------------------- loss, count, decode


def head(**options):
    torch.manual_seed(0)
    return SETR(**{"channels": (6, 8), "strides": (4, 8), "classes": 3, "channels_inside": 16, **options})


def features(rows=3, columns=4, images=2, seed=1):
    draw = torch.Generator().manual_seed(seed)
    fine = torch.randn(images, 6, 2 * rows, 2 * columns, generator=draw)
    return Features((fine, torch.randn(images, 8, rows, columns, generator=draw)), (4, 8), (8 * rows, 8 * columns))


def targets(size=(24, 32), images=2, ignored=0.2, seed=2):
    draw = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (images, *size), generator=draw)
    return [Regions(one) for one in classes.masked_fill(torch.rand(classes.shape, generator=draw) < ignored, 255)]


def test_loss_is_the_mean_over_the_pixels_that_count():
    built, wanted = head(auxiliary=(0, -1), auxiliary_weight=0.4), targets()
    raw = built(features())
    losses = built.loss(raw, wanted)
    truth = torch.stack([region.classes for region in wanted])

    def entropy(logits):
        pixels = F.interpolate(logits, size=(24, 32), mode="bilinear")
        return F.cross_entropy(pixels, truth, ignore_index=255)

    torch.testing.assert_close(losses["loss"], entropy(raw.logits))
    torch.testing.assert_close(losses["auxiliary"], 0.4 * sum(map(entropy, raw.auxiliary)))
    assert len(raw.auxiliary) == 2
    assert built.eval()(features()).auxiliary == ()
    assert built.count(wanted) == (truth != 255).sum()


def test_parts_of_a_batch_weighted_by_their_count_make_the_whole():
    built = head().eval()  # in training batch norm looks at the batch
    nn.init.normal_(built.decoder.classify.weight)
    wanted = targets(images=3)
    wanted[1].classes[5:] = 255
    whole, all_features = features(images=3), features(images=3)
    parts = []
    for image in range(3):
        one = Features(tuple(x[image : image + 1] for x in all_features.maps), all_features.strides, all_features.size)
        parts.append(
            (built.loss(built(one), wanted[image : image + 1])["loss"], built.count(wanted[image : image + 1]))
        )
    total = sum(loss * count for loss, count in parts) / sum(count for _, count in parts)
    torch.testing.assert_close(built.loss(built(whole), wanted)["loss"], total)
    assert (sum(loss for loss, _ in parts) / 3 - total).abs() > 1e-3  # control: a plain mean is something else


def test_nothing_to_learn_is_no_loss():
    built, wanted = head(auxiliary=(0,)), targets(ignored=2)
    losses = built.loss(built(features()), wanted)
    sum(losses.values()).backward()
    assert [loss.item() for loss in losses.values()] == [0, 0]
    assert all(parameter.grad.abs().max() == 0 for parameter in built.parameters())
    assert built.count(wanted) == 0


def test_cells_stay_where_they_are_when_the_stride_does_not_divide():
    column = torch.arange(4.0).expand(1, 1, 3, 4)
    assert torch.equal(enlarge(column, 8, (24, 32)), F.interpolate(column, size=(24, 32), mode="bilinear"))
    assert torch.equal(enlarge(column, 8, (19, 27)), enlarge(column, 8, (24, 32))[..., :19, :27])
    assert enlarge(column, 8, (25, 33)).shape == (1, 1, 25, 33)  # a stride rounded down


def test_decode_of_a_perfect_output_is_the_target():
    truth = torch.randint(3, (2, 6, 8), generator=torch.Generator().manual_seed(0))
    logits = 50.0 * F.one_hot(truth).permute(0, 3, 1, 2)
    whole = head(strides=(1, 1))
    found = whole.decode(Raw(logits, (), None, (6, 8)), [(6, 8), (6, 8)])
    for region, wanted in zip(found, truth, strict=True):
        assert torch.equal(region.classes, wanted)
        torch.testing.assert_close(region.scores.sum(0), torch.ones(6, 8))
    larger = whole.decode(Raw(logits, (), None, (6, 8)), [(90, 40), (7, 9)])
    assert [region.classes.shape for region in larger] == [(90, 40), (7, 9)]


def test_decode_leaves_padding_out():
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(2, 4, 5, dtype=torch.bool)
    padding[1, 3:], padding[1, :, 2:] = True, True
    whole = head(strides=(1, 1))
    found = whole.decode(Raw(logits, (), padding, (4, 5)), [(8, 10), (6, 4)])
    alone = whole.decode(Raw(logits[1:, :, :3, :2], (), None, (3, 2)), [(6, 4)])
    assert torch.equal(found[1].classes, alone[0].classes)
    assert torch.equal(found[0].classes, whole.decode(Raw(logits, (), None, (4, 5)), [(8, 10), (6, 4)])[0].classes)


def test_decode_is_exact_where_the_stride_does_not_divide_the_input():
    column = torch.arange(3.0)[None, :, None, None] * torch.arange(4.0).expand(1, 1, 3, 4)
    built = head(strides=(4, 8))
    found = built.decode(Raw(column, (), None, (19, 27)), [(19, 27)])
    wanted = F.interpolate(column, size=(24, 32), mode="bilinear")[..., :19, :27].softmax(1)
    torch.testing.assert_close(found[0].scores, wanted[0])
    shrunk = F.interpolate(column, size=(19, 27), mode="bilinear").softmax(1)  # control: not the plain resize
    assert (found[0].scores - shrunk[0]).abs().max() > 1e-2


# ------------------------------------------------------------------------------------------------------- any backbone


@pytest.mark.parametrize("name", ["vit/nano", "swin/nano", "resnet/nano", "cross_vit/nano"])
@pytest.mark.parametrize("size", [(64, 64), (67, 90)])
def test_learns_one_batch_on_any_backbone(name, size):
    torch.manual_seed(0)
    backbone = build_backbone(name)
    auxiliary = range(len(backbone.channels) - 1)
    model = Segmenter(backbone, classes=3, channels_inside=32, auxiliary=tuple(auxiliary))
    images = torch.randn(2, 3, *size)
    classes = torch.arange(size[1]).expand(2, *size) * 3 // size[1]
    wanted = [Regions(one) for one in classes.contiguous()]
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(25):
        parts = model.head.loss(model(images), wanted)
        losses.append(parts["loss"].item())
        optimizer.zero_grad()
        sum(parts.values()).backward()
        optimizer.step()
    assert losses[-1] < 0.75 * losses[0]
    decoder = model.head.decoder
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    found = model.eval().head.decode(model(images), [(10, 13), size])
    assert [region.classes.shape for region in found] == [(10, 13), size]


def test_a_map_that_is_not_there_is_named():
    with pytest.raises(UsageError, match="no map 2"):
        head(auxiliary=(2,))
