"""SETR against the authors' numbers."""

import pytest
import torch
from reference import full_size, golden, randomise
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from patchform.backbones.vit import ViT
from patchform.errors import UsageError
from patchform.heads.setr import SETR
from patchform.model import build_backbone
from patchform.records import FeatureInfo, Features
from patchform.weights.operations import reshape
from patchform.weights.rules import DROP, Rules

SIDE = 96


class Whole(nn.Module):
    def __init__(self, backbone, **options):
        super().__init__()
        self.backbone = backbone
        self.head = SETR(backbone.feature_info, **options)

    def forward(self, images):
        return self.head(self.backbone(images))


# ------------------------------------------------------------------------------------------------------ golden vectors


def conv_norm(theirs, ours, *, conv="conv", norm="bn"):
    return ((f"{theirs}{conv}.{{p}}", f"{ours}.conv.{{p}}"), (f"{theirs}{norm}.{{p}}", f"{ours}.norm.{{p}}"))


def simple(theirs, ours):
    return (
        (f"{theirs}.norm.{{p}}", f"{ours}.norm.{{p}}"),
        *conv_norm(f"{theirs}.", f"{ours}.project", conv="conv_0", norm="syncbn_fc_0"),
        (f"{theirs}.conv_1.{{p}}", f"{ours}.classify.{{p}}"),
    )


TRUNK = (
    ("*.conv_seg.{p}", DROP),
    ("backbone.cls_token", "backbone.class_token"),
    ("backbone.pos_embed", "backbone.position.table"),
    ("backbone.patch_embed.proj.weight", "backbone.patches.proj.weight", reshape(-1, "channels", "patch", "patch")),
    ("backbone.patch_embed.proj.{p}", "backbone.patches.proj.{p}"),
    ("backbone.blocks.{b}.attn.{l}.{p}", "backbone.blocks.{b}.attention.{l}.{p}"),
    ("backbone.blocks.*", "backbone.blocks.*"),
)
AUXILIARY = simple("auxiliary_head.{i}", "head.auxiliary_decoders.{i}")
AUTHORS = {
    "naive": Rules(*TRUNK, *simple("decode_head", "head.decoder"), *AUXILIARY),
    "pup": Rules(
        *TRUNK,
        ("decode_head.norm.{p}", "head.decoder.norm.{p}"),
        ("decode_head.conv_4.{p}", "head.decoder.classify.{p}"),
        ("decode_head.conv_{i}.{p}", "head.decoder.steps.{i}.conv.{p}"),
        ("decode_head.syncbn_fc_{i}.{p}", "head.decoder.steps.{i}.norm.{p}"),
        *AUXILIARY,
    ),
    "mla": Rules(
        *TRUNK,
        ("backbone.norm_{i}.{p}", "head.aggregation.norms.{i}.{p}"),
        *conv_norm("backbone.mla.mla_p{i+2}_1x1.", "head.aggregation.laterals.{i}", conv="0", norm="1"),
        *conv_norm("backbone.mla.mla_p{i+2}.", "head.aggregation.outputs.{i}", conv="0", norm="1"),
        *conv_norm("decode_head.mlahead.head{i+2}.", "head.decoder.branches.{i}.0", conv="0", norm="1"),
        *conv_norm("decode_head.mlahead.head{i+2}.", "head.decoder.branches.{i}.1", conv="3", norm="4"),
        ("decode_head.cls.{p}", "head.decoder.classify.{p}"),
        ("auxiliary_head.{i}.aux.{p}", "head.auxiliary_decoders.{i}.{p}"),
    ),
}
OPTIONS = {"naive": {"auxiliary": (2,)}, "pup": {"auxiliary": (2,)}, "mla": {"auxiliary": (0, 3)}}


