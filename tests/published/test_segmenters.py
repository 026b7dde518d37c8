"""Whole segmenters: every tensor of a published file finds its place, and the same numbers come out."""

import pytest
import torch
from reference import golden, randomise
from safetensors.torch import load_file, save_file

import patchform as pf
from patchform import cli, lookup
from patchform.errors import ModelFileError
from patchform.loading import export_weights
from patchform.records import Preprocessing
from patchform.settings import Transfer

SWIN = {"width": 16, "depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8), "window": 4}


def ours(backbone, head, size=128, classes="abc", head_options=None, **options):
    return pf.build_model(
        "semantic_segmentation",
        backbone=backbone,
        head=head,
        classes=list(classes),
        preprocessing=Preprocessing(size=(size, size)),
        backbone_options=options,
        head_options=head_options or {},
    ).eval()


def upernet(**options):
    return ours("swin/t", "upernet", head_options={"channels_inside": 32, "norm_eps": 1e-5}, **SWIN, **options)


@pytest.fixture(scope="module")
def theirs():
    transformers = pytest.importorskip("transformers")
    size = {"embed_dim": 16, "depths": [2] * 4, "num_heads": [1, 2, 4, 8], "window_size": 4}
    swin = transformers.SwinConfig(image_size=128, out_features=[f"stage{n}" for n in range(1, 5)], **size)
    whole = {"num_labels": 3, "hidden_size": 32, "auxiliary_in_channels": 64, "auxiliary_channels": 16}
    config = transformers.UperNetConfig(backbone_config=swin, **whole)
    return randomise(transformers.UperNetForSemanticSegmentation(config).eval())


@pytest.mark.parametrize("kept", ["file", "memory"])
def test_upernet_of_transformers_loads_whole_and_gives_the_same_numbers(theirs, kept, tmp_path):
    if kept == "file":
        theirs.save_pretrained(tmp_path)
        source = load_file(tmp_path / "model.safetensors")
        assert len(source) == len(theirs.state_dict())
    else:
        source = theirs.state_dict()
    model = upernet(windows="zeros")
    report = pf.load_weights(model, tmp_path if kept == "file" else source)
    assert report.layout == ("transformers_upernet" if kept == "file" else "transformers_5_upernet")
    assert not report.of("new")
    assert not report.of("resized")
    assert {entry.name for entry in report.dropped} == {
        f"backbone.swin.layernorm.{part}" for part in ("weight", "bias")
    } & set(source)
    masked = upernet()
    masked.load_state_dict(model.state_dict())
    for side in (224, 256, 320, 384, 512):  # windows divide the maps of 256, 384 and 512
        images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            wanted = theirs(images).logits
            rounding = (theirs.double()(images.double()).logits - wanted).abs().max()
            theirs.float()
            logits = model.head(model.backbone(images)).cells.enlarged((side, side))
            other = masked.head(masked.backbone(images)).cells.enlarged((side, side))
        assert (logits - wanted).abs().max() <= 10 * rounding
        assert ((other - wanted).abs().max() > 100 * rounding) == (side not in (256, 384, 512))
        assert rounding < 1e-5 * wanted.abs().max()
    model.head.norms[0].eps = 1.0  # control: the norms of maps count
    with torch.no_grad():
        other = model.head(model.backbone(images)).cells.enlarged((side, side))
    assert (other - wanted).abs().max() > 100 * rounding


def named(model, layout):
    return export_weights(randomise(model), layout)


LAYOUTS = [
    ("swin/t", "upernet", "mmseg_upernet", SWIN),
    ("swin/t", "upernet", "microsoft_upernet", SWIN),
    ("swin/t", "upernet", "transformers_upernet", SWIN),
    ("swin/t", "upernet", "transformers_5_upernet", SWIN),
    ("resnet/nano", "upernet", "mmseg_upernet", {}),
    ("resnet/nano", "semantic_fpn", "mmseg_semantic_fpn", {}),
    ("pvt/nano", "semantic_fpn", "authors_semantic_fpn", {}),
    ("pvt/nano", "semantic_fpn", "mmseg_semantic_fpn", {}),
    ("pvt/nano", "upernet", "authors_upernet", {}),
    ("twins/nano_dense", "upernet", "meituan_dense_upernet", {}),
    ("twins/nano_dense", "semantic_fpn", "mmseg_svt_semantic_fpn", {}),
    ("pvt/nano", "upernet", "mmseg_upernet", {}),
    ("twins/nano_dense", "semantic_fpn", "meituan_dense_semantic_fpn", {}),
    ("twins/nano_dense", "upernet", "mmseg_svt_upernet", {}),
    ("dual_vit/nano", "upernet", "authors_upernet", {"summary": "mean"}),
    ("dual_vit/nano", "semantic_fpn", "authors_semantic_fpn", {"summary": "mean"}),
    ("vit/nano", "setr", "setr_naive", {}),
    ("vit/nano", "setr", "setr_pup", {"patch": 16}),
    ("vit/nano", "setr", "setr_mla", {"maps_from": (1, 2), "summary": "mean"}),
]


def test_the_table_has_every_layout_of_a_segmenter():
    named = {
        (family, layout)
        for family in lookup.names("backbones")
        for layout in lookup.published(family).layouts
        if layout.endswith(("_upernet", "_semantic_fpn")) or layout.startswith("setr")
    }
    assert {(backbone.partition("/")[0], layout) for backbone, _, layout, _ in LAYOUTS} == named


def of(backbone, head, layout, options, classes="abc"):
    form = {
        "upernet": {"channels_inside": 32, "norm": "layer" if "swin" in backbone else "none"},
        "semantic_fpn": {"channels_inside": 16, "channels_pyramid": 16},
        "setr": {"channels_inside": 16, "decoder": layout.removeprefix("setr_"), "auxiliary": (0,)},
    }
    return ours(backbone, head, 64, classes, form[head], **options)


@pytest.mark.parametrize(("backbone", "head", "layout", "options"), LAYOUTS)
def test_any_layout_is_written_and_read_to_the_same_bits(backbone, head, layout, options):
    source, target = (of(backbone, head, layout, options) for _ in range(2))
    randomise(source)
    written = export_weights(source, layout)
    if layout == "setr_mla":
        written["backbone.cls_token"] = torch.zeros(1, 1, 48)
    report = pf.load_weights(target, written, layout=layout)
    assert pf.load_weights(target, written).layout == layout  # it is recognised, too
    unread = {name for name in target.state_dict() if name.startswith("backbone.norm.")}
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor) or name in unread, name
    assert {entry.name for entry in report.of("new")} <= unread
    names = set(written)
    assert {name.split(".")[0] for name in names} <= {"backbone", "neck", "decode_head", "auxiliary_head"}
    assert any(name.startswith("decode_head.") for name in names)
    whole = of(backbone, head, layout, options, classes="xyzw")  # other classes: their rows stay as they were
    report = pf.load_weights(whole, written)
    assert {"fresh" in entry.note for entry in report.of("resized")} == {True}
    assert torch.equal(whole.backbone.state_dict()[(key := next(iter(source.backbone.state_dict())))],
                       source.backbone.state_dict()[key])  # fmt: skip


