import json

import pytest
import torch
from reference import FOLDER, OWN, Classifier, full_size, golden, load, randomise
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from patchform.backbones.dual_vit import VARIANTS, DualViT
from patchform.geometry import grids
from patchform.heads.token_label import TokenLabel
from patchform.layers import attention
from patchform.published.dual_vit import LAYOUTS, SCORES
from patchform.weights.rules import recognise

SMALL = {"stem": 8, "widths": (8, 16, 24, 32), "depths": (1, 2, 3, 2), "heads": (1, 2, 3, 4)}
"""The size of the golden vectors."""
ROWS = ("s", "b", "l")
FORMS = {"linear": "dualvit_96x128", "token_label": "dualvit_tokenlabel_224"}


class TokenClassifier(nn.Module):
    """Backbone and head of the published weights."""

    def __init__(self, backbone, classes=10):
        super().__init__()
        self.backbone = backbone
        self.head = TokenLabel(backbone.feature_info, classes=classes)

    def forward(self, images):
        return self.head.logits(self.head(self.backbone(images)))


def classifier(head, backbone, **options):
    return (Classifier if head == "linear" else TokenClassifier)(backbone, **options).eval()


def row(name, **options):
    return DualViT(**(VARIANTS[name].options | options))


# ------------------------------------------------------------------------------------------------------ golden vectors


def picture(tensors):
    """The input of a golden vector; the repository's copy says how it was drawn."""
    if "input" in tensors:
        return tensors["input"]
    return torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))


def watch(backbone):
    """What the hooks of `backbone` see, by the names of the golden vectors."""
    seen = {}

    def keep(module, name, pick=lambda out: out):
        module.register_forward_hook(lambda _m, _i, out: seen.update({name: pick(out)}))

    keep(backbone.stem, "stem", lambda out: out.flatten(1, 2))
    keep(backbone.start, "semantics0", lambda out: out[0])
    for stage in range(3):
        keep(backbone.norms[stage], f"stage{stage + 1}.x", lambda out: out.flatten(1, 2))
        keep(backbone.projections[stage][0], f"stage{stage + 1}.semantics")
    keep(backbone.stages[3][-1], "stage4.x_and_semantics", lambda out: torch.cat([out[0].flatten(1, 2), out[1]], 1))
    return seen


@torch.no_grad()
def errors(head, change=None):
    """Largest error of every intermediate and of the output, over ten times the rounding of the authors' code."""
    _, tensors, parameters, rounding = golden(FORMS[head])
    ours = classifier(head, DualViT(**SMALL))
    backbone = ours.backbone
    assert recognise(LAYOUTS, parameters, ours.state_dict()) == "authors"
    load(ours, LAYOUTS["authors"], parameters)
    if change:
        change(backbone)
    seen, images = watch(backbone), picture(tensors)
    seen["output"] = ours(images)
    features = backbone(images)
    seen["norm4"] = features.summary
    if head == "token_label":  # the authors norm the semantics too, and do not read them
        semantics = backbone.norms[3](seen["stage4.x_and_semantics"][:, features.tokens.shape[1] :])
        seen["norm4"] = torch.cat([features.summary[:, None], features.tokens, semantics], 1)
    assert rounding.keys() == seen.keys() & tensors.keys()
    return {name: (seen[name] - tensors[name]).abs().max().item() / (10 * error) for name, error in rounding.items()}


@pytest.mark.parametrize("head", FORMS)
def test_equals_the_authors_classifier(head):
    assert max(errors(head).values()) <= 1


def dense(**options):
    return DualViT(**SMALL, summary="mean", **options).eval()


def load_backbone(backbone, parameters):
    own = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    filled, report = LAYOUTS["authors"].load(parameters, own)
    assert not report.dropped
    backbone.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in filled.items()})


@torch.no_grad()
def test_equals_the_authors_dense_backbone():
    _, tensors, parameters, rounding = golden("dualvit_dense_96x128")
    backbone = dense()
    load_backbone(backbone, parameters)
    maps = backbone(tensors["input"]).maps
    assert rounding.keys() == {f"output{number}" for number in range(len(maps))}
    for number, found in enumerate(maps):
        name = f"output{number}"
        assert (found - tensors[name]).abs().max().item() <= 10 * rounding[name], name


