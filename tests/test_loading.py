"""Weights meet models that are not quite theirs: what differs is resized by the rules, said, or refused."""

import re

import pytest
import torch
from reference import randomise
from torch import nn

import patchform as pf
from patchform import lookup
from patchform.adaptation import sizes_of
from patchform.errors import ModelFileError, UsageError
from patchform.loading import export_weights, layouts_of
from patchform.model import save
from patchform.records import Batch, Preprocessing
from patchform.settings import Transfer

NAMES = ("ant", "bee", "cat")


def model(backbone="vit/nano", classes=NAMES, size=64, channels=3, head="linear", task="classification", **options):
    preprocessing = Preprocessing(size=(size, size), channels=channels, mean=(0.5,), std=(0.5,))
    return pf.build_model(
        task,
        backbone=backbone,
        head=head,
        classes=classes,
        preprocessing=preprocessing,
        backbone_options=options,
    ).eval()


def pictures(size=64, channels=3, frames=None):
    clip = (frames,) if frames else ()
    images = torch.rand(2, *clip, channels, size, size, generator=torch.Generator().manual_seed(3))
    return Batch(images, (), ("", ""), ((size, size),) * 2)


def logits(built, batch):
    with torch.no_grad():
        return built.head(built.features(batch))


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def kept(built):
    return {name: tensor.clone() for name, tensor in built.state_dict().items()}


def unchanged(built, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in built.state_dict().items())


# --------------------------------------------------------------------------------------------------------- image size


def resizes(family):
    """Whether the shapes of a family's tensors depend on the image size."""
    small, large = (model(f"{family}/nano", size=size).state_dict() for size in (64, 96))
    return any(small[name].shape != large[name].shape for name in small)


