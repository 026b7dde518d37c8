"""Models of clips that start from weights of pictures: what they give before they have learnt."""

import pytest
import torch
from reference import randomise

import patchform as pf
from patchform import lookup
from patchform.errors import ModelFileError, UsageError
from patchform.loading import export_weights
from patchform.model import save
from patchform.records import Preprocessing
from patchform.settings import Transfer

NAMES = ("ant", "bee", "cat")
CENTRAL = Transfer(frames="central")
STARTED = [
    *("timesformer/nano", "timesformer/nano_joint", "timesformer/nano_space"),
    *("vivit/nano", "vivit/nano_fe", "vivit/nano_fsa", "vivit/nano_fdp"),
]


def model(backbone, classes=NAMES, size=32, channels=3, seed=1, **options):
    """A model with weights of its own, and the start that its constructor gives."""
    torch.manual_seed(seed)
    preprocessing = Preprocessing(size=(size, size), channels=channels, mean=(0.5,), std=(0.5,))
    return pf.build_model(
        "classification",
        backbone=backbone,
        head="linear",
        classes=classes,
        preprocessing=preprocessing,
        backbone_options=options,
    ).eval()


def of_pictures(summary="class", gelu="none"):
    return randomise(model("vit/nano", width=24, mlp_ratio=2, heads=4, gelu=gelu, summary=summary))


def of_clips(backbone, **options):
    return model(backbone, **({"heads": 4} | options))


def still(frames, size=(32, 32)):
    """(pictures, clips of nothing else)."""
    picture = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    return picture, picture[:, None].expand(-1, frames, -1, -1, -1)


@torch.no_grad()
def after(backbone, source, layout, tmp_path, *, gelu="none", transfer=CENTRAL, **options):
    """(features of pictures, features of still clips, report)."""
    extra = {"gelu": gelu} if backbone.startswith("vivit") else {}
    made = of_clips(backbone, **extra, **options)
    if layout == "patchform":
        save(source, tmp_path / "run")
        report = pf.load_weights(made, tmp_path / "run", transfer=transfer)
    else:
        report = pf.load_weights(made, export_weights(source, layout), transfer=transfer)
    assert report.layout == f"vit_{layout}"
    picture, clip = still(made.backbone.frames)
    return source.backbone(picture), made.backbone(clip), report


def close(one, other):
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("layout", ["patchform", "timm", "torchvision", "google", "transformers"])
@pytest.mark.parametrize("frames", ["central", "average"])
def test_a_factorised_encoder_sees_every_moment_as_the_image_model_did(layout, frames, tmp_path):
    image, clip, report = after("vivit/nano_fe", of_pictures(), layout, tmp_path, transfer=Transfer(frames=frames))
    close(clip.frames, image.summary[:, None].expand(-1, 2, -1))
    close(clip.tokens, image.tokens.repeat(1, 2, 1))
    close(clip.maps[0], image.maps[0])
    fresh = {entry.name for entry in report.of("new")}
    assert fresh
    assert all(name.startswith("backbone.temporal.") for name in fresh)
    notes = {entry.name: entry.note for entry in report.of("resized")}
    assert notes["backbone.patches.proj.weight"] == f"1 frame to 2, {frames}"


@pytest.mark.parametrize("layout", ["patchform", "timm"])
@pytest.mark.parametrize("scheme", ["nano", "nano_space"])
def test_a_timesformer_of_a_still_clip_is_the_image_model(layout, scheme, tmp_path):
    image, clip, _ = after(f"timesformer/{scheme}", of_pictures(), layout, tmp_path)
    close(clip.summary, image.summary)
    close(clip.tokens, image.tokens.repeat(1, 3, 1))
    close(clip.maps[0], image.maps[0])


@pytest.mark.parametrize("layout", ["patchform", "timm"])
def test_factorised_self_attention_starts_as_the_image_model_frame_by_frame(layout, tmp_path):
    image, clip, report = after("vivit/nano_fsa", of_pictures("mean"), layout, tmp_path)
    close(clip.summary, image.summary)
    close(clip.tokens, image.tokens.repeat(1, 2, 1))
    assert {entry.name.split(".")[3] for entry in report.of("new")} == {"temporal_norm", "temporal_attention"}


@pytest.mark.parametrize("backbone", ["vivit/nano", "vivit/nano_fdp", "vivit/nano_fsa"])
def test_embedded_moments_are_embedded_pictures(backbone, tmp_path):
    """Of all models: patches and positions; those without a class token leave out the one of the source."""
    source, made = of_pictures(), of_clips(backbone)
    report = pf.load_weights(made, export_weights(source, "timm"), transfer=CENTRAL)
    dropped = {entry.name for entry in report.dropped}
    assert dropped == (set() if backbone == "vivit/nano" else {"cls_token"})
    picture, clip = still(4)
    trained_backbone = made.backbone
    with torch.no_grad():
        cells = source.backbone.patches(picture)
        boxes = trained_backbone.patches(clip)
        close(boxes, cells[:, None].expand(-1, 2, -1, -1, -1))
        before, after = source.backbone.position.table, trained_backbone.position.table
        close(after[:, trained_backbone.prefix :], before[:, 1:].repeat(1, 2, 1))
        close(after[:, : trained_backbone.prefix], before[:, : trained_backbone.prefix])