def exchange(module, one, other):
    first, second = getattr(module, one), getattr(module, other)
    setattr(module, one, second)
    setattr(module, other, first)


FAULTS = {
    "norms": lambda backbone: exchange(backbone.stages[0][0], "pixel_norm", "norm7"),
    "semantic norms": lambda backbone: exchange(backbone.stages[1][1], "norm4", "norm5"),
    "factors": lambda backbone: exchange(backbone.stages[1][0], "scale3", "scale4"),
    "merge norms": lambda backbone: exchange(backbone.stages[2][1], "norm8", "norm9"),
    "selection": lambda backbone: backbone.start.gate.register_forward_hook(lambda m, i, out: out.roll(8, 1)),
    "joined norm": lambda backbone: setattr(backbone.projections[0], "0", nn.Identity()),
    "class norms": lambda backbone: exchange(backbone.class_block, "norm1", "norm2"),
    "class of pixels only": lambda backbone: backbone.class_block.register_forward_pre_hook(
        lambda module, inputs: (inputs[1][:, :12].mean(1, keepdim=True), inputs[1][:, :12], None)
    ),
    "questions": lambda backbone: backbone.start.queries.data.copy_(
        backbone.start.queries.data.transpose(0, 1).clone()
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_control_a_fault_is_seen(fault):
    found = errors("linear", FAULTS[fault])
    assert 10 * found["semantics0" if fault == "questions" else "output"] > 100


def test_own_copy_is_the_reference():
    reference = FOLDER / "golden" / "dualvit_96x128.safetensors"
    if not reference.exists():
        pytest.skip("no reference vectors (set PATCHFORM_REFERENCE)")
    theirs, ours = load_file(reference), load_file(OWN / "dualvit_96x128.safetensors")
    left_out = json.loads((OWN / "dualvit_96x128.json").read_text())["golden"]["left_out"]
    assert theirs.keys() - ours.keys() == set(left_out)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert torch.equal(picture(ours), theirs["input"])


# ------------------------------------------------------------------------------------------------------- sizes, layout


@pytest.mark.parametrize(("head", "side"), [("linear", 224), ("token_label", 384)])
@pytest.mark.parametrize("name", ROWS)
def test_parameters_and_multiplications_are_those_published(name, head, side, monkeypatch):
    monkeypatch.setattr(grids, "resize", lambda table, size: table.new_empty(*size, table.shape[2]))  # none is counted
    published = full_size("Dual-ViT")[f"dualvit_{name}" + (" (token_label=False)" if head == "linear" else "")]
    with torch.device("meta"):
        ours = classifier(head, row(name), classes=1000)
        assert sum(parameter.numel() for parameter in ours.parameters()) == published["params"]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            ours(torch.empty(1, 3, side, side))
    assert counter.get_total_flops() == published["flops"][f"{side}x{side}"]["flops"]
    names = LAYOUTS["authors"].dump(ours.state_dict())
    assert len(names) == published["state_dict_tensors"]


@pytest.mark.parametrize("head", FORMS)
def test_written_back_and_recognised(head):
    _, _, parameters, _ = golden(FORMS[head])
    ours = classifier(head, DualViT(**SMALL))
    report = load(ours, LAYOUTS["authors"], parameters)
    assert not report.dropped
    written = LAYOUTS["authors"].dump(ours.state_dict())
    assert recognise(LAYOUTS, written, ours.state_dict()) == "authors"
    assert written.keys() == parameters.keys()
    assert all(torch.equal(tensor, parameters[name]) for name, tensor in written.items())


def test_the_dense_form_lacks_what_nobody_reads():
    whole, maps = DualViT(**SMALL).eval(), dense()
    lost = whole.state_dict().keys() - maps.state_dict().keys()
    assert {name.rsplit(".", 2)[0] for name in lost if not name.startswith("class_block")} == {
        "stages.3.1.semantic_mlp"
    }
    randomise(whole)
    maps.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name not in lost})
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        one, two = whole(images), maps(images)
    for a, b in zip((*one.maps, one.tokens), (*two.maps, two.tokens)):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(two.summary, two.tokens.mean(1))
    sum(map_.sum() for map_ in maps(images).maps).backward()
    assert all(parameter.grad is not None for parameter in maps.parameters())