@pytest.mark.parametrize(("name", "head"), [("head_upernet", "upernet"), ("head_semantic_fpn", "semantic_fpn")])
def test_names_are_those_that_openmmlab_trained_by(name, head):
    """The state dict of a head that was run beside its numbers: our names for it are that head's."""
    _, _, state, _ = golden(name)
    form = {"upernet": {"norm": "none"}, "semantic_fpn": {"channels_pyramid": 16}}
    model = ours("resnet/nano", head, head_options={"channels_inside": 16, **form[head]})
    written = {key for key in export_weights(model, f"mmseg_{head}") if not key.startswith("backbone.")}
    assert written == set(state)


def test_a_backbone_or_another_head_takes_what_it_can_of_a_segmenter(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    backbone = pf.build_backbone("swin/t", image_size=128, **SWIN)
    report = pf.load_weights(backbone, tmp_path)
    assert report.layout == "transformers_upernet"
    assert not report.of("new")
    model = upernet()
    pf.load_weights(model, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(backbone.state_dict().values(), model.backbone.state_dict().values()))
    classifier = pf.build_model(
        "classification", backbone="swin/t", head="linear", classes=["a"], backbone_options=SWIN
    )
    assert {entry.name.split(".")[0] for entry in pf.load_weights(classifier, tmp_path).of("new")} == {"head"}
    with pytest.raises(ModelFileError, match=r"do not fit|no known layout"):
        pf.load_weights(classifier, tmp_path, transfer=Transfer(head="load"))


def test_show_and_convert_know_whole_segmenters(tmp_path, capsys):
    model = ours("resnet/nano", "semantic_fpn")
    save_file(named(model, "mmseg_semantic_fpn"), tmp_path / "a.safetensors")
    (tmp_path / "names").write_text("sky\nroad\ncar\n")
    words = ["--model", "resnet/nano", "--image-size", "128"]
    assert cli.main(["weights", "show", str(tmp_path / "a.safetensors"), *words[:2]]) == 0
    assert "resnet/nano under semantic_fpn, 3 classes" in capsys.readouterr().out
    out = ["--to", "patchform", "--out", str(tmp_path / "own"), "--classes", str(tmp_path / "names")]
    assert cli.main(["weights", "convert", str(tmp_path / "a.safetensors"), *words, *out]) == 0
    loaded = pf.load(tmp_path / "own").model
    assert loaded.classes == ("sky", "road", "car")
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))
