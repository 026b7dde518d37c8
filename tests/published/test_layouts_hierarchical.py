"""Every layout of swin, pvt, twins, region_vit, dual_vit and axial: from the reference's own names and shapes, with
random values, to the same numbers and back to the same bytes."""

from dataclasses import replace

import pytest
import torch
from hierarchical import CONSTANTS, HEAD, SWIN_VERSIONS, TABLE, built, excess, pvt_golden, pvt_mm, swin_golden, swin_mm
from reference import randomise
from torch import nn
from torch.nn import functional as F

import patchform as pf
from patchform.errors import ModelFileError
from patchform.loading import export_weights, layouts_of


def family(kind):
    return kind.partition(" ")[0]


@pytest.mark.parametrize(("layout", "kind"), TABLE, ids=lambda text: text.replace(" ", "_"))
def test_to_the_same_numbers_and_back_to_the_same_bytes(layout, kind, tmp_path):
    of = TABLE[layout, kind](tmp_path)
    model = built(of)
    assert family(kind) == of.backbone.partition("/")[0]
    report = pf.load_weights(model, of.weights)
    assert (report.layout, report.prefix) == (layout, "")
    fresh = {entry.name for entry in report.of("new")}
    assert fresh == ({"head.classifier.weight", "head.classifier.bias"} if of.headless else set())
    assert excess(model, of) <= 1

    dropped = {entry.name for entry in report.dropped}
    assert all(name.endswith(CONSTANTS) or name.startswith(of.lost) for name in dropped)
    assert all(any(name.startswith(start) for name in dropped) for start in of.lost)
    written = {
        name: tensor for name, tensor in export_weights(model, layout).items() if not (fresh and HEAD.match(name))
    }
    assert written.keys() == of.weights.keys() - dropped
    for name in written:
        one, other = written[name], of.weights[name]
        assert (one.dtype, one.shape) == (other.dtype, other.shape), name
        assert one.reshape(-1).view(torch.uint8).equal(other.reshape(-1).view(torch.uint8)), name


@pytest.mark.parametrize(("layout", "kind"), TABLE, ids=lambda text: text.replace(" ", "_"))
def test_any_other_layout_is_refused(layout, kind, tmp_path):
    of = TABLE[layout, kind](tmp_path)
    model = built(of)
    for other in layouts_of(model.backbone):
        if other != layout:
            with pytest.raises(ModelFileError):
                pf.load_weights(model, of.weights, layout=other)


def test_the_table_has_every_layout():
    families = {family(kind) for _, kind in TABLE}
    named = {(name, layout) for name in families for layout in layouts_of(pf.build_backbone(f"{name}/nano"))}
    elsewhere = ("patchform", "_upernet", "_semantic_fpn")  # those of whole segmenters are in test_segmenters
    assert {(family(kind), layout) for layout, kind in TABLE} == {p for p in named if not p[1].endswith(elsewhere)}


# ------------------------------------------------------------------------------------------------------------ controls

SWAPS = {
    ("microsoft", "swin golden"): ("layers.1.blocks.1.norm{}.weight", 1, 2),
    ("transformers", "swin file"): ("swin.encoder.layers.1.blocks.0.attention.self.{}.weight", "query", "value"),
    ("transformers_v2", "swin v2 file"): ("swinv2.encoder.layers.1.blocks.0.attention.self.{}.bias", "query", "value"),
    ("authors", "pvt v1 golden"): ("block2.1.norm{}.weight", 1, 2),
    ("transformers", "pvt v2"): ("pvt_v2.encoder.layers.1.blocks.0.attention.{}.weight", "key", "value"),
    ("meituan", "twins svt golden"): ("blocks.1.1.norm{}.weight", 1, 2),
    ("ibm", "region_vit odd golden"): ("layers.1.block.1.norm{}.weight", 0, 1),
    ("authors", "dual_vit golden"): ("block2.1.attn.{}_ln.weight", "p", "q_proxy"),
    ("axial_deeplab", "axial golden"): ("layer1.0.{}_block.relative", "hight", "width"),
}


@pytest.mark.parametrize("which", SWAPS, ids=lambda which: "-".join(which).replace(" ", "_"))
def test_control_two_tensors_swapped(which, tmp_path):
    of = TABLE[which](tmp_path)
    pattern, *pair = SWAPS[which]
    one, other = map(pattern.format, pair)
    weights = {**of.weights, one: of.weights[other], other: of.weights[one]}
    model = built(of)
    pf.load_weights(model, weights)
    assert excess(model, of) > 10