def filled(decoder, state):
    maps = (1, 3, 4, 6) if decoder == "mla" else (1, 2, 3, 4, 5, 6)
    summary = "class"
    if decoder == "mla":  # theirs takes the class token away before the first block, and its position with it
        summary, state = "mean", {name: tensor for name, tensor in state.items() if name != "backbone.cls_token"}
        state["backbone.pos_embed"] = state["backbone.pos_embed"][:, 1:]
    backbone = ViT(image_size=SIDE, width=16, depth=6, heads=4, mlp_ratio=2, maps_from=maps, summary=summary)
    backbone.norm = nn.Identity()  # theirs has none: the maps are not normalised, the decoder norms its own
    model = Whole(backbone, classes=5, decoder=decoder, channels_inside=8, **OPTIONS[decoder])
    model.load_state_dict(AUTHORS[decoder].load(state, model.state_dict())[0])
    model.eval()
    model.head.training = True  # for the auxiliary decoders; the norms stay as they are
    return model


def answers(raw):
    cells = {"output": raw.cells, **{f"aux{number}": one for number, one in enumerate(raw.auxiliary)}}
    return {name: one.enlarged((SIDE, SIDE)) for name, one in cells.items()}


@pytest.mark.parametrize("decoder", list(AUTHORS))
@torch.no_grad()
def test_same_numbers_as_the_authors_code(decoder):
    _, data, state, rounding = golden(f"setr_{decoder}")
    model = filled(decoder, state)
    features = model.backbone(data["input"])
    if decoder == "mla":
        found = dict(enumerate(model.head.aggregation(features.maps)))
        wanted = {number: data[f"feature{number}"] for number in found}
    else:
        found = {number: x.flatten(2).transpose(1, 2) for number, x in enumerate(features.maps)}
        wanted = {number: data[f"feature{number}"][:, 1:] for number in found}  # without the class token
    for number, x in found.items():
        assert (x - wanted[number]).abs().max() <= 10 * rounding[f"feature{number}"]
    result = answers(model.head(features))
    assert set(result) == {name for name in data if name.startswith(("output", "aux"))}
    for name, logits in result.items():
        assert (logits - data[name]).abs().max() <= 10 * rounding[name]


def swap(first, second):
    def control(model):
        one, other = model.get_submodule(first), model.get_submodule(second)
        values = {name: tensor.clone() for name, tensor in one.state_dict().items()}
        one.load_state_dict(other.state_dict())
        other.load_state_dict(values)

    return control


def corners_not_aligned(model):
    decoder = model.head.decoder

    def forward(levels, size):
        grown = [
            nn.functional.interpolate(branch(x), size=size, mode="bilinear")
            for branch, x in zip(decoder.branches, levels)
        ]
        return decoder.classify(torch.cat(grown, 1))

    decoder.forward = forward


CONTROLS = {
    "naive norms": ("naive", swap("head.decoder.norm", "head.auxiliary_decoders.0.norm")),
    "naive batch norms": ("naive", swap("head.decoder.project.norm", "head.auxiliary_decoders.0.project.norm")),
    "pup steps": ("pup", swap("head.decoder.steps.1", "head.decoder.steps.2")),
    "pup norms": ("pup", swap("head.decoder.norm", "head.auxiliary_decoders.0.norm")),
    "mla order": ("mla", swap("head.aggregation.laterals.0", "head.aggregation.laterals.3")),
    "mla norms": ("mla", swap("head.aggregation.norms.1", "head.aggregation.norms.2")),
    "mla corners": ("mla", corners_not_aligned),
}


@pytest.mark.parametrize("name", list(CONTROLS))
@torch.no_grad()
def test_control_another_structure_gives_other_numbers(name):
    decoder, control = CONTROLS[name]
    _, data, state, rounding = golden(f"setr_{decoder}")
    model = filled(decoder, state)
    control(model)
    found = answers(model(data["input"]))["output"]
    assert (found - data["output"]).abs().max() > 1000 * rounding["output"]


@torch.no_grad()
def test_control_the_auxiliary_decoder_of_pup_grows_in_two_steps():
    _, data, state, rounding = golden("setr_pup")
    model = filled("pup", state)
    model.head.auxiliary_by_quarter = False
    found = answers(model(data["input"]))["aux0"]
    assert (found - data["aux0"]).abs().max() > 1000 * rounding["aux0"]


# --------------------------------------------------------------------------------------------------------- definition