def test_published_rows_are_complete():
    assert {(entry.variant, entry.image_size) for entry in SCORES} == {(name, s) for name in ROWS for s in (224, 384)}


# ------------------------------------------------------------------------------------------------------------ features


@torch.no_grad()
def test_what_features_are():
    backbone = randomise(row("nano"), scale=0.1).eval()
    ends = []
    backbone.stages[-1][-1].register_forward_hook(lambda m, i, out: ends.append(out[0]))
    features = backbone(torch.randn(2, 3, 64, 96))
    assert torch.equal(features.tokens, backbone.norms[-1](ends[0]).flatten(1, 2))
    assert torch.equal(features.maps[-1].flatten(2).transpose(1, 2), features.tokens)
    assert [found.shape[2:] for found in features.maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]


@torch.no_grad()
@pytest.mark.parametrize(("size", "tokens"), [((224, 224), 64), ((96, 128), 12), ((27, 60), 2), ((20, 8), 1)])
def test_number_of_semantic_tokens(size, tokens):
    backbone = randomise(DualViT(**SMALL)).eval()
    seen = watch(backbone)
    assert backbone(torch.randn(1, 3, *size)).summary.isfinite().all()
    assert seen["semantics0"].shape[1] == tokens


@torch.no_grad()
@pytest.mark.parametrize("summary", ["class", "mean"])
def test_padding_is_asked_by_nobody(summary):
    """With convolutions that see one cell only, an image with padding is the image without it."""
    backbone = randomise(row("nano", summary=summary), scale=0.1).eval()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            centre = module.weight[..., module.padding[0], module.padding[1]].clone()
            module.weight.zero_()[..., module.padding[0], module.padding[1]] = centre
    backbone.start.queries.copy_(backbone.start.queries[:1, :1].clone().expand_as(backbone.start.queries))
    images = torch.randn(2, 3, 64, 96)
    padding = torch.zeros(2, 64, 96, dtype=torch.bool)
    padding[1, 32:], padding[1, :, 64:] = True, True
    alone, among = backbone(images[1:, :, :32, :64]), backbone(images, padding=padding)
    torch.testing.assert_close(among.summary[1:], alone.summary, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(among.maps[0][1:, :, :8, :16], alone.maps[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(backbone(images).summary[1:], alone.summary, atol=1e-3)  # control


def test_an_image_that_is_all_padding_is_finite():
    backbone = randomise(row("nano"), scale=0.1).eval()
    features = backbone(torch.randn(1, 3, 32, 32), padding=torch.ones(1, 32, 32, dtype=torch.bool))
    assert features.summary.isfinite().all()


def test_pixels_never_ask_pixels_where_there_are_many():
    backbone = row("nano").eval()
    with torch.no_grad(), attention.recording() as weights:
        backbone(torch.randn(1, 3, 64, 64))
    cells, semantics = grids.cells(64, 4)[0] ** 2, 64
    pairs = [weight.shape[-2:] for weight in weights]
    assert pairs[:4] == [(semantics, semantics), (semantics, semantics), (semantics, cells), (cells, semantics)]
    assert pairs[-1] == (1, 1 + 4 + semantics)  # the class token


def test_initial_values_are_the_authors():
    torch.manual_seed(0)
    backbone = DualViT(**(SMALL | {"widths": (32, 64, 96, 128)}))
    block = backbone.stages[1][0]
    assert block.mlp.conv.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert backbone.halves[2].proj.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.1)
    assert block.semantic_mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert backbone.start.queries.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(block.scale4.gamma, torch.full((64,), 1e-6))


def test_ratios_alternate():
    backbone = DualViT(**SMALL)
    ratios = [[block.mlp.fc1.out_features / block.mlp.fc1.in_features for block in stage] for stage in backbone.stages]
    assert ratios == [[8], [8, 8], [4, 3, 4], [3, 3]]
