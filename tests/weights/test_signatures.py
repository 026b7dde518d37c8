"""Weights of models that are not built here, or are another family, are called by their names, in a line."""

import pytest
import torch

import patchform as pf
from patchform import lookup
from patchform.errors import ModelFileError
from patchform.weights.signatures import SIGNATURES, known_as

PUBLISHED = {
    **{f"CLIP{part}": "CLIP" for part in ("VisionModel", "Model")},
    **{f"Siglip{part}": "SigLIP" for part in ("VisionModel", "Model")},
    **dict.fromkeys(("BeitModel", "Data2VecVisionModel"), "BEiT"),
    "DINOv3ViTModel": "DINOv3",
    "ConvNextModel": "ConvNeXt",
    "SamModel": "SAM",
    "DPTForDepthEstimation": "DPT",
    "SegformerModel": "SegFormer",
    "SegformerForSemanticSegmentation": "SegFormer",
    "YolosModel": "YOLOS",
    "BertModel": "language model",
}
OURS = ("ViTModel", "DeiTModel", "DeiTForImageClassification",
        "SwinModel", "Swinv2Model", "Dinov2Model", "Dinov2WithRegistersModel", "ViTMAEModel", "PvtModel",
        "PvtV2Model", "ResNetModel", "VivitModel", "TimesformerModel")  # fmt: skip
TIMM = {
    "vit_base_patch16_clip_224": "CLIP",
    "vit_base_patch16_siglip_224": "SigLIP",
    "eva02_base_patch14_224": "EVA-02",
    "eva02_tiny_patch14_224": "small EVA-02",
    "eva02_base_patch16_clip_224": "EVA-CLIP",
    "beit_base_patch16_224": "BEiT",
    "vit_small_patch16_dinov3": "DINOv3",
    "convnext_tiny": "ConvNeXt",
    "samvit_base_patch16": "SAM",
    "cait_xxs24_224": "CaiT",
    "efficientnet_b0": "EfficientNet",
}
BUILT = {
    "vit_small_patch16_dinov3": "dinov3",
    "vit_small_plus_patch16_dinov3_qkvb": "dinov3",
    "vit_base_patch16_clip_224": "clip",
    "vit_base_patch16_siglip_224": "siglip",
    "eva02_base_patch14_224": "eva02",
    "beitv2_base_patch16_224": "beit",
}
"""Of timm's, families that are built here, but not as ViT."""
TIMM_OURS = ("vit_base_patch16_224", "deit_base_distilled_patch16_224", "vit_giant_patch14_reg4_dinov2",
             "vit_base_patch14_reg4_dinov2", "deit3_base_patch16_224", "volo_d1_224",
             "swinv2_tiny_window8_256", "twins_svt_small", "pvt_v2_b1", "crossvit_15_240", "resnet50")  # fmt: skip


def of_transformers(kind):
    transformers = pytest.importorskip("transformers")
    family = kind
    for end in ("ForImageClassification", "ForDepthEstimation", "ForSemanticSegmentation", "Model"):
        family = family.removesuffix(end)
    with torch.device("meta"):
        return getattr(transformers, kind)(getattr(transformers, f"{family}Config")()).state_dict()


def of_timm(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        return timm.create_model(name).state_dict()


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.filterwarnings("ignore")
def test_models_of_transformers_are_known(kind):
    assert PUBLISHED[kind] in known_as(of_transformers(kind)).name


@pytest.mark.parametrize("name", TIMM)
def test_models_of_timm_are_known(name):
    assert TIMM[name] in known_as(of_timm(name)).name


@pytest.mark.filterwarnings("ignore")
def test_families_that_are_built_here_are_not_taken_for_others():
    for kind in OURS:
        assert known_as(of_transformers(kind)) is None, kind
    for name in TIMM_OURS:
        assert known_as(of_timm(name)) is None, name


def test_the_error_is_a_line_with_the_name():
    with torch.device("meta"):
        backbone = pf.build_backbone("vit/nano")
    for front in ("", "module.", "model."):
        names = [f"{front}blocks.{n}.norm1.weight" for n in range(40)] + [
            f"{front}blocks_token_only.0.norm1.weight",
        ]
        with pytest.raises(ModelFileError, match="weights of CaiT, which is not built here") as caught:
            pf.load_weights(backbone, dict.fromkeys(names, torch.ones(1)))
        assert len(str(caught.value)) <= 300
    assert all(signature.name and signature.forms for signature in SIGNATURES)
    assert {signature.family for signature in SIGNATURES} <= {"", *lookup.names("backbones")}


@pytest.mark.parametrize(("name", "family"), BUILT.items())
def test_of_another_family_it_is_said_which(name, family):
    source = of_timm(name)
    with torch.device("meta"):
        backbone, other = (pf.build_backbone(f"{one}/nano") for one in ("vit", family))
    with pytest.raises(ModelFileError, match="these are weights of") as caught:
        pf.load_weights(backbone, source)
    assert f'name a backbone of it: `patchform models "{family}/*"`' in str(caught.value)
    assert "not built here" not in str(caught.value)
    with pytest.raises(ModelFileError) as caught:  # of its own family what does not fit is said
        pf.load_weights(other, source)
    assert "these are weights of" not in str(caught.value)