def between(places, have):
    """(wanted, have) float64: linear interpolation of `have` cells at places between 0 and have - 1."""
    return (1 - (places[:, None] - torch.arange(have)).abs()).clamp(min=0)


@pytest.mark.parametrize("aligned", [True, False])
@torch.no_grad()
def test_mla_enlarges_its_levels_from_corner_to_corner(aligned):
    """The first and last cells of a level are those of the quarter; in the control the outer borders are."""
    head = randomise(SETR(FeatureInfo((6, 6), (16, 16), 0), classes=3, decoder="mla", channels_inside=8))
    head = head.eval().double()
    draw = torch.Generator().manual_seed(1)
    maps = tuple(torch.randn(2, 6, 5, 7, dtype=torch.float64, generator=draw) for _ in range(2))
    grow = []
    for have, wanted in ((5, 20), (7, 28)):
        number = torch.arange(wanted, dtype=torch.float64)
        corners, borders = number * (have - 1) / (wanted - 1), ((number + 0.5) * have / wanted - 0.5)
        grow.append(between(corners if aligned else borders.clamp(0, have - 1), have))
    levels = [branch(x) for branch, x in zip(head.decoder.branches, head.aggregation(maps), strict=True)]
    wanted = head.decoder.classify(torch.cat([grow[0] @ level @ grow[1].T for level in levels], 1))
    found = head(Features(maps, (16, 16), (80, 112))).cells.logits
    if aligned:
        torch.testing.assert_close(found, wanted)
    else:
        assert (found - wanted).abs().max() > 0.1


# --------------------------------------------------------------------------------------------------------- full size

BLOCKS = {"naive": (10, 15, 20, 24), "pup": (10, 15, 20, 24), "mla": (6, 12, 18, 24)}


@pytest.mark.parametrize("name", list(BLOCKS))
@pytest.mark.parametrize(("side", "classes"), [("cityscapes 768", 19), ("ade20k 512", 150)])
def test_parameters_and_multiplications_are_counted_as_published(name, side, classes):
    shown = {"naive": "Naive", "pup": "PUP", "mla": "MLA"}[name]
    row, side = full_size("SETR")[f"SETR-{shown} ViT-L {side}"], int(side.split()[1])
    auxiliary = (0, 1, 2) if name == "naive" else (0, 1, 2, 3)
    with torch.device("meta"):
        summary = "mean" if name == "mla" else "class"
        backbone = build_backbone("vit/l16", image_size=side, maps_from=BLOCKS[name], summary=summary)
        model = Whole(backbone, classes=classes, decoder=name, auxiliary=auxiliary)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(2, 3, side, side))
    never_used = (1 + len(auxiliary)) * (512 + 1) * classes  # a classifier in each of their decoders
    never_used += 2 * 1024 if name == "mla" else 0  # a class token and its position
    final_norm = 2 * 1024  # of the backbone; theirs has none
    assert sum(p.numel() for p in model.parameters()) + never_used - final_norm == row["params"]
    cells = (side // 16) ** 2
    enlarged_first = 2 * 15 * cells * 256 * classes * len(auxiliary) if name == "pup" else 0  # then classified
    assert counter.get_total_flops() // 2 + enlarged_first == row["flops"][f"{side}x{side}"]["flops"]


# ------------------------------------------------------------------------------------------------------------ refusals


def test_what_is_not_there_is_named():
    features = FeatureInfo((6, 8), (4, 8), 0)
    with pytest.raises(UsageError, match="no map 2"):
        SETR(features, classes=3, auxiliary=(2,))
    with pytest.raises(UsageError, match="decoder"):
        SETR(features, classes=3, decoder="pub")
    with pytest.raises(UsageError, match="form"):
        SETR(features, classes=3, form="mmseg")
    for options in ({"form": "openmmlab", "decoder": "mla"}, {"form": "authors"}):
        with pytest.raises(UsageError, match="auxiliary_steps"):
            SETR(features, classes=3, auxiliary_steps=2, **options)
    with pytest.raises(UsageError, match="auxiliary_steps"):
        SETR(features, classes=3, auxiliary_steps=0, form="openmmlab")