@pytest.mark.parametrize("backbone", STARTED)
def test_control_other_weights_and_moving_clips_give_other_features(backbone, tmp_path):
    image, clip, _ = after(backbone, of_pictures(), "timm", tmp_path)
    untouched = of_clips(backbone).backbone
    _, shown = still(untouched.frames)
    with torch.no_grad():
        assert (untouched(shown).tokens - clip.tokens).abs().max() > 0.1
    assert image.summary.shape == clip.summary.shape


def test_attention_over_time_is_copied_in_timesformer():
    source, made = of_pictures(), of_clips("timesformer/nano")
    report = pf.load_weights(made, export_weights(source, "timm"))
    for block, image in zip(made.backbone.blocks, source.backbone.blocks, strict=True):
        assert torch.equal(block.temporal_attention.qkv.weight, image.attention.qkv.weight)
        assert torch.equal(block.temporal_norm.bias, image.norm1.bias)
        assert not block.temporal_proj.weight.any()
        assert block.temporal_attention.qkv.weight is not block.attention.qkv.weight
    assert {entry.name for entry in report.of("new")} == {
        "backbone.time",
        *(f"backbone.blocks.{b}.temporal_proj.{p}" for b in (0, 1) for p in ("weight", "bias")),
    }
    assert "matched, as backbone.blocks.{b}.attention.{l}.{p}: backbone.blocks.0.temporal_attention" in str(report)


def test_what_is_not_allowed_changes_nothing(tmp_path):
    source, made = of_pictures(), of_clips("vivit/nano_fe")
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    weights = export_weights(source, "timm")
    for spoil, options, said in (
        ({}, {}, "say how"),
        ({"blocks.0.ls1.gamma": torch.ones(24)}, {"transfer": CENTRAL}, "do not fit|no known layout"),
        ({"blocks.7.norm1.weight": torch.ones(24)}, {"transfer": CENTRAL}, "do not fit|no known layout"),
    ):
        with pytest.raises(ModelFileError, match=said):
            pf.load_weights(made, weights | spoil, **options)
    with pytest.raises(UsageError, match="no layout"):
        pf.load_weights(made, weights, layout="vit_tim")
    with pytest.raises(ModelFileError):  # other widths
        pf.load_weights(of_clips("vivit/nano_fe", width=48), weights, transfer=CENTRAL)
    without = export_weights(of_pictures("mean"), "timm")
    with pytest.raises(ModelFileError, match="cls_token"):
        pf.load_weights(made, without, transfer=CENTRAL)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def test_other_sizes_and_channels_at_once(tmp_path):
    source = of_pictures()
    save(source, tmp_path / "run")
    made = model("vivit/nano_fsa", size=48, channels=1, heads=4)
    ways = Transfer(frames="average", channels="average")
    report = pf.load_weights(made, tmp_path / "run", transfer=ways)
    notes = {entry.name: entry.note for entry in report.of("resized")}
    assert notes == {
        "backbone.patches.proj.weight": "1 frame to 2, average, 3 channels to 1, averaged",
        "backbone.position.table": "grid 4 x 4 to 6 x 6, 1 in time to 2",
    }


def test_a_backbone_under_another_head_leaves_the_head_fresh(tmp_path):
    options = {"width": 24, "mlp_ratio": 2, "heads": 4}
    source = pf.build_model(
        "semantic_segmentation",
        backbone="vit/nano",
        head="setr",
        classes=NAMES,
        preprocessing=Preprocessing(size=(32, 32), resize="squash"),
        backbone_options=options,
    )
    save(randomise(source), tmp_path / "run")
    made = of_clips("timesformer/nano_space")
    report = pf.load_weights(made, tmp_path / "run")
    assert {entry.name for entry in report.of("new")} == {"head.classifier.weight", "head.classifier.bias"}
    assert all(entry.name.startswith("head.") for entry in report.dropped)
    assert torch.equal(made.backbone.norm.weight, source.backbone.norm.weight)


def test_our_names_in_a_plain_file_are_of_pictures_where_it_is_said():
    source, made = of_pictures(), of_clips("timesformer/nano")
    with pytest.raises(ModelFileError):
        pf.load_weights(made, source.state_dict())
    report = pf.load_weights(made, source.state_dict(), layout="vit_patchform")
    assert len(report.of("new")) == 5


@pytest.mark.parametrize("backbone", STARTED)
def test_its_own_weights_are_not_taken_for_those_of_pictures(backbone, tmp_path):
    source, made = randomise(of_clips(backbone)), of_clips(backbone)
    save(source, tmp_path / "run")
    for weights in (tmp_path / "run", source.state_dict()):
        report = pf.load_weights(made, weights)
        assert report.layout == "patchform"
        assert not report.of("new")
        assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), source.state_dict().values()))


def test_starts_are_no_layouts_of_the_family():
    for family in ("timesformer", "vivit"):
        published = lookup.published(family)
        assert not set(published.init_layouts) & set(published.layouts)
        assert all(name.startswith("vit_") for name in published.init_layouts)
        with pytest.raises(UsageError, match="no layout"):
            export_weights(of_clips(f"{family}/nano"), "vit_timm")