@pytest.mark.parametrize("version", SWIN_VERSIONS)
def test_control_another_order_of_merging(version):
    of = swin_mm(version, unfold=lambda tensor: tensor)
    model = built(of)
    assert pf.load_weights(model, of.weights).layout == ("mm_v2" if version else "mm")
    assert excess(model, of) > 10


@pytest.mark.parametrize("change", ["q behind kv", "linear weights"])
def test_control_a_joined_tensor(change, tmp_path):
    of = pvt_mm(tmp_path)
    name = "layers.1.1.0.attn.attn.in_proj_weight"
    if change == "q behind kv":
        model = built(of)
        pf.load_weights(model, {**of.weights, name: of.weights[name].roll(16, 0)})
        assert excess(model, of) > 10
    else:
        with pytest.raises(ModelFileError, match="does not part"):
            pf.load_weights(built(of), {**of.weights, name: of.weights[name][:-1]})


@torch.no_grad()
@pytest.mark.parametrize(("layout", "backbone"), [("mm", "swin/nano"), ("mm_v2", "swin/v2_nano")])
def test_merging_is_that_of_unfold(layout, backbone):
    """OpenMMLab's definition: nn.Unfold, norm and reduction, or reduction and norm in version 2."""
    model = randomise(pf.build_model("classification", backbone=backbone, head="linear", classes=["a", "b"]))
    written = {name: tensor.double() for name, tensor in export_weights(model, layout).items()}
    at = f"backbone.stages.{int(layout == 'mm_v2')}.downsample"
    reduction, norm = written[f"{at}.reduction.weight"], [written[f"{at}.norm.{p}"] for p in ("weight", "bias")]
    x = torch.randn(2, 16, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    cells = nn.Unfold(2, stride=2)(x).transpose(1, 2)
    if layout == "mm":
        wanted = F.layer_norm(cells, (64,), *norm) @ reduction.t()
    else:
        wanted = F.layer_norm(cells @ reduction.t(), (32,), *norm)
    found = model.backbone.merges[0].double()(x.permute(0, 2, 3, 1)).flatten(1, 2)
    torch.testing.assert_close(found, wanted)
    microsoft = export_weights(model, "microsoft")["layers.0.downsample.reduction.weight"]
    assert not torch.equal(microsoft, reduction.float())  # control


# -------------------------------------------------------------------------------------------------- what stays outside


def test_a_whole_segmenter_by_its_prefix():
    of = swin_mm("")
    segmenter = {name: tensor for name, tensor in of.weights.items() if not name.startswith("head.")}
    segmenter["decode_head.conv_seg.weight"] = torch.zeros(19, 8, 1, 1)
    segmenter["backbone.norm0.weight"] = segmenter["backbone.norm0.bias"] = torch.ones(8)
    whole, model = built(of), built(of)
    report = pf.load_weights(whole, segmenter)  # its own layout knows all names, and the head stays as it is
    assert report.layout == "mmseg_upernet"
    assert {entry.name for entry in report.of("new")} == {"head.classifier.weight", "head.classifier.bias"}
    with pytest.raises(ModelFileError):
        pf.load_weights(built(of), {**segmenter, "neck.0.weight": torch.ones(2)})
    report = pf.load_weights(model.backbone, segmenter, prefix="backbone.")
    assert all(torch.equal(tensor, whole.backbone.state_dict()[n]) for n, tensor in model.backbone.state_dict().items())
    assert (report.layout, report.prefix) == ("mm_backbone", "backbone.")
    head, _, norm = (next(e for e in report.dropped if e.name == n) for n in (
        "decode_head.conv_seg.weight", "norm0.weight", "norm0.bias",
    ))  # fmt: skip
    assert "backbone." in head.note
    assert "belongs to the head" in norm.note
    weights = (of.weights["head.fc.weight"], of.weights["head.fc.bias"])
    assert excess(model, replace(of, classifier=weights)) <= 1


def test_detectors_of_the_first_pvt_are_refused():
    """They have no class token, though a place for it in their table: the last stage is another function."""
    of = pvt_golden("pvt_v1")
    missing = ("cls_token", "norm.", "head.")
    dense = {name: tensor for name, tensor in of.weights.items() if not name.startswith(missing)}
    with pytest.raises(ModelFileError, match="class_token"):
        pf.load_weights(built(of).backbone, dense)


def test_layouts_are_told_apart_by_names_alone():
    """A file of one version never fills a model of the other."""
    for version, other in (("", "v2"), ("v2", "")):
        of = swin_golden(version)
        with pytest.raises(ModelFileError, match="no known layout"):
            pf.load_weights(built(swin_golden(other)), of.weights)