@pytest.mark.parametrize("family", lookup.names("backbones"))
def test_weights_for_another_image_size_give_what_they_gave_there(family, tmp_path):
    if not resizes(family):
        pytest.skip("no tensor depends on the image size")
    small, large = randomise(model(f"{family}/nano")), randomise(model(f"{family}/nano", size=96), seed=1)
    save(small, tmp_path / "small")
    report = pf.load_weights(large, tmp_path / "small")
    assert report.layout == "patchform"
    assert report.of("resized")
    assert not report.of("new")
    assert not report.dropped
    shown = pictures(96, frames=small.backbone.frames)
    wanted = logits(small, shown)
    torch.testing.assert_close(logits(large, shown), wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    assert not torch.allclose(logits(randomise(large, seed=2), shown), wanted, rtol=1e-2)  # control


def sized(size, backbone="vit/nano", **options):
    """A classifier for pictures of (height, width)."""
    built = pf.build_model(
        "classification",
        backbone=backbone,
        head="linear",
        classes=NAMES,
        preprocessing=Preprocessing(size=size, mean=(0.5,), std=(0.5,)),
        backbone_options=options,
    )
    return randomise(built, scale=0.1).eval()


ON_GRIDS = ["vit/nano", "pvt/nano_v1", "cross_vit/nano", "timesformer/nano", "vivit/nano", "parallel_vit/nano"]


@pytest.mark.parametrize("backbone", [*ON_GRIDS, "sparse/nano", "vit relative_bias"])
@pytest.mark.parametrize("as_file", [False, True])
def test_a_model_folder_says_its_grid(backbone, as_file, tmp_path):
    backbone, _, position = backbone.partition(" ")
    options = {"position": position} if position else {}
    name = backbone if "/" in backbone else f"{backbone}/nano"
    wide, tall = (sized(size, name, **options) for size in ((32, 64), (64, 32)))
    save(wide, tmp_path / "wide")
    report = pf.load_weights(tall, tmp_path / "wide" / ("model.safetensors" if as_file else ""))
    notes = [entry.note for entry in report.of("resized")]
    assert notes
    assert all(" x " in note and "assumed" not in note for note in notes)
    clip = () if tall.backbone.frames is None else (tall.backbone.frames,)
    images = torch.rand(1, *clip, 3, 64, 32, generator=torch.Generator().manual_seed(3))
    shown = Batch(images, (), ("",), ((64, 32),))
    torch.testing.assert_close(logits(tall, shown), logits(wide, shown), rtol=1e-4, atol=1e-4)
    same = sized((32, 64), name, **options)
    assert not pf.load_weights(same, tmp_path / "wide").of("resized")  # control: nothing is to be done
    assert equal(same, wide)


def test_a_grid_that_model_json_does_not_say_is_refused(tmp_path):
    save(sized((32, 64)), tmp_path / "wide")
    square = sized((48, 48))
    with pytest.raises(ModelFileError, match=r"says a grid of 4 x 8, not 8 x 4; leave out transfer\.grid"):
        pf.load_weights(square, tmp_path / "wide", transfer=Transfer(grid=(8, 4)))
    report = pf.load_weights(square, tmp_path / "wide", transfer=Transfer(grid=(4, 8)))
    assert [entry.note for entry in report.of("resized")] == ["grid 4 x 8 to 6 x 6"]


def test_a_published_table_goes_by_the_grid_that_is_named():
    wide, square = sized((32, 128)), sized((64, 64))  # 4 x 16 and 8 x 8 cells
    published = export_weights(wide, "timm")
    said = pf.load_weights(sized((32, 128)), published)
    assert [entry.note for entry in said.entries if entry.note] == ["grid assumed 4 x 16"]
    assert not said.of("resized")
    assert "matched, grid assumed square: backbone.position.table" in str(pf.load_weights(square, published))
    assert torch.equal(square.backbone.position.table, wide.backbone.position.table)
    named = pf.load_weights(square, published, transfer=Transfer(grid=(4, 16)))
    assert [entry.note for entry in named.of("resized")] == ["grid 4 x 16 to 8 x 8"]
    assert not torch.equal(square.backbone.position.table, wide.backbone.position.table)


@pytest.mark.parametrize("registers", [0, 4])
def test_a_table_without_a_row_for_the_class_token_gives_the_same_numbers(registers):
    timm = pytest.importorskip("timm.models.vision_transformer")
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 3}
    theirs = randomise(timm.VisionTransformer(**options, reg_tokens=registers, no_embed_class=True)).eval()
    ours = model(size=32, registers=registers)
    report = pf.load_weights(ours, theirs.state_dict())
    notes = [entry.note for entry in report.of("resized")]
    assert notes == ["zeros for the class token, grid assumed 4 x 4"]
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        features = ours.backbone(images)
        torch.testing.assert_close(ours.head(features), theirs(images), rtol=1e-4, atol=1e-5)
    larger = model(size=48, registers=registers)
    report = pf.load_weights(larger, theirs.state_dict())
    assert [e.note for e in report.of("resized")] == [
        "zeros for the class token, grid 4 x 4 to 6 x 6 (grid assumed square)"
    ]
    with torch.no_grad():
        table = larger.backbone.position.table
        wanted = theirs.pos_embed.unflatten(1, (4, 4)).permute(0, 3, 1, 2)
        wanted = nn.functional.interpolate(wanted, size=(6, 6), mode="bicubic").flatten(2).mT
        assert not table[:, 0].any()
        torch.testing.assert_close(table[:, 1:], wanted, rtol=1e-5, atol=1e-5)
    report = pf.load_weights(larger, theirs.state_dict(), transfer=Transfer(grid=(4, 4)))
    assert [e.note for e in report.of("resized")] == ["zeros for the class token, grid 4 x 4 to 6 x 6"]


# ---------------------------------------------------------------------------------------------------- patches, channels


