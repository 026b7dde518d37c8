"""Windows that a map does not fill, and which are displaced: each published rule against the code that has it."""

from types import SimpleNamespace

import pytest
import torch
from hierarchical import Logits
from reference import Classifier, load, randomise, rounding_of
from safetensors.torch import load_file
from torch import nn

import patchform as pf
from patchform import lookup, published_models
from patchform.backbones.swin import Swin, SwinV2
from patchform.backbones.twins import SVT
from patchform.errors import UsageError
from patchform.model import load as load_model
from patchform.model import save
from patchform.published import swin, twins

SIZES = [(224, 224), (256, 256), (320, 320), (512, 512), (224, 352)]
SMALL = {"width": 8, "depths": (2, 2, 2, 2), "heads": (1, 2, 2, 4)}
THEIRS = {"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4]}


def pictures(size, batch=1):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def error(theirs, ours, size):
    """The largest difference over ten times the rounding of their code."""
    images = pictures(size)
    allowed = 10 * rounding_of(theirs, images)
    return (theirs(images) - ours(images)).abs().max().item() / allowed


def filled(build, layout, weights, **options):
    model = Classifier(build(**SMALL, **options)).eval()
    load(model, layout, weights)
    return model


class Maps(nn.Module):
    """All maps of one of transformers' backbones as one tensor."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        return torch.cat([map_.flatten() for map_ in self.backbone(images).feature_maps])


class NormedMaps(nn.Module):
    """Ours, with the norms that transformers keeps in its backbone."""

    def __init__(self, backbone, norms):
        super().__init__()
        self.backbone, self.norms = backbone, norms

    def forward(self, images):
        maps = self.backbone(images).maps
        normed = (norm(map_.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, map_ in zip(self.norms, maps))
        return torch.cat([map_.flatten() for map_ in normed])


# -------------------------------------------------------------------------------------------------------- torchvision


@pytest.fixture(scope="module", params=["", "_v2"])
def torchvision_swin(request):
    torchvision = pytest.importorskip("torchvision")
    parts = torchvision.models.swin_transformer
    kinds = {"block": parts.SwinTransformerBlockV2, "downsample_layer": parts.PatchMergingV2} if request.param else {}
    theirs = torchvision.models.SwinTransformer(
        patch_size=[4, 4], window_size=[7, 7], num_classes=10, **THEIRS, **kinds
    ).eval()
    constants = {k: v.clone() for k, v in theirs.state_dict().items() if k.endswith(("_index", "_coords_table"))}
    randomise(theirs)
    theirs.load_state_dict({**theirs.state_dict(), **constants})
    build, layout = (SwinV2 if request.param else Swin), swin.LAYOUTS["torchvision" + request.param]

    def ours(rule):
        return filled(build, layout, theirs.state_dict(), image_size=224, window=7, windows=rule)

    return theirs, ours


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_torchvision(torchvision_swin, size):
    theirs, ours = torchvision_swin
    assert error(theirs, ours("zeros_axis"), size) <= 1
    assert (error(theirs, ours("masked"), size) > 1000) == (size != (224, 224))  # where windows divide every map


def test_torchvision_leaves_an_axis_of_one_window_where_it_is(torchvision_swin):
    """Six cells of seven in the last stage: one window that is not full."""
    theirs, ours = torchvision_swin
    assert error(theirs, ours("zeros_axis"), (192, 256)) <= 1
    assert error(theirs, ours("zeros"), (192, 256)) > 1000
    assert error(theirs, ours("zeros_map"), (192, 256)) > 1000


# -------------------------------------------------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def swin_backbone(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    stages = [f"stage{number}" for number in range(1, 5)]
    config = transformers.SwinConfig(image_size=224, window_size=7, out_features=stages, **THEIRS)
    theirs = randomise(transformers.SwinBackbone(config).eval())
    folder = tmp_path_factory.mktemp("swin")
    theirs.save_pretrained(folder)
    return theirs, load_file(folder / "model.safetensors"), [theirs.hidden_states_norms[name] for name in stages]


def dense(swin_backbone, rule):
    _, weights, norms = swin_backbone
    backbone = Swin(image_size=224, window=7, windows=rule, **SMALL).eval()
    return NormedMaps(backbone, norms), pf.load_weights(backbone, weights)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_transformers_backbone(swin_backbone, size):
    theirs = Maps(swin_backbone[0])
    assert error(theirs, dense(swin_backbone, "zeros")[0], size) <= 1
    assert error(theirs, dense(swin_backbone, "masked")[0], size) > 1000


def test_every_map_of_transformers_backbone_is_others_by_the_rule_of_torchvision(swin_backbone):
    """At 224 pixels one window covers the last map alone."""
    theirs, ours = Maps(swin_backbone[0]), dense(swin_backbone, "zeros_axis")[0]
    images = pictures((224, 224))
    with torch.no_grad():
        difference = (theirs(images) - ours(images)).abs()
    last = 32 * 2 * 7 * 7
    assert difference[:-last].max() < 1e-4 < 1e-2 < difference[-last:].max()


def test_the_report_says_with_what_a_layout_computes(swin_backbone):
    (remark,) = dense(swin_backbone, "masked")[1].remarks
    assert "transformers_dense computes with windows: zeros, this model with windows: masked" in remark
    assert remark in str(dense(swin_backbone, "masked")[1])
    assert dense(swin_backbone, "zeros")[1].remarks == ()


@pytest.mark.parametrize("size", [(224, 224), (256, 256), (224, 352)], ids=str)
def test_transformers_classifier(size, tmp_path):
    """Built anew for each size: once a window covered one of its maps, it never displaces that stage again."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(image_size=224, window_size=7, num_labels=10, **THEIRS)
    theirs = Logits(randomise(transformers.SwinForImageClassification(config).eval()))
    theirs.model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    ours = {
        rule: filled(Swin, swin.LAYOUTS["transformers"], weights, image_size=224, window=7, windows=rule)
        for rule in ("zeros_map", "zeros", "masked")
    }
    assert error(theirs, ours["zeros_map"], size) <= 1
    assert (error(theirs, ours["masked"], size) > 1000) == (size != (224, 224))
    assert (error(theirs, ours["zeros"], size) > 1000) == (size != (256, 256))  # no map that one window covers


@pytest.mark.parametrize("native", [(256, 128), (128, 256), (320, 320)], ids=str)
def test_transformers_version_2_asks_the_rows_of_its_native_maps(native, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Swinv2Config(image_size=list(native), window_size=8, num_labels=10, **THEIRS)
    theirs = Logits(randomise(transformers.Swinv2ForImageClassification(config).eval()))
    theirs.model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    options = {"image_size": native, "window": 8}
    ours = filled(SwinV2, swin.LAYOUTS["transformers_v2"], weights, windows="zeros_native", **options)
    other = filled(SwinV2, swin.LAYOUTS["transformers_v2"], weights, windows="zeros_axis", **options)
    for size in (native, (256, 256), (224, 352)):
        assert error(theirs, ours, size) <= 1
    assert error(theirs, other, (224, 352)) > 100


# ---------------------------------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize("version", ["", "V2"])
@pytest.mark.parametrize("native", [(224, 224), (128, 256), (320, 224)], ids=str)
def test_timm_at_any_size(version, native):
    timm = pytest.importorskip("timm")
    build = getattr(timm.models, f"SwinTransformer{version}")
    theirs = randomise(build(img_size=native, window_size=7, num_classes=10, strict_img_size=False, **THEIRS).eval())
    kind, weights = (SwinV2 if version else Swin), theirs.state_dict()
    ours = filled(kind, swin.LAYOUTS["timm"], weights, image_size=native, window=7, windows="zeros_rolled")
    for size in (native, (256, 256), (320, 320), (224, 352)):
        assert error(theirs, ours, size) <= 1
    if native == (224, 224):
        other = filled(kind, swin.LAYOUTS["timm"], weights, image_size=native, window=7, windows="zeros_axis")
        assert error(theirs, other, (256, 256)) > 100  # the order of rolling and filling
        assert error(theirs, other, (448, 448)) > 100  # what was covered at the native size is not displaced at any


@pytest.fixture(scope="module")
def timm_svt():
    timm = pytest.importorskip("timm")
    size = {"num_heads": (1, 2, 2, 4), "mlp_ratios": (2,) * 4, "depths": (2,) * 4, "sr_ratios": (8, 4, 2, 1)}
    build = timm.models.twins.Twins
    return randomise(build(embed_dims=(8, 16, 16, 32), wss=(7,) * 4, num_classes=10, img_size=224, **size).eval())


def svt(weights, rule):
    size = {"heads": (1, 2, 2, 4), "mlp_ratios": (2,) * 4, "depths": (2,) * 4, "reductions": (8, 4, 2, 1)}
    model = Classifier(SVT(widths=(8, 16, 16, 32), windows=rule, **size)).eval()
    load(model, twins.LAYOUTS["meituan"], weights)
    return model


@pytest.mark.parametrize("size", [(224, 224), (256, 256), (224, 352)], ids=str)
def test_timm_twins(timm_svt, size):
    assert error(timm_svt, svt(timm_svt.state_dict(), "zeros"), size) <= 1
    assert (error(timm_svt, svt(timm_svt.state_dict(), "masked"), size) > 1000) == (size != (224, 224))


@torch.no_grad()
def test_twins_of_segmenters_mask_only_where_windows_divide_neither_side(timm_svt):
    models = {rule: svt(timm_svt.state_dict(), rule) for rule in ("masked", "zeros", "zeros_half")}

    def out(size):
        return {rule: model(pictures(size)) for rule, model in models.items()}

    both, one = out((256, 256)), out((224, 256))  # maps of 64, 32, 16, 8 cells, and 56, 28, 14, 7
    torch.testing.assert_close(both["zeros_half"], both["masked"])
    torch.testing.assert_close(one["zeros_half"], one["zeros"])
    assert (both["zeros"] - both["masked"]).abs().max() > 1e-2 < (one["zeros"] - one["masked"]).abs().max()


# ------------------------------------------------------------------------------------------------------------ company


@pytest.mark.parametrize("rule", ["masked", "zeros"])
@torch.no_grad()
def test_a_picture_sees_in_a_batch_what_it_sees_alone(rule):
    """What fills its windows is its own, and nothing of the padding behind that."""
    backbone = randomise(Swin(image_size=128, window=4, windows=rule, width=8, depths=(2, 2), heads=(1, 2))).eval()
    alone, padded = pictures((72, 88)), torch.zeros(2, 3, 136, 120)
    padded[0, :, :72, :88], padded[1] = alone[0], pictures((136, 120))[0]
    padding = torch.zeros(2, 136, 120, dtype=torch.bool)
    padding[0, 72:], padding[0, :, 88:] = True, True
    for map_, own in zip(backbone(padded, padding=padding).maps, backbone(alone).maps):
        torch.testing.assert_close(map_[:1, :, : own.shape[2], : own.shape[3]], own)


@torch.no_grad()
def test_control_padding_that_is_seen_changes_a_picture():
    backbone = randomise(Swin(image_size=128, window=4, windows="zeros", width=8, depths=(2, 2), heads=(1, 2))).eval()
    alone, padded = pictures((72, 88)), torch.zeros(1, 3, 136, 120)
    padded[:, :, :72, :88] = alone
    for map_, own in zip(backbone(padded).maps, backbone(alone).maps):
        assert (map_[:, :, : own.shape[2], : own.shape[3]] - own).abs().max() > 1e-2


@pytest.mark.parametrize("build", [Swin, SwinV2])
@pytest.mark.parametrize("rule", ["zeros", "zeros_rolled"])
def test_training_is_finite_where_windows_see_zeros(build, rule):
    backbone = build(image_size=64, window=4, windows=rule, width=8, depths=(2, 2), heads=(1, 2))
    features = backbone(pictures((72, 88), 2))
    sum(map_.square().mean() for map_ in features.maps).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in backbone.parameters())


# ----------------------------------------------------------------------------------------------------- named and kept


def test_the_rule_is_kept_in_the_model_file(tmp_path):
    model = pf.build_model(
        "classification",
        backbone="swin/nano",
        head="linear",
        classes=["a"],
        backbone_options={"windows": "zeros"},
    ).eval()
    save(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.backbone.windows == "zeros"
    batch = pictures((44, 60))
    with torch.no_grad():
        assert torch.equal(model.backbone(batch).summary, again.backbone(batch).summary)
    plain = pf.build_backbone("swin/nano")
    (remark,) = pf.load_weights(plain, tmp_path / "model").remarks
    assert "computes with windows: zeros, this model with windows: masked" in remark


@pytest.mark.parametrize("family", ["swin", "twins"])
def test_every_published_layout_says_with_what_it_computes(family):
    published = lookup.published(family)
    assert published.computes.keys() == published.layouts.keys()
    build = {"swin": Swin, "twins": SVT}[family]
    for options in published.computes.values():
        lookup.check_options(build, options, of=family)
    with pytest.raises(UsageError, match="zeros"):
        lookup.check_options(build, {"windows": "zero"}, of=family)


@pytest.mark.parametrize(
    ("name", "rule"), [("swin/t.torchvision_v1", "zeros_axis"), ("swin/t.ms_in1k", "zeros_rolled")]
)
def test_published_weights_are_built_with_their_rule(monkeypatch, name, rule):
    """The file is not there: what is built is looked at."""
    report = SimpleNamespace(lines=tuple)
    monkeypatch.setattr(published_models, "load_weights", lambda model, source, transfer: report)
    monkeypatch.setattr(published_models, "locate", lambda source, say: source)
    with torch.device("meta"):
        model = published_models.pretrained(name)
    assert model.backbone.windows == model.architecture.backbone_options["windows"] == rule


@pytest.mark.parametrize("family", ["twins", "pvt", "volo", "hybrid"])
def test_layouts_of_code_that_leaves_cells_out_say_so(family):
    published = lookup.published(family)
    assert published.differs
    assert published.differs.keys() <= published.layouts.keys()