@pytest.mark.parametrize("layout", ["timm", "google", "patchform"])
def test_other_patches_and_channels_through_layouts(layout):
    source = randomise(model())
    published = export_weights(source, layout)
    other = randomise(model(patch=16, channels=4), seed=1)
    before = kept(other)
    if layout == "patchform":  # its flat kernels do not tell; a run folder does
        with pytest.raises(ModelFileError, match="no kernel of patches"):
            pf.load_weights(other, published)
        return
    with pytest.raises(ModelFileError, match=r"3 channels to 4: say how"):
        pf.load_weights(other, published)
    with pytest.raises(ModelFileError, match=r"patches of 8 pixels to 16: say that this is meant"):
        pf.load_weights(other, published, transfer=Transfer(channels="repeat"))
    assert unchanged(other, before)
    report = pf.load_weights(other, published, transfer=Transfer(channels="repeat", patch="resample"))
    notes = {entry.name: entry.note for entry in report.of("resized")}
    assert notes == {
        "backbone.patches.proj.weight": "3 channels to 4, repeated, patches of 8 pixels to 16",
        "backbone.position.table": "grid 8 x 8 to 4 x 4 (grid assumed square)",
    }


@pytest.mark.parametrize("family", lookup.names("backbones"))
def test_any_first_layer_takes_other_channels(family, tmp_path):
    source = randomise(model(f"{family}/nano", size=32))
    save(source, tmp_path / "run")
    for channels in (1, 4):
        other = randomise(model(f"{family}/nano", size=32, channels=channels), seed=1)
        before = kept(other)
        with pytest.raises(ModelFileError, match="say how"):
            pf.load_weights(other, tmp_path / "run")
        assert unchanged(other, before)
        report = pf.load_weights(other, tmp_path / "run", transfer=Transfer(channels="average"))
        assert report.of("resized")
        assert all(entry.note == f"3 channels to {channels}, averaged" for entry in report.of("resized"))
        assert not report.of("new")


def test_a_grey_model_gives_what_the_colour_model_gave(tmp_path):
    source = randomise(model())
    save(source, tmp_path / "run")
    grey = model(channels=1)
    pf.load_weights(grey, tmp_path / "run", transfer=Transfer(channels="average"))
    one = pictures(channels=1)
    three = one._replace(images=one.images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(logits(grey, one), logits(source, three), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------- heads and classes


def test_shared_classes_keep_their_rows(tmp_path):
    source, other = randomise(model()), randomise(model(classes=("wasp", "cat", "ant", "fly")), seed=1)
    fresh = kept(other)
    save(source, tmp_path / "run")
    report = pf.load_weights(other, tmp_path / "run")
    assert [entry.note for entry in report.of("resized")] == ["2 of 4 classes by name, the others fresh"] * 2
    for part in ("weight", "bias"):
        rows, old = (getattr(built.head.classifier, part) for built in (other, source))
        assert torch.equal(rows[[1, 2]], old[[2, 0]])
        assert torch.equal(rows[[0, 3]], fresh[f"head.classifier.{part}"][[0, 3]])
    swapped = randomise(model(classes=("cat", "bee", "ant")), seed=1)  # as many, in another order
    pf.load_weights(swapped, tmp_path / "run")
    assert torch.equal(swapped.head.classifier.weight, source.head.classifier.weight[[2, 1, 0]])


def test_classes_without_names_are_never_guessed():
    source, other = randomise(model()), randomise(model(classes=("x", "y")), seed=1)
    published, fresh = export_weights(source, "timm"), kept(other)
    with pytest.raises(ModelFileError, match="other classes: name them"):
        pf.load_weights(other, published, transfer=Transfer(head="load"))
    assert unchanged(other, fresh)
    report = pf.load_weights(other, published)
    assert {entry.name for entry in report.of("resized")} == {"head.classifier.weight", "head.classifier.bias"}
    assert "the source has 3 classes without names, the model has 2" in str(report)
    assert torch.equal(other.head.classifier.weight, fresh["head.classifier.weight"])
    named = model(classes=("bee", "y"))
    pf.load_weights(named, published, transfer=Transfer(classes=NAMES))
    assert torch.equal(named.head.classifier.weight[0], source.head.classifier.weight[1])
    with pytest.raises(ModelFileError, match="3 classes and 2 different names"):
        pf.load_weights(named, published, transfer=Transfer(classes=("ant", "bee", "bee")))
    assert equal(model_filled(published), source)  # as many classes: all rows, in order


def model_filled(published):
    filled = model()
    pf.load_weights(filled, published)
    return filled


def test_a_classifier_whose_tensors_disagree_is_refused():
    built = randomise(model())
    published = export_weights(built, "timm") | {"head.weight": torch.zeros(5, 48)}
    before = kept(built)
    with pytest.raises(ModelFileError, match="not of one number of classes"):
        pf.load_weights(built, published)
    assert unchanged(built, before)


@pytest.mark.parametrize("head", ["auto", "load", "reinit"])
def test_a_backbone_goes_under_another_head(head, tmp_path):
    source = randomise(model())
    save(source, tmp_path / "run")
    dense = randomise(model(head="setr", task="semantic_segmentation"), seed=1)
    fresh = kept(dense)
    if head == "load":
        with pytest.raises(ModelFileError, match="do not fit"):
            pf.load_weights(dense, tmp_path / "run", transfer=Transfer(head=head))
        assert unchanged(dense, fresh)
        return
    report = pf.load_weights(dense, tmp_path / "run", transfer=Transfer(head=head))
    assert equal(dense.backbone, source.backbone)
    assert all(torch.equal(t, fresh[f"head.{name}"]) for name, t in dense.head.state_dict().items())
    assert {entry.name for entry in report.of("new")} == {f"head.{name}" for name in dense.head.state_dict()}
    assert {entry.name for entry in report.dropped} == {f"head.{name}" for name in source.head.state_dict()}


def test_weights_without_a_head_leave_it_fresh():
    source = randomise(model())
    bare = {name: tensor for name, tensor in export_weights(source, "timm").items() if not name.startswith("head.")}
    other = randomise(model(), seed=1)
    fresh = kept(other)
    with pytest.raises(ModelFileError, match=r"head.classifier.weight is not filled"):
        pf.load_weights(other, bare, transfer=Transfer(head="load"))
    assert unchanged(other, fresh)
    assert len(pf.load_weights(other, bare).of("new")) == 2
    assert equal(other.backbone, source.backbone)
    half = bare | {"head.weight": torch.zeros(3, 48)}
    with pytest.raises(ModelFileError, match=r"no head\.bias"):  # a part of the head is missing: never half a head
        pf.load_weights(other, half)


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("front", ["module.", "_orig_mod.module.", "model.backbone."])
def test_what_stands_in_front_of_all_names_is_taken_off_and_said(front):
    source, other = randomise(model()), randomise(model(), seed=1)
    wrapped = {front + name: tensor for name, tensor in export_weights(source, "timm").items()}
    report = pf.load_weights(other, wrapped)
    assert (report.layout, report.prefix) == ("timm", front)
    assert f'prefix "{front}"' in str(report)
    assert equal(source, other)
    mixed = dict(wrapped)
    mixed["norm.weight"] = mixed.pop(f"{front}norm.weight")
    with pytest.raises(ModelFileError, match="of no known layout"):
        pf.load_weights(other, mixed)


def test_the_backbone_of_something_larger_is_named():
    source, backbone = randomise(model()), randomise(pf.build_backbone("vit/nano", image_size=64), seed=1)
    parts = export_weights(source, "timm")
    larger = {f"student.{name}": tensor for name, tensor in parts.items() if not name.startswith("head")}
    larger |= {f"decoder.{n}": torch.zeros(2) for n in range(3)}
    with pytest.raises(
        ModelFileError, match=r"no known layout, but 30 names begin with student\.; give --prefix student\."
    ):
        pf.load_weights(backbone, larger)
    with pytest.raises(ModelFileError, match=r'no tensor begins with "teacher\."'):
        pf.load_weights(backbone, larger, prefix="teacher.")
    report = pf.load_weights(backbone, larger, prefix="student.")
    assert equal(backbone, source.backbone)
    assert [entry.name for entry in report.dropped] == ["decoder.0", "decoder.1", "decoder.2"]


@pytest.mark.parametrize("front", ["detector.backbone.", "a.b.c.", "backbone.0.body."])
def test_a_prefix_is_proposed_and_taken_from_the_settings(front):
    source, backbone = randomise(model()), randomise(pf.build_backbone("vit/nano", image_size=64), seed=1)
    parts = export_weights(source, "timm")
    inside = {front + name: tensor for name, tensor in parts.items() if not name.startswith("head")}
    larger = {**inside, "neck.0.weight": torch.zeros(2), "box.weight": torch.zeros(2)}
    before = kept(backbone)
    with pytest.raises(ModelFileError) as caught:
        pf.load_weights(backbone, larger)
    assert f"{len(inside)} names begin with {front}; give --prefix {front} " in str(caught.value)
    assert len(str(caught.value)) <= 300
    assert unchanged(backbone, before)
    report = pf.load_weights(backbone, larger, transfer=Transfer(prefix=front))
    assert (report.prefix, len(report.dropped)) == (front, 2)
    assert equal(backbone, source.backbone)
    both = {**larger, **{f"other.{name}": tensor for name, tensor in inside.items()}}  # two of them: both are named
    with pytest.raises(
        ModelFileError, match=rf"begin with {re.escape(front)}, .* begin with other\.{re.escape(front)};"
    ):
        pf.load_weights(backbone, both)


@pytest.mark.parametrize("heads", [("head.mlp.0.weight", "head.last_layer.weight_v"), ("dino_head.x", "ibot_head.y")])
@pytest.mark.parametrize("front", ["", "module."])
def test_a_teacher_of_dino_leaves_its_head_behind(heads, front):
    source, other = randomise(model()), randomise(model(), seed=1)
    parts = export_weights(source, "timm")
    teacher = {f"{front}backbone.{name}": tensor for name, tensor in parts.items() if not name.startswith("head")}
    teacher |= {front + name: torch.ones(3, 3) for name in heads}
    report = pf.load_weights(other, teacher)
    assert equal(source.backbone, other.backbone)
    assert {entry.name for entry in report.dropped} == set(heads)
    assert {entry.name for entry in report.of("new")} == {"head.classifier.weight", "head.classifier.bias"}


def test_the_nearest_layout_says_what_does_not_fit():
    published = export_weights(randomise(model()), "timm")
    published["blocks.0.attn.qkv.wieght"] = published.pop("blocks.0.attn.qkv.weight")
    with pytest.raises(ModelFileError, match=r"for timm, the nearest, 2 of .* not fit: blocks.0.attn.qkv.wieght"):
        pf.load_weights(model(), published)
    with pytest.raises(UsageError, match="no layout"):
        export_weights(model(), "tim")


def test_every_tensor_is_accounted_for():
    source = randomise(model())
    published = export_weights(source, "google")
    report = pf.load_weights(randomise(model(), seed=1), published)
    assert [name for entry in report.entries for name in entry.sources if name not in published] == []
    used = [name for entry in report.entries for name in entry.sources]
    assert sorted(used) == sorted(published)
    assert {entry.name for entry in report.entries} == set(source.state_dict())
    assert len(report.table().splitlines()) == len(report.entries)
    line = next(line for line in report.table().splitlines() if line.startswith("backbone.patches.proj.weight"))
    assert line.split() == ["backbone.patches.proj.weight", "converted", "embedding/kernel"]


def test_sizes_come_from_the_layers():
    built = model()
    assert sizes_of(built, "backbone.patches.proj.weight") == {"patch": 8, "channels": 3}
    assert sizes_of(built, "backbone.blocks.0.attention.qkv.weight") == {"heads": 3}
    assert "patchform" in layouts_of(built.backbone)
    assert isinstance(built, nn.Module)
